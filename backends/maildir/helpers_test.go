package maildir

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// newBackend returns a backend and the directory in which its mailboxes are.
func newBackend(t *testing.T, changes ...func(*Settings)) (dir string, b backends.Backend) {
	t.Helper()
	dir = t.TempDir()
	s := Defaults
	s.Path = filepath.Join(dir, "{domain}", "{user}")
	for _, change := range changes {
		change(&s)
	}
	return dir, mustNew(t, s)
}

func mustNew(t *testing.T, s Settings) backends.Backend {
	t.Helper()
	b, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func transaction(message string, recipients ...string) *backends.DataContext {
	tx := &backends.DataContext{ID: "test", Size: int64(len(message)), Body: strings.NewReader(message)}
	tx.Envelope.Sender = "sender@example.net"
	for _, r := range recipients {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: r})
	}
	return tx
}

// deliver delivers tx to all its recipients.
func deliver(t *testing.T, b backends.Backend, tx *backends.DataContext) {
	t.Helper()
	if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); err != nil {
		t.Error(err)
	}
	for i, r := range tx.Envelope.Recipients {
		if got := tx.Status(i); got != backends.Delivered {
			t.Errorf("%s: got %v, want %v", r.Address, got, backends.Delivered)
		}
	}
}

func wantStatuses(t *testing.T, tx *backends.DataContext, want ...backends.Status) {
	t.Helper()
	for i, r := range tx.Envelope.Recipients {
		if got := tx.Status(i); got != want[i] {
			t.Errorf("%s: got %v, want %v", r.Address, got, want[i])
		}
	}
}

// wantNoFiles fails if there is anything but directories and links in dir.
func wantNoFiles(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// mustList returns the paths of what is in a directory.
func mustList(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths
}

func mustRead(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// missing skips a test for which something is missing. In CI nothing may be.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}
