package gateway

import (
	"sync/atomic"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// A learner is a backend that finds out what it can do.
type learner struct {
	backends.Func
	can *atomic.Pointer[backends.Capabilities]
}

func (l learner) Capabilities() backends.Capabilities { return *l.can.Load() }

// A session keeps what its EHLO was told, whatever the listener mirrors by then: what
// was offered is taken, and what was not is not.
func TestSessionKeepsItsEHLO(t *testing.T) {
	rich := &backends.Capabilities{Size: 5000, EightBitMIME: true, SMTPUTF8: true, BinaryMIME: true, DSN: true, Relays: true}
	poor := &backends.Capabilities{Size: 1000, Relays: true}
	l := learner{byLocalPart, new(atomic.Pointer[backends.Capabilities])}
	l.can.Store(rich)
	s := testServer(t, map[string]backends.Backend{"relay": l}, `
protocol = "smtp"
mirror = true
dsn = true
chunking = true
[listener.routes]
"*" = ["relay"]
[listener.limits]
bad_commands = 0
`)
	first := dialServer(t, s)
	first.hear(t)
	first.ask(t, "EHLO x")
	l.can.Store(poor)
	second := dial(t, s)
	second.hear(t)
	second.ask(t, "EHLO x")
	l.can.Store(rich)
	tests := []struct{ param, poor string }{
		{"SIZE=5000", "552 5.3.4 message too large"},
		{"BODY=8BITMIME", "555 5.5.4 parameter not supported: BODY"},
		{"BODY=BINARYMIME", "555 5.5.4 parameter not supported: BODY"},
		{"SMTPUTF8", "555 5.5.4 parameter not supported: SMTPUTF8"},
		{"RET=HDRS", "555 5.5.4 parameter not supported: RET"},
	}
	const taken = "250 2.1.0 sender ok"
	for _, tt := range tests {
		mail := "MAIL FROM:<a@x.example> " + tt.param
		if got := second.ask(t, "RSET", mail); got != tt.poor {
			t.Errorf("%s, which was not offered: got %q, want %q", tt.param, got, tt.poor)
		}
		l.can.Store(poor)
		if got := first.ask(t, "RSET", mail); got != taken {
			t.Errorf("%s, which was offered: got %q", tt.param, got)
		}
		l.can.Store(rich)
	}
	for _, tt := range tests {
		if got := second.ask(t, "EHLO x", "MAIL FROM:<a@x.example> "+tt.param); got != taken {
			t.Errorf("%s, after another EHLO: got %q", tt.param, got)
		}
	}
}
