package gateway

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// Each header of the PROXY protocol, followed at once by the client's words.
func TestProxy(t *testing.T) {
	tcp := func(s string) *net.TCPAddr { a, _ := net.ResolveTCPAddr("tcp", s); return a }
	v2 := func(h proxyproto.Header, tlvs ...proxyproto.TLV) string {
		h.Version = 2
		if err := h.SetTLVs(tlvs); err != nil {
			t.Fatal(err)
		}
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	proxied := proxyproto.Header{Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv6, SourceAddr: tcp("[2001:db8::1]:1024"), DestinationAddr: tcp("[2001:db8::2]:25")}
	const refused = ""
	for _, test := range []struct{ name, header, want string }{
		{"v1", "PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n", `PROXY  "" 192.0.2.1:1024   to 192.0.2.2:25; user  by ; SMTP client; from 192.0.2.1`},
		{"v1, IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 1024 25\r\n", `PROXY  "" [2001:db8::1]:1024   to [2001:db8::2]:25; user  by ; SMTP client; from 2001:db8::1`},
		{"v1, unknown", "PROXY UNKNOWN\r\n", `PROXY  "" invalid AddrPort   to invalid AddrPort; user  by ; SMTP client; from invalid IP`},
		{"v2", v2(proxied), `PROXY  "" [2001:db8::1]:1024   to [2001:db8::2]:25; user  by ; SMTP client; from 2001:db8::1`},
		{"v2, extensions", v2(proxied, proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte("mx.example")}, proxyproto.TLV{Type: 0xe0, Value: []byte{0}}),
			`PROXY  "" [2001:db8::1]:1024   to [2001:db8::2]:25 0x2="mx.example" 0xe0="\x00"; user  by ; SMTP client; from 2001:db8::1`},
		{"v2, the proxy itself", v2(proxyproto.Header{Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}), `nobody; user  by ; SMTP client; from 127.0.0.1`},
		{"none", "", refused},
		{"v1, malformed", "PROXY TCP4 192.0.2.1\r\n", refused},
		{"v1, no end", "PROXY TCP4 " + strings.Repeat("1", 200), refused},
		{"v2, too long", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + strings.Repeat("x", 100), refused},
		{"v2, datagrams", "\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c" + strings.Repeat("x", 12), refused},
	} {
		s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n[listener.routes]\n'*' = ['client']\n")
		serve(t, s)
		c := dial(t, s)
		io.WriteString(c, test.header+"HELO client\r\nMAIL FROM:<>\r\nRCPT TO:<a@example.org>\r\nDATA\r\n.\r\nQUIT\r\n")
		c.Conn.(*net.TCPConn).CloseWrite()
		all, _ := io.ReadAll(c) // what is left unread makes it a reset
		want := ""
		if test.want != refused {
			want = "220 mx.example.org ESMTP mailgw\r\n250 mx.example.org\r\n250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n" +
				"354 end the message with CRLF.CRLF\r\n250 2.0.0 " + test.want + " (ID)\r\n221 2.0.0 mx.example.org good bye\r\n"
		}
		if got := masked(string(all)); got != want {
			t.Errorf("%s: got %q, want %q", test.name, got, want)
		}
	}
}

// A header of version 2 may come in pieces, but it has to come.
func TestProxyHeaderInPieces(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n[listener.routes]\n'*' = ['client']\n")
	serve(t, s)
	h := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 25})
	header, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	cut := dial(t, s)
	cut.Write(header[:20])
	cut.Conn.(*net.TCPConn).CloseWrite()
	if all, err := io.ReadAll(cut); len(all) > 0 || err != nil {
		t.Errorf("a part of a header: got %q, %v", all, err)
	}
	c := dial(t, s)
	for _, octet := range header {
		if _, err := c.Write([]byte{octet}); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.hear(t); got != "220 mx.example.org ESMTP mailgw" {
		t.Errorf("got %q", got)
	}
}

