package main

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// Each scenario works with each of its servers. How fast they are is not tested.
func TestScenarios(t *testing.T) {
	for _, g := range goals {
		for _, s := range g.scenarios {
			s.load.sessions = min(s.load.sessions, 3)
			s.load.recipients = min(s.load.recipients, 50)
			s.load.size = min(s.load.size, 64<<10)
		}
	}
	b := &bench{root: "../..", rounds: 1, out: t.Output(), results: results{}, absent: map[string]error{}}
	if err := b.run(nil); err != nil {
		t.Fatal(err)
	}
	for _, g := range goals {
		for _, s := range g.scenarios {
			for _, server := range s.servers {
				got := b.results[s][server]
				if b.absent[server] == nil && (len(got) != 1 || got[0].rate == 0 && got[0].memory == 0) {
					t.Errorf("%s: %s: got %v, want one sample", s.title, server, got)
				}
			}
		}
	}
	for server, err := range b.absent {
		gatewaytest.Without(t, "%s: %v: internal/peers/install installs it", server, err)
	}
}

func TestProfiles(t *testing.T) {
	dir := t.TempDir()
	b := &bench{root: "../..", only: []string{mailgw}, rounds: 1, profiles: dir, out: t.Output(), results: results{}, absent: map[string]error{}}
	if err := b.run([]int{3}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gateway", "discard"} {
		found, err := filepath.Glob(filepath.Join(dir, "*_mailgw_"+name+".pprof"))
		if err != nil || len(found) != 1 {
			t.Errorf("profiles of %s: %q, %v, want one", name, found, err)
		}
	}
}

// What a server answers is looked at, to the last reply.
func TestWrongRepliesAreErrors(t *testing.T) {
	tx := newTransaction("lmtp", 2, 1000)
	begun := "250 2.1.0 a\r\n250-b\r\n250 b\r\n250 c\r\n354 d\r\n"
	ended := "250 a\r\n250 b\r\n"
	for name, test := range map[string]struct{ begun, ended, want string }{
		"as it should be":            {begun, ended, ""},
		"a recipient is refused":     {strings.Replace(begun, "250 c", "452 c", 1), ended, `got "452 c", want 250`},
		"no word for a recipient":    {strings.Replace(begun, "250 c\r\n", "", 1), ended, `got "354 d", want 250`},
		"DATA is refused":            {strings.Replace(begun, "354", "554", 1), ended, `got "554 d", want 354`},
		"a message is refused":       {begun, "250 a\r\n451 b\r\n", `got "451 b", want 250`},
		"silence for a recipient":    {begun, "250 a\r\n", "EOF"},
		"a reply that is none":       {begun, "250 a\r\n250\r\n", `got "250", want 250`},
		"a reply too much":           {begun + "250 d\r\n", ended, `a reply too much: "250 d\r\n"`},
		"a line that does not end":   {begun, strings.Repeat("250 a", 4000), errLongLine.Error()},
		"a reply that is multi-line": {begun, "250-a\r\n250-a\r\n250 a\r\n250 b\r\n", ""},
	} {
		conn, server := net.Pipe()
		go func() {
			defer server.Close()
			for _, step := range []struct {
				heard  []byte
				answer string
			}{{tx.envelope, test.begun}, {tx.message, test.ended}} {
				if _, err := server.Read(make([]byte, len(step.heard))); err != nil {
					return
				}
				server.Write([]byte(step.answer))
			}
		}()
		err := (&client{tx: tx, session: &session{conn: conn}}).send()
		if (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		conn.Close()
	}
}

func TestMessageHasItsSize(t *testing.T) {
	for size := 4 << 10; size < 5<<10; size++ {
		text, dot := bytes.CutSuffix(message(size), []byte("\r\n.\r\n"))
		if len(text)+2 != size || !dot || bytes.Contains(text, []byte("\n.")) || bytes.Count(text, []byte("\r")) != bytes.Count(text, []byte("\r\n")) {
			t.Fatalf("a message of %d octets ends in %q", size, text[size-20:])
		}
	}
}

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		bound  bound
		values []float64
		want   string
	}{
		{bound{atMost: 60, unit: "us"}, []float64{61, 58, 60}, "60.00 (58.00-61.00)\tat most 60 us\tmet"},
		{bound{atMost: 60, unit: "us"}, []float64{61}, "61.00\tat most 60 us\tNOT MET"},
		{bound{atLeast: 0.65}, []float64{0.5, 1}, "0.75 (0.50-1.00)\tat least 0.65\tmet"},
		{bound{atLeast: 0.65}, []float64{0.6}, "0.60\tat least 0.65\tNOT MET"},
		{bound{atLeast: 0.65}, nil, "not measured"},
	} {
		test.bound.value = func(results) []float64 { return test.values }
		if got := test.bound.verdict(nil); got != test.want {
			t.Errorf("%v: got %q, want %q", test.values, got, test.want)
		}
	}
}
