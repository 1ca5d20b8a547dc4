package record

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

// full has something of everything.
func full() *Record {
	sender := ""
	return &Record{
		ID:      "06gztyg6q151rdby",
		Time:    time.Date(2026, 11, 21, 16, 0, 54, 120000000, time.UTC),
		Backend: "filter",
		Session: backends.Session{
			ID: "06gztyg6pztd1vrm", Listener: "lmtp", Protocol: "UTF8LMTPSA", Local: "/run/with blank/lmtp.sock",
			HELO: "mx.example.org", User: "ann", Mechanism: "PLAIN",
			Peer: backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:52525"), UID: 1, GID: 2, PID: -3},
			Client: &backends.Client{
				Source: "PROXY", Addr: netip.MustParseAddrPort("[2001:db8::1]:0"), Local: netip.MustParseAddrPort("192.0.2.2:25"),
				Name: "client.example", ReverseName: "reverse.example", HELO: "helo\"\r\n", Protocol: "ESMTP",
				TLVs: []backends.TLV{{Type: 5, Value: []byte("\x00\xff")}, {Type: 6, Value: []byte{}}},
			},
			TLS:      &backends.TLS{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", ServerName: "mx", ClientCertificate: "00ff", ClientName: "ann"},
			XForward: &xforward.Attrs{Name: "n", Addr: "192.0.2.9", Port: "1", Proto: "ESMTP", HELO: "h", Ident: "4XyZ", Source: "REMOTE", Forwarded: true},
		},
		Envelope: backends.Envelope{
			Sender: "ann@example.net", Params: backends.Params{"SIZE=100", "SMTPUTF8"},
			Recipients: []backends.Recipient{
				{Address: `"john doe"@example.org`, Params: backends.Params{"NOTIFY=NEVER"}},
				{Address: "jürgen@bücher.example"},
				{Address: "a>b@example.org"},
				{Address: "c@example.org"},
			},
		},
		Message: []byte("Subject: hi\r\nX-Tab:\ta\r\n\r\n|bar\r\n\"quoted\"\r\nblank \r\nbare\rCR\r\nbare LF\ngrüße\r\n\xff\x00\r\nEND\r\n\r\nno end"),
		Said: Said{
			Answers: []Answer{
				{Status: backends.NoSuchUser},
				{Next: true},
				{Failure: "protocol: \"a\"\nand more"},
				{Status: backends.NewStatus(451, "4.3.0", " two\nlines ")},
			},
			Response: backends.Delivered,
			Edits: backends.Edits{
				Fields:  []backends.FieldEdit{{Op: backends.AddField, At: 0, Field: "X-A: b"}, {Op: backends.ReplaceField, At: 3, Field: "X-Folded: a\r\n\tb"}, {Op: backends.RemoveField, At: 7}},
				Message: bytes.NewReader([]byte("A: b\r\n\r\nnew\r\n")),
				Sender:  &sender, SenderParams: backends.Params{"RET=HDRS", "ENVID=a b"},
				Redirects:  map[int][]string{1: {"x@y.example", "z@y.example"}},
				Added:      []backends.Recipient{{Address: "archive@example.org", Params: backends.Params{"NOTIFY=NEVER"}}},
				Diversions: map[int]string{3: "quarantine"},
			},
		},
		Redacted: true,
	}
}

func written(t *testing.T, r *Record) string {
	t.Helper()
	var b strings.Builder
	if err := Write(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func read(text string) (*Record, error) {
	return Read(bufio.NewReader(strings.NewReader(text)), "x.record")
}

func TestRoundTrip(t *testing.T) {
	want := full()
	text := written(t, want)
	golden := filepath.Join("testdata", "full.record")
	if os.Getenv("UPDATE") != "" {
		os.WriteFile(golden, []byte(text), 0o644)
	}
	if file, err := os.ReadFile(golden); err != nil || string(file) != text {
		t.Errorf("%s: %v, want\n%s", golden, err, text)
	}
	got, err := read(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v\n%s", got, want, text)
	}
	if got, err := read(strings.ReplaceAll(text, "\n", "\r\n")); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with the line ends of another system: %v\n%+v", err, got)
	}
	if again := written(t, got); again != text {
		t.Errorf("the second time it is\n%s", again)
	}
}

// What is not written is lost: each field of what a backend sees is in the file.
func TestNothingIsLeftOut(t *testing.T) {
	r := full()
	for _, v := range []any{r.Session, *r.Session.Client, *r.Session.TLS, *r.Session.XForward, r.Session.Peer, r.Envelope, r.Edits, *r} {
		for field, value := range reflect.ValueOf(v).Fields() {
			if value.IsZero() && field.Name != "Gateway" {
				t.Errorf("%T.%s is not in the test", v, field.Name)
			}
		}
	}
}

func TestErrorsNameTheLine(t *testing.T) {
	const head = "MAILGW RECORD 1\n"
	for _, test := range []struct{ text, want string }{
		{"", "x.record:1: the record ends without END"},
		{"hello\n", `x.record:1: this is no record`},
		{head + "ID x\n", "x.record:3: the record ends without END"},
		{head + "END\n", "x.record:2: there is no MAIL"},
		{head + "MAIL FROM:<>\nEND\n", "x.record:3: there is no MESSAGE"},
		{head + "MIAL FROM:<>\n", `x.record:2: a line cannot begin with "MIAL"`},
		{head + "ID x\nID y\n", "x.record:3: there is a second ID"},
		{head + "TIME now\n", "x.record:2: TIME: "},
		{head + "|text\n", "x.record:2: a line of a message"},
		{head + "MESSAGE\n\"text\n", "x.record:3: the quotes are not those of Go"},
		{head + "MAIL FROM:<\"\n", "x.record:2: MAIL: "},
		{head + "MAIL <a@b>\n", "x.record:2: MAIL: want FROM:<address>"},
		{head + "RCPT TO:<a>\nANSWER 1 next\n", "x.record:3: ANSWER: want a number below 1"},
		{head + "RCPT TO:<a>\nANSWER 0 next\nANSWER 0 next\n", "x.record:4: ANSWER: recipient 0 has one"},
		{head + "RCPT TO:<a>\nANSWER 0 maybe\n", "x.record:3: ANSWER: want a number below 1000"},
		{head + "EDIT colour\n", `x.record:2: EDIT: "colour" is not known`},
		{head + "EDIT sender\n", "x.record:2: EDIT: want sender <address>"},
		{head + "EDIT params \"a\n", "x.record:2: EDIT: the quotes are not those of Go"},
		{head + "EDIT add -1 A: b\n", "x.record:2: EDIT: want a number"},
		{head + "RCPT TO:<a>\nEDIT divert 0\n", "x.record:3: EDIT: want more than a number"},
		{head + "SESSION COLOUR=red\n", `x.record:2: SESSION: "COLOUR" is not known`},
		{head + "PEER ADDR=here\n", "x.record:2: PEER: ADDR: "},
		{head + "TLV 256 x\n", "x.record:2: TLV: "},
	} {
		if _, err := read(test.text); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%q: got %v, want %s", test.text, err, test.want)
		}
	}
}

// FuzzRead looks for a file that is read as something that cannot be written, or
// not as the same.
func FuzzRead(f *testing.F) {
	var b strings.Builder
	if err := Write(&b, full()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.String())
	f.Add("MAILGW RECORD 1\nRCPT TO:<a@b>\nANSWER 0 550 5.1.1\nEDIT message\n\"\\n\"\nMAIL FROM:<>\nMESSAGE\n|\nEND")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := read(text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "x.record:") {
				t.Fatalf("no file and line in %q", err)
			}
			return
		}
		again, err := read(written(t, r))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%v\ngot %+v\nwant %+v", err, again, r)
		}
		r.Redact() // ends, whatever the message is
	})
}

// FuzzWrite looks for octets that do not come back.
func FuzzWrite(f *testing.F) {
	f.Add([]byte("A: b\r\n\r\n|\r\n\"x\r\n \r\n\n\r\xff"), "a b@c", "text")
	f.Add([]byte("no end"), `"`, "\n")
	f.Fuzz(func(t *testing.T, message []byte, word, text string) {
		want := full()
		want.Message = append([]byte(nil), message...)
		want.Edits.Message = bytes.NewReader(append([]byte{}, message...))
		want.ID, want.Backend, want.Session.HELO, want.Session.XForward.Ident = word, text, text, word
		want.Envelope.Sender, want.Envelope.Params = word, backends.Params{word, text}
		want.Answers[3] = Answer{Status: backends.NewStatus(250, word, text)}
		want.Edits.Fields[0].Field, want.Edits.Sender, want.Edits.Redirects[1], want.Edits.Diversions[3] = text, &word, []string{word, text}, word
		file := written(t, want)
		got, err := read(file)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v\ngot %+v\nwant %+v\n%s", err, got, want, file)
		}
	})
}
