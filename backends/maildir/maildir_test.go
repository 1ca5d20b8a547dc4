package maildir

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
)

func TestConformance(t *testing.T) {
	s := Defaults
	s.Path = filepath.Join(t.TempDir(), "{domain}", "{user}")
	s.Received, s.ReturnPath, s.DeliveredTo = true, true, true
	if err := backendtest.Test(mustNew(t, s), backendtest.Options{Final: true}); err != nil {
		t.Error(err)
	}
}

// What is in new is what came, byte for byte, and nothing is left in tmp.
func TestEachRecipientGetsTheExactBytes(t *testing.T) {
	messages := map[string]string{
		"plain":        "Subject: test\r\n\r\nhello\r\n",
		"empty":        "",
		"no line end":  "Subject: test\r\n\r\nhello",
		"bare newline": "Subject: test\n\nhello\r",
		"all octets":   "Subject: test\r\n\r\n\x00\x01\x7f\x80\xff\r\n.\r\n..\r\n",
		"large":        "Subject: test\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 100000),
	}
	for name, message := range messages {
		dir, b := newBackend(t)
		tx := transaction(message, "ann@example.org", "bob@example.org", "ann@example.org")
		tx.Body = iotest.OneByteReader(strings.NewReader(message))
		if len(message) > 1000 {
			tx.Body = iotest.HalfReader(strings.NewReader(message))
		}
		if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantStatuses(t, tx, backends.Delivered, backends.Delivered, backends.Delivered)
		for mailbox, n := range map[string]int{"example.org/ann": 2, "example.org/bob": 1} {
			files := mustList(t, filepath.Join(dir, mailbox, "new"))
			if len(files) != n {
				t.Errorf("%s: %d files in %s, want %d", name, len(files), mailbox, n)
			}
			for _, file := range files {
				if got := mustRead(t, file); got != message {
					t.Errorf("%s: %s is not the message: %.80q", name, file, got)
				}
			}
			if left := mustList(t, filepath.Join(dir, mailbox, "tmp")); len(left) > 0 {
				t.Errorf("%s: left in tmp: %q", name, left)
			}
		}
	}
}

func TestFileNameTellsTheSize(t *testing.T) {
	dir, b := newBackend(t, func(s *Settings) { s.Hostname = "[192.0.2.1]"; s.ReturnPath = true })
	deliver(t, b, transaction("12345", "ann@example.org"))
	files := mustList(t, filepath.Join(dir, "example.org/ann/new"))
	form := regexp.MustCompile(`^\d{10,}\.M\d{6}P\d+Q\d+\.\[192\.0\.2\.1\],S=40$`)
	if len(files) != 1 || !form.MatchString(filepath.Base(files[0])) {
		t.Errorf("got %q, want a name like %v", files, form)
	}
}

func TestManyDeliveriesAtOnceKeepTheirFilesApart(t *testing.T) {
	const transactions, recipients = 20, 5
	dir, b := newBackend(t)
	var wg sync.WaitGroup
	for range transactions {
		wg.Go(func() {
			deliver(t, b, transaction("Subject: test\r\n\r\n", slices.Repeat([]string{"ann@example.org"}, recipients)...))
		})
	}
	wg.Wait()
	if got := len(mustList(t, filepath.Join(dir, "example.org/ann/new"))); got != transactions*recipients {
		t.Errorf("%d files, want %d", got, transactions*recipients)
	}
}

