package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// Each scenario works with each of its servers. How fast they are is not tested.
func TestScenarios(t *testing.T) {
	for _, g := range goals {
		for _, s := range g.scenarios {
			s.load.sessions = min(s.load.sessions, 3)
			s.load.recipients = min(s.load.recipients, 50)
			s.load.size = min(s.load.size, 64<<10)
		}
	}
	b := &bench{root: "../..", rounds: 1, out: t.Output(), results: results{}, absent: map[string]error{}}
	if err := b.run(nil); err != nil {
		t.Fatal(err)
	}
	for _, g := range goals {
		for _, s := range g.scenarios {
			for _, server := range s.servers {
				got := b.results[s][server]
				if b.absent[server] == nil && (len(got) != 1 || got[0].rate == 0 && got[0].memory == 0) {
					t.Errorf("%s: %s: got %v, want one sample", s.title, server, got)
				}
			}
		}
	}
	gatewaytest.Eventually(t, "all servers have ended", func() bool {
		return !slices.ContainsFunc(gatewaytest.Processes(t), func(p gatewaytest.Process) bool {
			return strings.HasPrefix(p.Dir, b.dir+"/") && !p.Zombie
		})
	})
	for server, err := range b.absent {
		gatewaytest.Without(t, "%s: %v", server, err)
	}
}

// The directory for profiles need not be there.
func TestProfiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "profiles", "today")
	b := &bench{root: "../..", only: []string{mailgw}, rounds: 1, profiles: dir, out: t.Output(), results: results{}, absent: map[string]error{}}
	if err := b.run([]int{3}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gateway", "reader"} {
		found, err := filepath.Glob(filepath.Join(dir, "*_mailgw_"+name+".pprof"))
		if err != nil || len(found) != 1 {
			t.Errorf("profiles of %s: %q, %v, want one", name, found, err)
		}
	}
}

// A directory that cannot be made is told before anything is built.
func TestNoDirectoryForProfiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bench{root: "../..", profiles: filepath.Join(file, "profiles"), out: t.Output()}
	if err := b.run(nil); !errors.Is(err, syscall.ENOTDIR) || b.dir != "" {
		t.Errorf("got %v, working in %q, want it not begun: %v", err, b.dir, syscall.ENOTDIR)
	}
}

func TestServersByName(t *testing.T) {
	for _, test := range []struct {
		list string
		want []string // none if it is refused
	}{
		{"Postfix", []string{postfix}},
		{"postfix,DOVECOT", []string{postfix, dovecot}},
		{"mailgw 2 Plugins, go-smtp", []string{mailgwWithTwo, goSMTP}},
		{"postfi", nil},
		{"mailgw,", nil},
	} {
		got, err := parseServers(test.list)
		if !slices.Equal(got, test.want) || (err == nil) != (test.want != nil) {
			t.Errorf("%q: got %q, %v, want %q", test.list, got, err, test.want)
		}
	}
}

// A log begins anew, and it does not matter if it has not begun at all.
func TestEmptyLogs(t *testing.T) {
	begun := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(begun, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&server{logs: []string{begun + "-to-come", begun}}).emptyLogs(); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(begun); err != nil || len(text) > 0 {
		t.Errorf("got %q, %v", text, err)
	}
}
