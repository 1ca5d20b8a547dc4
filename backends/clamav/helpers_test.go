package clamav

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// startClamd starts a clamd that serves each connection by a script, and
// returns its address. It is gone at the end of the test.
func startClamd(t *testing.T, network string, script func(conn net.Conn)) string {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "clamd")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				script(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return network + ":" + l.Addr().String()
}

// receive reads what a clamd gets. It is the whole message only if there is no
// error.
func receive(conn net.Conn) (message []byte, err error) {
	command := make([]byte, len("zINSTREAM\x00"))
	if _, err := io.ReadFull(conn, command); err != nil || string(command) != "zINSTREAM\x00" {
		return command, err
	}
	for {
		var length uint32
		if err := binary.Read(conn, binary.BigEndian, &length); err != nil || length == 0 {
			return message, err
		}
		chunk := make([]byte, length)
		n, err := io.ReadFull(conn, chunk)
		if message = append(message, chunk[:n]...); err != nil {
			return message, err
		}
	}
}

// answers is the script of a clamd that reads the message and answers.
func answers(text string) func(net.Conn) {
	return func(conn net.Conn) {
		if _, err := receive(conn); err == nil {
			io.WriteString(conn, text)
		}
	}
}

func newBackend(t *testing.T, address string, changes ...func(*Settings)) backends.Backend {
	t.Helper()
	s := Defaults
	s.Address = address
	for _, change := range changes {
		change(&s)
	}
	b, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func transaction(message string) *backends.DataContext {
	return &backends.DataContext{
		ID:       "test",
		Size:     int64(len(message)),
		Body:     strings.NewReader(message),
		Envelope: backends.Envelope{Recipients: []backends.Recipient{{Address: "ann@example.org"}, {Address: "bob@example.org"}}},
	}
}

// deliver returns what the recipients get, "" if they go on.
func deliver(t *testing.T, b backends.Backend, tx *backends.DataContext) string {
	t.Helper()
	undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
	if len(undecided) != len(tx.Envelope.Recipients) {
		t.Errorf("undecided: %v, want all", undecided)
	}
	if kinds := tx.Edits(); kinds.Kinds()&^backends.EditsOf(b) != 0 {
		t.Errorf("edits of kinds %v, which it may not make", kinds.Kinds())
	}
	if err == nil {
		return ""
	}
	s := backends.StatusOf(err)
	return s.Error()
}
