package milter

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// A script is what a milter does: its answers, by the beginning of what it hears.
// The longest beginning counts; to what is not in it the answer is to continue. In
// all packets "|" stands for an octet 0.
type script map[string][]string

// What it may do instead of an answer.
const (
	hangs   = ""   // say nothing
	closes  = "\n" // close the connection
	forever = "\t" // report progress
	raw     = "="  // send what follows as it is
)

// optneg is the answer to the negotiation: a version, actions and steps.
func optneg(version, actions, steps uint32, symbols string) string {
	data := []byte{'O'}
	for _, n := range []uint32{version, actions, steps} {
		data = binary.BigEndian.AppendUint32(data, n)
	}
	return string(data) + symbols
}

// A scripted milter follows a script on each of its connections.
type scripted struct {
	address string
	heard   chan []string // by one connection, with "|" for 0
}

func play(t *testing.T, s script) *scripted {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	m := &scripted{address: "unix:" + path, heard: make(chan []string, 1)}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { m.serve(conn, s) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return m
}

func (m *scripted) serve(conn net.Conn, s script) {
	defer conn.Close()
	var heard []string
	for r := bufio.NewReader(conn); ; {
		packet, err := readScripted(r)
		if err != nil {
			break
		}
		heard = append(heard, packet)
		if !s.answer(conn, packet) {
			break
		}
	}
	select {
	case m.heard <- heard:
	default:
	}
}

func readScripted(r io.Reader) (string, error) {
	var size uint32
	if err := binary.Read(r, binary.BigEndian, &size); err != nil {
		return "", err
	}
	packet := make([]byte, size)
	_, err := io.ReadFull(r, packet)
	return strings.ReplaceAll(string(packet), "\x00", "|"), err
}

// answer answers a packet, and reports whether the connection goes on.
func (s script) answer(w io.Writer, packet string) bool {
	answers, best := []string{"c"}, 0
	switch packet[0] {
	case 'D', 'A', 'Q':
		answers = nil
	case 'O':
		answers = []string{optneg(6, offeredActions&^actionSymbols, 0, "")}
	}
	for start, a := range s {
		if strings.HasPrefix(packet, start) && len(start) > best {
			answers, best = a, len(start)
		}
	}
	for _, a := range answers {
		after, isRaw := strings.CutPrefix(a, raw)
		switch {
		case a == closes:
			return false
		case a == forever:
			for err := error(nil); err == nil; {
				_, err = io.WriteString(w, "\x00\x00\x00\x01p")
			}
		case isRaw:
			io.WriteString(w, after)
		case a != hangs:
			a = strings.ReplaceAll(a, "|", "\x00")
			w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(a))))
			io.WriteString(w, a)
		}
	}
	return true
}

// newBackend returns a backend that asks m. change may change its settings.
func newBackend(t *testing.T, m *scripted, change func(*Settings)) backends.Backend {
	t.Helper()
	s := Defaults
	s.Address, s.Macros = m.address, map[string]string{"j": "mx.example.org"}
	s.Quarantine, s.Directory = "quarantine", t.TempDir()
	if change != nil {
		change(&s)
	}
	b, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const message = "Received: by mx\r\n" +
	"Subject: a\r\n" +
	"subject:b\r\n\tc\r\n" +
	"To: ann\r\n" +
	"SUBJECT : d \r\n" +
	"\r\n" +
	"one\r\n.\r\n"

// transaction is of ann and bob.
func transaction(text string) *backends.DataContext {
	return &backends.DataContext{
		ID:      "06gz",
		Session: backends.Session{Listener: "smtp", Protocol: "ESMTP", HELO: "client.example.net"},
		Envelope: backends.Envelope{
			Sender: "eve@example.net", Params: backends.Params{"SIZE=100", "BODY=8BITMIME"},
			Recipients: []backends.Recipient{{Address: "ann@example.org"}, {Address: "bob@example.org", Params: backends.Params{"NOTIFY=NEVER"}}},
		},
		Size: int64(len(text)),
		Body: strings.NewReader(text),
	}
}

// run gives a transaction to b. It returns the statuses of the recipients, and
// "" for those that go on.
func run(ctx context.Context, b backends.Backend, tx *backends.DataContext) (statuses []string, err error) {
	_, err = backends.Run(ctx, b, tx, backends.Hooks{})
	for i := range tx.Envelope.Recipients {
		s := tx.Status(i)
		if s.IsZero() {
			statuses = append(statuses, "")
		} else {
			statuses = append(statuses, s.Error())
		}
	}
	return statuses, err
}

// edited returns a message with edits, as the gateway makes it.
func edited(t *testing.T, message string, e backends.Edits) string {
	t.Helper()
	if e.Message != nil {
		text, err := io.ReadAll(io.NewSectionReader(e.Message, 0, e.Message.Size()))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	r := bufio.NewReader(strings.NewReader(message))
	fields, err := backends.ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for at := range len(fields) + 1 {
		keep := at < len(fields)
		for _, edit := range e.Fields {
			if edit.At != at {
				continue
			}
			if edit.Op != backends.RemoveField {
				out.WriteString(edit.Field + "\r\n")
			}
			keep = keep && edit.Op == backends.AddField
		}
		if keep {
			out.Write(fields[at])
		}
	}
	io.Copy(&out, r)
	return out.String()
}
