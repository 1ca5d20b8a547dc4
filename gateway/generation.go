package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

// A generation is what one configuration amounts to. A session belongs to one
// at a time, and moves on to the next one between two transactions, so that
// each transaction ends where it has begun.
type generation struct {
	log        *slog.Logger
	name       string // of the process, random
	machine    string // the hostname that the system has
	spool      *spool
	backends   map[string]*namedBackend
	digests    bool                     // a backend tells the digest of what it has written
	routes     map[string]*route        // by name
	shadows    map[string]*namedBackend // by whose shadow they are
	shadowing  *shadowing
	recordings *recordings
	listeners  []*listener

	mu       sync.Mutex
	sessions int
	retired  bool
	left     chan struct{} // closed when it is retired and no session is left
}

func newGeneration(c *Config, all map[string]backends.Backend, log *slog.Logger, name string) (*generation, error) {
	if problems := c.checkCapabilities(all); len(problems) > 0 {
		return nil, problems
	}
	machine, _ := os.Hostname()
	g := &generation{
		log: log, name: name, machine: machine, spool: newSpool(c.Spool), left: make(chan struct{}),
		backends: map[string]*namedBackend{}, routes: map[string]*route{},
		shadows: map[string]*namedBackend{}, shadowing: &shadowing{}, recordings: &recordings{},
	}
	for name, b := range all {
		g.backends[name] = &namedBackend{Backend: b, name: name, log: log, BackendConfig: c.Backends[name], suspects: newSuspects()}
		g.digests = g.digests || backends.CapabilitiesOf(b).Digest
		if of := c.Backends[name].ShadowOf; of != "" {
			g.shadows[of] = g.backends[name]
		}
	}
	for name, names := range c.NamedRoutes {
		g.routes[name] = &route{name, names}
	}
	for i := range c.Listeners {
		l := newListener(g, c, &c.Listeners[i])
		l.place = c.Problem(fmt.Sprintf("listener[%d].address", i), "")
		g.listeners = append(g.listeners, l)
	}
	return g, nil
}

// enter counts a session in. It reports false if there is a newer generation.
func (g *generation) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.retired {
		return false
	}
	g.sessions++
	return true
}

func (g *generation) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sessions--
	g.check()
}

// retire lets no more sessions in.
func (g *generation) retire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.retired = true
	g.check()
}

// check closes left after the last session. The caller holds g.mu.
func (g *generation) check() {
	if g.retired && g.sessions == 0 {
		close(g.left)
	}
}

// inherit takes over from the generation before what stays the same: sockets,
// and, where their configuration is the same, what rates have counted, keys of
// TLS tickets and the spool's budget.
func (g *generation) inherit(before *generation) {
	g.shadowing, g.recordings = before.shadowing, before.recordings
	if g.spool.config == before.spool.config {
		g.spool = before.spool
	}
	for name, b := range g.backends {
		if old := before.backends[name]; old != nil && reflect.TypeOf(b.Backend).Comparable() && old.Backend == b.Backend {
			b.suspects = old.suspects
		}
	}
	for _, l := range g.listeners {
		i := slices.IndexFunc(before.listeners, l.follows)
		if i < 0 {
			continue
		}
		old := before.listeners[i]
		l.port = old.port
		if reflect.DeepEqual(l.Rates, old.Rates) {
			l.rates = old.rates
		}
		if reflect.DeepEqual(l.TLS, old.TLS) {
			l.tls = old.tls
		}
	}
}

// follows reports whether l takes over the socket of old. Several listeners may
// have an address whose port the system chooses.
func (l *listener) follows(old *listener) bool {
	return old.Address == l.Address && (old.Name == l.Name || !strings.HasSuffix(l.Address, ":0"))
}

// open opens the sockets that are not open yet, or none if one of them fails.
// The error has all that failed.
func (g *generation) open() error {
	var opened []*listener
	var failed []error
	for _, l := range g.listeners {
		var err error
		if l.socket != nil {
			err = l.keep()
		} else if err = l.open(); err == nil {
			opened = append(opened, l)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s%w", l.place, err))
		}
	}
	if failed != nil {
		for _, l := range opened {
			l.close()
		}
	}
	return errors.Join(failed...)
}

// Reload puts another configuration, with its backends, in the place of the
// one at hand. Sessions go on: each moves to the new configuration before its
// next transaction, unless its listener is gone, or would not have let it come about:
// with that protocol, without TLS, by that proxy. left is closed when none is with the old one any more, so that the backends that
// are not in use again can be closed. After an error nothing has changed, but
// for the mode and owner of sockets.
func (s *Server) Reload(c *Config, all map[string]backends.Backend, log *slog.Logger) (left <-chan struct{}, err error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	s.mu.Lock()
	before, closing := s.generation, s.closing
	s.mu.Unlock()
	if closing {
		return nil, errClosing
	}
	next, err := newGeneration(c, all, log, before.name)
	if err != nil {
		return nil, err
	}
	next.inherit(before)
	if err := next.open(); err != nil {
		return nil, err
	}
	if !s.succeed(next) {
		return nil, errClosing
	}
	for _, l := range before.listeners {
		if !next.has(l.port) {
			l.close()
		}
	}
	before.retire()
	s.shadowing.tell()
	return before.left, nil
}

// succeed lets sessions in to the next generation, unless the server shuts
// down.
func (s *Server) succeed(next *generation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.generation
	if s.closing {
		for _, l := range next.listeners {
			l.close()
		}
		return false
	}
	s.generation = next
	for _, l := range next.listeners {
		l.port.listener.Store(l)
		if !before.has(l.port) {
			s.accepting.Go(func() { s.accept(l.port) })
		}
	}
	return true
}

func (g *generation) has(p *port) bool {
	return slices.ContainsFunc(g.listeners, func(l *listener) bool { return l.port == p })
}

// renew moves a session, which is between two transactions, to the newest
// generation.
func (c *conn) renew() {
	before, next := c.listener, c.port.listener.Load()
	if next == before || !next.admits(c) || !next.gen.enter() {
		return
	}
	c.listener = next
	before.gen.leave()
	c.session.Listener = next.Name
	c.judge()
	if !c.trusted {
		c.xforward = nil
	}
	c.resetLog()
}

// admits reports whether a session could have come about with l: it speaks the
// protocol, those who have told of its client may, and it has shown of itself what
// TLS is to make sure of.
func (l *listener) admits(c *conn) bool {
	now, then := l.TLS, c.listener.TLS
	switch {
	case l.Protocol != c.Protocol:
		return false
	case len(l.Proxy) > 0 != (len(c.Proxy) > 0), len(l.Proxy) > 0 && !trustsPeer(l.proxyTrust, c.session.Peer):
		return false
	case c.client != xforward.ClientAttrs{} && !slices.Equal(l.XClient, c.XClient):
		return false
	case c.session.TLS == nil:
		return now.Mode != "implicit"
	}
	return now.ClientCertificates == then.ClientCertificates && now.ClientCA == then.ClientCA
}
