package gateway

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// earlyBackend has an opinion on names that begin with "perm", "temp", "yes"
// and "error", and none on others.
type earlyBackend struct {
	backends.Func
	name string
}

func (b earlyBackend) opinion(about, name string) (backends.Status, error) {
	switch kind, _, _ := strings.Cut(name, "."); kind {
	case "perm":
		return backends.NewStatus(550, "5.7.1", b.name+about+" refused"), nil
	case "temp":
		return backends.Status{}, backends.NewStatus(450, "4.7.1", b.name+about+" refused for now")
	case "yes":
		return backends.NewStatus(250, "2.0.0", b.name+about+" is welcome"), nil
	case "second":
		if b.name != "" {
			return backends.NewStatus(550, "5.7.1", b.name+about+" refused"), nil
		}
	case "error":
		return backends.Status{}, errors.New("open /etc/secret: permission denied")
	case "panic":
		panic("a bug in a backend")
	}
	return backends.Status{}, nil
}

func (b earlyBackend) CheckHELO(_ context.Context, s *backends.Session) (backends.Status, error) {
	return b.opinion("HELO", s.HELO)
}

func (b earlyBackend) CheckSender(_ context.Context, s *backends.Session, e *backends.Envelope) (backends.Status, error) {
	local, _ := smtp.SplitMailbox(e.Sender)
	return b.opinion("sender of "+s.HELO, local)
}

func (b earlyBackend) Verify(_ context.Context, _ *backends.Session, text string) (backends.Status, error) {
	if text == "two" {
		return backends.NewStatus(553, "5.1.4", "ambiguous:\n<one@example.org>\n<other@example.org>"), nil
	}
	return b.opinion("user", text)
}

func (b earlyBackend) Expand(_ context.Context, _ *backends.Session, list string) ([]string, error) {
	switch list {
	case "list":
		return []string{"<a@example.org>", "B <b@example.org>"}, nil
	case "long":
		return strings.Split(strings.Repeat("<a@example.org> ", 12), " ")[:12], nil
	case "hostile":
		return []string{"<a@example.org>\r\n550 5.1.1 injected"}, nil
	case "utf8":
		return []string{"<j\u00f6rg@example.org>"}, nil
	}
	s, err := b.opinion("list", list)
	if err == nil && !s.IsZero() {
		err = s
	}
	return nil, err
}

// recipientChecker tells what it was asked about a recipient.
type recipientChecker struct{ backends.Func }

func (b recipientChecker) CheckRecipient(_ context.Context, s *backends.Session, e *backends.Envelope, to backends.Recipient) (backends.Opinion, error) {
	local, _ := smtp.SplitMailbox(to.Address)
	if local == "asked" {
		return backends.Opinion{Status: backends.NewStatus(550, "5.1.1", fmt.Sprintf("%s %s from=%s %q to=%s %q",
			s.Protocol, s.HELO, e.Sender, e.Params, to.Address, to.Params))}, nil
	}
	status, err := earlyBackend{}.opinion("recipient", local)
	return backends.Opinion{Status: status}, err
}

// relayChecker lets strangers send to users of example.org alone, and those
// whom userChecker knows to everybody.
type relayChecker struct{ userChecker }

func (relayChecker) CheckRecipient(_ context.Context, s *backends.Session, _ *backends.Envelope, to backends.Recipient) (backends.Opinion, error) {
	local, domain := smtp.SplitMailbox(to.Address)
	switch {
	case domain != "example.org" && s.User == "":
		return backends.Opinion{Status: backends.NewStatus(550, "5.7.1", "relay access denied")}, nil
	case domain == "example.org" && local == "nobody":
		return backends.Opinion{Status: backends.NoSuchUser}, nil
	}
	return backends.Opinion{}, nil
}

// gatekeeper says the same to everybody who connects.
type gatekeeper struct {
	backends.Func
	says error
}

func (g gatekeeper) CheckConnection(context.Context, *backends.Session) (backends.Status, error) {
	return backends.Status{}, g.says
}

// userChecker knows one user, whose password is "secret".
type userChecker struct{ backends.Func }