// One mailbox has a file in the place of its directory new. Wherever it
// stands among the recipients, the others get their mail.
func TestOneRecipientsTroubleIsItsOwn(t *testing.T) {
	const message = "Subject: test\r\n\r\nhello\r\n"
	for _, recipients := range [][]string{
		{"broken@example.org", "ann@example.org", "bob@example.org"},
		{"ann@example.org", "broken@example.org", "bob@example.org"},
		{"ann@example.org", "bob@example.org", "broken@example.org"},
	} {
		dir, b := newBackend(t)
		broken := filepath.Join(dir, "example.org/broken")
		if err := errors.Join(os.MkdirAll(broken, 0o700), os.WriteFile(filepath.Join(broken, "new"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		tx := transaction(message, recipients...)
		_, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if !errors.Is(err, syscall.ENOTDIR) || !strings.HasPrefix(err.Error(), "broken@example.org: ") {
			t.Errorf("got %v, want ENOTDIR for broken@example.org", err)
		}
		for i, r := range recipients {
			if r == "broken@example.org" {
				if got := tx.Status(i); got != backends.TryLater {
					t.Errorf("%s: got %v, want %v", r, got, backends.TryLater)
				}
				continue
			}
			files := mustList(t, filepath.Join(dir, "example.org", strings.TrimSuffix(r, "@example.org"), "new"))
			if got := tx.Status(i); got != backends.Delivered || len(files) != 1 || mustRead(t, files[0]) != message {
				t.Errorf("%s: got %v, files %q", r, got, files)
			}
		}
		if left := mustList(t, filepath.Join(broken, "tmp")); len(left) > 0 {
			t.Errorf("left in tmp: %q", left)
		}
	}
}

// Whatever ends a transaction before the message is whole, nothing is left
// of it and nobody has 2yz.
func TestBrokenTransactionsLeaveNothing(t *testing.T) {
	message := strings.Repeat("x", 200<<10)
	half := strings.NewReader(message[:len(message)/2])
	over, cancel := context.WithCancel(t.Context())
	tests := []struct {
		name string
		ctx  context.Context
		body io.Reader
		want string
	}{
		{"read error", t.Context(), io.MultiReader(half, iotest.ErrReader(errors.New("gone"))), "read message: gone"},
		{"read error that looks like the end", t.Context(), iotest.ErrReader(io.ErrUnexpectedEOF), "read message: unexpected EOF"},
		{"too short", t.Context(), strings.NewReader(message[1:]), "read message: got 204799 octets of 204800"},
		{"too long", t.Context(), strings.NewReader(message + "x"), "read message: got 204801 octets of 204800"},
		{"context over half-way", over, io.MultiReader(strings.NewReader(message[1:]), readerFunc(func(p []byte) (int, error) {
			cancel()
			return copy(p, "x"), io.EOF
		})), "context canceled"},
	}
	for _, tt := range tests {
		dir, b := newBackend(t)
		tx := transaction(message, "ann@example.org", "bob@example.org")
		tx.Body = tt.body
		undecided, err := backends.Run(tt.ctx, b, tx, backends.Hooks{})
		if len(undecided) != 2 || err == nil || err.Error() != tt.want {
			t.Errorf("%s: got undecided %v and %v, want all and %s", tt.name, undecided, err, tt.want)
		}
		if s := backends.StatusOf(err); !s.Temporary() {
			t.Errorf("%s: got %v, want 4yz", tt.name, s)
		}
		wantNoFiles(t, dir)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestNothingIsMadeWhenTheContextIsOver(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	dir, b := newBackend(t)
	if _, err := backends.Run(over, b, transaction("", "ann@example.org"), backends.Hooks{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if names := mustList(t, dir); len(names) > 0 {
		t.Errorf("made %q", names)
	}
}

// Without create, only a user who is missing among others is refused. A disk
// that is not mounted must not bounce all mail.
func TestMissingMailboxes(t *testing.T) {
	for _, test := range []struct {
		path  string
		there []string
		to    string
		want  backends.Status
		cause string
	}{
		{"{domain}/{user}", []string{"example.org/ann"}, "ann@example.org", backends.Delivered, ""},
		{"{domain}/{user}", []string{"example.org/ann"}, "bob@example.org", backends.NoSuchUser, ""},
		{"{domain}/{user}", []string{"example.org/ann"}, "ann@example.net", backends.TryLater, "/example.net: no such file or directory"},
		{"{domain}/{user}", []string{"example.org"}, "bob@example.org", backends.TryLater, "/example.org/bob: no such file or directory, and nothing else is there either"},
		{"{domain}/{user}", nil, "bob@example.org", backends.TryLater, "/example.org: no such file or directory"},
		{"base/{domain}/{user}", nil, "bob@example.org", backends.TryLater, "/base: no such file or directory"},
		{"{address}", []string{"ann@example.org"}, "ann@example.net", backends.NoSuchUser, ""},
		{"{address}", nil, "ann@example.net", backends.TryLater, "/ann@example.net: no such file or directory, and nothing else is there either"},
		{"{domain}", []string{"example.org"}, "ann@example.net", backends.NoSuchUser, ""},

		// The Maildir is below the user's directory.
		{"{user}/Maildir", []string{"ann/Maildir"}, "bob@example.org", backends.NoSuchUser, ""},
		{"{user}/Maildir", []string{"ann/bin"}, "ann@example.org", backends.NoSuchUser, ""},
		{"{user}/Maildir", []string{"ann"}, "ann@example.org", backends.TryLater, "/ann/Maildir: no such file or directory, and nothing else is there either"},

		// That of a detail is inside the user's.
		{"{user}/.{detail}", []string{"ann/.shop"}, "ann+shop@example.org", backends.Delivered, ""},
		{"{user}/.{detail}", []string{"ann/cur"}, "ann+shop@example.org", backends.NoSuchUser, ""},
		{"{user}/.{detail}", []string{"ann/cur"}, "bob+shop@example.org", backends.NoSuchUser, ""},
	} {
		dir, b := newBackend(t, func(s *Settings) {
			s.Path = filepath.Join(filepath.Dir(filepath.Dir(s.Path)), test.path)
			s.Create = false
		})
		for _, name := range test.there {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		before := mustList(t, dir)
		tx := transaction("hello", test.to)
		_, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if got := tx.Status(0); got != test.want {
			t.Errorf("%+v: got %v", test, got)
		}
		if (err == nil) != (test.cause == "") || err != nil && !strings.HasSuffix(err.Error(), " "+dir+test.cause) {
			t.Errorf("%+v: got %v", test, err)
		}
		if after := mustList(t, dir); !slices.Equal(before, after) {
			t.Errorf("%+v: made %q", test, after)
		}
	}
}

// A link to nowhere is no user who is missing.
func TestDanglingLinkIsLocalTrouble(t *testing.T) {
	dir, b := newBackend(t, func(s *Settings) { s.Create = false })
	box := filepath.Join(dir, "example.org/ann")
	if err := errors.Join(os.Mkdir(filepath.Dir(box), 0o700), os.Symlink("elsewhere", box)); err != nil {
		t.Fatal(err)
	}
	tx := transaction("hello", "ann@example.org")
	_, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), box) {
		t.Errorf("got %v, want ErrNotExist and %s", err, box)
	}
	wantStatuses(t, tx, backends.TryLater)
}

// The log names what the trouble is with, from the root on.
func TestErrorsNameWholePaths(t *testing.T) {
	for _, inTheWay := range []string{"", "example.org", "example.org/ann", "example.org/ann/tmp", "example.org/ann/new"} {
		dir, b := newBackend(t, func(s *Settings) {
			s.Path = strings.Replace(s.Path, "/{domain}", "/base/{domain}", 1)
		})
		file := filepath.Join(dir, "base", inTheWay)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		tx := transaction("hello", "ann@example.org")
		_, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if err == nil || !strings.Contains(err.Error(), " "+file) {
			t.Errorf("got %v, want an error that names %s", err, file)
		}
		wantStatuses(t, tx, backends.TryLater)
	}
}

// Links that the owner of a mailbox makes lead nowhere.
func TestSymlinksDoNotLeadOut(t *testing.T) {
	for _, link := range []string{"example.org", "example.org/ann", "example.org/ann/tmp", "example.org/ann/new"} {
		outside := t.TempDir()
		for _, sub := range append(subdirectories, "ann") {
			if err := os.Mkdir(filepath.Join(outside, sub), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		dir, b := newBackend(t)
		at := filepath.Join(dir, link)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o700), os.Symlink(outside, at)); err != nil {
			t.Fatal(err)
		}
		tx := transaction("hello", "ann@example.org")
		if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); err == nil {
			t.Errorf("%s: delivered through a link", link)
		}
		wantStatuses(t, tx, backends.TryLater)
		wantNoFiles(t, outside)
		wantNoFiles(t, dir)
	}
}

func TestModeAndOwner(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	owner := ""
	if uid == 0 { // only root can give files away
		uid, gid, owner = 12345, 54321, "12345:54321"
	}
	dir, b := newBackend(t, func(s *Settings) {
		s.Mode, s.DirMode, s.Owner = 0o640, 0o750, owner
		s.Path = strings.Replace(s.Path, "{domain}", "made/{domain}", 1)
	})
	deliver(t, b, transaction("hello", "ann@example.org"))
	made := []string{"made", "made/example.org", "made/example.org/ann", "made/example.org/ann/tmp",
		"made/example.org/ann/new", "made/example.org/ann/cur"}
	for i, name := range made {
		made[i] = filepath.Join(dir, name)
	}
	made = append(made, mustList(t, made[4])...)
	for _, name := range made {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		want := fs.FileMode(0o640)
		if info.IsDir() {
			want = 0o750
		}
		stat := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm() != want || stat.Uid != uid || stat.Gid != gid {
			t.Errorf("%s: got %v, %d:%d, want %v, %d:%d", name, info.Mode(), stat.Uid, stat.Gid, want, uid, gid)
		}
	}
}

func TestMemoryDoesNotGrowWithTheMessage(t *testing.T) {
	const size, enough = 32 << 20, 1 << 20
	_, b := newBackend(t)
	tx := transaction("", "ann@example.org", "bob@example.org", "carol@example.org")
	tx.Size, tx.Body = size, io.LimitReader(zeros{}, size)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	deliver(t, b, tx)
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > enough {
		t.Errorf("%d octets allocated for a message of %d, want at most %d", got, size, enough)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestBadSettingsNameTheirKey(t *testing.T) {
	tests := []struct {
		change func(*Settings)
		want   string
	}{
		{func(s *Settings) { s.Path = "" }, `path: is missing; want a path such as /`},
		{func(s *Settings) { s.Path = "/mail/{name}" }, `path: "/mail/{name}": "{name}"`},
		{func(s *Settings) { s.Path = "/mail/{user" }, `path: "/mail/{user": "{user"`},
		{func(s *Settings) { s.Path = "/mail/user}" }, `path: "/mail/user}": "user}"`},
		{func(s *Settings) { s.Path = "/mail/{user}{domain}" }, `path: "/mail/{user}{domain}": "{user}{domain}"`},
		{func(s *Settings) { s.Path = "/mail/{detail}/{user}" }, `path: "/mail/{detail}/{user}": {detail} stands`},
		{func(s *Settings) { s.RecipientDelimiter = "\u00b7" }, `recipient_delimiter: "`},
		{func(s *Settings) { s.Mode = 0 }, `mode: 0000`},
		{func(s *Settings) { s.DirMode = 0o600 }, `dir_mode: 0600`},
		{func(s *Settings) { s.Owner = "no-such-user" }, `owner: "no-such-user"`},
		{func(s *Settings) { s.Owner = ":no-such-group" }, `owner: ":no-such-group"`},
		{func(s *Settings) { s.Owner = "-1" }, `owner: "-1"`},
		{func(s *Settings) { s.Hostname = "two words" }, `hostname: "two words"`},
	}
	for _, tt := range tests {
		s := Defaults
		s.Path = "/mail/{domain}/{user}"
		tt.change(&s)
		if _, err := New(s); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("got %v, want %s...", err, tt.want)
		}
	}
}
