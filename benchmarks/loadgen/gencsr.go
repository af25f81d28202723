package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
)

var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

func gencsr(args []string) {
	fs := flag.NewFlagSet("gencsr", flag.ExitOnError)
	n := fs.Int("n", 10000, "how many distinct keys and CSRs")
	out := fs.String("out", "csrs.txt", "output file: one base64 DER PKCS#10 a line")
	keys := fs.String("keys", "", "output file for the private keys: one base64 DER PKCS#8 a line")
	kt := fs.String("keytype", "p256", "p256, p384 or rsa2048")
	prefix := fs.String("prefix", "dev-", "common names are this and a number")
	san := fs.Bool("san", false, "add SAN dNSName <cn>.example")
	like := fs.String("like", "", "file of certificates, one base64 DER a line: copy subject and SAN of each in turn, for simplereenroll")
	fs.Parse(args)
	var models []*x509.Certificate
	if *like != "" {
		models = readCertificates(*like)
	}
	csrs := make([]string, *n)
	privates := make([]string, *n)
	var wg sync.WaitGroup
	var next int64 = -1
	for w := 0; w < runtime.NumCPU(); w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := int(atomic.AddInt64(&next, 1))
				if i >= *n {
					return
				}
				key := newKey(*kt)
				der, err := x509.CreateCertificateRequest(rand.Reader, template(i, *prefix, *san, models), key)
				if err != nil {
					die("%v", err)
				}
				csrs[i] = base64.StdEncoding.EncodeToString(der)
				if *keys != "" {
					private, err := x509.MarshalPKCS8PrivateKey(key)
					if err != nil {
						die("%v", err)
					}
					privates[i] = base64.StdEncoding.EncodeToString(private)
				}
			}
		}()
	}
	wg.Wait()
	writeLines(*out, csrs)
	if *keys != "" {
		writeLines(*keys, privates)
	}
	fmt.Printf("%d CSRs in %s\n", *n, *out)
}

func newKey(kind string) crypto.Signer {
	var key crypto.Signer
	var err error
	switch kind {
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		die("unknown keytype")
	}
	if err != nil {
		die("%v", err)
	}
	return key
}

func template(i int, prefix string, san bool, models []*x509.Certificate) *x509.CertificateRequest {
	if models == nil {
		name := fmt.Sprintf("%s%08d", prefix, i)
		t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
		if san {
			t.DNSNames = []string{name + ".example"}
		}
		return t
	}
	model := models[i%len(models)]
	t := &x509.CertificateRequest{RawSubject: model.RawSubject}
	for _, e := range model.Extensions {
		if e.Id.Equal(subjectAltName) {
			t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: e.Id, Critical: e.Critical, Value: e.Value})
		}
	}
	return t
}

// readDER returns the lines of a file of base64 DER.
func readDER(path string) [][]byte {
	octets, err := os.ReadFile(path)
	if err != nil {
		die("%v", err)
	}
	var found [][]byte
	for _, line := range strings.Fields(string(octets)) {
		der, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			die("%s: %v", path, err)
		}
		found = append(found, der)
	}
	return found
}

func readCertificates(path string) []*x509.Certificate {
	var found []*x509.Certificate
	for _, der := range readDER(path) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			die("%s: %v", path, err)
		}
		found = append(found, c)
	}
	return found
}

func writeLines(path string, lines []string) {
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0600); err != nil {
		die("%v", err)
	}
}
