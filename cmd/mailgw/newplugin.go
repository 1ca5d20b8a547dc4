package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/plugins/python"
)

// templates are projects, each in the directory of its language. They are real
// ones, which are built and tested where they are.
//
//go:embed newplugin
var templates embed.FS

// templateName is the name of a template's plugin, wherever that stands.
const templateName = "example-plugin"

// goodProject is a name that is good for a backend, a program and a module of
// Go.
var goodProject = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

func newPluginCommand() *cobra.Command {
	var language, sources string
	cmd := &cobra.Command{
		Use:   "new-plugin NAME",
		Short: "Write a small plugin, with its test, to begin with",
		Long: `New-plugin makes the directory NAME with a plugin that works, its test, a
gateway.toml that runs it, and a README with what to type. The plugin refuses some
recipients and adds a header field; change it into what you need.

NAME may be a path. Its last part, of lower case letters, digits, _ and -, is the name
of the plugin.

In Go, the plugin needs the sources of mailgw. They are fetched if this mailgw is a
release; otherwise --mailgw tells where they are. In Python it needs Debian's
packages python3-grpcio and python3-protobuf.

Exit codes:
  0   done
  64  wrong usage
  71  the directory exists, or cannot be written`,
		Example: `  mailgw new-plugin my-plugin
  mailgw new-plugin --lang python my-plugin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, name := args[0], filepath.Base(args[0])
			if !goodProject.MatchString(name) {
				return fmt.Errorf("%q is no name: want lower case letters, digits, _ and -", name)
			}
			files, err := projectFiles(language, name, sources)
			if err != nil {
				return err
			}
			if err := writeProject(dir, files); err != nil {
				return exitError{exitSystem, err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is written. %s says how to try it.\n%s", dir, filepath.Join(dir, "README.md"), pathHint())
			return nil
		},
	}
	cmd.Flags().StringVar(&language, "lang", "go", "go or python")
	cmd.RegisterFlagCompletionFunc("lang", cobra.FixedCompletions([]string{"go", "python"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&sources, "mailgw", "", "directory of the sources of mailgw, for a plugin in Go")
	cmd.MarkFlagDirname("mailgw")
	return cmd
}

// pathHint says how to have this program in the PATH, if it is not there.
func pathHint() string {
	self, err := os.Executable()
	if err != nil || filepath.Base(self) != "mailgw" {
		return ""
	}
	this, err := os.Stat(self)
	if err != nil {
		return ""
	}
	if found, err := exec.LookPath("mailgw"); err == nil {
		if info, err := os.Stat(found); err == nil && os.SameFile(info, this) {
			return ""
		}
	}
	return fmt.Sprintf("It wants this mailgw in your PATH:\n\n    export PATH=\"%s:$PATH\"\n", filepath.Dir(self))
}

// projectFiles are the files of a project, by name.
func projectFiles(language, name, sources string) (map[string]string, error) {
	files := map[string]string{}
	switch language {
	case "go":
		text, err := goMod(name, sources)
		if err != nil {
			return nil, err
		}
		files["go.mod"] = text
	case "python":
		if sources != "" {
			return nil, errors.New("--mailgw is for Go: a plugin in Python has all of mailgw that it needs")
		}
		if err := addFiles(files, python.Files, "."); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("--lang %s: want go or python", language)
	}
	template := map[string]string{}
	if err := addFiles(template, templates, "newplugin/"+language); err != nil {
		return nil, err
	}
	for file, text := range template {
		files[file] = strings.NewReplacer(templateName, name, capital(templateName), capital(name)).Replace(text)
	}
	return files, nil
}

func capital(name string) string { return strings.ToUpper(name[:1]) + name[1:] }

// addFiles adds the files of a directory.
func addFiles(files map[string]string, from fs.ReadDirFS, dir string) error {
	entries, err := from.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		text, err := fs.ReadFile(from, filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		files[entry.Name()] = string(text)
	}
	return nil
}

// release is a version that go can fetch.
var release = regexp.MustCompile(`^v\d+\.\d+\.\d+$`)

// goMod is the go.mod of a project. go mod tidy adds to it what mailgw needs.
func goMod(name, sources string) (string, error) {
	const module = "github.com/mailgw/mailgw"
	version, replace := version(), ""
	if sources != "" {
		path, err := filepath.Abs(sources)
		if err != nil {
			return "", err
		}
		text, err := os.ReadFile(filepath.Join(path, "go.mod"))
		if err == nil && !strings.HasPrefix(string(text), "module "+module+"\n") {
			err = errors.New("its go.mod is of another module")
		}
		if err != nil {
			return "", fmt.Errorf("--mailgw %s: %w", sources, err)
		}
		version, replace = "v0.0.0", fmt.Sprintf("\nreplace %s => %q\n", module, path)
	} else if !release.MatchString(version) {
		return "", errors.New("this mailgw is no release that go could fetch; say with --mailgw where its sources are")
	}
	return fmt.Sprintf("module example.org/%s\n\ngo 1.26.0\n\nrequire %s %s\n%s", name, module, version, replace), nil
}

// writeProject writes files into a new directory. Scripts can be run.
func writeProject(dir string, files map[string]string) error {
	if err := os.Mkdir(dir, 0o777); err != nil {
		return err
	}
	for name, text := range files {
		mode := fs.FileMode(0o666)
		if strings.HasPrefix(text, "#!") {
			mode = 0o777
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			return err
		}
	}
	return nil
}
