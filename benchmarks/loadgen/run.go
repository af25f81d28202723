package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type result struct {
	lat  time.Duration
	idx  int // CSR index, -1 for error
	body []byte
	err  string
}

// load is one run: its options and what they made.
type load struct {
	addr, sni, ca, cert, key, csrs, mode  *string
	idCerts, idKeys, version, curve, save *string
	insecure, resume, verify, json        *bool
	start, conc, n, warm, expect, procs   *int
	duration, timeout                     *time.Duration
	rate                                  *float64
	maker                                 *maker
	conf                                  *conf
	ders                                  [][]byte
	reqs                                  [][]byte
	conns, handshakes                     int64
	negotiated                            string
	presented                             atomic.Bool // the server asked for the client certificate
}

func flags(args []string) *load {
	fs := flag.NewFlagSet("run", flag.ExitOnError)
	l := &load{
		addr:     fs.String("addr", "127.0.0.1:8443", "host:port to connect to (loopback only)"),
		sni:      fs.String("sni", "localhost", "server name checked in the certificate and sent as SNI and Host"),
		ca:       fs.String("ca", "", "PEM file of trust anchors for the server certificate"),
		insecure: fs.Bool("insecure", false, "do not check the server certificate"),
		cert:     fs.String("cert", "", "client certificate PEM (chain)"),
		key:      fs.String("key", "", "client key PEM"),
		idCerts:  fs.String("id-certs", "", "file of client certificates (run -save): CSR number i is sent by client i modulo their number"),
		idKeys:   fs.String("id-keys", "", "file of their keys (gencsr -keys)"),
		csrs:     fs.String("csrs", "", "file made by gencsr"),
		start:    fs.Int("start", 0, "first CSR to use"),
		mode:     fs.String("mode", "new", "new (a TLS connection for each request) or keepalive"),
		conc:     fs.Int("c", 1, "concurrent workers"),
		n:        fs.Int("n", 0, "stop after that many requests (0: use -d)"),
		duration: fs.Duration("d", 0, "stop after that long (CSRs are reused from the start if they run out, and that is reported)"),
		warm:     fs.Int("warmup", 20, "requests before the clock starts"),
		rate:     fs.Float64("rate", 0, "open loop: that many requests/s are due; latency counts from the due time"),
		timeout:  fs.Duration("timeout", 30*time.Second, "per request"),
		version:  fs.String("tls", "", "force 1.2 or 1.3 (default: best)"),
		curve:    fs.String("curve", "p256", "key exchange group offered: p256, x25519, p384, any"),
		resume:   fs.Bool("resume", false, "allow TLS session resumption in mode new"),
		verify:   fs.Bool("verify", true, "after the run, check each response: it parses, the certificate has the CSR's key, serials distinct"),
		expect:   fs.Int("expect", 200, "expected HTTP status"),
		json:     fs.Bool("json", false, "one JSON object on stdout in place of text"),
		save:     fs.String("save", "", "write the certificates here, one base64 DER a line in the order of the CSRs"),
		procs:    fs.Int("procs", 0, "GOMAXPROCS of the load generator (0: all)"),
		maker:    requestFlags(fs),
	}
	fs.Parse(args)
	host, _, err := net.SplitHostPort(*l.addr)
	if err != nil {
		die("-addr: %v", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		die("-addr must be loopback")
	}
	if *l.mode != "new" && *l.mode != "keepalive" {
		die("-mode new or keepalive")
	}
	if *l.n == 0 && *l.duration == 0 {
		*l.n = 1000
	}
	if *l.procs > 0 {
		runtime.GOMAXPROCS(*l.procs)
	}
	return l
}

// prepareRequests makes the requests that the run can send, and no others.
func (l *load) prepareRequests() {
	l.maker.prepare(*l.sni, *l.mode == "new")
	if !l.maker.enrolls() {
		l.reqs, *l.verify = [][]byte{l.maker.get()}, false
		return
	}
	l.ders = readDER(*l.csrs)
	l.reqs = make([][]byte, len(l.ders))
	count := len(l.ders)
	if *l.n > 0 && *l.n+*l.warm < count {
		count = *l.n + *l.warm
	}
	for i := 0; i < count; i++ {
		x := (*l.start + i) % len(l.ders)
		l.reqs[x] = l.maker.post(l.ders[x])
	}
	if *l.maker.op == "serverkeygen" {
		*l.verify = false
	}
}

func (l *load) prepareTLS() {
	pool := x509.NewCertPool()
	if *l.ca != "" {
		if !pool.AppendCertsFromPEM(readFile(*l.ca)) {
			die("-ca: no certificate")
		}
	} else if !*l.insecure {
		die("-ca or -insecure")
	}
	tc := &tls.Config{ServerName: *l.sni, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	if !*l.insecure {
		tc.VerifyPeerCertificate = verifier(*l.sni, pool)
	}
	switch *l.version {
	case "1.2":
		tc.MaxVersion = tls.VersionTLS12
	case "1.3":
		tc.MinVersion = tls.VersionTLS13
	}
	switch *l.curve {
	case "p256":
		tc.CurvePreferences = []tls.CurveID{tls.CurveP256}
	case "x25519":
		tc.CurvePreferences = []tls.CurveID{tls.X25519}
	case "p384":
		tc.CurvePreferences = []tls.CurveID{tls.CurveP384}
	}
	if *l.resume {
		tc.ClientSessionCache = tls.NewLRUClientSessionCache(1024)
	}
	l.conf = &conf{addr: *l.addr, keep: *l.mode == "keepalive", timeout: *l.timeout}
	var clients []tls.Certificate
	if *l.idCerts != "" {
		clients = identities(*l.idCerts, *l.idKeys)
	} else if *l.cert != "" {
		c, err := tls.LoadX509KeyPair(*l.cert, *l.key)
		if err != nil {
			die("-cert/-key: %v", err)
		}
		clients = []tls.Certificate{c}
	}
	for i := range clients {
		own := tc.Clone()
		own.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			l.presented.Store(true)
			return &clients[i], nil
		}
		l.conf.tls = append(l.conf.tls, own)
	}
	if clients == nil {
		l.conf.tls = []*tls.Config{tc}
	}
}

func (l *load) worker() *worker {
	return &worker{c: l.conf, conns: &l.conns, hs: &l.handshakes}
}

// warmUp sends the first requests one after another and learns what TLS negotiates.
func (l *load) warmUp() {
	w := l.worker()
	w.be(*l.start)
	if err := w.dial(); err != nil {
		die("first connection: %v", err)
	}
	state := w.conn.ConnectionState()
	l.negotiated = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	if l.presented.Load() {
		l.negotiated += ", client certificate"
	}
	for i := 0; i < *l.warm; i++ {
		if !l.conf.keep {
			w.close()
		}
		x := (*l.start + i) % len(l.reqs)
		w.be(x)
		body, code, err := w.one(l.reqs[x])
		if err != nil {
			die("warm-up: %v", err)
		}
		if code != *l.expect {
			die("warm-up: HTTP %d %.300s", code, body)
		}
	}
	w.close()
}

// index returns which CSR the k-th request sends. Where clients have certificates of their own,
// a worker stays one client as long as there are no more clients than workers.
func (l *load) index(k int64) int {
	return (*l.start + *l.warm + int(k)) % len(l.reqs)
}

func (l *load) send(i int, w *worker, issued *int64, t0 time.Time) []result {
	var found []result
	own := int64(i)
	for {
		k := own
		if len(l.conf.tls) == 1 {
			k = atomic.AddInt64(issued, 1)
		}
		own += int64(*l.conc)
		if (*l.n > 0 && k >= int64(*l.n)) || (*l.duration > 0 && time.Since(t0) >= *l.duration) {
			break
		}
		from := time.Now()
		if *l.rate > 0 {
			due := t0.Add(time.Duration(float64(k) / *l.rate * 1e9))
			if *l.duration > 0 && due.Sub(t0) >= *l.duration {
				break
			}
			time.Sleep(time.Until(due))
			from = due
		}
		x := l.index(k)
		w.be(x)
		body, code, err := w.one(l.reqs[x])
		r := result{lat: time.Since(from), idx: x, body: body}
		if err != nil {
			r.idx, r.err = -1, withoutPorts(err.Error())
		} else if code != *l.expect {
			r.idx, r.err = -1, fmt.Sprintf("HTTP %d", code)
		}
		found = append(found, r)
	}
	w.close()
	return found
}

func withoutPorts(text string) string {
	if strings.Index(text, "->") > 0 {
		return text[:strings.Index(text, ":")] + ":" + text[strings.LastIndex(text, ":")+1:]
	}
	return text
}

func clientCPU() float64 {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return float64(ru.Utime.Sec+ru.Stime.Sec) + float64(ru.Utime.Usec+ru.Stime.Usec)/1e6
}

func run(args []string) {
	l := flags(args)
	l.prepareRequests()
	l.prepareTLS()
	l.warmUp()
	workers := make([]*worker, *l.conc)
	for i := range workers {
		workers[i] = l.worker()
		workers[i].be(l.index(int64(i)))
		if l.conf.keep { // connections are up before the clock starts
			if err := workers[i].dial(); err != nil {
				fmt.Fprintf(os.Stderr, "loadgen: pre-connect %d: %v\n", i, err)
			}
		}
	}
	atomic.StoreInt64(&l.conns, 0)
	atomic.StoreInt64(&l.handshakes, 0)
	results := make([][]result, *l.conc)
	var issued int64 = -1
	var wg sync.WaitGroup
	c0, t0 := clientCPU(), time.Now()
	for i, w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			results[i] = l.send(i, w, &issued, t0)
		}()
	}
	wg.Wait()
	l.report(results, time.Since(t0).Seconds(), clientCPU()-c0)
}
