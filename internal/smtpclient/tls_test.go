package smtpclient

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

// certificates returns the TLS configurations of a server, which is
// example.com, and of a client that trusts it.
func certificates(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return &tls.Config{Certificates: s.TLS.Certificates}, &tls.Config{RootCAs: roots, ServerName: "example.com"}
}

// starttls is a server that begins TLS after a first part and goes on.
func starttls(config *tls.Config, first, then script) func(net.Conn) error {
	return func(conn net.Conn) error {
		defer conn.Close()
		if err := first.say(conn, bufio.NewReader(conn)); err != nil {
			return err
		}
		secure := tls.Server(conn, config)
		if err := secure.Handshake(); err != nil {
			io.Copy(io.Discard, conn)
			return nil // the client tells
		}
		return then.play(secure)
	}
}

var beforeTLS = script{server: strings.Split("S: 220 mx|C: EHLO me|S: 250-mx|S: 250-SIZE 1|S: 250 STARTTLS|C: STARTTLS|S: 220 go", "|")}

// What was said before is forgotten, and a password may go out.
func TestStartTLS(t *testing.T) {
	server, client := certificates(t)
	then := script{server: []string{"C: EHLO me", "S: 250-mx", "S: 250 AUTH PLAIN", "C: AUTH PLAIN AHVzZXIAc2VjcmV0", "S: 235 ok", "C: QUIT", "S: 221 bye"}}
	c := New(serve(t, starttls(server, beforeTLS, then)), Settings{Name: "me"})
	ctx := t.Context()
	if err := c.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	if c.TLS() != nil {
		t.Error("TLS before STARTTLS")
	}
	if err := c.StartTLS(ctx, client); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Extension("SIZE"); ok || c.TLS() == nil {
		t.Errorf("SIZE %v, TLS %v after STARTTLS", ok, c.TLS())
	}
	if err := c.Auth(ctx, Credentials{User: "user", Password: "secret"}); err != nil {
		t.Error(err)
	}
	if err := c.Quit(ctx); err != nil {
		t.Error(err)
	}
}

// Whatever is not the server that was asked for gets nothing.
func TestStartTLSRefuses(t *testing.T) {
	server, client := certificates(t)
	other := client.Clone()
	other.ServerName = "other.example"
	injected := script{server: append(beforeTLS.server[:6:6], `S~ "220 go\r\n250 injected\r\n"`)}
	refused := script{server: append(beforeTLS.server[:6:6], "S: 454 4.7.0 no certificate")}
	for _, test := range []struct {
		server func(net.Conn) error
		config *tls.Config
		want   string
	}{
		{starttls(server, beforeTLS, script{}), other, "STARTTLS: tls: failed to verify certificate: x509: certificate is valid for example.com"},
		{injected.play, client, "STARTTLS: text in clear after the reply"},
		{refused.play, client, "STARTTLS: server said 454 4.7.0 no certificate"},
		{script{server: []string{"S: 220 mx", "C: EHLO me", "S: 250 mx"}}.play, client, "STARTTLS: the server does not announce it"},
	} {
		c := New(serve(t, test.server), Settings{Name: "me"})
		if err := c.Hello(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := c.StartTLS(t.Context(), test.config)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
		if e, ok := errors.AsType[*Error](err); !ok || e.Stage != STARTTLS {
			t.Errorf("%v is not of STARTTLS", err)
		}
		c.Close()
	}
}

// scramServer is a server of SCRAM-SHA-256 for one user, that knows the
// password of credentials.
func scramServer(t *testing.T, credentials scram.StoredCredentials) func(net.Conn) error {
	t.Helper()
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return credentials, nil })
	if err != nil {
		t.Fatal(err)
	}
	return func(conn net.Conn) error {
		defer conn.Close()
		r := bufio.NewReader(conn)
		io.WriteString(conn, "220 mx\r\n")
		r.ReadString('\n')
		io.WriteString(conn, "250-mx\r\n250 AUTH PLAIN SCRAM-SHA-256\r\n")
		conversation := server.NewConversation()
		for !conversation.Done() {
			line, err := r.ReadString('\n')
			if err != nil {
				return nil
			}
			text, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(strings.TrimPrefix(line, "AUTH SCRAM-SHA-256 ")))
			challenge, err := conversation.Step(string(text))
			if err != nil {
				io.WriteString(conn, "535 5.7.8 no\r\n")
				return nil
			}
			fmt.Fprintf(conn, "334 %s\r\n", base64.StdEncoding.EncodeToString([]byte(challenge)))
		}
		r.ReadString('\n') // empty, or "*"
		io.WriteString(conn, "235 2.7.0 welcome\r\n")
		return nil
	}
}

