package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"
)

// checked is what the responses were worth.
type checked struct {
	latencies    []time.Duration
	errors       map[string]int
	total, reuse int
	certificates map[int][]byte
}

func (l *load) check(results [][]result) checked {
	c := checked{errors: map[string]int{}, certificates: map[int][]byte{}}
	serials, used := map[string]bool{}, map[int]bool{}
	for _, rr := range results {
		for _, r := range rr {
			c.total++
			if r.idx < 0 {
				c.errors[r.err]++
				continue
			}
			if l.maker.enrolls() && used[r.idx] {
				c.reuse++
			}
			used[r.idx] = true
			if *l.verify && *l.expect == 200 {
				issued, problem := l.certificate(r)
				if problem == "" && serials[issued.SerialNumber.String()] {
					problem = "verify: serial repeated"
				}
				if problem != "" {
					c.errors[problem]++
					continue
				}
				serials[issued.SerialNumber.String()] = true
				c.certificates[r.idx] = issued.Raw
			}
			c.latencies = append(c.latencies, r.lat)
		}
	}
	sort.Slice(c.latencies, func(i, j int) bool { return c.latencies[i] < c.latencies[j] })
	return c
}

// certificate returns the one with the CSR's key.
func (l *load) certificate(r result) (*x509.Certificate, string) {
	found, err := certificates(*l.maker.api, r.body)
	if err != nil || len(found) == 0 {
		return nil, fmt.Sprintf("verify: %v certs=%d", err, len(found))
	}
	csr, err := x509.ParseCertificateRequest(l.ders[r.idx])
	if err != nil {
		die("csr: %v", err)
	}
	for _, c := range found {
		if bytes.Equal(c.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
			return c, ""
		}
	}
	return nil, "verify: certificate has another key"
}

func (c checked) percentile(p float64) float64 {
	if len(c.latencies) == 0 {
		return 0
	}
	i := int(p*float64(len(c.latencies))+0.5) - 1
	i = min(max(i, 0), len(c.latencies)-1)
	return float64(c.latencies[i].Microseconds()) / 1000
}

func (c checked) mean() float64 {
	var sum time.Duration
	for _, one := range c.latencies {
		sum += one
	}
	return float64(sum.Microseconds()) / float64(max(len(c.latencies), 1)) / 1000
}

func round(f, d float64) float64 { return float64(int64(f*d+0.5)) / d }

func (l *load) report(results [][]result, seconds, cpu float64) {
	c := l.check(results)
	good, bad := len(c.latencies), 0
	for _, v := range c.errors {
		bad += v
	}
	connect := float64(l.handshakes) / float64(max(l.conns, 1)) / 1e6
	if *l.json {
		out, _ := json.Marshal(map[string]any{
			"api": *l.maker.api, "op": *l.maker.op, "mode": *l.mode, "c": *l.conc, "tls": l.negotiated,
			"requests": c.total, "warmup": *l.warm, "ok": good, "errors": bad, "error_kinds": c.errors,
			"seconds": round(seconds, 1000), "per_s": round(float64(good)/seconds, 10),
			"ms_mean": round(c.mean(), 1000), "ms_p50": c.percentile(.50), "ms_p90": c.percentile(.90),
			"ms_p99": c.percentile(.99), "ms_p999": c.percentile(.999), "ms_max": c.percentile(1),
			"tls_conns": l.conns, "ms_connect_mean": round(connect, 1000), "csrs_reused": c.reuse,
			"client_cpu_s": round(cpu, 1000),
		})
		fmt.Println(string(out))
	} else {
		fmt.Printf("%s %s mode=%s c=%d %s\n", *l.maker.api, *l.maker.op, *l.mode, *l.conc, l.negotiated)
		fmt.Printf("  %d ok, %d errors in %.2fs = %.1f/s; ms p50 %.2f p90 %.2f p99 %.2f max %.2f mean %.2f; %d TLS conns, mean connect %.2f ms; csrs reused %d; client CPU %.2fs\n",
			good, bad, seconds, float64(good)/seconds, c.percentile(.5), c.percentile(.9), c.percentile(.99), c.percentile(1), c.mean(), l.conns, connect, c.reuse, cpu)
		for k, v := range c.errors {
			fmt.Printf("  error: %d x %s\n", v, k)
		}
	}
	if *l.save != "" {
		l.saveCertificates(c)
	}
	if bad > 0 {
		os.Exit(1)
	}
}

func (l *load) saveCertificates(c checked) {
	lines := make([]string, 0, len(c.certificates))
	for x := range l.reqs {
		if der, ok := c.certificates[x]; ok {
			lines = append(lines, base64.StdEncoding.EncodeToString(der))
		}
	}
	writeLines(*l.save, lines)
}
