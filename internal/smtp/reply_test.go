package smtp

import (
	"io"
	"strings"
	"testing"
)

func TestReply(t *testing.T) {
	tests := []struct {
		reply Reply
		wire  string
	}{
		{Reply{250, "2.0.0", "ok"}, "250 2.0.0 ok\r\n"},
		{Reply{354, "", "go on"}, "354 go on\r\n"},

		// RFC 2034, section 4: the enhanced code is in every line.
		{Reply{550, "5.1.1", "no\nsuch\nuser"}, "550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n"},
		{Reply{250, "", "mx.example.org\nSIZE 1000\nDSN"}, "250-mx.example.org\r\n250-SIZE 1000\r\n250 DSN\r\n"},

		// Lines without text are lines.
		{Reply{250, "2.0.0", ""}, "250 2.0.0 \r\n"},
		{Reply{250, "", ""}, "250 \r\n"},
		{Reply{214, "2.0.0", "a\n\nb\n"}, "214-2.0.0 a\r\n214-2.0.0 \r\n214-2.0.0 b\r\n214 2.0.0 \r\n"},
	}
	for _, test := range tests {
		if wire := string(test.reply.AppendTo(nil)); wire != test.wire {
			t.Errorf("%+v is %q on the wire, want %q", test.reply, wire, test.wire)
		}
		if s, want := test.reply.String(), strings.TrimSuffix(strings.ReplaceAll(test.wire, "\r\n", "\n"), "\n"); s != want {
			t.Errorf("%+v is the string %q, want %q", test.reply, s, want)
		}
		if got, err := readReply(test.wire); got != test.reply || err != nil {
			t.Errorf("%q is read as %+v, %v, want %+v", test.wire, got, err, test.reply)
		}
	}
	if got := string(Reply{220, "", "hi"}.AppendTo([]byte("before"))); got != "before220 hi\r\n" {
		t.Errorf("AppendTo does not append: %q", got)
	}
}

// readReply reads one reply as a client does. Text after its end is an error.
func readReply(wire string) (r Reply, err error) {
	lines := strings.SplitAfter(wire, "\r\n")
	for i, line := range lines[:len(lines)-1] {
		more, err := r.Add(strings.TrimSuffix(line, "\r\n"))
		if err != nil {
			return Reply{}, err
		}
		if last := i == len(lines)-2; more == last {
			return Reply{}, io.ErrUnexpectedEOF
		}
	}
	return r, nil
}

// What servers say that is not like what AppendTo writes.
func TestReplyOfStrangers(t *testing.T) {
	tests := []struct {
		wire string
		want Reply
	}{
		{"250\r\n", Reply{250, "", ""}},
		{"250 2.0.0\r\n", Reply{250, "2.0.0", ""}},
		{"250-\r\n250\r\n", Reply{250, "", "\n"}},
		{"250 \xff\x00\x1b[2J\r\n", Reply{250, "", "\xff\x00\x1b[2J"}},

		// What looks like an enhanced code and is none: of another class,
		// too long, or a version number.
		{"250 5.1.1 ok\r\n", Reply{250, "", "5.1.1 ok"}},
		{"220 2.1\r\n", Reply{220, "", "2.1"}},
		{"250 2.0.0.1 ok\r\n", Reply{250, "", "2.0.0.1 ok"}},
		{"250 2.0.1000 ok\r\n", Reply{250, "", "2.0.1000 ok"}},
		{"250 2.-1.+1 ok\r\n", Reply{250, "", "2.-1.+1 ok"}},
		{"250 2..0 ok\r\n", Reply{250, "", "2..0 ok"}},

		// One that is not in all lines is where it stands.
		{"250-2.1.0 a\r\n250 b\r\n", Reply{250, "2.1.0", "a\nb"}},
		{"250-a\r\n250 2.1.0 b\r\n", Reply{250, "", "a\n2.1.0 b"}},
		{"250-2.1.0 a\r\n250 2.1.5 b\r\n", Reply{250, "2.1.0", "a\n2.1.5 b"}},
	}
	for _, test := range tests {
		if got, err := readReply(test.wire); got != test.want || err != nil {
			t.Errorf("%q is read as %+v, %v, want %+v", test.wire, got, err, test.want)
		}
	}
}