// Both sides prove that they know the password, which is in no trace. PLAIN
// would be announced, too.
func TestSCRAM(t *testing.T) {
	client, _ := scram.SHA256.NewClient("user", "secret", "")
	known, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt", Iters: 4096})
	if err != nil {
		t.Fatal(err)
	}
	pretender := known
	pretender.ServerKey = make([]byte, 32)
	for _, test := range []struct {
		server   scram.StoredCredentials
		password string
		want     string // beginning of the error
	}{
		{known, "secret", ""},
		{known, "other", "AUTH: server said 535"},
		{pretender, "secret", "AUTH: server validation failed"},
	} {
		var trace strings.Builder
		c := New(serve(t, scramServer(t, test.server)), Settings{Name: "me", Trace: func(line string) { trace.WriteString(line + "\n") }})
		if err := c.Hello(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := c.Auth(t.Context(), Credentials{User: "user", Password: test.password, InClear: true})
		if (err == nil) != (test.want == "") || err != nil && !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
		for line := range strings.Lines(trace.String()) {
			if strings.HasPrefix(line, "C: ") && !strings.Contains("C: EHLO me\nC: AUTH SCRAM-SHA-256 ***\nC: ***\nC: *\n", line) {
				t.Errorf("traced %q", line)
			}
		}
		c.Close()
	}
}

// No trace has a password, nor what it can be guessed from.
func TestTraceHasNoPassword(t *testing.T) {
	for _, test := range []struct{ server, want string }{
		{"S: 220 mx|C: EHLO me|S: 250-mx|S: 250 AUTH PLAIN|C: AUTH PLAIN AHVzZXIAc2VjcmV0|S: 235 ok",
			"S: 220 mx|C: EHLO me|S: 250-mx|S: 250 AUTH PLAIN|C: AUTH PLAIN ***|S: 235 ok|"},
		{"S: 220 mx|C: EHLO me|S: 250-mx|S: 250 AUTH LOGIN|C: AUTH LOGIN|S: 334|C: dXNlcg==|S: 334|C: c2VjcmV0|S: 235 \x1b[2Jok",
			"S: 220 mx|C: EHLO me|S: 250-mx|S: 250 AUTH LOGIN|C: AUTH LOGIN|S: 334|C: ***|S: 334|C: ***|S: 235 ?[2Jok|"},
	} {
		trace := ""
		c := New(serve(t, script{server: strings.Split(test.server, "|")}.play), Settings{Name: "me", Trace: func(line string) { trace += line + "|" }})
		if err := c.Hello(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Auth(t.Context(), Credentials{User: "user", Password: "secret", InClear: true}); err != nil {
			t.Error(err)
		}
		if trace != test.want {
			t.Errorf("got trace\n%s\nwant\n%s", trace, test.want)
		}
		c.Close()
	}
}

// RFC 4954, section 4: a response too long for a command line goes out by
// itself.
func TestLongInitialResponse(t *testing.T) {
	password := strings.Repeat("x", 500)
	response := base64.StdEncoding.EncodeToString([]byte("\x00user\x00" + password))
	s := script{server: []string{"S: 220 mx", "C: EHLO me", "S: 250-mx", "S: 250 AUTH PLAIN", "C: AUTH PLAIN", "S: 334 ", "C: " + response, "S: 235 ok"}}
	c := New(serve(t, s.play), Settings{Name: "me"})
	defer c.Close()
	if err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(t.Context(), Credentials{User: "user", Password: password, InClear: true}); err != nil {
		t.Error(err)
	}
}
