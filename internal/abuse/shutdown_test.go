package abuse

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// Clients in every state at once do not keep the gateway from its end. Those
// whose message is complete get their answers, the others are sent away.
func TestShutdownWithClientsInEveryState(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, gatewaytest.AsTested, "shutdown_timeout = \"1s\"\n",
		listener("few", "chunking = true", withTLS(t, "starttls")), slowly,
		gatewaytest.LMTP, "chunking = true\n", gatewaytest.ToInbox, slowly, slow, gatewaytest.Inbox)
	type session struct {
		*client
		state
		user string
	}
	var sessions []session
	for _, to := range slowTargets {
		for n := range states("", "", "") {
			user := fmt.Sprintf("%s-%d", to.listener, n)
			s := session{dial(t, to.network, g.Address(to.listener)), states(to.hello, user, to.answers)[n], user}
			s.expect("220")
			s.send(s.said)
			s.expect(s.heard)
			sessions = append(sessions, s)
		}
	}
	handshake := dial(t, "tcp", g.Address("few"))
	handshake.send("STARTTLS\r\n" + clientHello(t)[:20])
	handshake.expect("220 220")

	var all sync.WaitGroup
	for _, s := range sessions {
		all.Go(func() {
			got, err := s.rest()
			want := strings.TrimSpace(s.open + " 421")
			if got = codes(got); err != nil || got != want {
				t.Errorf("%q got %s, %v, want %s", s.said, got, err, want)
			}
		})
	}
	all.Go(func() {
		if got, _ := handshake.rest(); got != "" {
			t.Errorf("a client in a handshake got %q", got)
		}
	})
	g.Stop()
	all.Wait()
	for _, s := range sessions {
		checkMail(t, g, s.user, s.mail...)
	}
}
