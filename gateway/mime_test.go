package gateway

import (
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

	weigh bool
	heap  int64 // the most that was in use, seen once in each MiB
}

func (m *onceMessage) Size() int64  { return int64(len(m.text)) }
func (m *onceMessage) Close() error { return nil }

func (m *onceMessage) ReadAt(p []byte, off int64) (int, error) {
	if off != m.read {
		m.t.Errorf("read at %d after %d octets", off, m.read)
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

		// Attached messages count for the depth, as whatever is in them does.
		{"attached", attached + "Subject: a\r\n\r\ntext", 1, 0},
		{"attached to an attached one", attached + attached + attached + nested(2), 5, 2},
		{"attached in a part", mimeOf("mixed", "b", attached+nested(2)), 4, 3},
		{"attached in base64", "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
			"Q29udGVudC1UeXBlOiBtdWx0aXBhcnQvbWl4ZWQ7IGJvdW5kYXJ5PWINCg0KLS1iDQoNCngNCi0tYi0tDQo=", 2, 1},
		{"of a digest", mimeOf("digest", "b", "\r\n"+nested(1), "Content-Type: text/plain\r\n\r\n"+nested(1)), 3, 3},

		// Encodings and charsets do not matter.
		{"multipart in an unknown encoding", "Content-Transfer-Encoding: rot13\r\n" + mimeOf("mixed", "b", text), 1, 1},
		{"unknown charset", mimeOf("mixed", "b", "Content-Type: text/plain; charset=klingon\r\n\r\nx", "Content-Transfer-Encoding: rot13\r\n\r\nx"), 1, 2},

		// What is no MIME does not count.
		{"no boundary", "Content-Type: multipart/mixed\r\n\r\n--\r\n\r\nx\r\n----\r\n", 1, 0},
		{"bad type", "Content-Type: multipart/mixed; boundary\r\n\r\n--b\r\n\r\n", 0, 0},
		{"boundary that never comes", "Content-Type: multipart/mixed; boundary=b\r\n\r\nx\r\n", 1, 0},
		{"part without an empty line", mimeOf("mixed", "b", text, "no field", text), 1, 1},
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
		{"field of a part", multipart + "--b\r\nX: " + repeat("x"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"folded field of a part", multipart + "--b\r\nX: x\r\n" + repeat(" x\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"fields of a part", multipart + "--b\r\n" + repeat("A:\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"fields of a message", repeat("A:\r\n"), LimitsConfig{MIMEDepth: 10}, nil},
		{"types of a message", repeat("Content-Type: text/plain\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"preamble", multipart + repeat("x\r\n"), LimitsConfig{MIMEDepth: 10}, errMIME},
		{"line of a preamble", multipart + repeat("x"), LimitsConfig{MIMEDepth: 10}, nil},
		{"boundary", "Content-Type: multipart/mixed; boundary=" + strings.Repeat("b", 10000) + "\r\n\r\n" + repeat("--"+strings.Repeat("b", 10000)+"\r\n\r\n"), LimitsConfig{MIMEDepth: 10}, nil},
		{"almost boundaries", multipart + "--b\r\n\r\n" + repeat("\r\n--bb"), LimitsConfig{MIMEDepth: 10}, nil},
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
	broken := errors.New("input/output error")
	for _, good := range []int{0, 10, 100, 5000} {
		m := brokenMessage{nested(3) + strings.Repeat("x\r\n", 3000), good, broken}
		err := checkMIME(t.Context(), m, LimitsConfig{MIMEDepth: 5})
		if refusal, ok := refusalOf(err); !ok || refusal.Code != 451 {
			t.Errorf("after %d octets: %v, %v", good, err, refusal)
		}
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
