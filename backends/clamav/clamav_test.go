package clamav

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/internal/settings"
)

const message = "From: <ann@example.net>\r\nSubject: test\r\n\r\nHello\r\n"

func TestConformance(t *testing.T) {
	address := startClamd(t, "unix", answers("stream: OK\x00"))
	for _, header := range []string{"", "X-Virus-Status"} {
		b := newBackend(t, address, func(s *Settings) { s.Header = header })
		if err := backendtest.Test(b, backendtest.Options{}); err != nil {
			t.Error(err)
		}
	}
}

// Each verdict has the outcome that the settings say.
func TestVerdicts(t *testing.T) {
	const (
		clean    = "stream: OK\x00"
		virus    = "stream: Eicar-Test FOUND\x00"
		exceeded = "INSTREAM size limit exceeded. ERROR\x00"
		fault    = "stream: Can't allocate memory ERROR\x00"
	)
	tests := []struct {
		name   string
		answer string
		change func(*Settings)
		want   string // status
		edits  backends.Edits
	}{
		{"clean", clean, func(s *Settings) {}, "", backends.Edits{}},
		{"clean, told", clean, func(s *Settings) { s.Header = "X-Virus" }, "", added("X-Virus: Clean")},

		{"virus", virus, func(s *Settings) {}, "550 5.7.1 the message has a virus: Eicar-Test", backends.Edits{}},
		{"virus, told to nobody", virus, func(s *Settings) { s.Header = "X-Virus" }, "550 5.7.1 the message has a virus: Eicar-Test", backends.Edits{}},
		{"virus passes", virus, func(s *Settings) { s.OnVirus, s.Header = "pass", "X-Virus" }, "", added("X-Virus: Infected (Eicar-Test)")},
		{"virus is diverted", virus, func(s *Settings) { s.OnVirus, s.DivertTo = "divert", "quarantine" }, "",
			backends.Edits{Diversions: map[int]string{0: "quarantine", 1: "quarantine"}}},
		{"virus with an odd name", "stream: a\r\nb c\u00e9(1) FOUND\x00", func(s *Settings) {}, "550 5.7.1 the message has a virus: a__b_c_(1)", backends.Edits{}},

		{"too large for clamd", exceeded, func(s *Settings) {}, "", backends.Edits{}},
		{"too large for clamd, told", exceeded, func(s *Settings) { s.Header = "X-Virus" }, "", added("X-Virus: Not scanned (too large)")},
		{"too large for clamd, later", exceeded, func(s *Settings) { s.OnTooLarge = "tempfail" },
			"451 4.7.1 the message is too large for the virus scanner, try again later", backends.Edits{}},
		{"too large for us", virus, func(s *Settings) { s.OnTooLarge, s.MaxSize = "reject", 10 },
			"552 5.3.4 the message is too large for the virus scanner", backends.Edits{}},
		{"as large as may be", virus, func(s *Settings) { s.MaxSize = settings.Size(len(message)) }, "550 5.7.1 the message has a virus: Eicar-Test", backends.Edits{}},

		{"fault", fault, func(s *Settings) { s.Header = "X-Virus" }, "451 4.3.0 try again later", backends.Edits{}},
	}
	for _, tt := range tests {
		tx := transaction(message)
		b := newBackend(t, startClamd(t, "unix", answers(tt.answer)), tt.change)
		if got := deliver(t, b, tx); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
		if got := tx.Edits(); !reflect.DeepEqual(got, tt.edits) {
			t.Errorf("%s: edits %+v, want %+v", tt.name, got, tt.edits)
		}
	}
}

func added(field string) backends.Edits {
	return backends.Edits{Fields: []backends.FieldEdit{{Op: backends.AddField, Field: field}}}
}

// What is not a whole and clear answer is trouble, never a clean message.
func TestTroubleIsNotClean(t *testing.T) {
	say := func(text string) func(net.Conn) {
		return func(conn net.Conn) { io.WriteString(conn, text) }
	}
	scripts := map[string]func(net.Conn){
		"hangs up at once":               func(net.Conn) {},
		"hangs up after the message":     answers(""),
		"answer without its end":         answers("stream: OK"),
		"answer in the wrong form":       answers("stream: OK\n"),
		"answer with something more":     answers("stream: OK, I think\x00"),
		"virus without a name":           answers("stream:  FOUND\x00"),
		"answer of another thing":        answers("fd[10]: OK\x00"),
		"unknown command":                answers("UNKNOWN COMMAND\x00"),
		"empty answer":                   answers("\x00"),
		"endless answer":                 answers(strings.Repeat("stream: OK", 10000)),
		"clean before the message":       say("stream: OK\x00"),
		"virus before the message":       say("stream: Eicar-Test FOUND\x00"),
		"reads no more and says nothing": func(conn net.Conn) { conn.Read(make([]byte, 100)) },
	}
	for name, script := range scripts {
		// More than goes into the buffers of a socket.
		large := message + strings.Repeat("x\r\n", 1<<20)
		b := newBackend(t, startClamd(t, "unix", script))
		if got := deliver(t, b, transaction(large)); got != backends.TryLater.Error() {
			t.Errorf("%s: got %q, want %q", name, got, backends.TryLater.Error())
		}
	}
}

func TestNobodyListens(t *testing.T) {
	for _, address := range []string{"unix:" + t.TempDir() + "/clamd", "tcp:127.0.0.1:1"} {
		if got := deliver(t, newBackend(t, address), transaction(message)); got != backends.TryLater.Error() {
			t.Errorf("%s: got %q, want %q", address, got, backends.TryLater.Error())
		}
	}
}

