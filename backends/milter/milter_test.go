package milter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/xforward"
)

func TestMilterKeepsTheContract(t *testing.T) {
	scripts := map[string]script{
		"continues": nil,
		"skips":     {"B": {"s"}},
		"accepts":   {"M": {"a"}},
		"discards":  {"M": {"d"}},
		"edits":     {"E": {"hX-New|here|", "i|||\x01Trace|x|", "m|||\x01From|<new@example.net>|", "c"}},
		"replaces":  {"E": {"bnew\r\n", "hX-New|here|", "c"}},
		"envelope":  {"E": {"e<new@example.net>|", "+<new@example.org>|", "-<one@example.org>|", "c"}},
	}
	for name, s := range scripts {
		if err := backendtest.Test(newBackend(t, play(t, s), nil), backendtest.Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The whole of a conversation, as milters hear it.
func TestWholeTransactionIsTold(t *testing.T) {
	m := play(t, nil)
	statuses, err := run(t.Context(), newBackend(t, m, nil), transaction(message+strings.Repeat("x", maxData)))
	if err != nil || !slices.Equal(statuses, []string{"", ""}) {
		t.Errorf("got %q, %v", statuses, err)
	}
	want := []string{
		optneg(6, 0x1ff, 0x1ff7ff, ""),
		"DCj|mx.example.org|v|mailgw|_|localhost|{daemon_name}|smtp|{client_name}|localhost|",
		"Clocalhost|U",
		"DHr|ESMTP|s|client.example.net|",
		"Hclient.example.net|",
		"DMi|06gz|{mail_addr}|eve@example.net|",
		"M<eve@example.net>|SIZE=100|BODY=8BITMIME|",
		"DRi|06gz|{rcpt_addr}|ann@example.org|",
		"R<ann@example.org>|",
		"DRi|06gz|{rcpt_addr}|bob@example.org|",
		"R<bob@example.org>|NOTIFY=NEVER|",
		"DTi|06gz|",
		"T",
		"LReceived|by mx|",
		"LSubject|a|",
		"Lsubject|b\n\tc|",
		"LTo|ann|",
		"LSUBJECT|d |",
		"DNi|06gz|",
		"N",
		"Bone\r\n.\r\n" + strings.Repeat("x", maxData-8),
		"Bxxxxxxxx",
		"DEi|06gz|",
		"E",
		"Q",
	}
	want[0] = strings.ReplaceAll(want[0], "\x00", "|")
	expect(t, m, want)
}

// expect compares what the milter has heard.
func expect(t *testing.T, m *scripted, want []string) {
	t.Helper()
	got := <-m.heard
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("packet %d: the milter heard %.200q, want %.200q", i, g, w)
		}
	}
}

// What the milter does not want to hear is left out, and what it does not answer
// is not waited for. It gets the macros that it asks for, and those alone.
func TestNegotiationIsKept(t *testing.T) {
	macros := "|||\x00i, {daemon_name} nothing|" + "|||\x03rcpt_addr|" + "|||\x05|"
	silent := stepRCPT.silent | stepHeader.silent | stepEOH.silent | stepBody.silent
	// answers is what the milter says to the steps that it may keep silent about.
	tests := []struct {
		name    string
		optneg  string
		answers string
		want    []string
	}{
		{"steps", optneg(6, 0, stepConnect.unwanted|stepHELO.unwanted|stepHeader.unwanted|stepEOH.unwanted|stepBody.unwanted, ""), "c", []string{
			"M<eve@example.net>|SIZE=100|BODY=8BITMIME|", "R<ann@example.org>|", "R<bob@example.org>|NOTIFY=NEVER|", "T", "E", "Q",
		}},
		{"no answers, spaces", optneg(6, 0, silent|leadingSpace, ""), hangs, []string{
			"Clocalhost|U", "Hclient.example.net|", "M<eve@example.net>|SIZE=100|BODY=8BITMIME|", "R<ann@example.org>|", "R<bob@example.org>|NOTIFY=NEVER|", "T",
			"LReceived| by mx|", "LSubject| a|", "Lsubject|b\n\tc|", "LTo| ann|", "LSUBJECT| d |", "N", "Bone\r\n.\r\n", "E", "Q",
		}},
		{"an old version", optneg(2, 0, stepBody.unwanted|stepHeader.unwanted, ""), "c", []string{
			"Clocalhost|U", "Hclient.example.net|", "M<eve@example.net>|SIZE=100|BODY=8BITMIME|", "R<ann@example.org>|", "R<bob@example.org>|NOTIFY=NEVER|",
			"N", "E", "Q",
		}},
		{"macros", optneg(6, actionSymbols, stepBody.unwanted|stepHeader.unwanted, macros), "c", []string{
			"DCi|06gz|{daemon_name}|smtp|", "Clocalhost|U",
			"DHr|ESMTP|s|client.example.net|", "Hclient.example.net|",
			"DMi|06gz|{mail_addr}|eve@example.net|", "M<eve@example.net>|SIZE=100|BODY=8BITMIME|",
			"DR{rcpt_addr}|ann@example.org|", "R<ann@example.org>|", "DR{rcpt_addr}|bob@example.org|", "R<bob@example.org>|NOTIFY=NEVER|",
			"DTi|06gz|", "T", "DNi|06gz|", "N", "E", "Q",
		}},
	}
	for _, tt := range tests {
		answers := []string{tt.answers}
		m := play(t, script{"O": {tt.optneg}, "R": answers, "L": answers, "N": answers, "B": answers})
		if _, err := run(t.Context(), newBackend(t, m, nil), transaction(message)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		got := (<-m.heard)[1:]
		if tt.name != "macros" {
			got = slices.DeleteFunc(got, func(p string) bool { return p[0] == 'D' })
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: the milter heard\n%q, want\n%q", tt.name, got, tt.want)
		}
	}
}

// Nothing of the client is taken from the proxy that speaks for it.
func TestClientIsTold(t *testing.T) {
	peer := backends.Peer{Addr: netip.MustParseAddrPort("127.0.0.1:4000")}
	tls := &backends.TLS{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", ClientName: "laptop"}
	tests := []struct {
		name    string
		session backends.Session
		want    []string
	}{
		{"peer", backends.Session{Peer: peer, Local: "127.0.0.1:25", Listener: "in", HELO: "me", Protocol: "ESMTPSA", TLS: tls, User: "ann", Mechanism: "PLAIN"}, []string{
			"DCj|mx|v|mailgw|_|[127.0.0.1] [127.0.0.1]|{daemon_name}|in|{daemon_addr}|127.0.0.1|{daemon_port}|25|{client_addr}|127.0.0.1|{client_name}|[127.0.0.1]|{client_port}|4000|{our}|own|",
			"C[127.0.0.1]|4\x0f\xa0127.0.0.1|",
			"DHr|ESMTPSA|s|me|{tls_version}|TLSv1.3|{cipher}|TLS_AES_128_GCM_SHA256|{cert_subject}|laptop|", "Hme|",
			"DMi|06gz|{auth_type}|PLAIN|{auth_authen}|ann|{mail_addr}|eve@example.net|",
		}},
		{"unix", backends.Session{Local: "/run/lmtp.sock", HELO: "me", Protocol: "LMTP"}, []string{
			"DCj|mx|v|mailgw|_|localhost|{client_name}|localhost|{our}|own|",
			"Clocalhost|U",
			"DHr|LMTP|s|me|", "Hme|",
			"DMi|06gz|{mail_addr}|eve@example.net|",
		}},
		{"xforward", backends.Session{Peer: peer, HELO: "postfix", Protocol: "LMTP", TLS: tls, User: "postfix",
			XForward: &xforward.Attrs{Forwarded: true, Name: "client.example", Addr: "2001:db8::1", Port: "77", Proto: "ESMTP", HELO: "cl"}}, []string{
			"DCj|mx|v|mailgw|_|client.example [IPv6:2001:db8::1]|{client_addr}|2001:db8::1|{client_name}|client.example|{client_port}|77|{our}|own|",
			"Cclient.example|6|M2001:db8::1|",
			"DHr|ESMTP|s|cl|", "Hcl|",
			"DMi|06gz|{mail_addr}|eve@example.net|",
		}},
		{"xforward of nobody", backends.Session{Peer: peer, HELO: "postfix", Protocol: "LMTP", XForward: &xforward.Attrs{Forwarded: true}}, []string{
			"DCj|mx|v|mailgw|_|unknown|{client_name}|unknown|{our}|own|",
			"Cunknown|U",
			"DMi|06gz|{mail_addr}|eve@example.net|",
		}},
		{"xclient", backends.Session{Peer: peer, HELO: "nginx", Protocol: "ESMTPS", TLS: tls, User: "ann", Mechanism: "XCLIENT",
			Client: &backends.Client{Source: "XCLIENT", Addr: netip.MustParseAddrPort("192.0.2.1:0"), ReverseName: "maybe.example", HELO: "cl", Protocol: "SMTP"}}, []string{
			"DCj|mx|v|mailgw|_|[192.0.2.1] [192.0.2.1]|{client_addr}|192.0.2.1|{client_name}|[192.0.2.1]|{client_ptr}|maybe.example|{our}|own|",
			"C[192.0.2.1]|4||192.0.2.1|",
			"DHr|SMTP|s|cl|", "Hcl|",
			"DMi|06gz|{auth_type}|XCLIENT|{auth_authen}|ann|{mail_addr}|eve@example.net|",
		}},
	}
	for _, tt := range tests {
		m := play(t, script{"M": {"a"}})
		b := newBackend(t, m, func(s *Settings) { s.Macros = map[string]string{"{j}": "mx", "our": "own"} })
		tx := transaction(message)
		tx.Session = tt.session
		if _, err := run(t.Context(), b, tx); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		heard := <-m.heard
		if got := heard[1:min(len(heard), len(tt.want)+1)]; !slices.Equal(got, tt.want) {
			t.Errorf("%s: the milter heard\n%q, want\n%q", tt.name, got, tt.want)
		}
		if end := heard[len(heard)-2:]; !slices.Equal(end, []string{"A", "Q"}) {
			t.Errorf("%s: the milter heard %q in the end", tt.name, end)
		}
	}
}

// What the milter decides is told to the recipients.
func TestVerdicts(t *testing.T) {
	const (
		refused   = "550 5.7.1 rejected by a mail filter"
		later     = "451 4.7.1 try again later"
		discarded = "250 2.0.0 discarded"
	)
	all := func(s string) []string { return []string{s, s} }
	tests := []struct {
		script script
		want   []string
	}{
		{script{"C": {"a"}}, all("")},
		{script{"E": {"a"}}, all("")},
		{script{"E": {"p", "p", "p", "c"}}, all("")},
		{script{"B": {"s"}}, all("")},

		{script{"C": {"r"}}, all(refused)},
		{script{"H": {"t"}}, all(later)},
		{script{"M": {"4"}}, all(later)},
		{script{"T": {"f"}}, all(later)},
		{script{"LTo": {"r"}}, all(refused)},
		{script{"N": {"r"}}, all(refused)},
		{script{"B": {"t"}}, all(later)},
		{script{"E": {"hX-Not|made|", "r"}}, all(refused)},

		{script{"M": {"d"}}, all(discarded)},
		{script{"R<bob": {"d"}}, all(discarded)},
		{script{"E": {"+<not@example.org>|", "d"}}, all(discarded)},

		// Only the recipient of whom it was said.
		{script{"R<bob": {"r"}}, []string{"", refused}},
		{script{"R<ann": {"y450 4.2.1 busy|"}}, []string{"450 4.2.1 busy", ""}},
		{script{"R<ann": {"t"}, "R<bob": {"r"}}, []string{later, refused}},
		{script{"R<ann": {"r"}, "R<bob": {"a"}}, []string{refused, ""}},
		{script{"R<ann": {"r"}, "E": {"t"}}, []string{refused, later}},
		{script{"R<ann": {"r"}, "E": {"d"}}, []string{refused, discarded}},

		{script{"E": {"y554 no|"}}, all("554 5.0.0 no")},
		{script{"E": {"y554 5.7.26 100%% \x07 h\xc3\xb6|"}}, all("554 5.7.26 100% ? h?")},
		{script{"E": {"y554-5.7.0 two\r\n554 5.7.0 lines"}}, all("554 5.7.0 two lines")},
		{script{"E": {"y421 4.3.2 bye|"}}, all("451 4.3.2 bye")},

		{script{"E": {"-<ANN@example.org>|", "c"}}, []string{discarded, ""}},
		{script{"E": {"-bob@example.org|", "+<Bob@example.org>|", "c"}}, all("")},
		{script{"E": {"-<nobody@example.org>|", "c"}}, all("")},
		{script{"R<bob": {"r"}, "E": {"-<bob@example.org>|", "c"}}, []string{"", refused}},
	}
	for _, tt := range tests {
		tx := transaction(message)
		got, err := run(t.Context(), newBackend(t, play(t, tt.script), nil), tx)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v, want %q", tt.script, got, err, tt.want)
		}
		if e := tx.Edits(); !e.IsZero() {
			t.Errorf("%q: got edits %+v", tt.script, e)
		}
	}
}

// Without a recipient there is no DATA.
func TestNothingIsToldForNobody(t *testing.T) {
	m := play(t, script{"R": {"r"}})
	if _, err := run(t.Context(), newBackend(t, m, nil), transaction(message)); err != nil {
		t.Fatal(err)
	}
	heard := <-m.heard
	want := []string{"R<bob@example.org>|NOTIFY=NEVER|", "A", "Q"}
	if got := heard[max(0, len(heard)-len(want)):]; !slices.Equal(got, want) {
		t.Errorf("the milter heard %q in the end, want %q", got, want)
	}
}

// A message that cannot be read to its end is never a success.
func TestDiscardedMessageIsReadToItsEnd(t *testing.T) {
	noBody := optneg(6, offeredActions&^actionSymbols, stepBody.unwanted, "")
	for _, s := range []script{{"M": {"d"}}, {"O": {noBody}, "E": {"-<ann@example.org>|", "c"}}} {
		tx := transaction(message)
		tx.Body = iotest.TimeoutReader(strings.NewReader(strings.Repeat(message, 2000)))
		got, err := run(t.Context(), newBackend(t, play(t, s), nil), tx)
		if !errors.Is(err, iotest.ErrTimeout) || !slices.Equal(got, []string{"", ""}) {
			t.Errorf("%q: got %q, %v", s, got, err)
		}
	}
}

// Whatever a milter does wrong is a failure, which changes nothing.
func TestFailures(t *testing.T) {
	tests := []struct {
		script script
		want   string // part of the error
	}{
		{script{"O": {closes}}, "negotiation: unexpected EOF"},
		{script{"O": {"c"}}, `negotiation: answer 'c' of 0 octets`},
		{script{"O": {optneg(7, 0, 0, "")}}, "version 7"},
		{script{"O": {optneg(1, 0, 0, "")}}, "version 1"},
		{script{"O": {optneg(6, 0x400, 0, "")}}, "wants actions 0x400"},
		{script{"O": {optneg(6, actionSymbols, 0, "|||\x01i")}}, "a list of macros that has no end"},
		{script{"O": {optneg(6, actionSymbols, 0, "|||")}}, "a list of macros that has no end"},

		{script{"C": {"d"}}, `connection: answer 'd' is none to that`},
		{script{"H": {"s"}}, `HELO: answer 's' is none to that`},
		{script{"M": {"hX|y|"}}, `MAIL: answer 'h' is none to that`},
		{script{"LTo": {"z"}}, `To: header: answer 'z' is none`},
		{script{"N": {"y200 ok|"}}, "no whole refusal"},
		{script{"N": {"y550-no|"}}, "no whole refusal"},
		{script{"N": {"y550 no\r\n550 more|"}}, "goes on after its end"},
		{script{"N": {"ynonsense|"}}, "not a reply"},
		{script{"N": {"y"}}, "not a reply"},
		{script{"B": {raw + "\x00\x00\x00\x00"}}, "body: an answer of 0 octets"},
		{script{"B": {raw + "\x00\x02\x00\x00"}}, "body: an answer of 131072 octets"},
		{script{"B": {raw + "\x00\x00\x00\x09hX|", closes}}, "unexpected EOF"},
		{script{"E": {"c|c|"}}, "with 2 texts, want 0"},
		{script{"E": {"hX|"}}, "with 1 texts, want 2"},
		{script{"E": {"i||X|y|"}}, "with 1 texts, want 2"},
		{script{"E": {"i"}}, "without the position"},
		{script{"E": {"h|y|"}}, `"" is no name of a field`},
		{script{"E": {"hX: y|z|"}}, `"X: y" is no name of a field`},
		{script{"E": {"hX|a\rb|"}}, "X: a bare CR"},
		{script{"E": {"hX|" + strings.Repeat("x", 1000) + "|"}}, "a line of more than 998 octets"},
		{script{"E": {"hX|y|", closes}}, "end of message: unexpected EOF"},
		{script{"E": slices.Repeat([]string{"hX|y|"}, maxChanges+1)}, "more than 10000 changes"},
		{script{"E": slices.Repeat([]string{"hX|" + strings.Repeat("x\n ", 20000) + "|"}, 20)}, "more than 10000 changes, or 1048576 octets"},
	}
	for _, tt := range tests {
		tx := transaction(message)
		got, err := run(t.Context(), newBackend(t, play(t, tt.script), nil), tx)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !backends.StatusOf(err).Temporary() || !slices.Equal(got, []string{"", ""}) {
			t.Errorf("%.80q: got %q, %v, want an error with %q", tt.script, got, err, tt.want)
		}
		if e := tx.Edits(); !e.IsZero() {
			t.Errorf("%.80q: got edits %+v", tt.script, e)
		}
	}
}

// Progress extends nothing.
func TestDeadlineCounts(t *testing.T) {
	for _, s := range []script{
		{"O": {hangs}}, {"H": {hangs}}, {"B": {"p", hangs}}, {"E": {forever}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		got, err := run(ctx, newBackend(t, play(t, s), nil), transaction(message))
		if !errors.Is(err, context.DeadlineExceeded) || !slices.Equal(got, []string{"", ""}) {
			t.Errorf("%q: got %q, %v", s, got, err)
		}
		cancel()
	}
}

// Who was refused before the milter failed is refused.
func TestRefusalsOutliveFailures(t *testing.T) {
	got, err := run(t.Context(), newBackend(t, play(t, script{"R<ann": {"r"}, "T": {closes}}), nil), transaction(message))
	if want := []string{"550 5.7.1 rejected by a mail filter", ""}; err == nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// An error of the message is never overlooked, wherever it comes.
func TestBrokenOffMessage(t *testing.T) {
	for _, text := range []string{message, " no field\r\n"} {
		for i := range len(text) {
			tx := transaction(text)
			tx.Body = io.MultiReader(strings.NewReader(text[:i]), new(brokenOnce), strings.NewReader(text[i:]))
			if got, err := run(t.Context(), newBackend(t, play(t, nil), nil), tx); !errors.Is(err, errBroken) {
				t.Errorf("%q, after %d octets: got %q, %v", text, i, got, err)
			}
		}
	}
}

var errBroken = errors.New("broken off")

// brokenOnce is a reader that has an error, and then says that it has ended.
type brokenOnce bool

func (b *brokenOnce) Read([]byte) (int, error) {
	if *b {
		return 0, io.EOF
	}
	*b = true
	return 0, errBroken
}

func TestTroubleOfOurOwn(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	unreadable := transaction("")
	unreadable.Body = iotest.ErrReader(errors.New("cannot be read"))
	tests := []struct {
		want   string
		ctx    context.Context
		tx     *backends.DataContext
		script script
	}{
		{"context canceled", over, transaction(message), nil},
		{"cannot be read", t.Context(), unreadable, nil},
		{"no such file", t.Context(), transaction(message), script{"E": append(slices.Repeat([]string{"b" + strings.Repeat("x", 60000)}, 10), "c")}},
	}
	for _, tt := range tests {
		directory := filepath.Join(t.TempDir(), "gone")
		if err := os.Mkdir(directory, 0o700); err != nil {
			t.Fatal(err)
		}
		b := newBackend(t, play(t, tt.script), func(s *Settings) { s.Directory = directory })
		if err := os.Remove(directory); err != nil {
			t.Fatal(err)
		}
		got, err := run(tt.ctx, b, tt.tx)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !backends.StatusOf(err).Temporary() || !slices.Equal(got, []string{"", ""}) {
			t.Errorf("got %q, %v, want %s", got, err, tt.want)
		}
	}
}

func TestSettings(t *testing.T) {
	tests := []struct {
		change func(*Settings)
		want   string
	}{
		{func(s *Settings) {}, ""},
		{func(s *Settings) { s.Address = "tcp:127.0.0.1:8891" }, ""},
		{func(s *Settings) { s.Address = "" }, "address: is missing"},
		{func(s *Settings) { s.Address = "unix:" }, `address: "unix:": want`},
		{func(s *Settings) { s.Address = "inet:8891@localhost" }, `address: "inet:8891@localhost": want "unix:PATH" or "tcp:HOST:PORT"`},
		{func(s *Settings) { s.Address = "tcp:localhost" }, `address: "tcp:localhost": want`},
		{func(s *Settings) { s.Directory = "/nonexistent" }, "directory: open /nonexistent/"},
		{func(s *Settings) { s.Macros = map[string]string{"{}": "x"} }, `macros: "{}" is no name`},
	}
	for _, tt := range tests {
		s := Defaults
		s.Address = "unix:/run/milter"
		tt.change(&s)
		_, err := New(s)
		if got := fmt.Sprint(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if setting := (backends.SettingError{}); err != nil && !errors.As(err, &setting) {
			t.Errorf("%v does not tell of a key", err)
		}
	}
	if name, err := os.Hostname(); err == nil {
		b, _ := New(Settings{Address: "unix:x"})
		if got := b.(*backend).macros["j"]; got != name {
			t.Errorf("j is %q, want %q", got, name)
		}
	}
}

func TestQuarantineIsAnnounced(t *testing.T) {
	for quarantine, want := range map[string][]string{"": nil, "spam": {"spam"}} {
		b, err := New(Settings{Address: "unix:x", Quarantine: quarantine})
		if got := backends.DiversionsOf(b); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %v", quarantine, got, err)
		}
	}
}
