package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// The whole way: a client, the gateway, the hook in a process of its own, what
// it adds and diverts, and the next backend.
func TestThroughTheGateway(t *testing.T) {
	var envelopes []envelope
	hook := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var e envelope
		if err := json.Unmarshal([]byte(r.FormValue("envelope")), &e); err != nil || r.Header.Get("Mailgw-Signature") == "" {
			t.Errorf("got %v, %v", err, r.Header)
		}
		envelopes = append(envelopes, e)
		fmt.Fprint(w, `{
			"recipients": [
				{"index": 1, "code": 550, "enhanced": "5.1.1", "text": "no such user"},
				{"index": 2, "divert": "quarantine"}
			],
			"remove_headers": ["X-Spam"],
			"add_headers": ["X-Spam: yes"]
		}`)
	})
	g := gatewaytest.Start(t, gatewaytest.AsTested, fmt.Sprintf(`
[named_routes]
quarantine = ["quarantine"]
`+gatewaytest.LMTP+`
xforward = ["unix"]
[listener.routes]
"*" = ["hook", "inbox"]
[backend.hook]
plugin = "webhook"
[backend.hook.settings]
url = %q
secret_file = %q
[backend.quarantine]
plugin = "maildir"
[backend.quarantine.settings]
path = "quarantine"
`, hook.URL, file(t, secret, 0o600)), gatewaytest.Inbox)

	program, err := gatewaytest.AsTested()
	if err != nil {
		t.Fatal(err)
	}
	send := exec.CommandContext(t.Context(), program, "send", "--from", "bob@example.net",
		"--to", "ann@example.org", "--to", "gone@example.org", "--to", "carol@example.org",
		"--xforward", "NAME=mail.example.net", "--xforward", "ADDR=192.0.2.1", "--xforward", "IDENT=4c2Xw31zVKzF2Bp",
		"--file", file(t, "From: bob@example.net\nX-Spam: no\n\nHello.\n", 0o600), "unix:"+g.Address("lmtp"))
	out, _ := send.Output() // it fails, as one recipient is refused
	for _, want := range []string{"ann@example.org    250 2.0.0", "gone@example.org   550 5.1.1 <gone@example.org> no such user", "carol@example.org  250 2.0.0"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("got %s, want %q", out, want)
		}
	}
	const stored = "X-Spam: yes\r\nFrom: bob@example.net\r\n\r\nHello.\r\n"
	if got := g.Mail("ann"); !slices.Equal(got, []string{stored}) {
		t.Errorf("ann got %q", got)
	}
	if kept, err := os.ReadDir(g.Path("quarantine/new")); err != nil || len(kept) != 1 {
		t.Errorf("in quarantine: %v, %v", kept, err)
	}
	if len(envelopes) != 1 {
		t.Fatalf("the hook was asked %d times", len(envelopes))
	}
	e := envelopes[0]
	if e.Client.Address != "192.0.2.1" || e.Client.Name != "mail.example.net" || e.Ident != "4c2Xw31zVKzF2Bp" || len(e.Recipients) != 3 {
		t.Errorf("the hook got %+v", e)
	}
}
