package main

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
)

// PKCS#7 certs-only (RFC 7030 section 4.2.3).
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,tag:0"`
}

type signedData struct {
	Version int
	Digests asn1.RawValue
	Encap   asn1.RawValue
	Certs   asn1.RawValue `asn1:"optional,tag:0"`
	CRLs    asn1.RawValue `asn1:"optional,tag:1"`
	Signers asn1.RawValue
}

// certificates reads an answer of any of the APIs.
func certificates(api string, body []byte) ([]*x509.Certificate, error) {
	switch api {
	case "step-ca":
		var answer struct {
			Crt string `json:"crt"`
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			return nil, err
		}
		return fromPEM(answer.Crt)
	case "openbao":
		var answer struct {
			Data struct {
				Certificate string `json:"certificate"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			return nil, err
		}
		return fromPEM(answer.Data.Certificate)
	}
	return certsOnly(body)
}

func fromPEM(text string) ([]*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificates(block.Bytes)
}

func certsOnly(body []byte) ([]*x509.Certificate, error) {
	clean := bytes.Map(func(r rune) rune {
		if r == '\r' || r == '\n' || r == ' ' {
			return -1
		}
		return r
	}, body)
	der, err := base64.StdEncoding.DecodeString(string(clean))
	if err != nil {
		return nil, fmt.Errorf("base64: %v", err)
	}
	var c contentInfo
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		return nil, err
	}
	var s signedData
	if _, err := asn1.Unmarshal(c.Content.Bytes, &s); err != nil {
		if _, err2 := asn1.Unmarshal(c.Content.FullBytes, &s); err2 != nil {
			return nil, err
		}
	}
	return x509.ParseCertificates(s.Certs.Bytes)
}
