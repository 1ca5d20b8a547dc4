package relay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxCredentials is how much of the file is read.
const maxCredentials = 4 << 10

// readCredentials returns the user and the password that are in a file, one on a
// line. Others than the owner and the group must not have access to it. It is
// read for each new connection, so that a change counts at once.
func readCredentials(path string) (user, password string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", "", err
	}
	if info.Mode()&0o006 != 0 {
		return "", "", fmt.Errorf("%s: mode %04o lets everybody at the password; want chmod o= %[1]s", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCredentials))
	if err != nil {
		return "", "", err
	}
	lines := strings.Split(strings.ReplaceAll(strings.TrimRight(string(text), "\r\n"), "\r\n", "\n"), "\n")
	if len(lines) != 2 || lines[0] == "" || lines[1] == "" {
		return "", "", fmt.Errorf("%s: %w", path, errCredentials)
	}
	return lines[0], lines[1], nil
}

var errCredentials = errors.New("want two lines, the user and the password")
