package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/backends"
)

var testPlugins = []string{"other", "test"}

// problemsOf are the problems that a file of testdata/config says it has.
// Behind "#! " stands a problem of that line or, at the beginning of a line, of
// another file. FILE is the file's path, DIR the directory.
func problemsOf(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var here, elsewhere []string
	for i, line := range strings.Split(string(text), "\n") {
		for n, problem := range strings.Split(line, "#! ") {
			switch problem = strings.TrimSpace(problem); {
			case n == 0:
			case strings.HasPrefix(line, "#! "):
				elsewhere = append(elsewhere, problem)
			default:
				here = append(here, fmt.Sprintf("FILE:%d: %s", i+1, problem))
			}
		}
	}
	return strings.Join(append(here, elsewhere...), "\n")
}

// portable returns problems with the words that problemsOf has.
func portable(t *testing.T, path string, problems Problems) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(path, "FILE", dir, "DIR").Replace(problems.Error())
}

func TestAllProblemsAtOnceWithFileLineAndKey(t *testing.T) {
	for _, name := range []string{"two-listeners", "empty", "top", "listeners", "rules", "rates"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata/config", name+".toml")
			c, err := Load(path, testPlugins)
			var problems Problems
			if c == nil || !errors.As(err, &problems) {
				t.Fatalf("got %v, %v, want Problems", c, err)
			}
			if got, want := portable(t, path, problems), problemsOf(t, path); got != want {
				t.Errorf("%s\n\ngot:\n%s\n\nwant:\n%s", path, got, want)
			}
		})
	}
}

func TestSyntaxErrorHasLineAndColumn(t *testing.T) {
	for _, test := range []struct{ text, want, hint string }{
		{"hostname = 'a'\nlog = = 1\n", "2:7", ""},
		{"[log]\n[spool]\n[log]\n", "3:2", "defined"},
		{"hostname = 'a'\nhostname = 1", "2:1", "defined"},
		{"hostname = 'a'\n[[listener]\nname = 'b'\n", "2:11", ""},
		{"# ü\n[spool\nthreshold = '1'\n", "2:7", ""},
		{"[log]\nlevel = info\n", "2:12", "; a text stands in quotes"},
		{"[log]\nlevel = debug", "2:9", "or a text in quotes"},
		{"[listener]\n[listener.limits]\n[listener]\n", "3:2", "; each listener begins with a line [[listener]], with two brackets on each side"},
		{"[[listener]]\nlimits.recipients = 1\nlimits.recipients = 2\n", "3:1", "defined"},
		{"log = 'a", "1:", ""},
	} {
		_, err := parseConfig("test.toml", test.text, testPlugins)
		if err == nil || !strings.HasPrefix(err.Error(), "test.toml:"+test.want) || !strings.HasSuffix(err.Error(), test.hint) {
			t.Errorf("%q: got %v, want %s and %s", test.text, err, test.want, test.hint)
		}
	}
}

// listenerConfig is a configuration with the given keys of its only listener.
func listenerConfig(t *testing.T, keys string) (*Config, error) {
	t.Helper()
	return parseConfig(filepath.Join(t.TempDir(), "test.toml"), `
[backend.test]
plugin = "test"
[backend.other]
plugin = "other"
[[listener]]
name = "one"
routes = { "*" = ["test"] }
`+keys, testPlugins)
}

func TestAddresses(t *testing.T) {
	long := strings.Repeat("x", 104)
	for _, test := range []struct{ address, want string }{
		{"tcp:127.0.0.1:0", ""},
		{"tcp:0.0.0.0:25", ""},
		{"tcp:[::1]:25", ""},
		{"tcp:[fe80::1%lo]:25", ""},
		{"tcp:localhost:65535", ""},
		{"tcp:mx.example.org:25", ""},
		{"unix:lmtp.sock", ""},
		{"unix:@mailgw", ""},
		{"unix:@" + long, ""},

		{"tcp:", "missing port in address"},
		{"tcp:localhost", "missing port in address"},
		{"tcp:::1:25", "an IPv6 address stands in brackets"},
		{"tcp::25", "0.0.0.0 stands for all IPv4 addresses"},
		{"tcp:*:25", "neither an address nor a host name"},
		{"tcp:127.0.0.256:25", "neither an address nor a host name"},
		{"tcp:two words:25", "neither an address nor a host name"},
		{"tcp:127.0.0.1:smtp", "no port"},
		{"tcp:127.0.0.1:65536", "no port"},
		{"tcp:127.0.0.1:", "no port"},
		{"udp:127.0.0.1:25", addressWanted},
		{"unix:", "want tcp:HOST:PORT"},
		{"unix:@", "want tcp:HOST:PORT"},
		{"unix:@xxx" + long, "longer than"},
		{"unix:/tmp/" + long, "longer than"},
		{"unix:/nonexistent/lmtp.sock", "no such file or directory"},
		{"unix:/dev/null/lmtp.sock", "is no directory"},
	} {
		c, err := listenerConfig(t, fmt.Sprintf("protocol = 'smtp'\naddress = %q", test.address))
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.address, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), "listener[0].address: ") || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: got %v, want %q", test.address, err, test.want)
		case err == nil && test.address == "unix:lmtp.sock" && c.Listeners[0].Address != "unix:"+c.Dir+"/lmtp.sock":
			t.Errorf("%s: got %q, want it in %s", test.address, c.Listeners[0].Address, c.Dir)
		}
	}
}

