package gatewaytest

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A Follower reads the lines of a file that grows.
type Follower struct {
	t    *testing.T
	file *os.File
	rest []byte // of a line that has no end yet
}

// Follow starts at the beginning of a file, which need not exist yet.
func Follow(t *testing.T, path string) *Follower {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return &Follower{t: t, file: file}
}

// Lines returns the lines that were added since the last call.
func (f *Follower) Lines() []string {
	added, err := io.ReadAll(f.file)
	if err != nil {
		f.t.Fatal(err)
	}
	text := append(f.rest, added...)
	end := bytes.LastIndexByte(text, '\n') + 1
	f.rest = text[end:]
	return slices.Collect(strings.Lines(string(text[:end])))
}

// Events returns the events among the lines that were added to the log of a
// gateway since the last call. What is no event is the word of the Go runtime,
// of a panic or a data race.
func (f *Follower) Events() (events []Event) {
	f.t.Helper()
	for _, line := range f.Lines() {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			f.t.Fatalf("the gateway wrote %q", line)
		}
		events = append(events, e)
	}
	return events
}

// An Event is a line of the gateway's log.
type Event struct {
	Time       time.Time
	Message    string `json:"msg"`
	Listener   string
	Address    string
	TX         string
	Ident      string
	Recipients int
	To         string
	Backend    string
	Code       int
	Body       string // what was edited on the way
	Header     string
	Event      string
	PID        int
	Error      string

	// What XFORWARD told.
	ClientName  string `json:"client_name"`
	ClientAddr  string `json:"client_addr"`
	ClientHELO  string `json:"client_helo"`
	ClientProto string `json:"client_proto"`
}

// ShowOnFailure shows the end of a log if the test fails.
func ShowOnFailure(t *testing.T, path string) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Log(err)
		}
		text, _, _ = bytes.Cut(text, []byte("SIGQUIT: quit")) // what follows is long
		const most = 8 << 10
		t.Logf("the end of %s:\n%s", filepath.Base(path), text[max(0, len(text)-most):])
	})
}
