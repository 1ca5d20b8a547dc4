package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestReadLine(t *testing.T) {
	const limit = 12 // of a reader with a buffer of 16, the least that bufio has
	long := strings.Repeat("x", 100)
	tests := []struct {
		input string
		want  string
		err   error
	}{
		// What clients send.
		{"NOOP\r\n", "NOOP", nil},
		{"\r\n", "", nil},
		{"8 bit \xff\x00\r\n", "8 bit \xff\x00", nil},

		// The limit counts the CRLF: RFC 5321, section 4.5.3.1.4.
		{"0123456789\r\n", "0123456789", nil},
		{"0123456789a\r\n", "", ErrLineTooLong},

		// Longer than the buffer, so that it takes several reads to skip. The
		// length is told first: what a line of no end holds is of no interest.
		{long + "\r\n", "", ErrLineTooLong},
		{long + "\n", "", ErrLineTooLong},
		{"0123456789abcd\r\n", "", ErrLineTooLong},  // fills it
		{"0123456789abcde\r\n", "", ErrLineTooLong}, // fills it with the CR

		// A line that another party could see as two, or as none.
		{"\n", "", ErrBareNewline},
		{"NOOP\n", "", ErrBareNewline},
		{"NO\rOP\r\n", "", ErrBareNewline},
		{"NOOP\r\r\n", "", ErrBareNewline},
		{"\rNOOP\n", "", ErrBareNewline},

		// A line without an end is none.
		{"", "", io.EOF},
		{"NOOP", "", io.EOF},
		{"NOOP\r", "", io.EOF},
		{long, "", io.EOF},
	}
	for _, test := range tests {
		r := bufio.NewReaderSize(strings.NewReader(test.input+"next\r\n"), 16)
		if test.err == io.EOF {
			r = bufio.NewReaderSize(strings.NewReader(test.input), 16)
		}
		got, err := ReadLine(r, limit)
		if string(got) != test.want || !errors.Is(err, test.err) {
			t.Errorf("ReadLine(%q) = %q, %v, want %q, %v", test.input, got, err, test.want, test.err)
		}
		if test.err == io.EOF {
			continue
		}
		// Whatever the line was, the one after it is not touched.
		if next, err := ReadLine(r, limit); string(next) != "next" || err != nil {
			t.Errorf("after %q: ReadLine = %q, %v", test.input, next, err)
		}
	}
}

func TestParseCommand(t *testing.T) {
	tests := []struct{ line, verb, args string }{
		{"NOOP", "NOOP", ""},
		{"mail FROM:<a@b>", "MAIL", "FROM:<a@b>"},
		{"", "", ""},

		// White space that strangers send and Postfix lets through.
		{"QUIT \t ", "QUIT", ""},
		{"  RCPT\tTO:<a@b> \t X=y ", "RCPT", "TO:<a@b> \t X=y"},
		{" \t", "", ""},

		// A verb is US-ASCII: these are no RSET, no QUIT and no MAIL.
		{"R\u017fET", "R\u017fET", ""},
		{"QU\u0131T", "QU\u0131T", ""},
		{"MAIL\u00a0FROM:<a@b>", "MAIL\u00a0FROM:<a@b>", ""},
		{"\xff\x00 \xff", "\xff\x00", "\xff"},
	}
	for _, test := range tests {
		if verb, args := ParseCommand(test.line); verb != test.verb || args != test.args {
			t.Errorf("ParseCommand(%q) = %q, %q", test.line, verb, args)
		}
	}
}

