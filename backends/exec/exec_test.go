package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/internal/gatewaytest"
)

func TestConformance(t *testing.T) {
	b := newBackend(t, "cat >/dev/null; echo X-Test: yes; echo seen >&2")
	if err := backendtest.Test(b, backendtest.Options{}); err != nil {
		t.Error(err)
	}
}

func TestConformanceOfFinal(t *testing.T) {
	b := newBackend(t, "exec cat >/dev/null", final)
	if err := backendtest.Test(b, backendtest.Options{Final: true}); err != nil {
		t.Error(err)
	}
}

// An exit status is an answer if sysexits.h has it for one, or the program says
// what it means. Everything else is a failure.
func TestAnswers(t *testing.T) {
	const failure = "451 4.3.0 try again later"
	tests := []struct {
		script string
		want   string
	}{
		{"exit 0", ""},
		{"exit 64", failure},
		{"exit 65", "554 5.6.0 message refused for what is in it"},
		{"exit 66", failure},
		{"exit 67", "550 5.1.1 no such user"},
		{"exit 68", "550 5.1.2 no such host"},
		{"exit 69", "554 5.3.0 message refused"},
		{"exit 70", failure},
		{"exit 73", failure},
		{"exit 75", failure},
		{"exit 77", "550 5.7.1 message refused"},
		{"exit 78", failure},
		{"exit 1", failure},
		{"exit 255", failure},
		{"exec /nonexistent", failure},
		{"exec /dev/null", failure},
		{"kill -9 $$", failure},
		{"kill -TERM $$", failure},

		{"echo 5.7.1 no such mail here; exit 69", "554 5.7.1 no such mail here"},
		{"echo 5.7.1 no such mail here; exit 1", "554 5.7.1 no such mail here"},
		{"echo 5.7.1 no such mail here; exit 77", "550 5.7.1 no such mail here"},
		{"echo 5.7.1 no such mail here; exit 75", "554 5.7.1 no such mail here"},
		{"echo 4.2.2 come back later; exit 75", "451 4.2.2 come back later"},
		{"echo 4.2.2 come back later; exit 77", "451 4.2.2 come back later"},
		{"printf '5.7.1 line\r\nanother line\n'; exit 77", "550 5.7.1 line"},
		{"printf '5.7.1 b\\303\\244d\\tword\\000'; exit 77", "550 5.7.1 b?d word?"},
		{"echo 5.7.1 no such mail here; kill -9 $$", failure},
		{"echo 5.7.1 no such mail here >&2; exit 77", "550 5.7.1 message refused"},
		{"echo so there: 5.7.1 no; exit 77", "550 5.7.1 message refused"},
		{"echo 5.7.1; exit 77", "550 5.7.1 message refused"},
		{"echo 2.0.0 all is well; exit 77", "550 5.7.1 message refused"},
		{"echo 2.0.0 all is well; exit 1", failure},
		{"echo 5.7 short; exit 77", "550 5.7.1 message refused"},
		{"echo X-Field: 1; exit 77", "550 5.7.1 message refused"},
	}
	for _, tt := range tests {
		tx := transaction(message, "ann@example.org", "bob@example.org")
		if got := deliver(t, newBackend(t, tt.script), tx); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.script, got, tt.want)
		}
	}
}

// Temporary failure is an answer: on_failure is not for it.
func TestTemporaryFailureIsAnAnswer(t *testing.T) {
	tx := transaction(message, "ann@example.org")
	undecided, err := backends.Run(t.Context(), newBackend(t, "exit 75"), tx, backends.Hooks{})
	if got := tx.Status(0); undecided != nil || err != nil || got != backends.TryLater {
		t.Errorf("got %v, undecided %v, error %v", got, undecided, err)
	}
}

