package milter

import (
	"bufio"
	"bytes"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// The message that leaves is the one that came, but for what the milter asks for,
// byte for byte: both if the body is new and if it stays.
func TestFieldsAreChanged(t *testing.T) {
	const received, a, bc, to, d = "Received: by mx\r\n", "Subject: a\r\n", "subject:b\r\n\tc\r\n", "To: ann\r\n", "SUBJECT : d \r\n"
	tests := []struct {
		name    string
		changes []string
		want    string
	}{
		{"none", nil, received + a + bc + to + d},
		{"add", []string{"hX|y|"}, received + a + bc + to + d + "X: y\r\n"},
		{"add two", []string{"hX|1|", "hX|2|"}, received + a + bc + to + d + "X: 1\r\nX: 2\r\n"},
		{"insert at 0", []string{"i||||X|y|"}, "X: y\r\n" + received + a + bc + to + d},
		{"insert at 1", []string{"i|||\x01X|y|"}, "X: y\r\n" + received + a + bc + to + d},
		{"insert at 2", []string{"i|||\x02X|y|"}, received + "X: y\r\n" + a + bc + to + d},
		{"insert at 6", []string{"i|||\x06X|y|"}, received + a + bc + to + d + "X: y\r\n"},
		{"insert far away", []string{"i\xff\xff\xff\xffX|y|"}, received + a + bc + to + d + "X: y\r\n"},
		{"insert two, the last one first", []string{"i|||\x01X|1|", "i|||\x01X|2|"}, "X: 2\r\nX: 1\r\n" + received + a + bc + to + d},
		{"insert two in a row", []string{"i|||\x01X|1|", "i|||\x02X|2|"}, "X: 1\r\nX: 2\r\n" + received + a + bc + to + d},
		{"change the first", []string{"m|||\x01SUBJECT|x|"}, received + "SUBJECT: x\r\n" + bc + to + d},
		{"change 0, which is the first", []string{"m||||Subject|x|"}, received + "Subject: x\r\n" + bc + to + d},
		{"change the third", []string{"m|||\x03Subject|x|"}, received + a + bc + to + "Subject: x\r\n"},
		{"change the fourth, which is not there", []string{"m|||\x04Subject|x|"}, received + a + bc + to + d + "Subject: x\r\n"},
		{"change one twice", []string{"m|||\x02Subject|x|", "m|||\x02Subject|y|"}, received + a + "Subject: y\r\n" + to + d},
		{"delete the second", []string{"m|||\x02Subject||"}, received + a + to + d},
		{"delete one that is not there", []string{"m|||\x04Subject||", "m|||\x01X||"}, received + a + bc + to + d},
		{"delete by the numbers that they had", []string{"m|||\x01Subject||", "m|||\x02Subject||", "m|||\x03Subject||"}, received + to},
		{"delete the last one first", []string{"m|||\x03Subject||", "m|||\x02Subject||", "m|||\x01Subject||"}, received + to},
		{"delete and give back", []string{"m|||\x02Subject||", "m|||\x02Subject|x|"}, received + a + "Subject: x\r\n" + to + d},
		{"delete all, then add", []string{"m|||\x01Received||", "m|||\x01Subject||", "m|||\x02Subject||", "m|||\x03Subject||", "m|||\x01To||", "hX|y|"}, "X: y\r\n"},
		{"change what was added", []string{"hX|1|", "m|||\x01x|2|"}, received + a + bc + to + d + "x: 2\r\n"},
		{"delete what was inserted", []string{"i|||\x03X|1|", "m|||\x01X||"}, received + a + bc + to + d},
		{"count what was inserted", []string{"i|||\x01Subject|0|", "m|||\x02Subject|x|"}, "Subject: 0\r\n" + received + "Subject: x\r\n" + bc + to + d},
		{"fold", []string{"hX|1\n 2\r\n\t3|"}, received + a + bc + to + d + "X: 1\r\n 2\r\n\t3\r\n"},
		{"fold without white space", []string{"hX|1\nY: 2|"}, received + a + bc + to + d + "X: 1\r\n\tY: 2\r\n"},
		{"lines with nothing else", []string{"hX|1\n\n \n 2\n|"}, received + a + bc + to + d + "X: 1\r\n 2\r\n"},
		{"eight bits", []string{"hX|gr\u00fc\xff|"}, received + a + bc + to + d + "X: gr\u00fc\xff\r\n"},
	}
	for _, tt := range tests {
		for _, body := range []string{"one\r\n.\r\n", "new\r\n"} {
			answers := slices.Clone(tt.changes)
			if body == "new\r\n" {
				answers = append(answers, "b"+body)
			}
			tx := transaction(message)
			got, err := run(t.Context(), newBackend(t, play(t, script{"E": append(answers, "c")}), nil), tx)
			if err != nil || !slices.Equal(got, []string{"", ""}) {
				t.Errorf("%s: got %q, %v", tt.name, got, err)
				continue
			}
			if got, want := edited(t, message, tx.Edits()), tt.want+"\r\n"+body; got != want {
				t.Errorf("%s: got\n%q, want\n%q", tt.name, got, want)
			}
		}
	}
}

// With the space after the colon in values, none is added.
func TestLeadingSpaceIsTheMilters(t *testing.T) {
	m := play(t, script{"O": {optneg(6, 0xff, leadingSpace, "")}, "E": {"hX|y|", "m|||\x01To|\t bob|", "c"}})
	tx := transaction(message)
	if _, err := run(t.Context(), newBackend(t, m, nil), tx); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(message, "To: ann\r\n", "To:\t bob\r\n", 1)
	want = strings.Replace(want, "\r\n\r\n", "\r\nX:y\r\n\r\n", 1)
	if got := edited(t, message, tx.Edits()); got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestBodyIsReplaced(t *testing.T) {
	large := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 6000)
	tests := []struct {
		name, message string
		pieces        []string
		want          string
	}{
		{"pieces", "A: b\r\n\r\nold\r\n", []string{"b1\r\n2", "b3\r", "b\n4"}, "A: b\r\n\r\n1\r\n23\r\n4"},
		{"nothing", "A: b\r\n\r\nold\r\n", []string{"b"}, "A: b\r\n\r\n"},
		{"lines that end in LF", "A: b\r\n\r\nold\r\n", []string{"b1\n2\r", "b\n\n"}, "A: b\r\n\r\n1\r\n2\r\n\r\n"},
		{"no body before", "A: b\r\n", []string{"bnew\r\n"}, "A: b\r\n\r\nnew\r\n"},
		{"no line end before", "A: b", []string{"bnew\r\n"}, "A: b\r\n\r\nnew\r\n"},
		{"no header before", "\r\nold\r\n", []string{"bnew\r\n"}, "\r\nnew\r\n"},
		{"no empty line before", "A: b\r\nno field\r\n", []string{"bnew\r\n"}, "A: b\r\n\r\nnew\r\n"},
		{"large", "A: b\r\n\r\nold\r\n", slices.Collect(func(yield func(string) bool) {
			for piece := range slices.Chunk([]byte(large), maxData) {
				yield("b" + string(piece))
			}
		}), "A: b\r\n\r\n" + large},
	}
	for _, tt := range tests {
		tx := transaction(tt.message)
		directory := t.TempDir()
		b := newBackend(t, play(t, script{"E": append(tt.pieces, "c")}), func(s *Settings) { s.Directory = directory })
		if _, err := run(t.Context(), b, tx); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := edited(t, tt.message, tx.Edits()); got != tt.want {
			t.Errorf("%s: got %.200q, want %.200q", tt.name, got, tt.want)
		}
		if left, err := os.ReadDir(directory); err != nil || len(left) > 0 {
			t.Errorf("%s: left: %v, %v", tt.name, left, err)
		}
	}
}

func TestEnvelopeIsChanged(t *testing.T) {
	sender := func(s string) *string { return &s }
	tests := []struct {
		answers []string
		want    backends.Edits
	}{
		{[]string{"e<new@example.net>|"}, backends.Edits{Sender: sender("new@example.net")}},
		{[]string{"e<new@example.net>|RET=HDRS  ENVID=x|"}, backends.Edits{Sender: sender("new@example.net"), SenderParams: backends.Params{"RET=HDRS", "ENVID=x"}}},
		{[]string{"e<new@example.net>|SIZE=1 RET=HDRS REQUIRETLS|"}, backends.Edits{Sender: sender("new@example.net"), SenderParams: backends.Params{"RET=HDRS"}}},
		{[]string{"e<new@example.net>||"}, backends.Edits{Sender: sender("new@example.net"), SenderParams: backends.Params{}}},
		{[]string{"e<a@example.net>|RET=HDRS|", "e<b@example.net>|"}, backends.Edits{Sender: sender("b@example.net"), SenderParams: backends.Params{"RET=HDRS"}}},
		{[]string{"e<>|"}, backends.Edits{Sender: sender("")}},
		{[]string{`e<"a<b>\"c"@example.net>|`}, backends.Edits{Sender: sender(`"a<b>\"c"@example.net`)}},
		{[]string{`e"a>b"@example.net|`}, backends.Edits{Sender: sender(`"a>b"@example.net`)}},
		{[]string{`e"New" <new@example.net>|`}, backends.Edits{Sender: sender("new@example.net")}},
		{[]string{"+<carl@example.org>|", "+carl@example.org|", "+<BOB@example.org>|"}, backends.Edits{Added: []backends.Recipient{{Address: "carl@example.org"}}}},
		{[]string{"2<carl@example.org>|NOTIFY=NEVER  ORCPT=rfc822;x|"}, backends.Edits{Added: []backends.Recipient{
			{Address: "carl@example.org", Params: backends.Params{"NOTIFY=NEVER", "ORCPT=rfc822;x"}}}}},
		{[]string{"2<carl@example.org>|"}, backends.Edits{Added: []backends.Recipient{{Address: "carl@example.org", Params: backends.Params{}}}}},
		{[]string{"+<carl@example.org>|", "-<carl@example.org>|"}, backends.Edits{}},
		{[]string{"-<ann@example.org>|", "+<carl@example.org>|", "+<dave@example.org>|"}, backends.Edits{Redirects: map[int][]string{0: {"carl@example.org", "dave@example.org"}}}},
		{[]string{"2<dave@example.org>|NOTIFY=NEVER|", "+<carl@example.org>|", "-<bob@example.org>|", "-<ann@example.org>|"}, backends.Edits{
			Redirects: map[int][]string{0: {"carl@example.org"}},
			Added:     []backends.Recipient{{Address: "dave@example.org", Params: backends.Params{"NOTIFY=NEVER"}}}}},
		{[]string{"-<Bob@example.org>|", "2<bob@example.org>|NOTIFY=NEVER|"}, backends.Edits{Added: []backends.Recipient{
			{Address: "bob@example.org", Params: backends.Params{"NOTIFY=NEVER"}}}}},
		{[]string{"2<bob@example.org>|NOTIFY=NEVER|", "-<bob@example.org>|", "2<bob@example.org>||"}, backends.Edits{}},
		{[]string{"-<bob@example.org>|", "2<bob@example.org>|NOTIFY=NEVER|", "+<bob@example.org>|"}, backends.Edits{Added: []backends.Recipient{
			{Address: "bob@example.org", Params: backends.Params{"NOTIFY=NEVER"}}}}},
		{[]string{"q|", "-<ann@example.org>|", "-<bob@example.org>|", "+<carl@example.org>|"}, backends.Edits{
			Diversions: map[int]string{0: "quarantine"},
			Redirects:  map[int][]string{0: {"carl@example.org"}}}},
		{[]string{"q|", "-<ann@example.org>|", "-<bob@example.org>|", "2<carl@example.org>|NOTIFY=NEVER|"}, backends.Edits{
			Diversions: map[int]string{0: "quarantine"},
			Redirects:  map[int][]string{0: {"carl@example.org"}}}},
		{[]string{"qspam|"}, backends.Edits{Diversions: map[int]string{0: "quarantine", 1: "quarantine"}}},
		{[]string{"qspam|", "-<ann@example.org>|"}, backends.Edits{Diversions: map[int]string{1: "quarantine"}}},
		{[]string{"+<carl@example.org>|", "q|"}, backends.Edits{
			Diversions: map[int]string{0: "quarantine", 1: "quarantine"},
			Redirects:  map[int][]string{0: {"ann@example.org", "carl@example.org"}}}},
	}
	for _, tt := range tests {
		tx := transaction(message)
		if _, err := run(t.Context(), newBackend(t, play(t, script{"E": append(tt.answers, "c")}), nil), tx); err != nil {
			t.Errorf("%q: %v", tt.answers, err)
		}
		if got := tx.Edits(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %+v, want %+v", tt.answers, got, tt.want)
		}
	}
}

// No change is of a recipient that the milter has refused before.
func TestWhoWasRefusedIsLeftAlone(t *testing.T) {
	carl, bob := []backends.Recipient{{Address: "carl@example.org"}}, []backends.Recipient{{Address: "bob@example.org"}}
	tests := []struct {
		answers []string
		want    backends.Edits
	}{
		{[]string{"-<bob@example.org>|", "+<carl@example.org>|", "c"}, backends.Edits{Added: carl}},
		{[]string{"+<bob@example.org>|", "c"}, backends.Edits{Added: bob}},
		{[]string{"q|", "c"}, backends.Edits{Diversions: map[int]string{0: "quarantine"}}},
	}
	for _, tt := range tests {
		tx := transaction(message)
		got, err := run(t.Context(), newBackend(t, play(t, script{"R<bob": {"r"}, "E": tt.answers}), nil), tx)
		if err != nil || !slices.Equal(got, []string{"", "550 5.7.1 rejected by a mail filter"}) {
			t.Errorf("%q: got %q, %v", tt.answers, got, err)
		}
		if got := tx.Edits(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %+v, want %+v", tt.answers, got, tt.want)
		}
	}
}

// What the gateway would refuse is no success, and changes nothing.
func TestChangesThatCannotBeMade(t *testing.T) {
	tests := [][]string{
		{"+<two words@example.org>|", "-<ann@example.org>|", "c"},
		{"+|", "c"},
		{"e<no domain>|", "c"},
		{"e<new@example.net>|RET=|", "c"},
	}
	for _, answers := range tests {
		got, err := run(t.Context(), newBackend(t, play(t, script{"E": answers}), nil), transaction(message))
		if err == nil || !backends.StatusOf(err).Temporary() || !slices.Equal(got, []string{"", ""}) {
			t.Errorf("%q: got %q, %v", answers, got, err)
		}
	}
}

// Without a route for it, quarantine is neither offered nor done.
func TestNoQuarantineWithoutARoute(t *testing.T) {
	tests := []struct {
		script script
		want   string
	}{
		{script{"O": {optneg(6, actionQuarantine, 0, "")}}, "the setting quarantine is empty"},
		{script{"O": {optneg(6, 0, 0, "")}, "E": {"q|", "c"}}, "quarantine was not offered"},
	}
	for _, tt := range tests {
		m := play(t, tt.script)
		b := newBackend(t, m, func(s *Settings) { s.Quarantine = "" })
		if _, err := run(t.Context(), b, transaction(message)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if got, want := (<-m.heard)[0], strings.ReplaceAll(optneg(6, 0x1df, 0x1ff7ff, ""), "\x00", "|"); got != want {
			t.Errorf("offered %q, want %q", got, want)
		}
	}
}

// Whatever a milter sends, nothing panics, a refusal is one, and a header stays a
// header with as many fields as it should have.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		"c", "p", "y550 5.7.1 no|", "y550-5.7.1 no\r\n550 5.7.1 no|", "hX|y|", "i|||\x01X|y\n z|", "m|||\x02Subject||", "m|||\x01Subject|x|",
		"+<a@example.org>|", "2<a@example.org>|NOTIFY=NEVER|", "-<ann@example.org>|", "e<>|", "qwhy|", "bbody\n",
		"O|||\x06||\x01\xff|||||||\x01i {mail_addr}|",
	} {
		f.Add([]byte(strings.ReplaceAll(seed, "|", "\x00")), false)
	}
	f.Fuzz(func(t *testing.T, packet []byte, spaced bool) {
		if len(packet) == 0 {
			return
		}
		parseNegotiated(packet[0], packet[1:], offeredActions)
		a, err := parseAnswer(packet[0], packet[1:])
		if err != nil {
			return
		}
		if s := a.status; !s.IsZero() && (s.Positive() || s != s.Sanitized()) {
			t.Errorf("status %q of %q", s.Error(), packet)
		}

		fields, err := backends.ReadHeader(bufio.NewReader(strings.NewReader(message)))
		if err != nil {
			t.Fatal(err)
		}
		c := newChanges(&backend{Settings: Settings{Quarantine: "q", Directory: t.TempDir()}}, transaction(message))
		defer c.close()
		c.header = newHeader(fields, spaced)
		if c.note(a) != nil {
			return
		}
		want := 0
		for _, field := range c.header.fields {
			if !field.gone {
				want++
			}
		}
		text := c.header.appendTo(nil)
		if again, err := backends.ReadHeader(bufio.NewReader(bytes.NewReader(append(text, "\r\nbody\r\n"...)))); err != nil || len(again) != want {
			t.Errorf("%q: %q has %d fields, %v, want %d", packet, text, len(again), err, want)
		}
		tx := transaction(message)
		if err := c.header.edit(tx); err != nil {
			t.Errorf("%q: %v", packet, err)
		}
		if got := edited(t, message, tx.Edits()); got != string(text)+"\r\none\r\n.\r\n" {
			t.Errorf("%q: edits make %q, want %q", packet, got, text)
		}
	})
}
