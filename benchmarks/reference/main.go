// reference - the smallest EST server that answers simpleenroll: Go's TLS and HTTP, a CA key in
// memory, nothing stored, nothing audited, nobody authorized. Only for ratios in the same minute.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"io"
	"math/big"
	"net/http"
	"os"
	"strconv"
	"time"
)

func fail(err error) {
	if err != nil {
		os.Stderr.WriteString("reference: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func wrap(tag byte, parts ...[]byte) []byte {
	out, err := asn1.Marshal(asn1.RawValue{Tag: int(tag & 0x1f), Class: int(tag >> 6), IsCompound: tag&0x20 != 0, Bytes: bytes.Join(parts, nil)})
	fail(err)
	return out
}

var (
	signedData = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02}
	data       = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01}
)

func certsOnly(der []byte) []byte {
	sd := wrap(0x30, []byte{2, 1, 1}, wrap(0x31), wrap(0x30, data), wrap(0xa0, der), wrap(0x31))
	return wrap(0x30, signedData, wrap(0xa0, sd))
}

func main() {
	addr := flag.String("addr", "127.0.0.1:9443", "listen address")
	cert := flag.String("cert", "", "server certificate chain, PEM")
	key := flag.String("key", "", "server key, PEM")
	roots := flag.String("ca", "", "trust anchors of clients, PEM")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	fail(err)
	pool := x509.NewCertPool()
	octets, err := os.ReadFile(*roots)
	fail(err)
	for block, rest := pem.Decode(octets); block != nil; block, rest = pem.Decode(rest) {
		one, err := x509.ParseCertificate(block.Bytes)
		fail(err)
		pool.AddCert(one)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Mock CA"}, NotBefore: time.Now(), NotAfter: time.Now().AddDate(10, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1, 2, 3, 4}}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	fail(err)
	caCert, err := x509.ParseCertificate(caDER)
	fail(err)
	http.HandleFunc("/.well-known/est/simpleenroll", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 65536))
		if err != nil || len(r.TLS.VerifiedChains) == 0 {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		der, err := base64.StdEncoding.DecodeString(string(bytes.ReplaceAll(body, []byte("\n"), nil)))
		if err != nil {
			http.Error(w, "not base64", http.StatusBadRequest)
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil {
			http.Error(w, "not a CSR", http.StatusBadRequest)
			return
		}
		serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 136))
		template := &x509.Certificate{SerialNumber: serial, Subject: csr.Subject, NotBefore: time.Now(), NotAfter: time.Now().AddDate(0, 1, 0), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		issued, err := x509.CreateCertificate(rand.Reader, template, caCert, csr.PublicKey, caKey)
		if err != nil {
			http.Error(w, "cannot sign", http.StatusInternalServerError)
			return
		}
		answer := base64.StdEncoding.EncodeToString(certsOnly(issued)) + "\n"
		w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
		w.Header().Set("Content-Transfer-Encoding", "base64")
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		io.WriteString(w, answer)
	})
	server := &http.Server{Addr: *addr, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"}}}
	fail(server.ListenAndServeTLS("", ""))
}