func TestFinal(t *testing.T) {
	tests := []struct{ script, want string }{
		{"exit 0", "250 2.0.0 delivered"},
		{"echo what it says does not count", "250 2.0.0 delivered"},
		{"exit 75", "451 4.3.0 try again later"},
		{"exit 1", "451 4.3.0 try again later"},
	}
	for _, tt := range tests {
		tx := transaction(message, "ann@example.org")
		if got := deliver(t, newBackend(t, tt.script, final), tx); got != tt.want || !reflect.DeepEqual(tx.Edits(), backends.Edits{}) {
			t.Errorf("%s: got %q, edits %+v, want %q", tt.script, got, tx.Edits(), tt.want)
		}
	}
}

func TestHeaders(t *testing.T) {
	tests := []struct {
		script string
		want   []string // nil is a failure
	}{
		{"true", []string{}},
		{"echo", []string{}},
		{"echo X-One: 1", []string{"X-One: 1"}},
		{"printf 'X-One: 1'", []string{"X-One: 1"}},
		{"printf 'X-One: 1\r\nX-Two:  2 \r\n\r\n'", []string{"X-One: 1", "X-Two:  2 "}},
		{"printf 'X-One: 1\n 1\n\t1\nX-Two: 2\n\n'", []string{"X-One: 1\r\n 1\r\n\t1", "X-Two: 2"}},

		{"echo no field", nil},
		{"echo X Field: 1", nil},
		{"printf ' folded: 1\n'", nil},
		{"printf 'X-One: 1\n\nX-Two: 2\n'", nil},
		{"printf 'X-One: 1\n  \n'", nil},
		{"printf 'X-One: 1\\rX-Two: 2\n'", nil},
		{"printf 'X-One: \\0001\n'", nil},
		{"printf 'X-One: %02000d\n' 1", nil},
		{"yes X-One: 1 | head -n 100000", nil},
	}
	for _, tt := range tests {
		tx := transaction(message, "ann@example.org")
		status := deliver(t, newBackend(t, tt.script), tx)
		if tt.want == nil {
			if status != backends.TryLater.Error() {
				t.Errorf("%s: got %q, edits %+v, want a failure", tt.script, status, tx.Edits())
			}
			continue
		}
		got := []string{}
		for _, e := range tx.Edits().Fields {
			if got = append(got, e.Field); e.Op != backends.AddField || e.At != 0 {
				t.Errorf("%s: got %+v", tt.script, e)
			}
		}
		if status != "" || !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, %q, want %q", tt.script, status, got, tt.want)
		}
	}
}

func TestOutputWithoutHeaders(t *testing.T) {
	tx := transaction(message, "ann@example.org")
	b := newBackend(t, "yes no header | head -n 100000", func(s *Settings) { s.Headers = false })
	if got := deliver(t, b, tx); got != "" || !reflect.DeepEqual(tx.Edits(), backends.Edits{}) {
		t.Errorf("got %q, edits %+v, want none", got, tx.Edits())
	}
}

// The program gets the very message, which may be larger than a pipe holds,
// and may leave any part of it unread.
func TestProgramGetsTheMessage(t *testing.T) {
	const crlf, lf = "crlf", "lf"
	large := message + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 1<<15)
	tests := []struct{ ends, message, want string }{
		{crlf, message, message},
		{crlf, "", ""},
		{crlf, "\x00\xff", "\x00\xff"},
		{crlf, large, large},
		{lf, message, strings.ReplaceAll(message, "\r", "")},
		{lf, large, strings.ReplaceAll(large, "\r", "")},
		{lf, "", ""},
		{lf, "a\r\n\r\nb\rc\nd\r\r\n\r", "a\n\nb\rc\nd\r\n\r"},
	}
	for _, tt := range tests {
		for name, reader := range map[string]func(io.Reader) io.Reader{
			"whole":            func(r io.Reader) io.Reader { return r },
			"octet by octet":   iotest.OneByteReader,
			"EOF with the end": iotest.DataErrReader,
		} {
			if len(tt.message) > 1<<10 && name == "octet by octet" {
				continue
			}
			file := filepath.Join(t.TempDir(), "message")
			b := newBackend(t, "cat >$FILE", func(s *Settings) { s.LineEnds, s.Env = tt.ends, map[string]string{"FILE": file} })
			tx := transaction(tt.message, "ann@example.org")
			tx.Body = reader(tx.Body)
			status := deliver(t, b, tx)
			if got, err := os.ReadFile(file); status != "" || err != nil || string(got) != tt.want {
				t.Errorf("%s, %s, %.50q: got %q, %v, %.50q of %d octets", tt.ends, name, tt.message, status, err, got, len(got))
			}
		}
	}
}