// Whoever is not trusted hears nothing, whatever it says; and nobody is
// trusted because its proxy is.
func TestProxyTrust(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['192.0.2.1']\n")
	serve(t, s)
	c := dial(t, s)
	io.WriteString(c, "PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\nHELO client\r\n")
	if all, _ := io.ReadAll(c); len(all) > 0 {
		t.Errorf("an untrusted peer hears %q", all)
	}

	socket := filepath.Join(t.TempDir(), "socket")
	s = testServer(t, testBackends, fmt.Sprintf("protocol = 'smtp'\naddress = 'unix:%s'\nproxy = ['uid:%d']\nxforward = ['unix', '192.0.2.1']\nxclient = ['unix']\n", socket, os.Getuid()))
	serve(t, s)
	for header, want := range map[string]string{
		"PROXY TCP4 192.0.2.2 192.0.2.3 1024 25\r\n": "550 5.7.0 insufficient authorization",
		"PROXY TCP4 192.0.2.1 192.0.2.3 1024 25\r\n": "250 2.0.0 ok",
		"PROXY UNKNOWN\r\n":                          "550 5.7.0 insufficient authorization",
		"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00":     "250 2.0.0 ok", // LOCAL
	} {
		c := dial(t, s)
		io.WriteString(c, header)
		c.hear(t)
		if got := c.ask(t, "XFORWARD NAME=a.example"); got != want {
			t.Errorf("%q: got %q, want %q", header, got, want)
		}
	}
}

// The limit per peer counts the clients that proxies tell of.
func TestProxyCountsClients(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n[listener.limits]\nconnections_per_peer = 1\n")
	serve(t, s)
	greeting := func(addr string) (client, string) {
		c := dial(t, s)
		io.WriteString(c, "PROXY TCP4 "+addr+" 192.0.2.9 1024 25\r\n")
		return c, c.hear(t)
	}
	const welcome, tooMany = "220 mx.example.org ESMTP mailgw", "421 4.7.0 mx.example.org too many connections, try again later"
	first, got := greeting("192.0.2.1")
	if got != welcome {
		t.Errorf("the first: %q", got)
	}
	if _, got := greeting("192.0.2.1"); got != tooMany {
		t.Errorf("the second of the same client: %q", got)
	}
	if _, got := greeting("192.0.2.2"); got != welcome {
		t.Errorf("another client: %q", got)
	}
	first.ask(t, "QUIT")
	io.ReadAll(first) // until the session has ended
	if _, got := greeting("192.0.2.1"); got != welcome && got != tooMany {
		t.Errorf("after the first has gone: %q", got)
	}
}

// The header comes before TLS, and what follows it at once is not lost.
func TestProxyBeforeTLS(t *testing.T) {
	ca := newIssuer(t)
	s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n[listener.tls]\nmode = 'implicit'\ncertificates = ['"+
		ca.file(t, t.TempDir(), "mx.example.org")+"']\n[listener.routes]\n'*' = ['client']\n")
	serve(t, s)
	c := dial(t, s)
	secure := tls.Client(&withHeader{Conn: c.Conn, header: []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n")}, ca.client("mx.example.org"))
	c = client{secure, bufio.NewReader(secure)}
	c.hear(t)
	if got := c.ask(t, "EHLO client", "MAIL FROM:<>", "RCPT TO:<a@example.org>", "DATA", "."); got !=
		`250 2.0.0 PROXY  "" 192.0.2.1:1024   to 192.0.2.2:25; user  by ; ESMTPS client; from 192.0.2.1 (ID)` {
		t.Errorf("got %q", got)
	}
}

// withHeader sends a header together with what is written first.
type withHeader struct {
	net.Conn
	header []byte
}

func (w *withHeader) Write(p []byte) (int, error) {
	n := len(w.header)
	written, err := w.Conn.Write(append(w.header, p...))
	w.header = nil
	return written - n, err
}

// No header makes the gateway panic, and none is as long as the client likes.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\nHELO client\r\n"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\x00\x00\x19"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, said []byte) {
		r := bytes.NewReader(said)
		in := bufio.NewReaderSize(r, 4096)
		client, err := readProxy(in)
		if err != nil {
			return
		}
		if used := len(said) - r.Len() - in.Buffered(); used > 16+4096 {
			t.Errorf("a header of %d octets is taken", used)
		}
		if client != nil && client.Source != "PROXY" {
			t.Errorf("got %+v", client)
		}
	})
}
