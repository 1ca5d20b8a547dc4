package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the README of a project says is run by TestNewPlugin of the root.
func TestNewPluginWritesItsFiles(t *testing.T) {
	for args, want := range map[string][]string{
		"--mailgw ../..": {"README.md", "gateway.toml", "go.mod", "main.go", "main_test.go"},
		"--lang python":  {"README.md", "gateway.toml", "mailgw.py", "plugin.py", "plugin_pb2.py", "test_plugin.py"},
	} {
		dir := filepath.Join(t.TempDir(), "my-plugin")
		if stdout, stderr, code := command(t, "", append([]string{"new-plugin", dir}, strings.Fields(args)...)...); code != 0 {
			t.Fatalf("%s: exit code %d\n%s%s", args, code, stdout, stderr)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, entry := range entries {
			got = append(got, entry.Name())
			text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil || strings.Contains(strings.ToLower(string(text)), templateName) {
				t.Errorf("%s: %s is not of this plugin; %v", args, entry.Name(), err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", args, got, want)
		}
	}
}

func TestNewPluginThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Mkdir("taken", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"", exitUsage, "accepts 1 arg(s)"},
		{"My_Plugin", exitUsage, `"My_Plugin" is no name`},
		{"--lang rust x", exitUsage, "want go or python"},
		{"x", exitUsage, "with --mailgw where its sources are"},
		{"--mailgw . x", exitUsage, "--mailgw .: open "},
		{"--lang python --mailgw . x", exitUsage, "--mailgw is for Go"},
		{"--lang python taken", exitSystem, "taken: file exists"},
		{"--lang python nowhere/x", exitSystem, "no such file or directory"},
	} {
		_, stderr, code := command(t, "", append([]string{"new-plugin"}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(stderr, tt.want) {
			t.Errorf("new-plugin %s: exit code %d, %q; want %d, %q", tt.args, code, stderr, tt.code, tt.want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}