func TestProgramNeedNotReadTheMessage(t *testing.T) {
	large := strings.Repeat("x\r\n", 1<<20)
	for _, script := range []string{"exit 0", "exec <&-; exit 0", "head -c 100000 >/dev/null"} {
		if got := deliver(t, newBackend(t, script), transaction(large, "ann@example.org")); got != "" {
			t.Errorf("%s: got %q, want that it goes on", script, got)
		}
	}
}

// A program never sees an end of a message that breaks off.
func TestBrokenMessageHasNoEnd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ended")
	b := newBackend(t, "cat >/dev/null; touch $FILE", final, func(s *Settings) { s.Env = map[string]string{"FILE": file} })
	broken := errors.New("broken")
	tx := transaction(message, "ann@example.org")
	tx.Body = io.MultiReader(strings.NewReader(message), iotest.ErrReader(broken))
	if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the program has seen the end of the message")
	}
}

// At the end of its time a program is killed, with all that it has started,
// and what it leaves behind is killed when it ends.
func TestNothingIsLeft(t *testing.T) {
	tests := []struct {
		name, script string
		endless      bool
		want         error
	}{
		{"endless", "echo $$ >$FIFO; exec sleep 1000", true, context.Canceled},
		{"endless child", "sleep 1000 & echo $$ $! >$FIFO; wait", true, context.Canceled},
		{"ignores signals", "trap '' TERM INT HUP; echo $$ >$FIFO; while :; do sleep 1000; done", true, context.Canceled},
		{"does not read", "echo $$ >$FIFO; exec sleep 1000 <&-", true, context.Canceled},
		{"endless output", "echo $$ >$FIFO; exec yes", true, context.Canceled},
		{"leaves a child with its output", "sleep 1000 & echo $! >$FIFO", false, nil},
		{"leaves a child without it", "sleep 1000 >/dev/null 2>&1 </dev/null & echo $! >$FIFO", false, nil},
	}
	for _, tt := range tests {
		fifo := filepath.Join(t.TempDir(), "pids")
		if err := mkfifo(fifo); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		b := newBackend(t, tt.script, func(s *Settings) { s.Env = map[string]string{"FIFO": fifo} })
		returned := make(chan error, 1)
		go func() {
			_, err := backends.Run(ctx, b, transaction(message, "ann@example.org"), backends.Hooks{})
			returned <- err
		}()
		text, err := os.ReadFile(fifo)
		if err != nil {
			t.Fatal(err)
		}
		if tt.endless {
			cancel()
		}
		if err := <-returned; err != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		for _, field := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(field)
			gatewaytest.Eventually(t, fmt.Sprintf("%s: process %d has ended", tt.name, pid), func() bool { return !runs(t, pid) })
		}
		cancel()
	}
}

func runs(t *testing.T, pid int) bool {
	return slices.ContainsFunc(gatewaytest.Processes(t), func(p gatewaytest.Process) bool { return p.PID == pid && !p.Zombie })
}

