package peers

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// A listener that mirrors announces what the target of its relay announces, as
// far as it was heard last, and a session keeps what it was told. The log says
// what was edited on the way.
func TestMirrorOfATarget(t *testing.T) {
	end := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, "limits.message_size = 50000\n", gatewaytest.ToInbox, gatewaytest.Inbox)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, `
mirror = true
dsn = true
chunking = true
[listener.routes]
"*" = ["tag", "relay"]
[backend.tag]
plugin = "exec"
[backend.tag.settings]
command = ["/bin/echo", "X-Tag: yes"]
[backend.relay]
plugin = "relay"
[backend.relay.settings]
targets = ["lmtp+unix://`, end.Address("lmtp"), `"]
`)
	// The relay asks its target by itself, at once.
	want := []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=1000", "SIZE 50000", "CHUNKING"}
	gatewaytest.Eventually(t, "the target is mirrored", func() bool { return slices.Equal(keywords(t, g), want) })

	c, err := connect("unix", g.Address("lmtp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.envelope("ann@peers.example> BODY=8BITMIME SMTPUTF8", "ann@inbox.example"); err != nil {
		t.Fatal(err)
	}
	if err := c.say(250, fmt.Sprintf("BDAT %d LAST\r\n%s", len(delicate), strings.TrimSuffix(string(delicate), "\r\n"))); err != nil {
		t.Fatal(err)
	}
	if mail := end.Mail("ann"); len(mail) != 1 || mail[0] != "X-Tag: yes\r\n"+string(delicate) {
		t.Errorf("got %q", mail)
	}
	log := gatewaytest.Follow(t, g.Log).Events()
	if i := slices.IndexFunc(log, func(e gatewaytest.Event) bool { return e.Message == "status" }); log[i].Body != "unchanged" || log[i].Header != "+1-0" {
		t.Errorf("got %+v", log[i])
	}

	// The target is away: what was known last holds.
	end.Stop()
	if got := keywords(t, g); !slices.Equal(got, want) {
		t.Errorf("without the target: %q, want %q", got, want)
	}
}

// keywords returns what the gateway announces to a new client.
func keywords(t *testing.T, g *gatewaytest.Gateway) []string {
	t.Helper()
	c, err := connect("unix", g.Address("lmtp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.PrintfLine("LHLO client.peers.example"); err != nil {
		t.Fatal(err)
	}
	_, text, err := c.ReadResponse(250)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return strings.Split(text, "\n")[1:]
}