func (userChecker) Authenticate(_ context.Context, s *backends.Session, c backends.Credentials) (string, error) {
	switch {
	case c.Mechanism == "EXTERNAL" && s.TLS != nil && s.TLS.ClientCertificate != "":
		return "certified " + c.Identity, nil
	case c.User == "error":
		return "", errors.New("open /etc/secret: permission denied")
	case c.User == "panic":
		panic("a bug in a backend")
	case c.User == "nobody's":
		return "", nil
	case c.User == "hostile":
		return "a\r\nX-Evil: 1", nil
	case c.User == "praised":
		return "", backends.NewStatus(250, "2.0.0", "a fine user")
	case c.User == "user" && c.Password == "secret" && (c.Identity == "" || c.Identity == "user"):
		return "user", nil
	}
	return "", backends.BadCredentials
}

func (userChecker) SCRAMVerifier(_ context.Context, _ *backends.Session, user string) (backends.SCRAMVerifier, error) {
	switch user {
	case "error":
		return backends.SCRAMVerifier{}, errors.New("open /etc/secret: permission denied")
	case "nobody's":
		return backends.SCRAMVerifier{}, nil
	}
	client, err := scram.SHA256.NewClientUnprepped(user, "secret", "")
	if err != nil {
		return backends.SCRAMVerifier{}, err
	}
	c, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt", Iters: 4096})
	if err != nil {
		return backends.SCRAMVerifier{}, err
	}
	return backends.SCRAMVerifier{User: strings.ToLower(user), Salt: []byte(c.Salt), Iterations: c.Iters, StoredKey: c.StoredKey, ServerKey: c.ServerKey}, nil
}

func tellUser(_ context.Context, tx *backends.DataContext) error {
	tx.SetAll(backends.NewStatus(250, "2.0.0", fmt.Sprintf("%s %q by %q", tx.Session.Protocol, tx.Session.User, tx.Session.Mechanism)))
	return nil
}

// A backend that does not answer in time is a temporary refusal, by its own
// time and by the listener's.
func TestQuestionEndsAtItsDeadline(t *testing.T) {
	var asked atomic.Int32
	hangs := hangingChecker{backends.Func(byLocalPart), &asked}
	s := testServer(t, map[string]backends.Backend{"hangs": hangs},
		"protocol = 'smtp'\nask = ['hangs']\n[listener.limits]\nask_timeout = '1ms'\n[listener.routes]\n'*' = ['hangs']\n")
	serve(t, s)
	c := textproto.NewConn(dial(t, s))
	wantReply(t, c, 220, "mx.example.org ESMTP mailgw")
	for range 2 { // the session goes on
		c.PrintfLine("HELO client")
		wantReply(t, c, 250, "mx.example.org")
		c.PrintfLine("MAIL FROM:<a@example.org>")
		wantReply(t, c, 451, "4.4.7 not delivered in time, try again later")
	}
	if asked.Load() != 2 {
		t.Errorf("asked %d times, want 2", asked.Load())
	}
}

type hangingChecker struct {
	backends.Func
	asked *atomic.Int32
}

func (h hangingChecker) CheckSender(ctx context.Context, _ *backends.Session, _ *backends.Envelope) (backends.Status, error) {
	h.asked.Add(1)
	<-ctx.Done()
	return backends.Status{}, ctx.Err()
}

func wantReply(t *testing.T, c *textproto.Conn, code int, text string) {
	t.Helper()
	got, message, err := c.ReadResponse(0)
	if got != code || message != text {
		t.Fatalf("got %d %q, %v, want %d %q", got, message, err, code, text)
	}
}

// What a backend says of recipients holds for as long, and for those
// recipients, as it says.
func TestOpinionsAreKept(t *testing.T) {
	no := backends.NoSuchUser
	now := time.Now()
	o := &opinions{}
	for _, said := range []struct {
		address string
		opinion backends.Opinion
	}{
		{"a@example.org", backends.Opinion{Status: no, For: time.Minute}},
		{"any@example.net", backends.Opinion{Status: backends.TryLater, For: time.Minute, Key: "@example.net"}},
		{"known@example.net", backends.Opinion{Status: backends.Delivered, For: time.Second}},
		{"now@example.org", backends.Opinion{Status: no}},
		{"none@example.org", backends.Opinion{For: time.Minute}},
	} {
		if err := o.keep(said.address, said.opinion, now); err != nil {
			t.Errorf("%s: %v", said.address, err)
		}
	}
	if err := o.keep("a@example.org", backends.Opinion{Status: no, For: 1, Key: "example.org"}, now); err == nil {
		t.Error("a key that is no pattern is taken")
	}
	if err := o.keep("a@example.org", backends.Opinion{Status: no, For: 1, Key: "@example.com"}, now); err == nil {
		t.Error("a key that stands for others is taken")
	}
	for _, test := range []struct {
		address string
		after   time.Duration
		want    backends.Status
	}{
		{"A@EXAMPLE.org", time.Second, no},
		{"a@example.org", time.Minute, backends.Status{}},
		{"b@example.org", 0, backends.Status{}},
		{"other@example.net", 0, backends.TryLater},
		{"known@example.net", 0, backends.Delivered},
		{"known@example.net", time.Second, backends.TryLater}, // by the key of the domain
		{"now@example.org", 0, backends.Status{}},
		{"none@example.org", 0, backends.Status{}},
	} {
		if got := o.lookup(test.address, now.Add(test.after)); got != test.want {
			t.Errorf("%s after %v: got %v, want %v", test.address, test.after, got, test.want)
		}
	}
	for i := range 2 * maxOpinions {
		o.keep(fmt.Sprintf("%d@example.com", i), backends.Opinion{Status: no, For: time.Minute}, now)
	}
	if len(o.known) != maxOpinions {
		t.Errorf("%d opinions are kept, want %d", len(o.known), maxOpinions)
	}
}

