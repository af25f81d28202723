package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

type conf struct {
	addr    string
	tls     []*tls.Config // one for each client identity
	keep    bool
	timeout time.Duration
}

type worker struct {
	c        *conf
	identity int
	conn     *tls.Conn
	br       *bufio.Reader
	conns    *int64
	hs       *int64 // handshake ns
}

func (w *worker) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

// be makes the worker the client that sends the CSR with this index.
func (w *worker) be(index int) {
	if identity := index % len(w.c.tls); identity != w.identity {
		w.close()
		w.identity = identity
	}
}

func (w *worker) dial() error {
	d := net.Dialer{Timeout: w.c.timeout}
	t0 := time.Now()
	raw, err := d.Dial("tcp", w.c.addr)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	tc := tls.Client(raw, w.c.tls[w.identity])
	ctx, cancel := context.WithTimeout(context.Background(), w.c.timeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		raw.Close()
		return fmt.Errorf("tls: %w", err)
	}
	atomic.AddInt64(w.conns, 1)
	atomic.AddInt64(w.hs, int64(time.Since(t0)))
	w.conn = tc
	w.br = bufio.NewReaderSize(tc, 4096)
	return nil
}

// one does one request; a server may have closed an idle connection, so that is tried once more.
func (w *worker) one(req []byte) (body []byte, status int, err error) {
	reused := w.conn != nil
	for {
		if w.conn == nil {
			if err = w.dial(); err != nil {
				return
			}
		}
		body, status, err = w.exchange(req)
		if err == nil || !reused {
			return
		}
		reused = false
	}
}

func (w *worker) exchange(req []byte) ([]byte, int, error) {
	w.conn.SetDeadline(time.Now().Add(w.c.timeout))
	if _, err := w.conn.Write(req); err != nil {
		w.close()
		return nil, 0, fmt.Errorf("write: %w", err)
	}
	resp, err := http.ReadResponse(w.br, nil)
	if err != nil {
		w.close()
		return nil, 0, fmt.Errorf("read: %w", err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !w.c.keep || resp.Close || err != nil {
		w.close()
	}
	if err != nil {
		return nil, resp.StatusCode, fmt.Errorf("body: %w", err)
	}
	return body, resp.StatusCode, nil
}

// verifier checks a server's chain once for each distinct leaf; later handshakes compare the leaf
// (CertificateVerify is still checked by crypto/tls), so that the client stays light.
func verifier(sni string, pool *x509.CertPool) func([][]byte, [][]*x509.Certificate) error {
	var known sync.Map
	return func(raw [][]byte, _ [][]*x509.Certificate) error {
		if len(raw) == 0 {
			return errors.New("no certificate")
		}
		if _, ok := known.Load(string(raw[0])); ok {
			return nil
		}
		leaf, err := x509.ParseCertificate(raw[0])
		if err != nil {
			return err
		}
		intermediates := x509.NewCertPool()
		for _, r := range raw[1:] {
			if c, err := x509.ParseCertificate(r); err == nil {
				intermediates.AddCert(c)
			}
		}
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: sni, Roots: pool, Intermediates: intermediates}); err != nil {
			return err
		}
		known.Store(string(raw[0]), true)
		return nil
	}
}

// identities returns client certificates from files of gencsr -keys and run -save, line by line.
func identities(certs, keys string) []tls.Certificate {
	privates := readDER(keys)
	var found []tls.Certificate
	for i, der := range readDER(certs) {
		key, err := x509.ParsePKCS8PrivateKey(privates[i])
		if err != nil {
			die("%s: %v", keys, err)
		}
		found = append(found, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	}
	return found
}