func TestCutPath(t *testing.T) {
	tests := []struct {
		args   string
		path   string
		params string // parted by spaces
	}{
		{"TO:<a@b>", "a@b", ""},
		{"to:<a@b>", "a@b", ""},
		{"TO:<>", "", ""},

		// Parameters with and without a value: SMTPUTF8 and REQUIRETLS have
		// none, and Postfix sends them on to before-queue filters.
		{"TO:<a@b> SMTPUTF8 REQUIRETLS", "a@b", "SMTPUTF8 REQUIRETLS"},
		{"TO:<a@b> NOTIFY=NEVER", "a@b", "NOTIFY=NEVER"},
		{"TO:<a@b>  size=1 \t BODY=8BITMIME ", "a@b", "size=1 BODY=8BITMIME"},
		{"TO:<a@b> ORCPT=rfc822;a=b@c AUTH=<>", "a@b", "ORCPT=rfc822;a=b@c AUTH=<>"},
		{"TO:<a@b> ORCPT=utf-8;\u00e9@c", "a@b", "ORCPT=utf-8;\u00e9@c"},
		{"TO:<a@b> X-1=" + strings.Repeat("x", 2000), "a@b", "X-1=" + strings.Repeat("x", 2000)},

		// A space is US-ASCII. What package strings takes for one is not.
		{"TO:<a@b> ORCPT=utf-8;a\u00a0SIZE=1", "a@b", "ORCPT=utf-8;a\u00a0SIZE=1"},
		{"TO:<a@b> ORCPT=utf-8;a\u3000SIZE=1", "a@b", "ORCPT=utf-8;a\u3000SIZE=1"},

		// A quoted local part may have all that would end a path.
		{`TO:<"a b"@c> X`, `"a b"@c`, "X"},
		{`TO:<"a> X=y"@c> Z`, `"a> X=y"@c`, "Z"},
		{`TO:<"a\">"@c>`, `"a\">"@c`, ""},
		{`TO:<"a\\"@c>`, `"a\\"@c`, ""},
		{`TO:<@x,@y:"a>b"@c>`, `@x,@y:"a>b"@c`, ""},

		// What strangers send and Postfix lets through to a filter.
		{"TO: <a@b>", "a@b", ""},
		{"TO:\t<a@b>\tX", "a@b", "X"},
		{"TO:a@b", "a@b", ""},
		{"TO: a@b X=y", "a@b", "X=y"},
		{`TO:"a b"@c X=y`, `"a b"@c`, "X=y"},

		// Cut as it is written, for CheckMailbox to refuse: the recipient of
		// another program was once "a@b> NOTIFY=NEVER".
		{"TO:a@b> NOTIFY=NEVER", "a@b>", "NOTIFY=NEVER"},
		{"TO:<a@b NOTIFY=NEVER>", "a@b NOTIFY=NEVER", ""},
		{"TO:<<a@b> X", "<a@b", "X"},
		{"TO:< a@b >", " a@b ", ""},
	}
	for _, test := range tests {
		path, params, err := CutPath(test.args, "TO:")
		if path != test.path || strings.Join(params, " ") != test.params || err != nil {
			t.Errorf("CutPath(%q) = %q, %q, %v", test.args, path, params, err)
		}
	}
}

