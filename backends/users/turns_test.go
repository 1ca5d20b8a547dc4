package users

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/crypto/bcrypt"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

func sessionFrom(address string) *backends.Session {
	return &backends.Session{Peer: backends.Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr(address), 1234)}}
}

// Guesses on many connections of one client take turns with the logins of
// others: each client has its first one before any has its second.
func TestGuessesOfOneClientKeepNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(t, "ann", "own")
		b.turns = newTurns(1)
		var order []string
		begin := make(chan struct{})
		b.compare = func(_, password []byte) error {
			<-begin
			order = append(order, string(password))
			return bcrypt.ErrMismatchedHashAndPassword
		}
		for _, login := range []struct{ client, password string }{
			{"192.0.2.1", "guess"}, {"192.0.2.1", "guess"}, {"192.0.2.1", "guess"}, {"192.0.2.1", "guess"},
			{"2001:db8::1", "guess6"}, {"2001:db8::2", "guess6"}, {"2001:db8::3", "guess6"},
			{"192.0.2.2", "pencil"},
		} {
			go b.Authenticate(t.Context(), sessionFrom(login.client), backends.Credentials{Mechanism: "PLAIN", User: "ann", Password: login.password})
			synctest.Wait() // it stands in its place
		}
		close(begin)
		synctest.Wait()
		if got, want := strings.Join(order, " "), "guess guess6 pencil "; !strings.HasPrefix(got, want) || len(order) != 8 {
			t.Errorf("got %s, want %s first, and 8 in all", got, want)
		}
		if n := len(b.turns.clients); n != 0 {
			t.Errorf("%d clients are left", n)
		}
	})
}

// A flood of logins gets no more processors than it may have, from whichever
// clients it comes. Those that wait give up with their context, and are not told
// that their password is wrong.
func TestComparisonsAreBounded(t *testing.T) {
	b := newBackend(t, "", "own")
	b.turns = newTurns(2)
	entered, leave := make(chan struct{}), make(chan struct{})
	b.compare = func(_, _ []byte) error {
		entered <- struct{}{}
		<-leave
		return bcrypt.ErrMismatchedHashAndPassword
	}
	login := func(ctx context.Context, client string) error {
		_, err := b.Authenticate(ctx, sessionFrom(client), backends.Credentials{Mechanism: "PLAIN", User: "ann", Password: "x"})
		return err
	}
	var logins sync.WaitGroup
	for _, client := range []string{"192.0.2.1", "192.0.2.2"} {
		logins.Go(func() {
			if err := login(t.Context(), client); err != backends.BadCredentials {
				t.Errorf("a login that had its turn: error %v", err)
			}
		})
		<-entered
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, client := range []string{"192.0.2.1", "192.0.2.3"} {
		if err := login(ctx, client); !errors.Is(err, context.Canceled) {
			t.Errorf("a login of %s without its turn: error %v, want %v", client, err, context.Canceled)
		}
	}
	close(leave)
	logins.Wait()
	if n := len(b.turns.clients); n != 0 {
		t.Errorf("%d clients are left", n)
	}
}

func TestClientOfASession(t *testing.T) {
	tcp := sessionFrom("192.0.2.1").Peer
	forwarded := func(address string) *xforward.Attrs { return &xforward.Attrs{Forwarded: true, Addr: address} }
	for _, tt := range []struct {
		session backends.Session
		want    string
	}{
		{backends.Session{Peer: tcp}, "192.0.2.1/32"},
		{*sessionFrom("::ffff:192.0.2.1"), "192.0.2.1/32"},
		{*sessionFrom("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"},
		{*sessionFrom("fe80::1%eth0"), "fe80::/64"},
		{backends.Session{Peer: tcp, XForward: forwarded("192.0.2.9")}, "192.0.2.9/32"},
		{backends.Session{Peer: tcp, XForward: forwarded("unknown")}, "192.0.2.1/32"},
		{backends.Session{Peer: backends.Peer{UID: 33, PID: 7}}, "unix:uid=33"},
		{backends.Session{Peer: backends.Peer{UID: 33, PID: 7}, XForward: forwarded("192.0.2.9")}, "192.0.2.9/32"},
	} {
		if got := clientOf(&tt.session); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.session, got, tt.want)
		}
	}
}