func TestLMTPIsNotSpokenOnPort25(t *testing.T) {
	_, err := listenerConfig(t, "protocol = 'lmtp'\naddress = 'tcp:127.0.0.1:25'")
	if err == nil || !strings.Contains(err.Error(), "RFC 2033") {
		t.Errorf("got %v", err)
	}
}

func TestReplies(t *testing.T) {
	for text, want := range map[string]backends.Status{
		"550 5.7.1 refused":                     backends.NewStatus(550, "5.7.1", "refused"),
		"450 4.2.0 not now, pal!":               backends.NewStatus(450, "4.2.0", "not now, pal!"),
		"":                                      {},
		"550":                                   {},
		"550 refused":                           {},
		"550 5.7.1":                             {},
		"550 4.7.1 refused":                     {},
		"550-5.7.1 refused":                     {},
		"250 2.0.0 ok":                          {},
		"354 3.0.0 go ahead":                    {},
		"421 4.7.0 go away":                     {},
		"599 5.0.0 refused":                     {},
		"550 5.7.1 gesch\u00fctzt":              {},
		"550 5.7.1 two\r\nlines":                {},
		"550 5.7.1 " + strings.Repeat("x", 401): {},
	} {
		got, err := parseReply(text)
		if got != want || (err == nil) == want.IsZero() {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestAccess(t *testing.T) {
	for _, test := range []struct{ name, keys, permitted, refused string }{
		{"no list", "", "user@example.org <> postmaster", ""},
		{"allow alone refuses the others", `allow = ["@example.org", "<>"]`, "user@example.org <>", "user@example.com postmaster"},
		{"deny alone permits the others", `deny = ["@example.org", "<>"]`, "user@example.com postmaster", "user@example.org <>"},
		{"the most exact pattern decides, allow before deny", `allow = ["user@example.org"]
			deny = ["@example.org"]`, "user@example.org", "other@example.org user@example.com"},
		{"the most exact pattern decides, deny before allow", `allow = ["@example.org"]
			deny = ["user@example.org"]`, "other@example.org", "user@example.org user@example.com"},
		{"everything and an exception", `allow = ["*"]
			deny = ["user@*", "@example.org"]`, "other@example.com <>", "user@example.com other@example.org"},
		{"a list may say something twice", `allow = ["@example.org", "*@Example.org"]`, "user@example.org", "user@example.com"},
		{"files and lists together", `allow = ["@example.com"]
			allow_file = "list"`, "user@example.com user@example.org", "user@example.net"},
		{"an allow_file without patterns allows nobody", `allow_file = "empty"`, "", "user@example.org <> postmaster"},
		{"empty lists are no lists", `allow = []
			deny = []
			allow_file = ""`, "user@example.org", ""},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"list": "# comment\n\nuser@example.org\n", "empty": "# nobody yet\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := parseConfig(filepath.Join(dir, "test.toml"), `
[backend.test]
plugin = "test"
[[listener]]
name = "one"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
routes = { "*" = ["test"] }
[listener.recipients]
`+test.keys, testPlugins)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		for want, addresses := range map[bool]string{true: test.permitted, false: test.refused} {
			for address := range strings.FieldsSeq(addresses) {
				if got := c.Listeners[0].recipients.permits(strings.Trim(address, "<>")); got != want {
					t.Errorf("%s: %s: got %v, want %v", test.name, address, got, want)
				}
			}
		}
	}
}

func TestRoutesWithTheSameBackendsAreOne(t *testing.T) {
	c, err := parseConfig("test.toml", `
[backend.a]
plugin = "test"
[backend.b]
plugin = "test"
[[listener]]
name = "one"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
[listener.routes]
"@example.org" = ["a", "b"]
"@example.com" = ["a", "b"]
"@example.net" = ["b", "a"]
`, testPlugins)
	if err != nil {
		t.Fatal(err)
	}
	routes := c.Listeners[0].routes
	org, com, net := routes.lookup("user@example.org"), routes.lookup("user@example.com"), routes.lookup("user@example.net")
	if org != com || org == net {
		t.Errorf("routes %p, %p and %p: want the first two to be one", org, com, net)
	}
	if got := strings.Join(net.backends, " "); got != "b a" {
		t.Errorf("got backends %s, want b a", got)
	}
	if got := routes.lookup("user@example.edu"); got != nil {
		t.Errorf("got %v for an address that no pattern matches, want nil", got)
	}
}

// The paths of a file mean the same wherever the program is started.
func TestRelativePathsBeginAtTheFile(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"spool", "run"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "program"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := parseConfig(filepath.Join(dir, "test.toml"), `
plugin_directory = "run"
spool = { directory = "./spool" }
backend = { test = { plugin = "./program" } }
[[listener]]
name = "one"
address = "unix:run/lmtp.sock"
protocol = "lmtp"
routes = { "*" = ["test"] }
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Dir, c.PluginDirectory, c.Spool.Directory, c.Backends["test"].Plugin, c.Listeners[0].Address}
	want := []string{dir, dir + "/run", dir + "/spool", dir + "/program", "unix:" + dir + "/run/lmtp.sock"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestSettingsFaultsFindTheirLines(t *testing.T) {
	c, err := parseConfig("test.toml", `[[listener]]
name = "one"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
routes = { "*" = ["test"] }
[backend.test]
plugin = "test"
[backend.test.settings]
rules = [
    { pattern = "a" },
    { pattern = "b" },
]
`, testPlugins)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"rules[1].pattern": "test.toml:11: backend.test.settings.rules[1].pattern: bad",
		"path":             "test.toml:8: backend.test.settings.path: bad",
	} {
		if got := c.Problem("backend.test.settings."+key, "bad").String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	const path = "testdata/config/warnings.toml"
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Skip("/dev/shm is no tmpfs here")
	}
	c, err := Load(path, testPlugins)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := portable(t, path, c.Warnings()), problemsOf(t, path); got != want {
		t.Errorf("got:\n%s\n\nwant:\n%s", got, want)
	}
}

// asNobody runs f on a thread that has the rights of nobody.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS},
			{unix.SYS_SETRESGID, nobody, nobody, nobody},
			{unix.SYS_SETRESUID, nobody, nobody, nobody},
		} {
			if _, _, err := unix.RawSyscall(call[0], call[1], call[2], call[3]); err != 0 {
				t.Errorf("system call %d: %v", call[0], err)
				return
			}
		}
		f()
	}()
	<-done
}

const nobody = 65534

// What Listen would refuse for want of rights is found before.
func TestRightsToMakeSocket(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make directories for others")
	}
	for _, test := range []struct {
		name string
		dir  os.FileMode // of nobody and group root
		keys string
		want string
	}{
		{"own", 0o700, "", ""},
		{"own user and group", 0o700, "owner = 'nobody'\ngroup = 'nogroup'", ""},
		{"other user", 0o700, "owner = 'root'", "listener[0].owner: only root may give the socket to another user, and mailgw runs as nobody"},
		{"other group", 0o700, "group = 'root'", "listener[0].group: user nobody is not in group root; add it (usermod -aG root nobody)"},
		{"group of the directory", 0o700 | os.ModeSetgid, "group = 'root'", ""},
		{"not writable", 0o500, "", "listener[0].address: user nobody cannot write to "},
	} {
		t.Run(test.name, func(t *testing.T) {
			parent, err := os.MkdirTemp("", "") // unlike t.TempDir, below a directory that others may enter
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(parent) })
			dir := filepath.Join(parent, "run")
			for _, err := range []error{os.Chmod(parent, 0o755), os.Mkdir(dir, 0o700), os.Chown(dir, nobody, 0), os.Chmod(dir, test.dir)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			asNobody(t, func() {
				c, err := listenerConfig(t, fmt.Sprintf("protocol = 'lmtp'\naddress = 'unix:%s/socket'\n%s", dir, test.keys))
				if test.want != "" {
					if err == nil || !strings.Contains(err.Error(), test.want) {
						t.Errorf("got %v, want %q", err, test.want)
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				// It was right.
				s, err := New(c, nil, slog.New(slog.DiscardHandler))
				if err == nil {
					err = s.Listen()
				}
				if err != nil {
					t.Error(err)
					return
				}
				s.Shutdown(context.Background())
			})
		})
	}
}
