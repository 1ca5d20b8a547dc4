package maildir

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// mountSmall mounts a file system of that size at a directory, which it makes.
func mountSmall(t *testing.T, dir, size string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "only root can mount a small file system")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, size); err != nil {
		missing(t, "mount tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// A file system that is full half-way through the message is the trouble of
// the one recipient whose mailbox is there. The next one gets the part that
// was read already from the file that could not be finished.
func TestFullDiskIsTemporaryAndOneRecipientsOwn(t *testing.T) {
	noise := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	message := string(noise)
	for _, recipients := range [][]string{
		{"full@example.org", "ann@example.org"},
		{"ann@example.org", "full@example.org"},
		{"full@example.org", "full@example.org", "ann@example.org", "full@example.org", "bob@example.org"},
	} {
		dir, b := newBackend(t)
		mountSmall(t, filepath.Join(dir, "example.org/full"), "size=1m")
		tx := transaction(message, recipients...)
		undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if undecided != nil || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%q: got undecided %v and %v, want ENOSPC", recipients, undecided, err)
		}
		want := slices.Repeat([]backends.Status{backends.Delivered}, len(recipients))
		for i, r := range recipients {
			if r == "full@example.org" {
				want[i] = backends.StorageFull
				continue
			}
			files := mustList(t, filepath.Join(dir, "example.org", r[:3], "new"))
			if len(files) != 1 || mustRead(t, files[0]) != message {
				t.Errorf("%q: %s has not the message, but %q", recipients, r, files)
			}
		}
		wantStatuses(t, tx, want...)
		wantNoFiles(t, filepath.Join(dir, "example.org/full"))

		// There is room for a small one again.
		deliver(t, b, transaction("hello", "full@example.org"))
	}
}

func TestDiskWithoutRoomForDirectories(t *testing.T) {
	dir, b := newBackend(t)
	mountSmall(t, filepath.Join(dir, "example.org/full"), "nr_inodes=3")
	tx := transaction("hello", "full@example.org", "ann@example.org")
	if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	wantStatuses(t, tx, backends.StorageFull, backends.Delivered)
}
