package abuse

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// withTLS returns a table of a listener that has a certificate, the one that
// httptest has.
func withTLS(t *testing.T, mode string) string {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	certificate := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	path := filepath.Join(t.TempDir(), "certificate.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("[listener.tls]\nmode = %q\ncertificates = [%q]", mode, path)
}

// It is not who the server is that is tested here.
var clientTLS = &tls.Config{InsecureSkipVerify: true}

// secure does the handshake of a client, which reads what comes in the clear
// first.
func (c *client) secure() *client {
	c.t.Helper()
	if n := c.r.Buffered(); n > 0 {
		in, _ := c.r.Peek(n)
		c.t.Fatalf("got %q in the clear", in)
	}
	s := tls.Client(c.Conn, clientTLS)
	if err := s.HandshakeContext(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	return &client{s, c.t, bufio.NewReader(s)}
}

// clientHello returns how a handshake begins.
func clientHello(t *testing.T) string {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go tls.Client(theirs, clientTLS).HandshakeContext(t.Context())
	hello := make([]byte, 1<<14)
	n, err := ours.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return string(hello[:n])
}

// What is said in the clear behind STARTTLS is not there, as soon as TLS is.
func TestNothingIsInjectedBeforeTLS(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested, listener("starttls", `chunking = true`, `xforward = ["127.0.0.0/8"]`, withTLS(t, "starttls")))
	whole := envelope("injected") + "DATA\r\nSubject: injected\r\n\r\n.\r\n"
	for _, test := range []struct{ injected, heard string }{
		{"STARTTLS\r\n", "220"},
		{"STARTTLS\r\nNOOP\r\n", "220"},
		{"STARTTLS\r\nRSET\r\nEHLO injected\r\n", "220"},
		{"STARTTLS\r\nEHLO injected\r\n" + envelope("injected"), "220"},
		{"STARTTLS\r\nEHLO injected\r\n" + whole, "220"},
		{"STARTTLS\r\n" + whole + "QUIT\r\n", "220"},
		{"STARTTLS\r\nXFORWARD NAME=injected ADDR=10.0.0.1\r\n", "220"},
		{"STARTTLS\r\nSTARTTLS\r\n", "220"},
		{"STARTTLS\r\nQUIT\r\n", "220"},
		{"STARTTLS\r\nBDAT 100 LAST\r\n", "220"},
		{"STARTTLS\r\n\r\n", "220"},
		{"STARTTLS\r\n\n", "220"},
		{"STARTTLS\r\nE", "220"},               // half a command
		{"STARTTLS\r\nEHLO injected\r", "220"}, // most of one
		{"STARTTLS\r\n" + strings.Repeat("NOOP\r\n", 500), "220"},
		{"NOOP\r\nSTARTTLS\r\n" + whole, "250 220"},
		{"EHLO first\r\n" + envelope("injected") + "STARTTLS\r\nDATA\r\ninjected\r\n.\r\n", "250 250 250 220"},
		{"EHLO first\r\n" + envelope("injected") + "BDAT 8\r\ninjectedSTARTTLS\r\nBDAT 0 LAST\r\n", "250 250 250 250 220"},
		{"STARTTLS injected\r\nSTARTTLS\r\n" + whole, "501 220"},
		{"STARTTLS\n" + "STARTTLS\r\n" + whole, "500 220"},
	} {
		c := dial(t, "tcp", g.Address("starttls"))
		c.expect("220")
		c.send(test.injected)
		c.expect(test.heard)
		secure := c.secure()
		secure.send(envelope("injected") + "BDAT 8 LAST\r\ninjectedNOOP\r\nEHLO client.peers.example\r\nQUIT\r\n")
		if got, err := secure.rest(); err != nil || codes(got) != "503 503 503 250 250 221" {
			t.Errorf("%.60q: got in TLS %q, %v", test.injected, got, err)
		}
		secure.Close()
	}
	checkMail(t, g, "injected")
	if n := received(t, g); n != 0 {
		t.Errorf("%d transactions, want none", n)
	}
}

// What is said in the clear in or after a handshake ends the session, and is
// answered by no word in the clear.
func TestNothingIsInjectedIntoTLS(t *testing.T) {
	t.Parallel()
	g := start(t, gatewaytest.AsTested,
		listener("starttls", withTLS(t, "starttls")),
		listener("implicit", withTLS(t, "implicit")))
	hello := clientHello(t)
	whole := "EHLO injected\r\n" + envelope("injected") + "DATA\r\nSubject: injected\r\n\r\n.\r\nQUIT\r\n"
	for _, said := range []string{
		whole,
		"\r\n",
		hello[:1] + whole,
		hello[:5] + whole,
		hello[:len(hello)/2] + whole + strings.Repeat("x", len(hello)),
		hello + whole,
		hello + hello,
		strings.Repeat(whole, 1000),
	} {
		for _, to := range []string{"starttls", "implicit"} {
			c := dial(t, "tcp", g.Address(to))
			if to == "starttls" {
				c.expect("220")
				c.send("STARTTLS\r\n")
				c.expect("220")
			}
			io.WriteString(c, said) // which it may end in mid-word
			c.closeWrite()
			if got, _ := c.rest(); strings.Contains(got, "mailgw") || strings.Contains(got, "gw.peers.example") {
				t.Errorf("%s: %.60q got %q", to, said, got)
			}
		}
	}

	for _, to := range []string{"starttls", "implicit"} {
		c := dial(t, "tcp", g.Address(to))
		var secure *client
		if to == "starttls" {
			c.expect("220")
			c.send("STARTTLS\r\n")
			c.expect("220")
			secure = c.secure()
		} else {
			secure = c.secure()
			secure.expect("220")
		}
		secure.send("EHLO client.peers.example\r\n" + envelope("injected"))
		secure.expect("250 250 250")
		c.send("DATA\r\nSubject: injected\r\n\r\n.\r\nQUIT\r\n")
		if got, err := secure.rest(); got != "" || err == nil {
			t.Errorf("%s: got %q, %v, want the alert of TLS", to, got, err)
		}
	}
	checkMail(t, g, "injected")
	if n := received(t, g); n != 0 {
		t.Errorf("%d transactions, want none", n)
	}
}
