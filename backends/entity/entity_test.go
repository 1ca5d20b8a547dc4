package entity

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/emersion/go-message"

	"github.com/mailgw/mailgw/backends"
)

func transaction(text string) *backends.DataContext {
	return &backends.DataContext{Size: int64(len(text)), Body: strings.NewReader(text)}
}

const mixed = "Subject: two\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n"

// crlf makes CRLF of the ends of lines.
func crlf(text string) string { return strings.ReplaceAll(text, "\n", "\r\n") }

func TestParse(t *testing.T) {
	tests := []struct{ name, message, subject, body string }{
		{"plain", "Subject: hello\n\nbody\n", "hello", "body\r\n"},
		{"encoded words", "Subject: =?iso-8859-1?q?gr=FC=DFe?=\n\n", "grüße", ""},
		{"quoted-printable", "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\ngr=FC=DFe", "", "grüße"},
		{"base64", "Content-Transfer-Encoding: base64\n\naGVs\nbG8=\n", "", "hello"},

		// What nobody can decode stays as it is.
		{"unknown charset", "Subject: s\nContent-Type: text/plain; charset=klingon\n\n\xfc\n", "s", "\xfc\r\n"},
		{"unknown encoding", "Content-Transfer-Encoding: rot13\n\nuryyb", "", "uryyb"},

		// What is broken ends where it is.
		{"broken base64", "Content-Transfer-Encoding: base64\n\naGVs!!!!bG8=\n", "", "hel"},
		{"no header", "\nbody", "", "body"},
		{"no body", "Subject: s\n", "s", ""},
		{"no message", "", "", ""},
		{"no empty line", "Subject: s\nbody", "s", "body"},
		{"space before the colon", "Subject : s\n\nbody", "s", "body"},
		{"folded at once", " folded\nSubject: s\n\n", "", " folded\r\nSubject: s\r\n\r\n"},
	}
	for _, tt := range tests {
		m, err := Parse(transaction(crlf(tt.message)))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		subject, _ := m.Header.Text("Subject")
		body, err := io.ReadAll(m.Body)
		if subject != tt.subject || string(body) != tt.body || err != nil {
			t.Errorf("%s: got %q and %q, %v; want %q and %q", tt.name, subject, body, err, tt.subject, tt.body)
		}
	}
}