// A backend is not asked again while its opinion holds.
func TestKeptOpinionSparesTheQuestion(t *testing.T) {
	var asked atomic.Int32
	s := testServer(t, map[string]backends.Backend{"counts": countingChecker{backends.Func(byLocalPart), &asked}},
		"protocol = 'smtp'\n[listener.routes]\n'*' = ['counts']\n")
	serve(t, s)
	c := textproto.NewConn(dial(t, s))
	wantReply(t, c, 220, "mx.example.org ESMTP mailgw")
	c.PrintfLine("HELO client\r\nMAIL FROM:<a@example.org>")
	wantReply(t, c, 250, "mx.example.org")
	wantReply(t, c, 250, "2.1.0 sender ok")
	for range 3 {
		c.PrintfLine("RCPT TO:<a@example.org>\r\nRCPT TO:<b@EXAMPLE.org>")
		wantReply(t, c, 550, "5.1.1 no such user")
		wantReply(t, c, 550, "5.1.1 no such user")
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times, want once", asked.Load())
	}
}

type countingChecker struct {
	backends.Func
	asked *atomic.Int32
}

func (c countingChecker) CheckRecipient(context.Context, *backends.Session, *backends.Envelope, backends.Recipient) (backends.Opinion, error) {
	c.asked.Add(1)
	return backends.Opinion{Status: backends.NoSuchUser, For: time.Hour, Key: "@example.org"}, nil
}

// AUTH that is refused before it begins is followed by passwords, too.
func TestPasswordsAfterRefusedAuth(t *testing.T) {
	for _, keys := range []string{"ask = ['closed', 'login']\n", "ask = ['login']\nrequire_tls = true\n[listener.tls]\nmode = 'starttls'\ncertificates = ['CERT']\n"} {
		cert := newIssuer(t).file(t, t.TempDir(), "mx.example.org")
		s := testServer(t, testBackends, "protocol = 'smtp'\n"+strings.ReplaceAll(keys, "CERT", cert)+"[listener.routes]\n'*' = ['login']\n")
		d := s.listeners[0].dialog(backends.Peer{}, "test")
		if _, next := d.greeting(); next == askBackends {
			d.answer(t.Context())
		}
		d.command("EHLO client")
		d.command("AUTH LOGIN")
		for _, secret := range []string{"dXNlcg==", "aGlkZGVu"} {
			if got := d.loggable(secret); got != "(after AUTH)" {
				t.Errorf("%q: the log has %q", keys, got)
			}
			d.command(secret)
		}
		d.command("NOOP")
		if got := d.loggable("HELLO"); got != "HELLO" {
			t.Errorf("%q: the log has %q of another command", keys, got)
		}
	}
}

