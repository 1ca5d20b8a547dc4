package webhook

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A request is one that a hook got.
type request struct {
	header   http.Header
	length   int64
	envelope string
	message  string
}

// posted returns what a hook gets for a transaction.
func posted(t *testing.T, tx *backends.DataContext, changes ...func(*Settings)) (got request) {
	t.Helper()
	hook := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			t.Errorf("got %s", r.Method)
		}
		got = request{header: r.Header, length: r.ContentLength, envelope: r.FormValue("envelope")}
		file, about, err := r.FormFile("message")
		if err != nil {
			t.Error(err)
			return
		}
		message, err := io.ReadAll(file)
		if err != nil || about.Header.Get("Content-Type") != "message/rfc822" {
			t.Errorf("got %v, %v", about.Header, err)
		}
		got.message = string(message)
		w.WriteHeader(http.StatusNoContent)
	})
	run(t, newBackend(t, hook.URL, changes...), tx).wants(t, "post", "", "", "")
	return got
}

// The hook gets the exact octets, and no file is left of them.
func TestHookGetsTheExactMessage(t *testing.T) {
	dir := t.TempDir()
	for name, message := range map[string]string{
		"plain":        hello,
		"empty":        "",
		"bare newline": "Subject: test\n\nhello\r",
		"all octets":   "Subject: test\r\n\r\n\x00\x01\x7f\x80\xff\r\n.\r\n..\r\n--\r\n",
		"in memory":    strings.Repeat("x", maxInMemory),
		"in a file":    strings.Repeat("x", maxInMemory+1),
		"large":        strings.Repeat(strings.Repeat("x", 70)+"\r\n", 100000),
	} {
		got := posted(t, transaction(message), func(s *Settings) { s.Directory = dir })
		if got.message != message {
			t.Errorf("%s: got %d octets %.80q", name, len(got.message), got.message)
		}
		if got.length < int64(len(message)) {
			t.Errorf("%s: Content-Length is %d", name, got.length)
		}
		if got.header.Get("Mailgw-Signature") != "" || got.header.Get("Authorization") != "" {
			t.Errorf("%s: got %v without a secret", name, got.header)
		}
	}
	if left, err := exec.Command("find", dir, "-type", "f").Output(); err != nil || len(left) > 0 {
		t.Errorf("left: %s, %v", left, err)
	}
}

func TestBearer(t *testing.T) {
	path := file(t, "the.token~\r\n", 0o600)
	got := posted(t, transaction(hello), func(s *Settings) { s.BearerFile = path })
	if a := got.header.Get("Authorization"); a != "Bearer the.token~" {
		t.Errorf("got %q", a)
	}
}

// documented returns the blocks of code in the package comment.
func documented(t *testing.T) (blocks []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range new(comment.Parser).Parse(f.Doc.Text()).Content {
		if code, ok := block.(*comment.Code); ok {
			blocks = append(blocks, code.Text)
		}
	}
	return blocks
}

// block returns the block in the package comment that has this in it.
func block(t *testing.T, part string) string {
	t.Helper()
	for _, b := range documented(t) {
		if strings.Contains(b, part) {
			return b
		}
	}
	t.Fatalf("the package comment has no %q", part)
	return ""
}

// The request in the package comment is the one that is posted.
func TestDocumentedRequest(t *testing.T) {
	got := posted(t, transaction(hello), withSecret(t))
	want := block(t, "POST /mail")
	_, text, _ := strings.Cut(want, "application/json\n\n")
	text, _, _ = strings.Cut(text, "\n--BOUNDARY")
	if !reflect.DeepEqual(shortened(t, got.envelope), shortened(t, text)) {
		t.Errorf("got %s\nthe package comment has %s", got.envelope, text)
	}
	f := &form{envelope: []byte(got.envelope), message: &message{sha256: sha256Of(got.message)}}
	f.sign([]byte(secret), time.Unix(1790000000, 0))
	for _, line := range []string{
		"\nMailgw-Signature: " + f.signature[:len("t=1790000000,v1=")+8] + "...\n",
		"\nContent-Length: " + strconv.FormatInt(got.length, 10) + "\n",
		"\nIdempotency-Key: " + got.header.Get("Idempotency-Key")[:8] + "...\n",
		"\n\n" + strings.ReplaceAll(got.message, "\r\n", "\n") + "\n--BOUNDARY--",
	} {
		if !strings.Contains(want, line) {
			t.Errorf("the package comment has no %q", line)
		}
	}
	if !strings.Contains(got.envelope, got.header.Get("Idempotency-Key")) {
		t.Error("the envelope has another key than the header")
	}
}

