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
	"testing/iotest"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/mailgw/mailgw/backends"
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
		{"v2, a unix socket", "\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd8/client" + strings.Repeat("\x00", 216-len("/client")),
			`PROXY  "" invalid AddrPort   to invalid AddrPort; user  by ; SMTP client; from invalid IP`},
		{"v2, the proxy itself", v2(proxyproto.Header{Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}), `nobody; user  by ; SMTP client; from 127.0.0.1`},
		{"none", "", refused},
		{"v1, malformed", "PROXY TCP4 192.0.2.1\r\n", refused},
		{"v1, no end", "PROXY TCP4 " + strings.Repeat("1", 200), refused},
		{"v2, too long", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + strings.Repeat("x", 100), refused},
		{"v2, too long for its extensions", v2(proxied, proxyproto.TLV{Type: 0xe0, Value: make([]byte, 4096)}), refused},
		{"v2, extension cut off", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0f" + strings.Repeat("x", 12) + "\xe0\x00\x01", refused},
		{"v2, of no family", "\r\n\r\n\x00\r\nQUIT\n\x21\x00\x00\x00", refused},
		{"v3", "\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c" + strings.Repeat("x", 12), refused},
		{"a handshake of TLS", "\x16\x03\x01\x02\x00\x01", refused},
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

// A network may cut a header anywhere. What follows it is still there.
func TestProxyHeaderInPieces(t *testing.T) {
	for _, header := range []string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n",
		"PROXY UNKNOWN " + strings.Repeat("x", 91) + "\r\n", // the longest one
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0f\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\x00\x00\x19\xe0\x00\x00",
		"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x10\x00" + strings.Repeat("x", 4096), // as long as the library takes
	} {
		r := bufio.NewReader(iotest.OneByteReader(strings.NewReader(header + "HELO client\r\n")))
		if _, err := readProxy(r); err != nil {
			t.Errorf("%.40q: %v", header, err)
		}
		if rest, err := io.ReadAll(r); string(rest) != "HELO client\r\n" || err != nil {
			t.Errorf("%.40q: then %q, %v", header, rest, err)
		}
		for n := range len(header) {
			if _, err := readProxy(bufio.NewReader(strings.NewReader(header[:n]))); err == nil {
				t.Errorf("%.40q: the first %d octets are taken for all", header, n)
			}
		}
	}
}

// A header has to come soon, and to its end; until then nothing is said.
func TestProxyHeaderIncomplete(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n[listener.limits]\ncommand_timeout = '100ms'\n")
	serve(t, s)
	for _, part := range []string{"", "PROXY", "PROXY TCP4 192.0.2.1 ", "\r\n\r\n", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00"} {
		slow, gone := dial(t, s), dial(t, s)
		io.WriteString(slow, part)
		io.WriteString(gone, part)
		gone.Conn.(*net.TCPConn).CloseWrite()
		for _, c := range []client{slow, gone} {
			if all, err := io.ReadAll(c); len(all) > 0 || err != nil {
				t.Errorf("after %q: got %q, %v", part, all, err)
			}
		}
	}
}

// A shutdown is not told to those who have not sent their header.
func TestProxyShutdown(t *testing.T) {
	s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n")
	serve(t, s)
	c := dial(t, s)
	io.WriteString(c, "PROXY TCP4 192.0.2.1 ")
	waitForSessions(t, s.listeners[0], 1, 0)
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if all, _ := io.ReadAll(c); len(all) > 0 {
		t.Errorf("got %q", all)
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
		"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00":     "550 5.7.0 insufficient authorization", // LOCAL
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
	waitForSessions(t, s.listeners[0], 1, 1)
	if _, got := greeting("192.0.2.1"); got != welcome {
		t.Errorf("after the first has gone: %q", got)
	}
}

// The header comes before TLS, and what follows it at once is not lost.
func TestProxyBeforeTLS(t *testing.T) {
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n"
	ca := newIssuer(t)
	certificate := ca.file(t, t.TempDir(), "mx.example.org")
	for _, mode := range []string{"implicit", "starttls"} {
		s := testServer(t, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n[listener.tls]\nmode = '"+mode+"'\ncertificates = ['"+
			certificate+"']\n[listener.routes]\n'*' = ['client']\n")
		serve(t, s)
		c := dial(t, s)
		var secure *tls.Conn
		if mode == "implicit" {
			secure = tls.Client(&withHeader{Conn: c.Conn, header: []byte(header)}, ca.client("mx.example.org"))
			c = client{secure, bufio.NewReader(secure)}
			c.hear(t)
		} else {
			io.WriteString(c, header)
			c.hear(t)
			c.ask(t, "EHLO client", "STARTTLS")
			secure = tls.Client(c.Conn, ca.client("mx.example.org"))
			c = client{secure, bufio.NewReader(secure)}
		}
		if got := c.ask(t, "EHLO client", "MAIL FROM:<>", "RCPT TO:<a@example.org>", "DATA", "."); got !=
			`250 2.0.0 PROXY  "" 192.0.2.1:1024   to 192.0.2.2:25; user  by ; ESMTPS client; from 192.0.2.1 (ID)` {
			t.Errorf("%s: got %q", mode, got)
		}
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

// memorySocket is a connection to a client that has said all it will say.
type memorySocket struct {
	net.Conn // is nil
	in       io.Reader
	out      bytes.Buffer
}

func (m *memorySocket) Read(p []byte) (int, error)       { return m.in.Read(p) }
func (m *memorySocket) Write(p []byte) (int, error)      { return m.out.Write(p) }
func (m *memorySocket) Close() error                     { return nil }
func (m *memorySocket) SetDeadline(time.Time) error      { return nil }
func (m *memorySocket) SetReadDeadline(time.Time) error  { return nil }
func (m *memorySocket) SetWriteDeadline(time.Time) error { return nil }

// Without a header nothing is said. With one the session goes on as it does
// without a proxy. No header is as long as the client likes.
func FuzzProxy(f *testing.F) {
	const session = "EHLO client\r\nMAIL FROM:<>\r\nRCPT TO:<a@example.org>\r\nDATA\r\n.\r\nQUIT\r\n"
	for _, header := range []string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 1024 25\r\n",
		"PROXY UNKNOWN\r\n",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\x00\x00\x19",
		"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
		"",
	} {
		f.Add([]byte(header + session))
	}
	plain := testServer(f, testBackends, "protocol = 'smtp'\n")
	proxied := testServer(f, testBackends, "protocol = 'smtp'\nproxy = ['127.0.0.1']\n")
	talk := func(t *testing.T, s *Server, said []byte) string {
		l, m := s.listeners[0], &memorySocket{in: bytes.NewReader(said)}
		if err := l.admit(); err != nil {
			t.Fatal(err)
		}
		c := newConn(l.dialog(backends.Peer{}, "test"), m)
		c.serve(t.Context())
		l.leave(c.counted)
		return masked(m.out.String())
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		in := bytes.NewReader(said)
		r := bufio.NewReader(in)
		_, err := readProxy(r)
		used := len(said) - in.Len() - r.Buffered()
		want := ""
		if err == nil {
			want = talk(t, plain, said[used:])
		}
		if used > 16+4096 {
			t.Errorf("a header of %d octets", used)
		}
		if got := talk(t, proxied, said); got != want {
			t.Errorf("header %q, %v: got %q, want %q", said[:used], err, got, want)
		}
	})
}