func TestReplyRefuses(t *testing.T) {
	tests := []struct{ wire, err string }{
		{"\r\n", `not a reply: ""`},
		{"25\r\n", `not a reply: "25"`},
		{"hello\r\n", `not a reply: "hello"`},
		{"250ok\r\n", `not a reply: "250ok"`},
		{"250\tok\r\n", `not a reply: "250\tok"`},
		{"+25 ok\r\n", `not a reply: "+25 ok"`},
		{"-50 ok\r\n", `not a reply: "-50 ok"`},
		{" 250 ok\r\n", `not a reply: " 250 ok"`},
		{"\u0662\u0665\r\n", "not a reply: \"\u0662\u0665\""},

		// Codes that RFC 5321, section 4.2.1 does not have.
		{"100 continue\r\n", `not a reply: "100 continue"`},
		{"199 ok\r\n", `not a reply: "199 ok"`},
		{"600 ok\r\n", `not a reply: "600 ok"`},
		{"000 ok\r\n", `not a reply: "000 ok"`},

		// Lines that are no reply together.
		{"250-a\r\n550 b\r\n", `reply changes its code from 250: "550 b"`},
		{"250-a\r\n\r\n", `not a reply: ""`},

		// Without end.
		{strings.Repeat("250-x\r\n", maxReply), "reply of more than 16384 octets"},
		{strings.Repeat("250-\r\n", 2*maxReply), "reply of more than 16384 octets"},
		{"250 " + strings.Repeat("x", maxReply) + "\r\n", "reply of more than 16384 octets"},
	}
	for _, test := range tests {
		if got, err := readReply(test.wire); err == nil || err.Error() != test.err {
			t.Errorf("%.40q is read as %+v, %v, want %s", test.wire, got, err, test.err)
		}
	}
}

// What was written is what is read.
func FuzzReply(f *testing.F) {
	f.Fuzz(func(t *testing.T, code uint16, enhanced, text string) {
		r := Reply{200 + int(code)%400, enhanced, strings.ReplaceAll(text, "\r", "")}
		if enhanced != "" && !isEnhanced(enhanced, r.Code) {
			return
		}
		if first, _, _ := strings.Cut(strings.ReplaceAll(r.Text, "\n", " "), " "); enhanced == "" && isEnhanced(first, r.Code) {
			return // would be read as the enhanced code
		}
		wire := string(r.AppendTo(nil))
		if len(wire) > maxReply {
			return
		}
		if got, err := readReply(wire); got != r || err != nil {
			t.Errorf("%+v is %q on the wire and read as %+v, %v", r, wire, got, err)
		}
	})
}

// No line of a server makes a client panic, or a reply that is none.
func FuzzReplyAdd(f *testing.F) {
	f.Fuzz(func(t *testing.T, wire string) {
		var r Reply
		for line := range strings.SplitSeq(wire, "\r\n") {
			before := r
			more, err := r.Add(line)
			if err != nil {
				if more || r != before {
					t.Errorf("%q: the line %q was refused and taken: %+v", wire, line, r)
				}
				return
			}
			if r.Code < 200 || r.Code > 599 || len(r.Text) > maxReply || r.Enhanced != "" && !isEnhanced(r.Enhanced, r.Code) {
				t.Errorf("%q is read as %+v", wire, r)
			}
		}
	})
}

func BenchmarkReplyAppendTo(b *testing.B) {
	r := Reply{250, "2.1.5", "recipient ok"}
	buf := make([]byte, 0, 100)
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendTo(buf[:0])
	}
}