// shortened returns what JSON says. Of hashes only the beginnings count.
func shortened(t *testing.T, text string) map[string]any {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	about := e["message"].(map[string]any)
	about["sha256"] = about["sha256"].(string)[:8]
	e["idempotency_key"] = e["idempotency_key"].(string)[:8]
	return e
}

// The answer in the package comment is one.
func TestDocumentedAnswer(t *testing.T) {
	if _, err := parseAnswer([]byte(block(t, "remove_headers")), 3); err != nil {
		t.Error(err)
	}
}

func sha256Of(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// The Python of the package comment finds requests genuine, and nothing else.
func TestDocumentedPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		missing(t, "python3: internal/peers/install installs it")
	}
	program := block(t, "def verify") + `
import os, sys
secret, signature, envelope, message = sys.argv[1:]
print(verify(os.fsencode(secret), signature, os.fsencode(envelope), os.fsencode(message)))
`
	got := posted(t, transaction(hello), withSecret(t))
	signature := got.header.Get("Mailgw-Signature")
	old := &form{envelope: []byte(got.envelope), message: &message{sha256: sha256Of(got.message)}}
	old.sign([]byte(secret), time.Now().Add(-time.Hour))
	for _, test := range []struct {
		name, secret, signature, envelope, message, want string
	}{
		{"genuine", secret, signature, got.envelope, got.message, "True"},
		{"another secret", "x" + secret, signature, got.envelope, got.message, "False"},
		{"another envelope", secret, signature, got.envelope + " ", got.message, "False"},
		{"another message", secret, signature, got.envelope, got.message + " ", "False"},
		{"another time", secret, strings.Replace(signature, "t=", "t=1", 1), got.envelope, got.message, "False"},
		{"old", secret, old.signature, got.envelope, got.message, "False"},
	} {
		out, err := exec.CommandContext(t.Context(), python, "-c", program, test.secret, test.signature, test.envelope, test.message).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != test.want {
			t.Errorf("%s: got %s, %v; want %s", test.name, out, err, test.want)
		}
	}
}

// A message that comes again has the same key, and nothing else has.
func TestIdempotencyKey(t *testing.T) {
	key := func(change func(tx *backends.DataContext)) string {
		tx := transaction(hello)
		change(tx)
		return posted(t, tx).header.Get("Idempotency-Key")
	}
	same := key(func(*backends.DataContext) {})
	if len(same) != 64 {
		t.Errorf("got key %q", same)
	}
	for name, change := range map[string]func(*backends.DataContext){
		"transaction": func(tx *backends.DataContext) { tx.ID = "another" },
		"session":     func(tx *backends.DataContext) { tx.Session.ID, tx.Session.Peer.UID = "another", 1 },
		"client": func(tx *backends.DataContext) {
			x := *tx.Session.XForward
			x.Port = "1"
			tx.Session.XForward = &x
		},
	} {
		if got := key(change); got != same {
			t.Errorf("another %s: got another key", name)
		}
	}
	for name, change := range map[string]func(*backends.DataContext){
		"ident":     func(tx *backends.DataContext) { tx.Session.XForward.Ident = "another" },
		"sender":    func(tx *backends.DataContext) { tx.Envelope.Sender = "" },
		"recipient": func(tx *backends.DataContext) { tx.Envelope.Recipients[1].Address = "dan@example.org" },
		"parameter": func(tx *backends.DataContext) { tx.Envelope.Recipients[1].Params = nil },
		"message":   func(tx *backends.DataContext) { tx.Body = strings.NewReader(strings.ToUpper(hello)) },
	} {
		if got := key(change); got == same {
			t.Errorf("another %s: got the same key", name)
		}
	}
}
