package main

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"os"
	"strconv"
	"strings"
	"time"
)

// maker turns a CSR into a whole HTTP request; everything is made before the clock starts.
type maker struct {
	api, prefix, label, op, host, user, pass *string
	provisioner, kid, jwk, token             *string
	oneline                                  *bool
	close                                    bool
	signer                                   *ecdsa.PrivateKey
}

func requestFlags(fs *flag.FlagSet) *maker {
	return &maker{
		api:         fs.String("api", "est", "est, step-ca (POST /1.0/sign with a one-time token) or openbao (POST to -path with a token)"),
		prefix:      fs.String("path", "/.well-known/est", "path prefix of EST; path of the sign endpoint of OpenBao"),
		label:       fs.String("label", "", "EST label (additional path segment)"),
		op:          fs.String("op", "simpleenroll", "simpleenroll, simplereenroll, cacerts, csrattrs, serverkeygen"),
		user:        fs.String("user", "", "HTTP basic user"),
		pass:        fs.String("pass", "", "HTTP basic password"),
		provisioner: fs.String("provisioner", "", "step-ca: name of the JWK provisioner"),
		kid:         fs.String("kid", "", "step-ca: key id of the provisioner's key"),
		jwk:         fs.String("jwk", "", "step-ca: PEM file of the provisioner's P-256 key"),
		token:       fs.String("token", "", "OpenBao: file with the token"),
		oneline:     fs.Bool("oneline", false, "EST: base64 in one line (default 64 columns, LF)"),
	}
}

func (m *maker) enrolls() bool {
	return *m.api != "est" || *m.op == "simpleenroll" || *m.op == "simplereenroll" || *m.op == "serverkeygen"
}

func (m *maker) prepare(sni string, close bool) {
	m.host, m.close = &sni, close
	switch *m.api {
	case "est":
	case "step-ca":
		block, _ := pem.Decode(readFile(*m.jwk))
		if block == nil {
			die("-jwk: no PEM")
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			die("-jwk: %v", err)
		}
		m.signer = key.(*ecdsa.PrivateKey)
	case "openbao":
		*m.token = strings.TrimSpace(string(readFile(*m.token)))
	default:
		die("-api est, step-ca or openbao")
	}
}

func (m *maker) get() []byte {
	return m.request("GET", m.estPath(), "Accept: */*\r\n", "")
}

func (m *maker) post(der []byte) []byte {
	switch *m.api {
	case "step-ca":
		body := marshal(map[string]string{"csr": csrPEM(der), "ott": m.oneTimeToken(commonName(der))})
		return m.request("POST", "/1.0/sign", "Content-Type: application/json\r\n", body)
	case "openbao":
		body := marshal(map[string]string{"csr": csrPEM(der), "common_name": commonName(der), "format": "pem"})
		return m.request("POST", *m.prefix, "Content-Type: application/json\r\nX-Vault-Token: "+*m.token+"\r\n", body)
	}
	headers := "Content-Type: application/pkcs10\r\nContent-Transfer-Encoding: base64\r\n"
	return m.request("POST", m.estPath(), headers, m.base64(der))
}

func (m *maker) estPath() string {
	if *m.label != "" {
		return *m.prefix + "/" + *m.label + "/" + *m.op
	}
	return *m.prefix + "/" + *m.op
}

func (m *maker) base64(der []byte) string {
	line := base64.StdEncoding.EncodeToString(der)
	if *m.oneline {
		return line
	}
	var b strings.Builder
	for len(line) > 64 {
		b.WriteString(line[:64] + "\n")
		line = line[64:]
	}
	b.WriteString(line + "\n")
	return b.String()
}

func (m *maker) request(method, path, headers, body string) []byte {
	var b strings.Builder
	b.WriteString(method + " " + path + " HTTP/1.1\r\nHost: " + *m.host + "\r\nUser-Agent: est-loadgen\r\n")
	if *m.user != "" {
		b.WriteString("Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(*m.user+":"+*m.pass)) + "\r\n")
	}
	if m.close {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString(headers)
	if method == "POST" {
		b.WriteString("Content-Length: " + strconv.Itoa(len(body)) + "\r\n")
	}
	b.WriteString("\r\n" + body)
	return []byte(b.String())
}

// oneTimeToken signs the JWT by which a JWK provisioner of step-ca authorizes one certificate.
func (m *maker) oneTimeToken(name string) string {
	now := time.Now().Unix()
	id := make([]byte, 16)
	rand.Read(id)
	head := marshal(map[string]string{"alg": "ES256", "typ": "JWT", "kid": *m.kid})
	claims := marshal(map[string]any{
		"iss": *m.provisioner, "aud": "https://" + *m.host + "/1.0/sign", "sub": name, "sans": []string{name},
		"iat": now, "nbf": now, "exp": now + 3600, "jti": base64.RawURLEncoding.EncodeToString(id),
	})
	signed := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, m.signer, digest[:])
	if err != nil {
		die("%v", err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func csrPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func commonName(der []byte) string {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		die("csr: %v", err)
	}
	return csr.Subject.CommonName
}

func marshal(value any) string {
	octets, err := json.Marshal(value)
	if err != nil {
		die("%v", err)
	}
	return string(octets)
}

func readFile(path string) []byte {
	octets, err := os.ReadFile(path)
	if err != nil {
		die("%v", err)
	}
	return octets
}
