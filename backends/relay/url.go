package relay

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// A server is what a URL of targets says of where and how to speak to it.
type server struct {
	url              string // as in the settings
	network, address string // "tcp" and HOST:PORT, or "unix" and a path or @NAME
	host             string // of TCP, which its certificate is for
	lmtp             bool
	tls              tlsMode
}

type tlsMode int

const (
	inClear     tlsMode = iota
	startTLS            // RFC 3207; without it nothing is sent
	implicitTLS         // RFC 8314, section 3
)

// A scheme is what the first part of a URL stands for.
type scheme struct {
	port string // by default; empty: a unix socket
	lmtp bool
	tls  tlsMode
}

var schemes = map[string]scheme{
	"smtp":          {port: "25"},
	"smtp+starttls": {port: "587", tls: startTLS},
	"smtps":         {port: "465", tls: implicitTLS},
	"lmtp":          {port: "24", lmtp: true},
	"lmtp+unix":     {lmtp: true},
	"smtp+unix":     {},
}

var errScheme = errors.New("want smtp://HOST:PORT, smtp+starttls://HOST:PORT, smtps://HOST:PORT, lmtp://HOST:PORT, lmtp+unix:PATH or smtp+unix:PATH")

// parseURL reads a URL of targets.
func parseURL(text string) (server, error) {
	u, err := url.Parse(text)
	if err != nil && !strings.Contains(text, "://") {
		return server{}, errScheme
	}
	if err != nil {
		return server{}, errors.Unwrap(err) // it repeats the text
	}
	sch, ok := schemes[u.Scheme]
	switch {
	case !ok:
		return server{}, errScheme
	case u.User != nil:
		return server{}, errors.New("a user and a password belong in credentials_file")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return server{}, errors.New("nothing may follow the address")
	}
	s := server{url: text, lmtp: sch.lmtp, tls: sch.tls}
	if sch.port == "" {
		s.network, s.address, err = "unix", socketPath(u), nil
		if s.address == "" || s.address == "@" || u.Host != "" {
			err = fmt.Errorf("want %s:///PATH, or %[1]s:@NAME", u.Scheme)
		}
		return s, err
	}
	s.network, s.host = "tcp", u.Hostname()
	port := u.Port()
	switch {
	case u.Opaque != "" || s.host == "":
		return server{}, fmt.Errorf("want %s://HOST:PORT", u.Scheme)
	case u.Path != "" && u.Path != "/":
		return server{}, errors.New("nothing may follow the port")
	case port == "":
		port = sch.port
	}
	s.address = net.JoinHostPort(s.host, port)
	if _, err := net.LookupPort("tcp", port); err != nil {
		return server{}, fmt.Errorf("no port: %s", port)
	}
	return s, nil
}

// redacted returns a URL, which may have faults, without the user and the password
// that somebody has put into it in spite of all: the fault goes to a log.
func redacted(text string) string {
	scheme, rest, _ := strings.Cut(text, "://")
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		return scheme + "://***" + rest[at:]
	}
	return text
}

// socketPath returns the path of a unix socket, which may be relative to the
// directory of gateway.toml, or the @NAME of one that is in no directory.
func socketPath(u *url.URL) string {
	if u.Opaque != "" {
		return u.Opaque
	}
	return u.Path
}

// private reports whether nobody on the way can read what is said to s.
func (s server) private() bool {
	ip := net.ParseIP(s.host)
	return s.tls != inClear || s.network == "unix" || strings.EqualFold(s.host, "localhost") || ip != nil && ip.IsLoopback()
}
