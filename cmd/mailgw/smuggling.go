package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends/relay"
	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/internal/smtpclient"
)

// ends are what servers have been found to take for the end of a message, or
// could. None of them is: RFC 5321, section 4.1.1.4, has CRLF.CRLF and warns of
// the others.
var ends = []string{
	"\n.\n", "\n.\r", "\n.\r\n",
	"\r.\n", "\r.\r", "\r.\r\n",
	"\r\n.\n", "\r\n.\r", "\r\n.\r\r\n", "\r\n.\n\r",
	"\r\r\n.\r\r\n", "\n\r.\n\r", "\n\n.\n\n",
	"\r\n\x00.\r\n", "\r\n.\x00\r\n", "\r\n.\r\x00\n", "\r\x00\n.\r\n",
	"\r\n .\r\n", "\r\n. \r\n", "\r\n..\r\n", "\x85.\x85", "\v.\v",
}

// endName returns the octets of an end in words: "CR LF NUL . CR LF".
func endName(end string) string {
	words := map[byte]string{'\r': "CR", '\n': "LF", 0: "NUL", ' ': "SP", '\v': "VT", '.': ".", 0x85: "NEL"}
	var names []string
	for i := range len(end) {
		names = append(names, words[end[i]])
	}
	return strings.Join(names, " ")
}

// checkAddress checks the address that the messages go to.
func checkAddress(to string) error {
	_, err := smtp.CheckMailbox(to, false)
	return err
}

// smugglingTimeout bounds the test of one end.
const smugglingTimeout = 30 * time.Second

// checkSmuggling tests whether the targets of the relays in c split messages that
// are sent to an address.
func checkSmuggling(ctx context.Context, c *gateway.Config, to string, stdout io.Writer) error {
	tested, splits, failures := 0, 0, 0
	for _, name := range slices.Sorted(maps.Keys(c.Backends)) {
		if c.Backends[name].Plugin != "relay" {
			continue
		}
		s := relay.Defaults
		settings.Decode(c.Backends[name].Settings, &s) // the plugin has found no fault with them
		for i, target := range s.Targets {
			tested++
			fmt.Fprintf(stdout, "smuggling: backend %s, %s\n", name, target)
			split, err := smuggle(ctx, s, i, to, stdout)
			splits += split
			if err != nil {
				failures++
				fmt.Fprintf(stdout, "  not tested: %v\n", err)
			}
		}
	}
	switch {
	case tested == 0:
		return exitError{exitConfig, errors.New("--smuggling: there is no backend whose plugin is relay")}
	case splits > 0:
		return exitError{exitSplits, fmt.Errorf("%d messages were split: whoever writes a message to such a server can write a second one into it, with a sender of his choice", splits)}
	case failures > 0:
		return exitError{exitTemporary, fmt.Errorf("%d of %d targets not tested to the end", failures, tested)}
	}
	return nil
}

// smuggle tests one target, and returns how many of the ends split messages. An
// error is why it cannot tell that of all.
func smuggle(ctx context.Context, s relay.Settings, i int, to string, stdout io.Writer) (splits int, err error) {
	silent := 0
	for _, end := range ends {
		replies, err := provoke(ctx, s, i, to, end)
		verdict := "one message: "
		switch e, ok := errors.AsType[*smtpclient.Error](err); {
		case ok && (e.Stage == smtpclient.Message || e.Stage == smtpclient.EndOfMessage):
			silent++
			verdict = "no reply: " + e.Error()
		case err != nil:
			return splits, err
		case len(replies) > 1:
			splits++
			verdict = "SPLIT: "
		}
		var lines []string
		for _, r := range replies {
			lines = append(lines, smtpclient.Line(r))
		}
		fmt.Fprintf(stdout, "  %-23s  %s%s\n", endName(end), verdict, strings.Join(lines, "; "))
	}
	if silent > 0 {
		return splits, fmt.Errorf("no reply to %d of %d messages", silent, len(ends))
	}
	return splits, nil
}

// provoke sends one message with an end in it, and returns the replies to it.
// After the end, RSET follows: what is a line of the message is a command to a
// server that has seen an end. It does nothing, but it has a reply.
func provoke(ctx context.Context, s relay.Settings, i int, to, end string) ([]smtp.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, smugglingTimeout)
	defer cancel()
	c, err := relay.Session(ctx, s, i)
	if err != nil {
		return nil, err
	}
	tx := smtpclient.Transaction{Recipients: []smtpclient.Recipient{{Address: to}}}
	return c.Provoke(ctx, &tx, fmt.Sprintf("Date: %s\r\n"+
		"From: <MAILER-DAEMON@%s>\r\n"+
		"To: <%s>\r\n"+
		"Subject: mailgw check --smuggling, %s\r\n"+
		"\r\n"+
		"A test of where this server sees the end of a message.%sRSET\r\n"+
		".\r\n",
		time.Now().Format(time.RFC1123Z), c.Name, to, endName(end), end))
}