// clamd answers in the middle of a message that is too large for it, and hangs
// up without reading on.
func TestLimitInTheMiddleOfTheMessage(t *testing.T) {
	script := func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 100)
		io.WriteString(conn, "INSTREAM size limit exceeded. ERROR\x00")
	}
	for _, network := range []string{"unix", "tcp"} {
		b := newBackend(t, startClamd(t, network, script), func(s *Settings) { s.OnTooLarge = "reject" })
		got := deliver(t, b, transaction(message+strings.Repeat("x\r\n", 4<<20)))
		if want := tooLarge["reject"]; got != want.Error() {
			t.Errorf("%s: got %q, want %q", network, got, want.Error())
		}
	}
}

func TestSlowClamd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := startClamd(t, "unix", func(conn net.Conn) {
		receive(conn)
		cancel()
		io.Copy(io.Discard, conn)
	})
	if _, err := backends.Run(ctx, newBackend(t, address), transaction(message), backends.Hooks{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// Of a message that cannot be read clamd sees no end.
func TestBrokenMessageIsNotClean(t *testing.T) {
	got := make(chan error, 1)
	address := startClamd(t, "unix", func(conn net.Conn) {
		_, err := receive(conn)
		got <- err
		io.WriteString(conn, "stream: OK\x00")
	})
	b := newBackend(t, address)
	broken := errors.New("broken")
	for name, body := range map[string]io.Reader{
		"error":     io.MultiReader(strings.NewReader(message), iotest.ErrReader(broken)),
		"too short": strings.NewReader(message[1:]),
		"too long":  strings.NewReader(message + "x"),
	} {
		tx := transaction(message)
		tx.Body = body
		_, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if s := backends.StatusOf(err); s != backends.TryLater {
			t.Errorf("%s: got %v, want %v", name, err, backends.TryLater)
		}
		if err := <-got; err == nil {
			t.Errorf("%s: clamd sees the end of the message", name)
		}
	}
}

func TestClamdGetsTheExactMessage(t *testing.T) {
	got := make(chan []byte, 1)
	address := startClamd(t, "tcp", func(conn net.Conn) {
		m, err := receive(conn)
		if err == nil {
			got <- m
			io.WriteString(conn, "stream: OK\x00")
		}
	})
	messages := []string{
		"", "\r\n", message, "no header\x00\xff", "Subject: header only", "Folded:\r\n x\r\n\r\n",
		strings.Repeat("x", chunkSize-1), strings.Repeat("x", chunkSize), strings.Repeat("x", chunkSize+1),
	}
	for _, header := range []string{"", "Subject"} {
		b := newBackend(t, address, func(s *Settings) { s.Header = header })
		for _, m := range messages {
			tx := transaction(m)
			tx.Body = iotest.HalfReader(tx.Body)
			if status := deliver(t, b, tx); status != "" {
				t.Fatalf("%.20q: got %s", m, status)
			}
			if got := <-got; !bytes.Equal(got, []byte(m)) {
				t.Errorf("clamd got %.50q... of %d octets, want %.50q... of %d", got, len(got), m, len(m))
			}
		}
	}
}

// Strangers cannot say that a message is clean.
func TestHeaderTakesThePlaceOfOthers(t *testing.T) {
	b := newBackend(t, startClamd(t, "unix", answers("stream: OK\x00")), func(s *Settings) { s.Header = "X-Virus" })
	tx := transaction("x-virus: forged\r\nX-Virus-Not: other\r\nX-Virus : folded\r\n and forged\r\n\r\nX-Virus: text\r\n")
	if got := deliver(t, b, tx); got != "" {
		t.Error(got)
	}
	want := []backends.FieldEdit{{Op: backends.RemoveField, At: 0}, {Op: backends.RemoveField, At: 2}, {Op: backends.AddField, Field: "X-Virus: Clean"}}
	if got := tx.Edits().Fields; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestBadSettingsNameTheirKey(t *testing.T) {
	tests := []struct {
		change func(*Settings)
		want   string
	}{
		{func(s *Settings) { s.Address = "" }, "address: "},
		{func(s *Settings) { s.Address = "/run/clamav/clamd.ctl" }, "address: "},
		{func(s *Settings) { s.Address = "unix:" }, "address: "},
		{func(s *Settings) { s.Address = "tcp:127.0.0.1" }, "address: "},
		{func(s *Settings) { s.Address = "tcp:127.0.0.1:clamd" }, "address: "},
		{func(s *Settings) { s.Address = "tcp::3310" }, "address: "},
		{func(s *Settings) { s.MaxSize = 0 }, "max_size: "},
		{func(s *Settings) { s.OnVirus = "discard" }, "on_virus: "},
		{func(s *Settings) { s.OnVirus = "divert" }, "divert_to: "},
		{func(s *Settings) { s.OnVirus = "pass" }, "header: "},
		{func(s *Settings) { s.DivertTo = "quarantine" }, "divert_to: "},
		{func(s *Settings) { s.OnTooLarge = "divert" }, "on_too_large: "},
		{func(s *Settings) { s.Header = "X Virus" }, "header: "},
		{func(s *Settings) { s.Header = "X-Virus:" }, "header: "},
		{func(s *Settings) { s.OnVirus, s.DivertTo = "divert", "no route" }, "divert_to: "},
	}
	for _, tt := range tests {
		s := Defaults
		tt.change(&s)
		_, err := New(s)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: got error %v, want %s...", s, err, tt.want)
		}
	}
}

func TestDiversionIsAnnounced(t *testing.T) {
	if got := backends.DiversionsOf(newBackend(t, "unix:x")); got != nil {
		t.Errorf("got %q without a route", got)
	}
	b := newBackend(t, "unix:x", func(s *Settings) { s.OnVirus, s.DivertTo = "divert", "viruses" })
	if got := backends.DiversionsOf(b); !slices.Equal(got, []string{"viruses"}) {
		t.Errorf("got %q", got)
	}
}
