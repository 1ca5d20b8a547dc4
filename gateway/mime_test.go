package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
)

// onceMessage is a message that may be read once, from its beginning.
type onceMessage struct {
	t    testing.TB
	text string
	read int64

	reads func() // called before each read, if there is one
	weigh bool
	heap  int64 // the most that was in use, seen once in each MiB
}

func (m *onceMessage) Size() int64  { return int64(len(m.text)) }
func (m *onceMessage) Close() error { return nil }

func (m *onceMessage) ReadAt(p []byte, off int64) (int, error) {
	if off != m.read {
		m.t.Errorf("read at %d after %d octets", off, m.read)
	}
	if m.reads != nil {
		m.reads()
	}
	n := copy(p, m.text[off:])
	if m.weigh && m.read>>20 != (m.read+int64(n))>>20 {
		m.heap = max(m.heap, heapInUse())
	}
	m.read += int64(n)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// mimeOf builds a multipart of parts, each a header and a body.
func mimeOf(kind, boundary string, parts ...string) string {
	text := fmt.Sprintf("Content-Type: multipart/%s; boundary=%q\r\n\r\npreamble\r\n", kind, boundary)
	for _, part := range parts {
		text += "--" + boundary + "\r\n" + part + "\r\n"
	}
	return text + "--" + boundary + "--\r\nepilogue\r\n"
}

// nested is a text in so many multiparts.
func nested(levels int) string {
	text := "\r\ntext"
	for i := range levels {
		text = mimeOf("mixed", fmt.Sprintf("b%d", i), text)
	}
	return text
}

func TestMIMELimits(t *testing.T) {
	const text, attached = "\r\ntext", "Content-Type: message/rfc822\r\n\r\n"
	for _, test := range []struct {
		name         string
		text         string
		depth, parts int // that it has
	}{
		{"nothing", "", 0, 0},
		{"a text", "Subject: a\r\n\r\ntext\r\n", 0, 0},
		{"no header", "\r\n--b\r\n", 0, 0},
		{"two parts", mimeOf("mixed", "b", text, text), 1, 2},
		{"nested", nested(7), 7, 7},
		{"nested, then flat", mimeOf("mixed", "b", nested(3), text, text), 4, 6},
		{"twice nested", mimeOf("mixed", "b", nested(3), nested(2)), 4, 7},
		{"boundary that begins as another does", mimeOf("mixed", "b", mimeOf("mixed", "bb", text, text), text), 2, 4},
		{"no end", strings.TrimSuffix(mimeOf("mixed", "b", text, text), "--b--\r\nepilogue\r\n"), 1, 2},
		{"inner one without an end", mimeOf("mixed", "b", "Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx", text), 2, 3},
		{"LF alone", strings.ReplaceAll(mimeOf("mixed", "b", text, nested(1)), "\r\n", "\n"), 2, 3},
		{"folded field", "Content-Type:\r\n multipart/mixed;\r\n\tboundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n", 1, 1},
		{"upper case", "CONTENT-TYPE: MULTIPART/MIXED; BOUNDARY=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n", 1, 1},

		{"part after the end of its multipart", mimeOf("mixed", "b", text, nested(2)+"\r\n--b1"), 3, 5},
		{"header without an empty line", "Content-Type: multipart/mixed; boundary=b\r\nno field\r\n\r\n--b\r\n\r\n", 1, 1},
		{"no MIME in a parameter", "Content-Type: text/plain; name=multipart file.txt\r\n\r\n", 0, 0},
		{"boundary of several words", mimeOf("mixed", "a b c", text, text), 1, 2},

		// Attached messages count for the depth, as whatever is in them does.
		{"attached", attached + "Subject: a\r\n\r\ntext", 1, 0},
		{"attached to an attached one", attached + attached + attached + nested(2), 5, 2},
		{"attached in a part", mimeOf("mixed", "b", attached+nested(2)), 4, 3},
		{"attached in base64", "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
			"Q29udGVudC1UeXBlOiBtdWx0aXBhcnQvbWl4ZWQ7IGJvdW5kYXJ5PWINCg0KLS1iDQoNCngNCi0tYi0tDQo=", 2, 1},
		{"of a digest", mimeOf("digest", "d", "\r\n"+nested(1), "Content-Type: text/plain\r\n\r\n"+nested(1)), 3, 3},

		// Encodings and charsets do not matter.
		{"multipart in an unknown encoding", "Content-Transfer-Encoding: rot13\r\n" + mimeOf("mixed", "b", text), 1, 1},
		{"unknown charset", mimeOf("mixed", "b", "Content-Type: text/plain; charset=klingon\r\n\r\nx", "Content-Transfer-Encoding: rot13\r\n\r\nx"), 1, 2},

		{"parameter of an attached message", "Content-Type: message/rfc822; name=a b.eml\r\n\r\n" + nested(1), 2, 1},

		// A delivery report has groups of fields, one of this message, and one
		// more ends it.
		{"delivery report", mimeOf("report", "b", text, "Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; a\r\n\r\nAction: failed\r\n"), 2, 5},

		// What is no MIME does not count.
		{"boundary that never comes", "Content-Type: multipart/mixed; boundary=b\r\n\r\nx\r\n", 1, 0},
		{"part without an empty line", mimeOf("mixed", "b", text, "no field", text), 1, 3},
		{"rfc822 without a message", mimeOf("mixed", "b", attached), 2, 1},
	} {
		for _, limits := range []struct {
			LimitsConfig
			want error
		}{
			{LimitsConfig{MIMEDepth: max(test.depth, 1), MIMEParts: max(test.parts, 1)}, nil},
			{LimitsConfig{MIMEDepth: test.depth - 1}, errMIME},
			{LimitsConfig{MIMEParts: test.parts - 1}, errMIME},
			{LimitsConfig{}, nil},
		} {
			if limits.MIMEDepth < 0 || limits.MIMEParts < 0 || limits.want != nil && limits.MIMEDepth == 0 && limits.MIMEParts == 0 {
				continue // 0 is no limit
			}
			if got := checkMIME(t.Context(), &onceMessage{t: t, text: test.text}, limits.LimitsConfig); got != limits.want {
				t.Errorf("%s: mime_depth %d, mime_parts %d: got %v, want %v", test.name, limits.MIMEDepth, limits.MIMEParts, got, limits.want)
			}
		}
	}
}

// Backends may be more lenient than the RFCs are: no line of a message hides
// its parts from the limit, though they show up in the parsers behind it.
func TestMalformedMIMEHidesNoParts(t *testing.T) {
	const multipart = "Content-Type: multipart/mixed; boundary=b\r\n"
	more := strings.Repeat("--b\r\n\r\nx\r\n", 50) + "--b--\r\n"
	body := "\r\n" + more
	inner := "\r\n" + strings.ReplaceAll(more, "--b", "--c")
	for _, test := range []struct{ name, text string }{
		// Headers.
		{"line without a colon", multipart + "\r\n--b\r\nno field\r\n\r\n" + more},
		{"line without a colon before the type", "no field\r\n" + multipart + body},
		{"part that begins with white space", multipart + "\r\n--b\r\n X: x\r\n\r\n" + more},
		{"message that begins with white space", " X: x\r\n" + multipart + body},
		{"From line", "From a@b Mon Jan 1 00:00:00 2026\r\n" + multipart + body},
		{"From line later", "X: x\r\nFrom a@b Mon Jan 1 00:00:00 2026\r\n" + multipart + body},
		{"no name", ": x\r\n" + multipart + body},
		{"space before a colon", "Content-Type : multipart/mixed; boundary=b\r\n" + body},
		{"no empty line", multipart + more},
		{"no empty line in a part", multipart + "\r\n--b\r\nContent-Type: multipart/mixed; boundary=c" + inner},
		{"part in the place of a body", multipart + "\r\n--b\r\nContent-Type: multipart/mixed; boundary=c\r\n--b\r\n" + inner},
		{"boundary that looks like a field", "Content-Type: multipart/mixed; boundary=\"b:\"\r\n" + strings.ReplaceAll(more, "--b", "--b:")},
		{"long field", "X: " + strings.Repeat("x", 9999) + "\r\n" + multipart + body},
		{"CR in a header", "X: x\r" + multipart + body},
		{"empty line for those who take CRs alone", "X: x\r\r\n" + multipart + body},

		// Types.
		{"malformed parameter", "Content-Type: multipart/mixed; boundary=b; foo\r\n" + body},
		{"boundary that wants quotes", "Content-Type: multipart/mixed; boundary==_b\r\n" + strings.ReplaceAll(body, "--b", "--=_b")},
		{"encoded boundary", "Content-Type: multipart/mixed; boundary=\"=?utf-8?q?b?=\"\r\n" + strings.ReplaceAll(body, "--b", "--=?utf-8?q?b?=")},
		{"boundary in RFC 2231", "Content-Type: multipart/mixed; boundary=b; boundary*=us-ascii''c\r\n" + body},
		{"boundary with a quoted pair", "Content-Type: multipart/mixed; boundary=\"\\b\"\r\n" + body},
		{"boundary with white space at the end", "Content-Type: multipart/mixed; boundary=\"b \"\r\n" + body},
		{"boundary in two lines", "Content-Type: multipart/mixed; boundary=\"b\r\n  b\"\r\n" + body},
		{"two boundaries", "Content-Type: multipart/mixed; boundary=c; boundary=b\r\n" + body},
		{"no boundary", "Content-Type: multipart/mixed\r\n" + strings.ReplaceAll(body, "--b", "--")},
		{"boundary without a value", "Content-Type: multipart/mixed; boundary\r\n" + body},
		{"large boundary", strings.ReplaceAll(multipart+body, "b\r\n", strings.Repeat("b", 5000)+"\r\n")},
		{"no subtype", "Content-Type: multipart; boundary=b\r\n" + body},
		{"comment", "Content-Type: (a) multipart/mixed; boundary=b\r\n" + body},
		{"encoded type", "Content-Type: =?utf-8?b?bXVsdGlwYXJ0L21peGVkOyBib3VuZGFyeT1i?=\r\n" + body},
		{"unknown message", "Content-Type: message/x-foo\r\n\r\n" + multipart + body},
		{"two types", "Content-Type: text/plain\r\n" + multipart + body},
		{"two types in a part", multipart + "\r\n--b\r\nContent-Type: text/plain\r\nContent-Type: multipart/mixed; boundary=c\r\n" + inner},
		{"digest of no type", "Content-Type: multipart/digest; boundary=c\r\n\r\n--c\r\nContent-Type: foo\r\n\r\n" + multipart + body},

		// Encodings.
		{"two encodings", "Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64\r\nContent-Type: message/rfc822\r\n\r\n" + multipart + body},
		{"quoted-printable", "Content-Transfer-Encoding: quoted-printable\r\nContent-Type: message/rfc822\r\n\r\n" + multipart + body},
		{"base64 that is none", "Content-Transfer-Encoding: base64\r\nContent-Type: message/rfc822\r\n\r\n" + multipart + body},
		{"multipart in base64", "Content-Transfer-Encoding: base64\r\n" + multipart + body},

		// Bodies.
		{"almost a delimiter", multipart + "\r\n--b\r\n\r\n--b-x\r\n" + more},
		{"delimiters that only begin as they should", multipart + strings.ReplaceAll(body, "--b\r\n", "--b?\r\n")},
		{"long line before the first part", multipart + "\r\n" + strings.Repeat("x", 5000) + "\r\n" + more},
		{"parts after the last one", multipart + "\r\n--b--\r\n" + more},
		{"part between a delimiter and the last one", multipart + "\r\n--b\r\n--b--\r\nContent-Type: multipart/mixed; boundary=c\r\n" + inner},
		{"LF after CRLF", multipart + "\r\n--b\r\n\r\n" + strings.ReplaceAll(more, "\r\n", "\n")},
		{"CRLF after LF", multipart + "\r\n--b\n\r\n" + more},
		{"CR alone", multipart + "\r\nx" + strings.ReplaceAll(body, "\r\n", "\r")},
		{"white space after a delimiter", multipart + strings.ReplaceAll(body, "--b\r\n", "--b \t\r\n")},
		{"much white space after a delimiter", multipart + strings.ReplaceAll(body, "--b\r\n", "--b"+strings.Repeat(" ", 5000)+"\r\n")},
		{"groups of a delivery report", "Content-Type: message/delivery-status\r\n\r\n" + strings.Repeat("A: b\r\n\r\n", 50)},
		{"groups that CRs end", "Content-Type: message/delivery-status\r\n\r\n" + strings.Repeat("A: b\r\r", 50)},
		{"multipart in a delivery report", "Content-Type: message/delivery-status\r\n\r\n" + multipart + more},
	} {
		if got := checkMIME(t.Context(), &onceMessage{t: t, text: test.text}, LimitsConfig{MIMEParts: 5}); got != errMIME {
			t.Errorf("%s: got %v, want %v", test.name, got, errMIME)
		}
	}
}

// Whatever a large message says, it is judged in little memory.
func TestHostileMIMEIsBounded(t *testing.T) {
	const size = 5 << 20
	repeat := func(s string) string { return strings.Repeat(s, size/len(s)) }
	const multipart = "Content-Type: multipart/mixed; boundary=b\r\n\r\n"
	for _, test := range []struct {
		name, text string
		limits     LimitsConfig
		want       error
	}{
		{"parts", multipart + repeat("--b\r\n\r\nx\r\n"), LimitsConfig{MIMEParts: 1000}, errMIME},
		{"parts without a limit", multipart + repeat("--b\r\n\r\nx\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"attached messages", repeat("Content-Type: message/rfc822\r\n\r\n"), LimitsConfig{MIMEParts: 10}, errMIME},
		{"multiparts", multipart + repeat("--b\r\n"+multipart), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"deep multiparts", nested(200) + repeat("x\r\n"), LimitsConfig{MIMEParts: 1000}, errMIME},
		{"a text in 99 multiparts", strings.Replace(nested(99), "\r\ntext", "\r\n"+repeat("text\r\n"), 1), LimitsConfig{MIMEParts: 1000}, nil},
		{"field of a part", multipart + "--b\r\nX: " + repeat("x"), LimitsConfig{MIMEDepth: 10}, nil},
		{"folded field of a part", multipart + "--b\r\nX: x\r\n" + repeat(" x\r\n"), LimitsConfig{MIMEDepth: 10}, nil},
		{"fields of a part", multipart + "--b\r\n" + repeat("A:\r\n"), LimitsConfig{MIMEDepth: 10}, nil},
		{"fields of a message", repeat("A:\r\n"), LimitsConfig{MIMEDepth: 10}, nil},
		{"types of a message", repeat("Content-Type: text/plain\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"preamble", multipart + repeat("x\r\n"), LimitsConfig{MIMEDepth: 10}, nil},
		{"line of a preamble", multipart + repeat("x"), LimitsConfig{MIMEDepth: 10}, nil},
		{"boundary", "Content-Type: multipart/mixed; boundary=" + strings.Repeat("b", 10000) + "\r\n\r\n" + repeat("--"+strings.Repeat("b", 10000)+"\r\n\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"almost boundaries", multipart + "--b\r\n\r\n" + repeat("\r\n--cb"), LimitsConfig{MIMEDepth: 10}, nil},
		{"fields in each of 99 levels", strings.ReplaceAll(nested(99), "Content-Type", strings.Repeat("A:\r\n", 2900)+"Content-Type"), LimitsConfig{MIMEParts: 1000}, nil},
		{"types in each of 99 levels", strings.ReplaceAll(nested(99), "boundary", "a="+strings.Repeat("a", 15000)+"; boundary"), LimitsConfig{MIMEParts: 1000}, nil},
		{"quoted-printable in itself", repeat("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"), LimitsConfig{MIMEParts: 10}, errMIME},
		{"base64", "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + repeat("YWFh"), LimitsConfig{MIMEParts: 10}, nil},
		{"delivery report", "Content-Type: message/delivery-status\r\n\r\n" + repeat("A:\r\n\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
	} {
		m := &onceMessage{t: t, text: test.text, weigh: true}
		before := heapInUse()
		if got := checkMIME(t.Context(), m, test.limits); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		if most := int64(1 << 20); m.heap-before > most {
			t.Errorf("%s: %d KiB of memory", test.name, (m.heap-before)>>10)
		}
	}
}

// heapInUse returns how much memory is in use.
func heapInUse() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// A disk that fails is no fault of the message.
func TestMIMEOfAMessageThatCannotBeRead(t *testing.T) {
	broken := spoolError{errors.New("input/output error")}
	for _, good := range []int{0, 10, 100, 5000} {
		m := brokenMessage{nested(3) + strings.Repeat("x\r\n", 3000), good, broken}
		err := checkMIME(t.Context(), m, LimitsConfig{MIMEDepth: 5})
		if refusal, ok := refusalOf(err); !ok || refusal.Code != 451 {
			t.Errorf("after %d octets: %v, %v", good, err, refusal)
		}
	}
}

// A session that ends does not wait for it.
func TestMIMEStopsWithTheSession(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := &onceMessage{t: t, text: nested(3) + strings.Repeat("x\r\n", 100_000)}
	m.reads = cancel
	err := checkMIME(ctx, m, LimitsConfig{MIMEDepth: 5})
	if refusal, ok := refusalOf(err); !ok || refusal.Code != 451 {
		t.Errorf("%v, %v", err, refusal)
	}
	if m.read == m.Size() {
		t.Error("the message was read to its end")
	}
}

type brokenMessage struct {
	text string
	good int
	err  error
}

func (m brokenMessage) Size() int64  { return int64(len(m.text)) }
func (m brokenMessage) Close() error { return nil }

func (m brokenMessage) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(m.good) {
		return 0, m.err
	}
	return copy(p, m.text[off:m.good]), m.err
}

// Whatever a message is, it is read once and not beyond its end, and who may
// have no more parts or levels may not have fewer.
func FuzzMIME(f *testing.F) {
	f.Add([]byte(nested(3)), 2, 2)
	f.Add([]byte(mimeOf("digest", "b", "\r\n"+nested(1), "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nQQ==")), 1, 1)
	f.Add([]byte("Content-Type: multipart/mixed; boundary=\"\"\n\n--\n\n--\n"), 1, 1)
	f.Add([]byte("Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type:multipart/mixed;boundary=b\n\n--b\n\n--b--\n"), 3, 1)
	f.Add([]byte("From a\n b\nContent-Type: multipart/mixed; boundary=b\nno field\n\n--b--\n--b\n\r--b\r\n--b-x\n"), 1, 3)
	f.Add([]byte("Content-Type: message/x-foo\n\nContent-Type: message/delivery-status\n\nA: b\n\nA: b\n"), 2, 2)
	f.Add([]byte("Content-Type: multipart/mixed; boundary=\"a b\"\n\n--a b\nContent-Type: multipart/mixed; boundary=a\n\n--a\n"), 1, 1)
	f.Add([]byte("Content-Type: multipart/mixed; boundary=\"=?utf-8?q?b?=\"; boundary*=c\nContent-Type: text/plain\n\n--b\n"), 1, 1)
	f.Fuzz(func(t *testing.T, text []byte, depth, parts int) {
		depth, parts = 1+depth&7, 1+parts&15
		check := func(l LimitsConfig) error {
			return checkMIME(t.Context(), &onceMessage{t: t, text: string(text)}, l)
		}
		for _, less := range []LimitsConfig{{MIMEDepth: depth, MIMEParts: parts}, {MIMEDepth: depth}, {MIMEParts: parts}} {
			more := less
			more.MIMEDepth, more.MIMEParts = 2*less.MIMEDepth, 2*less.MIMEParts
			few, many := check(less), check(more)
			if few != nil && few != errMIME || many != nil && few == nil {
				t.Errorf("%+v: %v, but %+v: %v", less, few, more, many)
			}
		}
	})
}
