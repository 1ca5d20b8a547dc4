// Package peers finds the programs that mailgw is tested and measured with.
// Its tests run the program as it is built against them. The script install
// gets them from Debian.
package peers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Postfix says in which directories the programs of Postfix are.
type Postfix struct {
	Daemons, Commands string
	Libraries         string // empty where the system knows them
}

// FindPostfix finds the Postfix that is installed, or the one that the script
// install has unpacked beside another MTA, below the root of the sources.
func FindPostfix(root string) (Postfix, error) {
	unpacked, err := filepath.Abs(filepath.Join(root, "var/peers/postfix"))
	if err != nil {
		return Postfix{}, err
	}
	if _, err := os.Stat(unpacked); err == nil {
		return Postfix{
			Daemons:   unpacked + "/usr/lib/postfix/sbin",
			Commands:  unpacked + "/usr/sbin",
			Libraries: unpacked + "/usr/lib/postfix",
		}, nil
	}
	postconf, err := exec.LookPath("postconf")
	if err != nil {
		// Debian has it there, where not everybody looks.
		if postconf, err = exec.LookPath("/usr/sbin/postconf"); err != nil {
			return Postfix{}, fmt.Errorf("%w: internal/peers/install installs Postfix", err)
		}
	}
	daemons, err := exec.Command(postconf, "-dh", "daemon_directory").Output()
	if err != nil {
		return Postfix{}, fmt.Errorf("%s: %w", postconf, err)
	}
	return Postfix{Daemons: strings.TrimSpace(string(daemons)), Commands: filepath.Dir(postconf)}, nil
}

// Command returns a command that runs one of Postfix's commands, such as
// "postqueue", or a program whose path is given, until ctx ends at the latest.
func (p Postfix) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if !strings.Contains(name, "/") {
		name = filepath.Join(p.Commands, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	if p.Libraries != "" {
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+p.Libraries)
	}
	return cmd
}
