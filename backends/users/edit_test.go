package users

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/mailgw/mailgw/backends"
)

func contents(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What Set stores lets in by every mechanism, and at once.
func TestSetPasswordLetsIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	if err := Set(path, "\uff21nn@example.org", "I\u00adX pencil", nil, nil); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	opened, err := New(Settings{File: path, Senders: "own"})
	if err != nil {
		t.Fatal(err)
	}
	b := opened.(*backend)
	plain := func(password string) string {
		user, _ := b.Authenticate(t.Context(), &backends.Session{}, backends.Credentials{Mechanism: "PLAIN", User: "ann@example.org", Password: password})
		return user
	}
	if got := plain("IX pencil"); got != "Ann@example.org" {
		t.Errorf("PLAIN: got %q", got)
	}
	if !scramLogin(t, b, "ann@example.org", "IX pencil") {
		t.Error("SCRAM-SHA-256: refused")
	}
	if err := Set(path, "ANN@EXAMPLE.ORG", "other", nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := plain("IX pencil"); got != "" {
		t.Error("the old password still lets in")
	}
	if got := plain("other"); got != "Ann@example.org" || !scramLogin(t, b, "ann@example.org", "other") {
		t.Error("the new password does not let in")
	}
}

// Nothing changes but the user's line.
func TestSetAndDeleteKeepTheRest(t *testing.T) {
	const before = "# Users.\r\n\n" + secretLine + "  ann   send-as=<>\n# Bob left.\nbob cert=" + annsCert + " send-as=@x.example\n \t\ncarol\n"
	path := usersFile(t, before)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	line := func(name string) string {
		l, err := parse(path, contents(t, path))
		if err != nil {
			t.Fatal(err)
		}
		return l.find(name).String() + "\n"
	}
	expect := func(what, want string) {
		t.Helper()
		if got := contents(t, path); got != want {
			t.Errorf("%s:\n%q, want\n%q", what, got, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	do(Set(path, "BOB", "x", nil, nil))
	bob := line("bob")
	if !strings.HasPrefix(bob, "bob bcrypt=$2a$10$") || !strings.HasSuffix(bob, " cert="+annsCert+" send-as=@x.example\n") {
		t.Errorf("bob's line is %q", bob)
	}
	want := strings.Replace(before, "bob cert="+annsCert+" send-as=@x.example\n", bob, 1)
	expect("bob set", want)

	do(Set(path, "dave", "x", []string{"dave@x.example"}, nil))
	want += line("dave")
	expect("dave added", want)

	do(Set(path, "bob", "x", []string{"<>", "*"}, nil))
	if got := line("bob"); !strings.HasSuffix(got, " cert="+annsCert+" send-as=<> send-as=*\n") {
		t.Errorf("bob's line is %q", got)
	}
	want = strings.Replace(want, bob, line("bob"), 1)
	expect("bob's addresses", want)

	do(Delete(path, "Ann", nil))
	want = strings.Replace(want, "  ann   send-as=<>\n", "", 1)
	expect("ann deleted", want)

	if err := Delete(path, "ann", nil); !errors.Is(err, ErrNoUser) {
		t.Errorf("ann deleted again: error %v", err)
	}
	expect("ann deleted again", want)

	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left in the directory: %v", left)
	}
}

func TestEditRefusesAFaultyFile(t *testing.T) {
	const text = "ann x\n"
	path := usersFile(t, text)
	for name, err := range map[string]error{"Set": Set(path, "bob", "x", nil, nil), "Delete": Delete(path, "ann", nil)} {
		if _, ok := errors.AsType[Faults](err); !ok || !strings.HasPrefix(err.Error(), path+":1: ") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if got := contents(t, path); got != text {
		t.Errorf("the file is now %q", got)
	}
}

func TestCheckUserAndPassword(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string // "": none
	}{
		{CheckUser("ann@example.org", []string{"<>", "@example.org"}), ""},
		{CheckUser("a b", nil), "the name of the user has a space"},
		{CheckUser("", nil), "is empty"},
		{CheckUser("ann", []string{"@example.org", "example.org"}), `"example.org": no domain`},
		{CheckUser("ann", []string{`"a b"@example.org`}), "a space"},
		{CheckPassword("correct horse"), ""},
		{CheckPassword(strings.Repeat("\u00fc", 36)), ""},
		{CheckPassword(strings.Repeat("\u00fc", 36) + "x"), "the password has 73 octets; bcrypt takes 72 at most"},
		{CheckPassword(""), "the password is empty"},
		{CheckPassword("a\tb"), "the password has a character that SASLprep"},
		{CheckPassword("\U0001f600"), "emoji"},
	} {
		if tt.want == "" && tt.err != nil || tt.want != "" && (tt.err == nil || !strings.Contains(tt.err.Error(), tt.want)) {
			t.Errorf("got %v, want %q", tt.err, tt.want)
		}
	}
}

func TestEditsAtTheSameTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	const n = 20
	var editing sync.WaitGroup
	for i := range n {
		editing.Go(func() {
			if err := addUser(path, fmt.Sprintf("user%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	editing.Wait()
	l, err := parse(path, contents(t, path))
	if err != nil || len(l.users) != n {
		t.Errorf("%d users of %d, error %v", len(l.users), n, err)
	}
}

// Any local user may hold the lock: who waits for it hears that, and not for ever.
func TestEditDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "ann\n")
		dir := filepath.Dir(path)
		held, err := lock(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		tell := func(dir string) { told = append(told, dir) }
		err = Delete(path, "ann", tell)
		if want := "lock " + dir + ": another process has held the lock for 10s"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if !slices.Equal(told, []string{dir}) {
			t.Errorf("told %q, want %s", told, dir)
		}

		waits := make(chan string)
		done := make(chan error)
		go func() { done <- Delete(path, "ann", func(dir string) { waits <- dir }) }()
		<-waits
		held.Close()
		if err := <-done; err != nil {
			t.Errorf("when the lock is free: %v", err)
		}
	})
}

// addUser is Set without a password, which takes its time.
func addUser(path, name string) error {
	return edit(path, nil, func(l *list) error {
		u, err := newUser(name)
		if err == nil {
			l.set(u)
		}
		return err
	})
}

// The last user can be deleted, so that the gateway hears of it: a file that is
// empty is a fault.
func TestDeleteTheLastUser(t *testing.T) {
	b := newBackend(t, "ann", "own")
	if err := Delete(b.file.path, "ann", nil); err != nil {
		t.Fatal(err)
	}
	logged(t)
	if l := b.file.current(t.Context()); len(l.users) != 0 {
		t.Errorf("still there: %v", l.users)
	}
}

// A link stays one, and the file behind it keeps its owner.
func TestSetKeepsLinkAndOwner(t *testing.T) {
	real := usersFile(t, "ann\n")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 1, 2
		if err := os.Chown(real, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := Set(link, "ann", "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(link); target != real || err != nil {
		t.Errorf("the link leads to %q, error %v", target, err)
	}
	info, err := os.Lstat(real)
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Sys().(*syscall.Stat_t); int(s.Uid) != uid || int(s.Gid) != gid {
		t.Errorf("owner %d:%d, want %d:%d", s.Uid, s.Gid, uid, gid)
	}
	if !strings.Contains(contents(t, real), "ann bcrypt=") {
		t.Error("the file behind the link has not changed")
	}
}
