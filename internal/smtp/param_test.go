package smtp

import (
	"strings"
	"testing"
)

func TestParamsOfCommands(t *testing.T) {
	for _, test := range []struct {
		command, params string
		utf8            bool
		want            string
	}{
		{"MAIL", "", false, ""},
		{"MAIL", "SIZE=1 BODY=8BITMIME SMTPUTF8 REQUIRETLS PRDR AUTH=<> RET=FULL ENVID=a XVERP X=1", false, ""},
		{"RCPT", "NOTIFY=NEVER ORCPT=rfc822;a X=1", false, ""},
		{"RCPT", "ORCPT=utf-8;\u00fc", true, ""},
		{"RCPT", "ORCPT=utf-8;\u00fc", false, ErrNeedsUTF8.Error()},
		{"MAIL", "X=\u00fc", false, ErrNeedsUTF8.Error()},
		{"MAIL", "X=\u00fc", true, ""},
		// Each of them of the other command.
		{"MAIL", "NOTIFY=NEVER", false, "parameter NOTIFY is none of MAIL"},
		{"MAIL", "orcpt=rfc822;a", false, "parameter orcpt is none of MAIL"},
		{"RCPT", "RET=FULL", false, "parameter RET is none of RCPT"},
		{"RCPT", "SIZE=1", false, "parameter SIZE is none of RCPT"},
		// Values.
		{"MAIL", "RET", false, "RET is FULL or HDRS"},
		{"MAIL", "ret=ALL", false, "RET is FULL or HDRS"},
		{"MAIL", "ENVID=+", false, "ENVID is"},
		{"MAIL", "AUTH=+", false, "AUTH is"},
		{"RCPT", "NOTIFY=SOMETIMES", false, "NOTIFY is"},
		{"RCPT", "ORCPT=a", false, "ORCPT is"},
		// What no parameter may be.
		{"MAIL", "X=", false, "no value"},
		{"RCPT", "X x", false, "given twice"},
	} {
		err := CheckParamsOf(test.command, strings.Fields(test.params), test.utf8)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %s: got %v, want %q", test.command, test.params, err, test.want)
		}
	}
}
