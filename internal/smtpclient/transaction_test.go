package smtpclient

import (
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/smtp"
)

// No octet of an address or parameter becomes another parameter or command.
func TestTransactionIsWhatItSays(t *testing.T) {
	for _, test := range []struct {
		address string
		params  []string
		want    string // in the error; empty if it is fine
	}{
		{"", nil, ""},
		{"a@x", []string{"NOTIFY=NEVER", "ORCPT=rfc822;a@x"}, ""},
		{`"a> b"@x`, nil, ""},
		{`"a\" b"@x`, nil, ""},
		{"ü@x.example", nil, ""},
		{"@y:a@x", nil, ""},

		{"a@x\r\nDATA", nil, "control character"},
		{"a@x\x00", nil, "control character"},
		{"a@x\u0085", nil, "control character"},
		{"a@x> NOTIFY=NEVER", nil, "not one address and parameters"},
		{"a@x> NOTIFY=NEVER <", nil, "bad parameter"},
		{"a@x> NOTIFY", []string{"X"}, "bad parameter"},
		{`"a@x`, nil, "unbalanced"},
		{"a@x", []string{"NOTIFY=NEVER RET=HDRS"}, "not one address and parameters"},
		{"a@x", []string{"NOTIFY="}, "no value"},
		{"a@x", []string{"X\r\n"}, "control character"},
		{"a@x", []string{""}, "not one address and parameters"},
	} {
		for _, tx := range []Transaction{
			{Sender: test.address, Params: test.params},
			{Recipients: []Recipient{{Address: "b@x"}, {Address: test.address, Params: test.params}}},
		} {
			err := tx.Check()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q %q: %v, want %q", test.address, test.params, err, test.want)
			}
		}
	}
}

// What is refused so is not said, and the connection can be used on.
func TestNothingIsSaidOfBadTransaction(t *testing.T) {
	conn := &fakeConn{turns: []string{"220\r\n", "250\r\n", "250\r\n"}}
	c := New(conn, Settings{Name: "me"})
	if err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx := Transaction{Recipients: []Recipient{{Address: "a@x"}, {Address: "a@x\r\nDATA"}}}
	answers := 0
	c.Send(t.Context(), &tx, func(i int, r smtp.Reply, err error) {
		answers++
		if e, ok := err.(*Error); !ok || e.Stage != MAIL || e.Permanent() {
			t.Errorf("recipient %d got %v, %v", i, r, err)
		}
	})
	if err := c.Noop(t.Context()); err != nil || answers != 2 {
		t.Errorf("%v, %d answers", err, answers)
	}
	if got, want := conn.written.String(), "EHLO me\r\nNOOP\r\n"; got != want {
		t.Errorf("client said %q, want %q", got, want)
	}
}

// Nor does a command of the caller have more than one line.
func TestCommandIsOneLine(t *testing.T) {
	for _, name := range []string{"me\r\nDATA", "me\n", "me\x00"} {
		conn := &fakeConn{turns: []string{"220\r\n"}}
		c := New(conn, Settings{Name: name})
		if err := c.Hello(t.Context()); err == nil || !strings.Contains(err.Error(), "control character") || conn.written.Len() > 0 {
			t.Errorf("%q: %v, client said %q", name, err, conn.written.String())
		}
	}
}
