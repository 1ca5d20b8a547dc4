package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync/atomic"
	"time"
)

// A hook is an HTTP server that is asked.
type hook struct {
	url       *url.URL
	bearer    string // empty: none
	redirects int
	own       *http.Transport // to the host and port of url
	beyond    *http.Transport // to others, where redirects lead
}

const (
	maxAnswer       = 1 << 20  // octets
	maxAnswerHeader = 64 << 10 // octets

	// Connections are kept for the next message, but for less time than any
	// server keeps them (Gunicorn has 2 s, Node 5 s): a request on one that the
	// server is about to close fails, and is not repeated.
	idleTimeout    = time.Second
	maxConnections = 16 // that are idle
)

func newHook(u *url.URL, s Settings, allowed []netip.Prefix, config *tls.Config, bearer string) *hook {
	mayDial, mayFollow := func(netip.Addr) bool { return true }, isPublic
	if len(allowed) > 0 {
		mayDial = func(a netip.Addr) bool {
			return slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		mayFollow = mayDial
	}
	strangers := &tls.Config{RootCAs: config.RootCAs} // who are shown no certificate
	return &hook{
		url: u, bearer: bearer, redirects: s.Redirects,
		own:    newTransport(s, config, mayDial),
		beyond: newTransport(s, strangers, mayFollow),
	}
}

func newTransport(s Settings, config *tls.Config, mayDial func(netip.Addr) bool) *http.Transport {
	dial := (&net.Dialer{Timeout: s.Timeout, Control: control(mayDial)}).DialContext
	if s.Socket != "" {
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.Socket)
		}
	}
	// No Proxy, and no HTTP/2, since there is a dial of our own.
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    s.Timeout,
		DisableCompression:     true, // the answer is as large as it is
		MaxIdleConns:           maxConnections,
		MaxIdleConnsPerHost:    maxConnections,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

// String returns the URL without its path, which may have a secret in it.
func (h *hook) String() string { return origin(h.url) }

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// post posts a form and returns the answer in JSON. whole reports whether all of
// the form had been sent by then.
func (h *hook) post(ctx context.Context, f *form) (answer []byte, whole bool, err error) {
	u := h.url
	for followed := 0; ; followed++ {
		body := &body{Reader: f.body()}
		response, err := h.postTo(ctx, u, f, body)
		if err != nil {
			return nil, false, err
		}
		if s := response.StatusCode; s != http.StatusTemporaryRedirect && s != http.StatusPermanentRedirect {
			answer, err := read(response)
			return answer, body.sent.Load() == f.size(), err
		}
		response.Body.Close()
		if followed == h.redirects {
			return nil, false, fmt.Errorf("answered %s, and redirects is %d", response.Status, h.redirects)
		}
		if u, err = target(u, response.Header.Get("Location")); err != nil {
			return nil, false, fmt.Errorf("answered %s %w", response.Status, err)
		}
	}
}

// postTo sends one request. It is never repeated, although it has an
// Idempotency-Key: it has no GetBody, so that net/http cannot.
func (h *hook) postTo(ctx context.Context, u *url.URL, f *form, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), body)
	if err != nil {
		return nil, err
	}
	r.ContentLength = f.size()
	r.Header.Set("Content-Type", f.contentType)
	r.Header.Set("User-Agent", "mailgw")
	r.Header.Set("Idempotency-Key", f.key)
	if f.signature != "" {
		r.Header.Set("Mailgw-Signature", f.signature)
	}
	if hostAndPort(u) != hostAndPort(h.url) {
		return h.beyond.RoundTrip(r)
	}
	if h.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+h.bearer)
	}
	return h.own.RoundTrip(r)
}

// A body counts what of it was taken to be sent.
type body struct {
	io.Reader
	sent atomic.Int64
}

func (b *body) Read(p []byte) (n int, err error) {
	n, err = b.Reader.Read(p)
	b.sent.Add(int64(n))
	return n, err
}

func hostAndPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// target returns where a redirect from u leads.
func target(u *url.URL, location string) (*url.URL, error) {
	if location == "" {
		return nil, errors.New("without a Location")
	}
	next, err := u.Parse(location)
	if err != nil {
		return nil, errors.New("with a Location that is no URL")
	}
	if next, err = parseURL(next.String()); err != nil {
		return nil, fmt.Errorf("with a Location that %w", err)
	}
	if u.Scheme == "https" && next.Scheme == "http" {
		return nil, fmt.Errorf("with a Location that leads from https to %s", origin(next))
	}
	return next, nil
}

// read returns the answer that came with a response.
func read(response *http.Response) ([]byte, error) {
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNoContent:
		return []byte("{}"), nil
	default:
		return nil, fmt.Errorf("answered %s, want 200 or 204", response.Status)
	}
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("answer: %w", err)
	case len(answer) > maxAnswer:
		return nil, fmt.Errorf("answer of more than %d octets", maxAnswer)
	}
	return answer, nil
}
