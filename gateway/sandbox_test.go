package gateway

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestSandbox(t *testing.T) {
	const sum = `"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`
	for _, test := range []struct{ keys, want string }{
		{`sandbox.user = "root"`, ""},
		{"sandbox.user = '54321'\nsandbox.group = '54322'", ""},
		{`sandbox.user = "54321"`, "sandbox.group: is missing"},
		{`sandbox.group = "54321"`, "sandbox.group: is for another user"},
		{`sandbox.user = "no-such-user"`, "sandbox.user: user: unknown user no-such-user"},
		{"sandbox.user = 'root'\nsandbox.group = 'no-such-group'", "sandbox.group: group: unknown group no-such-group"},
		{`sandbox.directory = "."`, ""},
		{`sandbox.directory = "missing"`, "sandbox.directory: stat "},
		{`sandbox.directory = "/dev/null"`, "sandbox.directory: /dev/null is no directory"},
		{`sandbox.open_files = -1`, "sandbox.open_files: -1 is negative"},
		{`sandbox.cpu = "1h"`, ""},
		{`sandbox.cpu = "1500ms"`, "sandbox.cpu: 1.5s is not a number of whole seconds"},
		{`sandbox.processes = 10`, "sandbox.processes: counts all processes of a user"},
		{`sandbox.write_paths = []`, ""},
		{"sandbox.read_paths = []\nsandbox.write_paths = ['/usr']", ""},
		{"sandbox.read_paths = ['/no/such']\nsandbox.write_paths = []", "sandbox.read_paths: stat /no/such: no such file or directory"},
		{"sandbox.write_paths = ['/dev/null/x']", "sandbox.write_paths: stat /dev/null/x: not a directory"},
		{"sandbox.write_paths = ['/no/such']\nsandbox.best_effort = true", ""},
		{`sandbox.read_paths = []`, "sandbox.read_paths: what may be written may be read"},
		{"sandbox.write_paths = []\nsandbox.no_new_privileges = false", "sandbox.no_new_privileges: is false"},
		{`sandbox.memroy = 1`, "sandbox.memroy: unknown key"},
		{`transactions = -1`, "transactions: -1 is negative"},
		{`replace_open_files = -1`, "replace_open_files: -1 is negative"},
		{"replace_open_files = 100\nsandbox.open_files = 100", "replace_open_files: 100 is never reached: sandbox.open_files is 100"},
		{"replace_memory = '1GiB'\nsandbox.memory = '512MiB'", "replace_memory: 1GiB is never reached: sandbox.memory is 512MiB"},
		{"replace_memory = '256MiB'\nsandbox.memory = '512MiB'", ""},
		{"plugin = 'unix:x'\nreplace_memory = 1", "replace_memory: is for programs that mailgw starts"},
		{`checksum = ` + sum, "checksum: is for programs of your own"},
		{"plugin = '/bin/sh'\nchecksum = " + sum, ""},
		{"plugin = '/bin/sh'\nchecksum = 'md5:00'", `checksum: "md5:00": want "sha256:"`},
		{"plugin = 'unix:x'\nsandbox.memory = 1", "sandbox.memory: is for programs that mailgw starts"},
	} {
		if !strings.Contains(test.keys, "plugin =") {
			test.keys = "plugin = 'test'\n" + test.keys
		}
		_, err := parseConfig(filepath.Join(t.TempDir(), "test.toml"), fmt.Sprintf(`
[[listener]]
name = "one"
address = "unix:@mailgw"
protocol = "lmtp"
routes = { "*" = ["b"] }
[backend.b]
%s
`, test.keys), testPlugins)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), ": backend.b."+test.want)) {
			t.Errorf("%s: got the error %v, want %q", test.keys, err, test.want)
		}
	}
}

func TestUser(t *testing.T) {
	uid, gid := os.Geteuid(), os.Getegid()
	for _, test := range []struct {
		keys string
		root bool // who alone may have it
		want *syscall.Credential
	}{
		{"", false, nil},
		{fmt.Sprintf("user = '%d'\ngroup = '%d'\n", uid, gid), false, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}},
		{"user = '54321'\ngroup = '54322'\n", true, &syscall.Credential{Uid: 54321, Gid: 54322}},
	} {
		c, err := parseConfig(filepath.Join(t.TempDir(), "test.toml"), test.keys+`
[backend.test]
plugin = "test"
[[listener]]
name = "one"
address = "unix:@mailgw"
protocol = "lmtp"
routes = { "*" = ["test"] }
`, testPlugins)
		if test.root && uid != 0 {
			if _, ok := errors.AsType[Problems](err); !ok || !strings.Contains(err.Error(), ": user: only root can become") {
				t.Errorf("%s: got %v", test.keys, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.keys, err)
			continue
		}
		if c.Credential != nil {
			c.Credential.Groups = nil // of this user
		}
		if !reflect.DeepEqual(c.Credential, test.want) {
			t.Errorf("%s: got %v, want %v", test.keys, c.Credential, test.want)
		}
	}
}