// SCRAM-SHA-256 with a client that checks the server, too.
func TestSCRAM(t *testing.T) {
	for _, test := range []struct {
		user, password, identity string
		want                     string
	}{
		{"user", "secret", "", "235 2.7.0 authentication successful"},
		{"user", "secret", "user", "235 2.7.0 authentication successful"},
		{"USER", "secret", "", "235 2.7.0 authentication successful"},
		{"user", "secret", "boss", "535 5.7.8 authentication credentials invalid"},
		{"user", "wrong", "", "535 5.7.8 authentication credentials invalid"},
		{"user", "wrong", "boss", "535 5.7.8 authentication credentials invalid"},
		{"nobody's", "secret", "", "535 5.7.8 authentication credentials invalid"},
		{"error", "secret", "", "454 4.7.0 temporary authentication failure"},
	} {
		s := testServer(t, testBackends, "protocol = 'smtp'\nask = ['login']\nauth.in_clear = true\n[listener.routes]\n'*' = ['login']\n")
		d := s.listeners[0].dialog(backends.Peer{}, "test")
		say := func(line string) smtp.Reply {
			r, next := d.command(line)
			if next == askBackends {
				r, _ = d.answer(t.Context())
			}
			return r
		}
		say("EHLO client")
		client, err := scram.SHA256.NewClient(test.user, test.password, test.identity)
		if err != nil {
			t.Fatal(err)
		}
		conversation := client.NewConversation()
		message, _ := conversation.Step("")
		r := say("AUTH SCRAM-SHA-256 " + base64.StdEncoding.EncodeToString([]byte(message)))
		for r.Code == 334 {
			challenge, err := base64.StdEncoding.DecodeString(r.Text)
			if err != nil {
				t.Fatal(err)
			}
			if message, err = conversation.Step(string(challenge)); err != nil {
				t.Errorf("%+v: the client: %v", test, err)
			}
			r = say(base64.StdEncoding.EncodeToString([]byte(message)))
		}
		if r.String() != test.want {
			t.Errorf("%+v: got %q, want %q", test, r, test.want)
		}
		if r.Code == 535 && d.claims != test.user {
			t.Errorf("%+v: the log tells of %q", test, d.claims)
		}
		if succeeded := d.session.User == strings.ToLower(test.user); succeeded != (r.Code == 235) {
			t.Errorf("%+v: the user is %q after %q", test, d.session.User, r)
		}
	}
}

// EXTERNAL is offered to a client with a certificate alone; AUTH is forgotten
// by STARTTLS and not offered before.
func TestAuthOverTLS(t *testing.T) {
	ca, dir := newIssuer(t), t.TempDir()
	s := testServer(t, testBackends, "protocol = 'smtp'\nask = ['login']\nauth.required = true\n[listener.tls]\nmode = 'starttls'\n"+
		"client_certificates = 'ask'\ncertificates = ['"+ca.file(t, dir, "mx.example.org")+"']\n[listener.routes]\n'*' = ['login']\n")
	serve(t, s)
	file := ca.file(t, dir, "client")
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	for _, certs := range [][]tls.Certificate{nil, {cert}} {
		socket := dial(t, s)
		c := textproto.NewConn(socket)
		wantReply(t, c, 220, "mx.example.org ESMTP mailgw")
		c.PrintfLine("EHLO client")
		if _, text, _ := c.ReadResponse(250); strings.Contains(text, "AUTH") {
			t.Errorf("AUTH is offered in the clear: %q", text)
		}
		c.PrintfLine("AUTH PLAIN AHVzZXIAc2VjcmV0")
		wantReply(t, c, 538, "5.7.11 say STARTTLS first")
		c.PrintfLine("MAIL FROM:<>")
		wantReply(t, c, 530, "5.7.0 say STARTTLS and authenticate first")
		c.PrintfLine("STARTTLS")
		wantReply(t, c, 220, "2.0.0 ready to start TLS")
		c = textproto.NewConn(tls.Client(socket, &tls.Config{RootCAs: ca.client("").RootCAs, ServerName: "mx.example.org", Certificates: certs}))
		c.PrintfLine("EHLO client")
		_, text, err := c.ReadResponse(250)
		offered := slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
			return strings.HasPrefix(line, "AUTH") && strings.Contains(line, "EXTERNAL")
		})
		if offered != (certs != nil) || !strings.Contains(text, "AUTH SCRAM-SHA-256 ") {
			t.Errorf("%d certificates: EXTERNAL is offered: %t, %v, %q", len(certs), offered, err, text)
		}
		c.PrintfLine("AUTH EXTERNAL =")
		if certs == nil {
			wantReply(t, c, 504, "5.5.4 mechanism not offered; there is SCRAM-SHA-256, PLAIN, LOGIN")
		} else {
			wantReply(t, c, 235, "2.7.0 authentication successful")
		}
	}
}

