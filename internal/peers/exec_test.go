package peers

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// A filter as somebody might write one for pipe(8) of Postfix. It knows nobody
// but ann and bob.
const filterScript = `#!/bin/sh
case $RECIPIENT in
ann@*|bob@*) ;;
*) echo "nobody is called $RECIPIENT" >&2; exit 67 ;;
esac
if grep -q "^Subject: .*make money" ; then
	echo "5.7.1 no advertisements, please"
	exit 69
fi
echo "X-Filter: seen by $LOGNAME"
printf 'X-Envelope: <%s>\n\tto <%s>,\n  %d octets\n' "$SENDER" "$RECIPIENT" "$SIZE"
`

// TestExec sends mail through a program, and delivers it with another one.
func TestExec(t *testing.T) {
	t.Parallel()
	dir := gatewaytest.Directory(t)
	script := dir + "/filter"
	if err := os.WriteFile(script, []byte(filterScript), 0o700); err != nil {
		t.Fatal(err)
	}
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, `
[listener.routes]
"bob@*" = ["filter", "file"]
"dave@*" = ["broken", "inbox"]
"*" = ["filter", "inbox"]
`, gatewaytest.Inbox, `
[backend.filter]
plugin = "exec"
recipients_per_transaction = 1
[backend.filter.settings]
command = ["`+script+`"]
env.LOGNAME = "mailgw"

[backend.file]
plugin = "exec"
[backend.file.settings]
command = ["/bin/sh", "-c", 'exec cat >"$0"', "`+dir+`/bob"]
final = true
line_ends = "lf"

[backend.broken]
plugin = "exec"
on_failure = "pass"
[backend.broken.settings]
command = ["/bin/sh", "-c", "echo X-Half: done; exit 1"]
`)
	message := lines("Subject: no money", "", "8-bit \xff\xfe", ".", "..", "no\tspam ")
	top := fmt.Sprintf("X-Filter: seen by mailgw\r\nX-Envelope: <sender@example.net>\r\n\tto <USER@peers.example>,\r\n  %d octets\r\n", len(message))

	for _, to := range []string{"ann", "bob", "dave"} {
		if got := answerTo(t, g, message, to+"@peers.example"); got != "" {
			t.Errorf("%s: got %q", to, got)
		}
	}
	checkOnly(t, g, "filtered", "ann", strings.ReplaceAll(top, "USER", "ann")+string(message))
	checkOnly(t, g, "program failed", "dave", string(message))
	delivered, err := os.ReadFile(dir + "/bob")
	if want := strings.ReplaceAll(strings.ReplaceAll(top, "USER", "bob")+string(message), "\r\n", "\n"); err != nil || string(delivered) != want {
		t.Errorf("delivered: got %q, %v, want %q", delivered, err, want)
	}

	spam := lines("Subject: make money fast", "", "x")
	for _, tt := range []struct {
		to      string
		message []byte
		want    string
	}{
		{"ann", spam, "554 5.7.1 <ann@peers.example> no advertisements, please"},
		{"carol", message, "550 5.1.1 <carol@peers.example> no such user"},
	} {
		if got := answerTo(t, g, tt.message, tt.to+"@peers.example"); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.to, got, tt.want)
		}
	}
	gatewaytest.Eventually(t, "the log has what the program printed to standard error", func() bool {
		log, err := os.ReadFile(g.Log)
		return err == nil && strings.Contains(string(log), "nobody is called carol@peers.example")
	})
}
