package users

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// logged returns what is logged from now on. It is for tests that log from one
// goroutine.
func logged(t *testing.T) *bytes.Buffer {
	t.Helper()
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	var log bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	return &log
}

// A file that changes counts from the next question on. One that is not good does
// not count, and is told once.
func TestFileIsReadAgain(t *testing.T) {
	log := logged(t)
	b := newBackend(t, "ann\n", "own")
	path := b.file.path
	write := func(text string, mode os.FileMode) {
		t.Helper()
		next := path + ".next" // as editors do, a while ago
		if err := os.WriteFile(next, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		settle(t, next)
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		name   string
		change func()
		users  string
		log    string // in the one line of it, if there is one
	}{
		{"nothing", func() {}, "ann", ""},
		{"replaced", func() { write("bob\n", 0o600) }, "bob", "users=1"},
		{"the same size", func() { write("eve\n", 0o640) }, "eve", "users=1"},
		{"a fault", func() { write("carol x\n", 0o600) }, "eve", `:1: a word without =`},
		{"mended", func() { write("carol\n", 0o600) }, "carol", "users=1"},
		{"gone", func() { do(os.Remove(path)) }, "carol", "no such file"},
		{"back", func() { write("dave\n", 0o600) }, "dave", "users=1"},
		{"readable by everybody", func() { do(os.Chmod(path, 0o604)) }, "dave", "mode 0604 lets everybody at the hashes"},
		{"not any more", func() { do(os.Chmod(path, 0o600)) }, "dave", "users=1"},
		{"a directory", func() { do(os.Remove(path)); do(os.Mkdir(path, 0o700)); settle(t, path) }, "dave", "is a directory"},
		{"empty", func() { do(os.Remove(path)); write("", 0o600) }, "dave", "users: the file is empty"},
		{"without users", func() { write("# nobody\n", 0o600) }, "", "users=0"},
	}
	for _, step := range steps {
		step.change()
		log.Reset()
		for range 3 {
			var names []string
			for _, u := range b.file.current(t.Context()).users {
				names = append(names, u.name)
			}
			if got := strings.Join(names, " "); got != step.users {
				t.Errorf("%s: got users %q, want %q", step.name, got, step.users)
			}
		}
		lines := strings.Count(log.String(), "\n")
		if step.log == "" && lines != 0 || step.log != "" && (lines != 1 || !strings.Contains(log.String(), step.log)) {
			t.Errorf("%s: logged\n%swant one line with %q", step.name, log, step.log)
		}
	}
}

// While the file is replaced again and again, every question is answered from
// a whole one.
func TestQuestionsWhileTheFileChanges(t *testing.T) {
	logged(t)
	b := newBackend(t, "ann send-as=<>\n"+"bob send-as=<>\n", "own")
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for _, name := range []string{"ann", "bob"} {
		asking.Go(func() {
			for {
				s, err := b.CheckSender(t.Context(), &backends.Session{User: name}, &backends.Envelope{})
				if !s.IsZero() || err != nil {
					t.Errorf("%s: %v, error %v", name, s, err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 20 {
		if err := addUser(b.file.path, "carol"); err != nil {
			t.Error(err)
		}
		if err := Delete(b.file.path, "carol", nil); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	asking.Wait()
}

// settle makes a file one that was written to before the time of settling.
func settle(t *testing.T, path string) {
	t.Helper()
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-settling)); err != nil {
		t.Fatal(err)
	}
}

// Somebody writes into the file, with a pause after each piece. Nobody who is in
// the old file or the new one is refused for it meanwhile.
func TestUsersStayWhileTheFileIsWritten(t *testing.T) {
	logged(t)
	b := newBackend(t, "ann send-as=<>\n# "+strings.Repeat("x", 1000), "own")
	var written time.Time // what the clock of the file says
	b.file.now = func() time.Time { return written }
	is := func(what string, age time.Duration, want ...string) {
		t.Helper()
		info, err := os.Stat(b.file.path)
		if err != nil {
			t.Fatal(err)
		}
		written = info.ModTime().Add(age)
		for _, name := range []string{"ann", "bob", "carol"} {
			s, err := b.CheckSender(t.Context(), &backends.Session{User: name}, &backends.Envelope{})
			if got := s.IsZero() && err == nil; got != slices.Contains(want, name) {
				t.Errorf("%s, after %v: %s: %v, error %v, want users %s", what, age, name, s, err, want)
			}
		}
	}
	f, err := os.OpenFile(b.file.path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	is("truncated", 0, "ann")
	is("truncated", settling-1, "ann")
	is("truncated", settling, "ann") // a full disk, for example
	for _, piece := range []struct {
		text string
		want []string // when it has settled
	}{
		{"ann send-as=<>\nbo", []string{"ann"}},
		{"b send-as=<>\n", []string{"ann", "bob"}},
		{"carol send-as=<>\n", []string{"ann", "bob", "carol"}},
	} {
		before := piece.want[:max(1, len(piece.want)-1)]
		if _, err := f.WriteString(piece.text); err != nil {
			t.Fatal(err)
		}
		is(piece.text, 0, before...)
		is(piece.text, settling-1, before...)
		is(piece.text, settling, piece.want...)
	}

	// The clock of another machine is in the future.
	if err := f.Truncate(int64(len("ann send-as=<>\n"))); err != nil {
		t.Fatal(err)
	}
	is("shorter", -1, "ann", "bob", "carol")
	is("shorter", -settling, "ann")
}

func TestEmptyFileAtTheStartIsAFault(t *testing.T) {
	_, err := New(Settings{File: usersFile(t, ""), Senders: "own"})
	if err == nil || !strings.Contains(err.Error(), "users: the file is empty") {
		t.Errorf("got %v", err)
	}
	if _, err := New(Settings{File: usersFile(t, "# nobody yet\n"), Senders: "own"}); err != nil {
		t.Error(err)
	}
}

func TestFileForEverybodyIsRefused(t *testing.T) {
	path := usersFile(t, "ann\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := New(Settings{File: path, Senders: "own"})
	if want := "file: " + path + ": mode 0644 lets everybody at the hashes; want chmod o= " + path; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := Set(path, "bob", "x", nil, nil); err == nil {
		t.Error("a password was put into it")
	}
}