// The log has no password, whatever becomes of AUTH.
func TestPasswordIsNotLogged(t *testing.T) {
	var log lockedBuffer
	s := testServer(t, testBackends, "protocol = 'smtp'\nask = ['login']\nauth.in_clear = true\n[listener.routes]\n'*' = ['login']\n")
	s.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.listeners[0].log = s.log
	serve(t, s)
	c := textproto.NewConn(dial(t, s))
	c.ReadResponse(220)
	c.PrintfLine("EHLO client")
	c.ReadResponse(250)
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	secrets := []string{encode("\x00user\x00wrong"), encode("user"), encode("hidden"), encode("\x00error\x00secret"), "not base64 but secret"}
	for _, line := range []string{
		"AUTH PLAIN\t" + secrets[0], "AUTH " + secrets[1], secrets[2], "AUTH CRAM-MD5 " + secrets[1], secrets[2],
		"AUTH PLAIN " + secrets[0], " auth plain  " + secrets[0], "AUTH LOGIN", secrets[1], secrets[2],
		"AUTH PLAIN " + secrets[3], "AUTH LOGIN", secrets[4], "AUTH PLAIN", secrets[0], "AUTH XYZ " + secrets[0],
	} {
		c.PrintfLine("%s", line)
		c.ReadResponse(0)
	}
	c.PrintfLine("QUIT")
	wantReply(t, c, 221, "2.0.0 mx.example.org good bye")
	// Whom a login was for is what one looks for, when it went wrong.
	if !strings.Contains(log.String(), `user=user command="AUTH PLAIN" reply="535`) {
		t.Errorf("the log does not tell who has failed to log in:\n%s", log.String())
	}
	for _, secret := range append(secrets, "hidden", "wrong") {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%q stands in the log:\n%s", secret, log.String())
		}
	}
	if !strings.Contains(log.String(), "AUTH PLAIN") {
		t.Errorf("the log does not tell of AUTH:\n%s", log.String())
	}
}

// What nobody can answer is found before anybody asks.
func TestListenerAsksWhoCanAnswer(t *testing.T) {
	c := testConfig(t, testBackends, "protocol = 'smtp'\nask = ['early', 'verdict']\nauth.in_clear = true\nauth.required = true\n")
	_, err := New(c, testBackends, slog.New(slog.DiscardHandler))
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != 2 ||
		!strings.HasSuffix(problems[0].String(), `listener[0].ask[1]: backend "verdict" answers no questions`) ||
		!strings.HasSuffix(problems[1].String(), "listener[0].auth: clients have to be authenticated and cannot be: no backend in ask, with these auth.mechanisms and client_certificates, can tell who they are") {
		t.Errorf("got %v", err)
	}
}

// Whom a client wants to be is looked at after the proof, so that it hears the
// same whoever exists.
func TestSCRAMTellsNoUsers(t *testing.T) {
	for _, user := range []string{"USER", "SOMEBODY"} {
		s := testServer(t, testBackends, "protocol = 'smtp'\nask = ['login']\nauth.in_clear = true\n[listener.routes]\n'*' = ['login']\n")
		d := s.listeners[0].dialog(backends.Peer{}, "test")
		d.command("EHLO client")
		d.command("AUTH SCRAM-SHA-256 " + base64.StdEncoding.EncodeToString([]byte("n,a=boss,n="+user+",r=abc")))
		if r, _ := d.answer(t.Context()); r.Code != 334 {
			t.Errorf("%s: %v", user, r)
		}
	}
}

// AUTH that is required and can never be had is found before anybody tries.
func TestAuthThatCannotBe(t *testing.T) {
	const inClear = "AUTH is not offered in the clear, and tls.mode is off"
	const nobody = "no backend in ask, with these auth.mechanisms and client_certificates, can tell who they are"
	for keys, want := range map[string]string{
		"auth.required = true": inClear,
		"auth_senders = ['*']": inClear,
		"auth.required = true\nauth.in_clear = true\nauth.mechanisms = []":           nobody,
		"auth.required = true\nauth.in_clear = true\nauth.mechanisms = ['EXTERNAL']": nobody,
		"auth.required = true\nauth.in_clear = true":                                 "",
		"auth.required = true\nxclient = ['127.0.0.1']":                              "", // LOGIN will do
	} {
		c := testConfig(t, testBackends, "protocol = 'smtp'\nask = ['login']\n"+keys+"\n[listener.routes]\n'*' = ['login']\n")
		_, err := New(c, testBackends, slog.New(slog.DiscardHandler))
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasSuffix(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", keys, err, want)
		}
	}
}
