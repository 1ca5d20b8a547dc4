package users

import (
	"context"
	"net/netip"
	"sync"

	"github.com/mailgw/mailgw/backends"
)

// Turns share out the comparisons of passwords, which are slow by intention. Each
// client has one at a time that is under way or waits for its turn; its others
// stand behind that one. So who guesses passwords on many connections makes
// others wait for one comparison of his, not for all.
type turns struct {
	underWay chan struct{} // has an element for each comparison

	mu      sync.Mutex
	clients map[string]*client // those that compare or wait
}

type client struct {
	turn   chan struct{} // has an element while it is taken
	logins int           // that have the turn or wait for it
}

// newTurns returns turns for n comparisons at once.
func newTurns(n int) *turns {
	return &turns{underWay: make(chan struct{}, n), clients: map[string]*client{}}
}

// do calls compare when it is the turn of a client, or returns the error of ctx.
func (t *turns) do(ctx context.Context, name string, compare func()) error {
	turn := t.join(name)
	defer t.leave(name)
	for _, queue := range []chan struct{}{turn, t.underWay} {
		select {
		case queue <- struct{}{}:
			defer func() { <-queue }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	compare()
	return nil
}

func (t *turns) join(name string) (turn chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.clients[name]
	if c == nil {
		c = &client{turn: make(chan struct{}, 1)}
		t.clients[name] = c
	}
	c.logins++
	return c.turn
}

func (t *turns) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.clients[name]
	if c.logins--; c.logins == 0 {
		delete(t.clients, name)
	}
}

// ipv6Network is what a customer of a provider has at least, and changes his
// address in as he likes.
const ipv6Network = 64

// clientOf returns whose turn a session takes: that of its address, or of its
// IPv6 network; where the address is not known, that of the other end of the
// socket, which is a proxy, or a local user.
func clientOf(s *backends.Session) string {
	addr := s.ClientAddr()
	if !addr.IsValid() {
		addr = s.Peer.Addr.Addr()
	}
	if !addr.IsValid() {
		return s.Peer.String()
	}
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = ipv6Network
	}
	return netip.PrefixFrom(addr, bits).Masked().String()
}