// A field has the same position in the header and in edits.
func TestPositionsAreThoseOfEdits(t *testing.T) {
	m, err := Parse(transaction("B: 1\r\nA : 2\r\nb: 3\r\n folded\r\nC:\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for fields := m.Header.Fields(); fields.Next(); {
		raw, _ := fields.Raw()
		got = append(got, string(raw))
	}
	if want := []string{"B: 1\r\n", "A : 2\r\n", "b: 3\r\n folded\r\n", "C:\r\n"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// parts returns the path of each part and the text that is in it.
func parts(tx *backends.DataContext) (found []string, err error) {
	err = Walk(tx, func(path []int, part *message.Entity) error {
		kind, _, _ := part.Header.ContentType()
		if strings.HasPrefix(kind, "multipart/") {
			found = append(found, fmt.Sprint(path, kind))
			return nil
		}
		text, err := io.ReadAll(part.Body)
		found = append(found, fmt.Sprintf("%v%s", path, text))
		return err
	})
	return found, err
}

func TestWalk(t *testing.T) {
	tests := []struct {
		name, message string
		want          []string
	}{
		{"no multipart", "Subject: s\n\nbody", []string{"[]body"}},
		{"nested", mixed + "--a\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\none\n--b\n\ntwo\n--b--\n--a\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n--a--\nafter\n",
			[]string{"[]multipart/mixed", "[0]multipart/alternative", "[0 0]one", "[0 1]two", "[1]hello"}},
		{"attached message", mixed + "--a\nContent-Type: message/rfc822\n\n" + mixed + "\n--a--\n",
			[]string{"[]multipart/mixed", "[0]" + crlf(mixed)}},
		{"unknown charset in a part", mixed + "--a\nContent-Type: text/plain; charset=klingon\n\none\n--a\n\ntwo\n--a--\n",
			[]string{"[]multipart/mixed", "[0]one", "[1]two"}},
		{"no end", mixed + "--a\n\none\n--a\n\ntwo", []string{"[]multipart/mixed", "[0]one", "[1]two"}},
		{"no parts", mixed + "nothing", []string{"[]multipart/mixed"}},
		{"no boundary", "Content-Type: multipart/mixed\n\n--a\n\none\n--a--\n", []string{"[]multipart/mixed"}},
		{"broken header of a part", mixed + "--a\nno field\n\none\n--a\n\ntwo\n--a--\n", []string{"[]multipart/mixed"}},
		{"broken part before others", mixed + "--a\nContent-Transfer-Encoding: base64\n\n!!!\n--a\n\ntwo\n--a--\n",
			[]string{"[]multipart/mixed", "[0]", "[1]two"}},
	}
	for _, tt := range tests {
		got, err := parts(transaction(crlf(tt.message)))
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, %v\nwant %q", tt.name, got, err, tt.want)
		}
	}
}

// An error of reading is never taken for the end of a message, nor for a
// broken one.
func TestReadErrorsAreToldEverywhere(t *testing.T) {
	broken := errors.New("the rest cannot be had")
	whole := crlf(mixed + "--a\nContent-Type: text/plain\n\none\n--a\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\ntwo\n--b--\n--a--\n")
	for n := range len(whole) {
		tx := &backends.DataContext{Body: io.MultiReader(strings.NewReader(whole[:n]), iotest.ErrReader(broken))}
		if _, err := parts(tx); err != broken {
			t.Errorf("after %q: got %v, want %v", whole[:n], err, broken)
		}
	}
}

func TestErrorOfTheFunctionEndsTheWalk(t *testing.T) {
	oops := errors.New("oops")
	for returned, want := range map[error]error{oops: oops, fs.SkipAll: nil} {
		calls := 0
		err := Walk(transaction(crlf(mixed+"--a\n\none\n--a\n\ntwo\n--a--\n")), func(path []int, _ *message.Entity) error {
			if calls++; len(path) > 0 {
				return returned
			}
			return nil
		})
		if err != want || calls != 2 {
			t.Errorf("got %v after %d calls, want %v after 2", err, calls, want)
		}
	}
}

// Whoever writes a message decides how deep it goes, and how long the headers of
// its parts are.
func TestMemoryIsBounded(t *testing.T) {
	var deep strings.Builder
	for i := range 10 * maxDepth {
		fmt.Fprintf(&deep, "Content-Type: multipart/mixed; boundary=a%d.\n\n--a%[1]d.\n", i)
	}
	long := mixed + "--a\nX: " + strings.Repeat("x", 2*maxBetween) + "\n\none\n--a\n\ntwo\n--a--\n"
	for text, want := range map[string]int{deep.String(): maxDepth + 1, long: 1} {
		got, err := parts(transaction(crlf(text)))
		if err != nil || len(got) != want {
			t.Errorf("%.100q: %d parts, %v; want %d", text, len(got), err, want)
		}
	}
}

// Every message that can be read can be walked through, and every field of its
// header is there.
func FuzzWalk(f *testing.F) {
	f.Add("Subject: s\r\n\r\nbody")
	f.Add(crlf(mixed + "--a\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\none\n--b--\n--a\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n--a--\n"))
	f.Add("Content-Type: text/plain; charset=utf-7\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n+2D3cqQ-=\r\n=3")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := parts(transaction(text)); err != nil {
			t.Fatal(err)
		}
		m, err := Parse(transaction(text))
		if err != nil {
			t.Fatal(err)
		}
		fields, err := backends.ReadHeader(bufio.NewReader(strings.NewReader(text)))
		if got := m.Header.Len(); err != nil || got != len(fields) {
			t.Errorf("%d fields, want %d; %v", got, len(fields), err)
		}
	})
}
