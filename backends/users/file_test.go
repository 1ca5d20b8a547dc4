package users

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

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
		next := path + ".next" // as editors do
		if err := os.WriteFile(next, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
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
		{"a directory", func() { do(os.Remove(path)); do(os.Mkdir(path, 0o700)) }, "dave", "is a directory"},
		{"a file again", func() { do(os.Remove(path)); write("", 0o600) }, "", "users=0"},
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
		if err := Delete(b.file.path, "carol"); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	asking.Wait()
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
	if err := Set(path, "bob", "x", nil); err == nil {
		t.Error("a password was put into it")
	}
}
