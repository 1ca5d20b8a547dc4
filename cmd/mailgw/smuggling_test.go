package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// serveEnds starts an SMTP server that sees the end of a message in each of
// ends, and returns its address. If NUL is one of them, it hangs up there; without
// any it takes no message.
func serveEnds(t *testing.T, ends ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			go serveUntil(conn, ends)
		}
	}()
	return l.Addr().String()
}

func serveUntil(conn net.Conn, ends []string) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for reply := "220 mx"; ; {
		fmt.Fprintf(conn, "%s\r\n", reply)
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.TrimSpace(line), " "); verb {
		case "EHLO", "MAIL", "RCPT", "RSET":
			reply = "250 ok"
		case "DATA":
			if len(ends) == 0 {
				reply = "452 4.3.1 disk full"
				continue
			}
			io.WriteString(conn, "354 go on\r\n")
			for text := ""; !slices.ContainsFunc(ends, func(end string) bool { return strings.HasSuffix(text, end) }); {
				b, err := r.ReadByte()
				if err != nil {
					return
				}
				if text += string(b); strings.Contains(text, "\x00") && slices.Contains(ends, "\x00") {
					return
				}
			}
			reply = "250 delivered"
		case "QUIT":
			io.WriteString(conn, "221 bye\r\n")
			return
		default:
			reply = "500 what"
		}
	}
}

// smugglingConfig is a configuration with relays to targets.
func smugglingConfig(targets ...string) string {
	text := "hostname = 'mx.example.org'\nplugin_directory = 'plugins'\nspool.directory = 'spool'\n" +
		"[[listener]]\nname = 'lmtp'\naddress = 'unix:lmtp.sock'\nprotocol = 'lmtp'\n[listener.routes]\n'*' = ['relay']\n" +
		"[backend.relay]\nplugin = 'relay'\n"
	if targets != nil {
		return text + fmt.Sprintf("settings.targets = ['%s']\n", strings.Join(targets, "', '"))
	}
	return strings.ReplaceAll(text, "plugin = 'relay'", "plugin = 'discard'")
}

func TestCheckSmuggling(t *testing.T) {
	t.Parallel() // it waits for processes
	good := "smtp://" + serveEnds(t, "\r\n.\r\n")
	bad := "smtp://" + serveEnds(t, "\r\n.\r\n", "\n.\n", "\n.\r\n")
	lax := "smtp://" + serveEnds(t, "\r\n.\r\n", "\r\n\x00.\r\n")
	abrupt := "smtp://" + serveEnds(t, "\r\n.\r\n", "\n.\n", "\x00")
	full := "smtp://" + serveEnds(t)
	none := "smtp+unix:///nobody/listens"
	for _, test := range []struct {
		targets []string
		splits  []string
		whole   int    // messages that were not split
		printed string // besides
		code    int
	}{
		{[]string{good}, nil, len(ends), "", 0},
		{[]string{bad}, []string{"LF . LF", "LF . CR LF", "CR LF . LF", "CR LF . LF CR", "LF LF . LF LF", "CR NUL LF . CR LF"}, len(ends) - 6, "", exitSplits},
		{[]string{good, lax, none}, []string{"CR LF NUL . CR LF"}, 2*len(ends) - 1, "not tested: connection: ", exitSplits},
		{[]string{abrupt}, []string{"LF . LF", "CR LF . LF", "CR LF . LF CR", "LF LF . LF LF"}, len(ends) - 8, "not tested: no reply to 4 of ", exitSplits},
		{[]string{full, good}, nil, len(ends), "not tested: DATA: server said 452 4.3.1 disk full", exitTemporary},
		{[]string{none, good}, nil, len(ends), "not tested: connection: ", exitTemporary},
		{nil, nil, 0, "", exitConfig},
	} {
		_, file := configure(t, smugglingConfig(test.targets...))
		stdout, stderr, code := runToEnd(t, "check", "--config", file, "--smuggling", "postmaster@example.org")
		var splits []string
		for line := range strings.Lines(stdout) {
			if name, _, ok := strings.Cut(line, "SPLIT: 250 delivered; "); ok {
				splits = append(splits, strings.TrimSpace(name))
			}
		}
		whole := strings.Count(stdout, "one message: 250 delivered\n")
		if !slices.Equal(splits, test.splits) || whole != test.whole || code != test.code || strings.Contains(stderr, "mailgw check: ") != (code != 0) {
			t.Errorf("%q: splits %q, %d whole, exit code %d, printed\n%s%s\nwant %q, %d, %d", test.targets, splits, whole, code, stdout, stderr, test.splits, test.whole, test.code)
		}
		if !strings.Contains(stdout, test.printed) || strings.Contains(stdout, "not tested") != (test.printed != "") {
			t.Errorf("%q: printed\n%s\nwant %q", test.targets, stdout, test.printed)
		}
	}
}

// An address that a shell has left empty does not test nothing.
func TestCheckSmugglingWantsAddress(t *testing.T) {
	for _, address := range []string{"", "a@x\r\nDATA", "nobody"} {
		_, stderr, code := command(t, "", "check", "--smuggling", address)
		if code != exitUsage || !strings.Contains(stderr, "--smuggling: ") {
			t.Errorf("%q: exit code %d, printed %s", address, code, stderr)
		}
	}
}