// What has left the process group may hold the output, but not the transaction. It
// matters only if header fields may be missing: a message that was delivered would
// come again and again.
func TestEscapedProcess(t *testing.T) {
	const script = `setsid sh -c 'echo $$ >$FIFO; exec sleep 1000' & read pid <$FIFO; echo $pid >$FILE; exit $STATUS`
	for _, tt := range []struct {
		name   string
		change func(*Settings)
		status string
		want   string
	}{
		{"header fields", func(*Settings) {}, "0", backends.TryLater.Error()},
		{"final", final, "0", backends.Delivered.Error()},
		{"no header fields", func(s *Settings) { s.Headers = false }, "0", ""},
		{"refusal", func(*Settings) {}, "65", answers[65].Error()},
	} {
		dir := t.TempDir()
		fifo, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "pid")
		if err := mkfifo(fifo); err != nil {
			t.Fatal(err)
		}
		b := newBackend(t, script, tt.change, func(s *Settings) {
			s.Env = map[string]string{"FIFO": fifo, "FILE": file, "STATUS": tt.status}
		})
		if got := deliver(t, b, transaction(message, "ann@example.org")); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || !runs(t, pid) {
			t.Fatalf("%s: process %q does not run any more, %v", tt.name, text, err)
		}
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// With more recipients than the environment can tell, nobody gets a part of them.
func TestMoreRecipientsThanFit(t *testing.T) {
	b := newBackend(t, "exit 0", final)
	long := strings.Repeat("x", 64) + "@" + strings.Repeat("y.", 94) + "z" // 254 octets
	for n, want := range map[int]string{500: backends.Delivered.Error(), 600: backends.TryLater.Error()} {
		if got := deliver(t, b, transaction(message, slices.Repeat([]string{long}, n)...)); got != want {
			t.Errorf("%d recipients: got %q, want %q", n, got, want)
		}
	}
}

func TestOnlySoManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	proceed, started := filepath.Join(dir, "go"), filepath.Join(dir, "started")
	for _, fifo := range []string{proceed, started} {
		if err := mkfifo(fifo); err != nil {
			t.Fatal(err)
		}
	}
	b := newBackend(t, "echo >$STARTED; read x <$GO", func(s *Settings) {
		s.Processes, s.Env = 1, map[string]string{"STARTED": started, "GO": proceed}
	})
	first := make(chan string)
	go func() { first <- deliver(t, b, transaction(message, "ann@example.org")) }()
	if _, err := os.ReadFile(started); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error)
	go func() {
		_, err := backends.Run(ctx, b, transaction(message, "ann@example.org"), backends.Hooks{})
		second <- err
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("the second one: got %v, want %v", err, context.Canceled)
	}
	if err := os.WriteFile(proceed, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if got := <-first; got != "" {
		t.Errorf("the first one: got %q", got)
	}
}

func TestBadSettingsNameTheirKey(t *testing.T) {
	tests := []struct {
		change func(*Settings)
		want   string
	}{
		{func(s *Settings) { s.Command = nil }, "command: is missing"},
		{func(s *Settings) { s.Command = []string{"sh"} }, `command: "sh" has no slash`},
		{func(s *Settings) { s.Command = []string{"/nonexistent"} }, "command: "},
		{func(s *Settings) { s.Command = []string{"/dev/null"} }, "command: "},
		{func(s *Settings) { s.Command = []string{"/bin"} }, "command: "},
		{func(s *Settings) { s.Command = []string{"/bin/sh", "\x00"} }, "command: an argument has a NUL"},
		{func(s *Settings) { s.Env = map[string]string{"": "x"} }, `env."": `},
		{func(s *Settings) { s.Env = map[string]string{"A=B": "x"} }, `env."A=B": `},
		{func(s *Settings) { s.Env = map[string]string{"A": "\x00"} }, "env.A: "},
		{func(s *Settings) { s.Env = map[string]string{"SENDER": "x"} }, "env.SENDER: the transaction says what it is"},
		{func(s *Settings) { s.LineEnds = "cr" }, `line_ends: "cr"`},
		{func(s *Settings) { s.Processes = 0 }, "processes: 0"},
		{func(s *Settings) { s.Processes = -1 }, "processes: -1"},
	}
	for _, tt := range tests {
		s := Defaults
		s.Command = []string{"/bin/sh"}
		tt.change(&s)
		_, err := New(s)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: got error %v, want %s...", s, err, tt.want)
		}
	}
}

func TestEdits(t *testing.T) {
	tests := []struct {
		headers, final bool
		want           backends.EditKinds
	}{{true, false, backends.EditHeader}, {false, false, 0}, {true, true, 0}}
	for _, tt := range tests {
		b := newBackend(t, "", func(s *Settings) { s.Headers, s.Final = tt.headers, tt.final })
		if got := backends.EditsOf(b); got != tt.want {
			t.Errorf("%+v: got %v", tt, got)
		}
	}
}