func TestCutPathRefuses(t *testing.T) {
	const (
		syntax  = "TO:<address> expected"
		balance = "unbalanced quotes or angle brackets"
	)
	tests := []struct {
		args  string
		err   string
		param bool // a ParamError
	}{
		{"", syntax, false},
		{"TO", syntax, false},
		{"TO <a@b>", syntax, false},
		{"TO :<a@b>", syntax, false},
		{"FROM:<a@b>", syntax, false},
		{"TO:", "no address", false},
		{"TO:  ", "no address", false},

		// Brackets and quotes.
		{"TO:<a@b", balance, false},
		{"TO:<a@b NOTIFY=NEVER", balance, false},
		{`TO:<"a@b>`, balance, false},
		{`TO:<"a\"@b>`, balance, false},
		{`TO:"a@b X`, balance, false},
		{`TO:<"a\`, balance, false},
		{"TO:<a@b>NOTIFY=NEVER", "text after the angle bracket", false},
		{"TO:<a@b>>", "text after the angle bracket", false},
		{"TO:<><a@b>", "text after the angle bracket", false},

		// Parameters: RFC 5321, section 4.1.2.
		{"TO:<a@b> =", `bad parameter "="`, true},
		{"TO:<a@b> =x", `bad parameter "=x"`, true},
		{"TO:<a@b> -x", `bad parameter "-x"`, true},
		{"TO:<a@b> x_y", `bad parameter "x_y"`, true},
		{"TO:<a@b> <c@d>", `bad parameter "<c@d>"`, true},
		{"TO:<a@b> \xff\u00e9\x1b", `bad parameter "\xff\u00e9\x1b"`, true},
		{"TO:<a@b> " + strings.Repeat("?", 2000), `bad parameter "` + strings.Repeat("?", 40) + `"`, true},
		{"TO:<a@b> SIZE=", "parameter SIZE has no value after =", true},
		{"TO:<a@b> X X", "parameter X given twice", true},
		{"TO:<a@b> size=1 Y SIZE=2", "parameter SIZE given twice", true},
		{"TO:<a@b> X=a\x00b", "parameter X has control characters or is not UTF-8", true},
		{"TO:<a@b> X=a\vY=b", "parameter X has control characters or is not UTF-8", true},
		{"TO:<a@b> X=a\x7f", "parameter X has control characters or is not UTF-8", true},
		{"TO:<a@b> X=a\u0085b", "parameter X has control characters or is not UTF-8", true},
		{"TO:<a@b> X=a\u2028b", "parameter X has control characters or is not UTF-8", true},
		{"TO:<a@b> X=\xe9", "parameter X has control characters or is not UTF-8", true},
	}
	for _, test := range tests {
		path, params, err := CutPath(test.args, "TO:")
		if err == nil || err.Error() != test.err || errors.As(err, new(ParamError)) != test.param {
			t.Errorf("CutPath(%q) = %q, %q, %v, want %s", test.args, path, params, err, test.err)
		}
	}
}

// What CutPath makes of a command can be written down again and means the
// same then, so that a relay sends what was received.
func FuzzCutPath(f *testing.F) {
	f.Fuzz(func(t *testing.T, args string) {
		path, params, err := CutPath(args, "FROM:")
		if err != nil {
			if text := err.Error(); !IsASCII(text) || strings.ContainsFunc(text, unicode.IsControl) || len(text) > 400 {
				t.Errorf("CutPath(%q): %q is no text for a reply", args, text)
			}
			return
		}
		for _, p := range params {
			if !utf8.ValidString(p) || strings.ContainsFunc(p, isControl) || strings.ContainsFunc(p, isBlank) {
				t.Errorf("CutPath(%q): parameter %q", args, p)
			}
		}
		if _, err := CheckMailbox(path, true); err != nil && path != "" {
			return
		}
		again := "FROM:<" + path + "> " + strings.Join(params, " ")
		path2, params2, err := CutPath(again, "FROM:")
		if path2 != path || !slices.Equal(params2, params) || err != nil {
			t.Errorf("CutPath(%q) = %q, %q, but CutPath(%q) = %q, %q, %v", args, path, params, again, path2, params2, err)
		}
	})
}

// What ReadLine returns is a line and nothing else, and together with what it
// refuses it is all that was sent, whatever size the buffer has.
func FuzzReadLine(f *testing.F) {
	f.Fuzz(func(t *testing.T, sent []byte, limit uint8) {
		r := bufio.NewReaderSize(bytes.NewReader(sent), 16)
		for rest := sent; ; {
			line, err := ReadLine(r, int(limit))
			if err == io.EOF || err == ErrLostChunk {
				return
			}
			next := bytes.IndexByte(rest, '\n') + 1
			if next == 0 {
				t.Fatalf("%q: a line after the last one: %q, %v", sent, line, err)
			}
			raw := rest[:next]
			rest = rest[next:]
			verb, args := ParseCommand(string(line))
			switch {
			case err != nil && len(line) > 0:
				t.Errorf("%q: %q with error %v", sent, line, err)
			case err == nil && (string(raw) != string(line)+"\r\n" || bytes.ContainsAny(line, "\r\n") || len(raw) > int(limit)):
				t.Errorf("%q: got %q of %q", sent, line, raw)
			case err == nil && (!strings.Contains(string(line), args) || strings.TrimFunc(args, isBlank) != args):
				t.Errorf("%q: the arguments are %q", line, args)
			case strings.ContainsFunc(verb, isBlank) || verb == "" && args != "":
				t.Errorf("%q: the verb is %q, the arguments %q", line, verb, args)
			}
		}
	})
}

func BenchmarkReadLine(b *testing.B) {
	const line = "RCPT TO:<somebody@example.org> NOTIFY=FAILURE,DELAY\r\n"
	in := strings.NewReader(line)
	r := bufio.NewReader(in)
	b.ReportAllocs()
	for b.Loop() {
		in.Reset(line)
		r.Reset(in)
		if _, err := ReadLine(r, 2048); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCutPath(b *testing.B) {
	for _, bench := range []struct{ name, args string }{
		{"plain", "FROM:<somebody@example.org>"},
		{"parameters", "FROM:<somebody@example.org> SIZE=4096 BODY=8BITMIME"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := CutPath(bench.args, "FROM:"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
