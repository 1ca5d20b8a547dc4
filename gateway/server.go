// Package gateway accepts mail over SMTP (RFC 5321) and LMTP (RFC 2033) and
// hands each transaction to backends, which decide the fate of each of its
// recipients.
//
// A [Server] has any number of listeners. Each session is a dialog, which
// decides, and a conn, which reads and writes. The message goes into the
// spool; when it is complete a delivery carries it through the backends of
// each recipient's route and gathers one answer for each recipient. The
// gateway has no queue: the client keeps the message until it is answered,
// and only a backend's word is a success.
package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
)

// A Server is a gateway with all its listeners.
type Server struct {
	*generation // the newest; guarded by mu

	ctx    context.Context // of the deliveries
	cancel func()

	accepting sync.WaitGroup
	reloading sync.Mutex // one Reload after the other

	mu      sync.Mutex
	conns   map[*conn]bool
	closing bool
	ended   chan struct{} // closed when closing is set and no conn is left
}

// New returns a Server that hands mail to the given backends, by the names
// that c gives them; all has those that stand in a route. It opens no socket.
// An error lists all Problems.
func New(c *Config, all map[string]backends.Backend, log *slog.Logger) (*Server, error) {
	first, err := newGeneration(c, all, log, rand.Text())
	if err != nil {
		return nil, err
	}
	s := &Server{generation: first, conns: map[*conn]bool{}, ended: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.ctx, s.cancel = ctx, func() { cancel(hurried{}) }
	return s, nil
}

// hurried is the context.Canceled of the deliveries for which a server that shuts
// down had no more time.
type hurried struct{}

func (hurried) Error() string { return "the server has shut down before the answer" }
func (hurried) Unwrap() error { return context.Canceled }

// checkCapabilities finds the listeners that promise what a backend at the
// end of one of their routes, or of a route by which somebody may be diverted,
// cannot do.
func (c *Config) checkCapabilities(all map[string]backends.Backend) (problems Problems) {
	for i, l := range c.Listeners {
		key := fmt.Sprintf("listener[%d].", i)
		if l.DSN {
			// Who is diverted, into a quarantine, is owed no notification yet.
			problems = append(problems, c.cannot(all, l.Routes, key+"dsn", func(can backends.Capabilities) bool { return can.DSN || can.Relays },
				"neither passes delivery status notifications on nor issues them, and the client leaves them to us")...)
		}
		if l.OfferRequireTLS {
			heeds := func(can backends.Capabilities) bool { return can.RequireTLS || can.Relays }
			for _, routes := range []map[string][]string{l.Routes, c.NamedRoutes} {
				problems = append(problems, c.cannot(all, routes, key+"offer_requiretls", heeds, "does not heed REQUIRETLS, and the client relies on us")...)
			}
		}
		problems = append(problems, c.checkAsked(all, l, key)...)
	}
	for name, b := range c.Backends {
		if shadow, ok := all[name]; ok && b.ShadowOf != "" && !backends.IsEffectFree(shadow) {
			problems = append(problems, c.Problem(settings.Join("backend", name)+".shadow_of", "it does not declare that it is free of effects"))
		}
	}
	problems = append(problems, c.checkDiversions(all)...)
	c.Sort(problems)
	return problems
}

// checkDiversions finds the backends that divert to routes that are not there.
func (c *Config) checkDiversions(all map[string]backends.Backend) (problems Problems) {
	named := slices.Sorted(maps.Keys(c.NamedRoutes))
	for name, b := range all {
		for _, route := range backends.DiversionsOf(b) {
			if !slices.Contains(named, route) {
				problems = append(problems, c.Problem(settings.Join("backend", name),
					fmt.Sprintf("it diverts to %q, and there is no such route in [named_routes]%s", route, settings.DidYouMean(route, named))))
			}
		}
	}
	return problems
}

// checkAsked finds what a listener asks of backends that cannot answer.
func (c *Config) checkAsked(all map[string]backends.Backend, l ListenerConfig, key string) (problems Problems) {
	can := func(name string, t backends.Topic) bool { return all[name] != nil && backends.Answers(all[name], t) }
	for i, name := range l.Ask {
		if !slices.ContainsFunc(backends.Topics(), func(t backends.Topic) bool { return can(name, t) }) {
			problems = append(problems, c.Problem(fmt.Sprintf("%sask[%d]", key, i), fmt.Sprintf("backend %q answers no questions", name)))
		}
	}
	needed := l.Auth.Required || len(l.AuthSenders) > 0
	if needed && len(c.AuthOffered(&l, all)) == 0 && len(l.XClient) == 0 {
		problems = append(problems, c.Problem(key+"auth", "clients have to be authenticated and cannot be: "+whyNoAuth(&l)))
	}
	return problems
}

// cannot finds the backends that break the promise of a key.
func (c *Config) cannot(all map[string]backends.Backend, routes map[string][]string, key string, can func(backends.Capabilities) bool, lacks string) (problems Problems) {
	for name, route := range routes {
		last := route[len(route)-1]
		if b, ok := all[last]; !ok || can(backends.CapabilitiesOf(b)) {
			continue
		}
		problems = append(problems, c.Problem(key, fmt.Sprintf("the route of %q ends in backend %q, which %s", name, last, lacks)))
	}
	return problems
}

// AuthOffered returns the mechanisms of AUTH that a listener offers at best:
// over TLS if there is any, to a client with a certificate if it asks for one.
func (c *Config) AuthOffered(l *ListenerConfig, all map[string]backends.Backend) []string {
	can := func(t backends.Topic) bool {
		return slices.ContainsFunc(l.Ask, func(name string) bool { return all[name] != nil && backends.Answers(all[name], t) })
	}
	if l.TLS.Mode == "off" && !l.Auth.InClear {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(l.Auth.Mechanisms), func(name string) bool {
		switch name {
		case "SCRAM-SHA-256":
			return !can(backends.AboutSCRAM)
		case "EXTERNAL":
			return !can(backends.AboutAUTH) || l.TLS.Mode == "off" || l.TLS.ClientCertificates == "ignore"
		}
		return !can(backends.AboutAUTH)
	})
}

func whyNoAuth(l *ListenerConfig) string {
	if l.TLS.Mode == "off" && !l.Auth.InClear {
		return "AUTH is not offered in the clear, and tls.mode is off"
	}
	return "no backend in ask, with these auth.mechanisms and client_certificates, can tell who they are"
}

// Listen opens the sockets of all listeners, or none if one of them fails.
// The error has all that failed.
func (s *Server) Listen() error { return s.open() }

// Addrs returns the address that each listener is bound to, by its name.
func (s *Server) Addrs() map[string]net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	addrs := map[string]net.Addr{}
	for _, l := range s.listeners {
		addrs[l.Name] = l.socket.Addr()
	}
	return addrs
}

// Log returns the log of the configuration that is in force.
func (s *Server) Log() *slog.Logger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log
}

// Serve accepts sessions on all listeners until Shutdown.
func (s *Server) Serve() {
	s.mu.Lock()
	for _, l := range s.listeners {
		s.accepting.Go(func() { s.accept(l.port) })
	}
	s.mu.Unlock()
	s.accepting.Wait()
}

// accept serves the sessions of one socket until it is closed. An error,
// such as too many open files, makes it wait a moment, as net/http does.
func (s *Server) accept(p *port) {
	const longest = time.Second
	delay := 5 * time.Millisecond
	for {
		socket, err := p.socket.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			p.listener.Load().log.Error("refused", "error", err.Error(), "retry", delay)
			select {
			case <-time.After(delay):
			case <-p.closed:
				return
			}
			delay = min(2*delay, longest)
			continue
		}
		delay = 5 * time.Millisecond
		s.session(p, socket)
	}
}

// session starts a session, or refuses it.
func (s *Server) session(p *port, socket net.Conn) {
	l := p.enter()
	if l == nil {
		socket.Close()
		return
	}
	c := s.admit(l, socket)
	if c == nil {
		l.gen.leave()
		return
	}
	c.ended = func() {
		c.port.leave(c.counted)
		c.gen.leave()
		s.remove(c)
	}
	go c.serve(s.ctx)
}

// admit returns the session of a socket, or refuses it.
func (s *Server) admit(l *listener, socket net.Conn) *conn {
	peer, err := peerOf(socket)
	if err != nil {
		s.refuse(l, socket, peer, "4.3.0", "internal error", err)
		return nil
	}
	if len(l.Proxy) > 0 && !trustsPeer(l.proxyTrust, peer) {
		// Who would hear a reply is not known.
		l.log.Info("refused", "peer", peer.String(), "reason", "the peer is none of proxy")
		socket.Close()
		return nil
	}
	if err := l.admit(); err != nil {
		s.refuse(l, socket, peer, "4.7.0", tooManyConnections, err)
		return nil
	}
	c := newConn(l.dialog(peer, l.localOf(socket)), socket)
	if len(l.Proxy) == 0 {
		if err := c.count(); err != nil {
			l.port.leave("")
			s.refuse(l, socket, peer, "4.7.0", tooManyConnections, err)
			return nil
		}
	}
	if !s.add(c) {
		l.port.leave(c.counted)
		s.refuse(l, socket, peer, "4.3.2", "shutting down", errClosing)
		return nil
	}
	return c
}

func (s *Server) refuse(l *listener, socket net.Conn, peer backends.Peer, enhanced, text string, why error) {
	l.log.Info("refused", "peer", peer.String(), "reason", why.Error())
	if len(l.Proxy) == 0 && l.TLS.Mode != "implicit" { // else nobody could read it
		socket.SetWriteDeadline(time.Now().Add(time.Second))
		socket.Write(reply(421, enhanced, l.hostname+" "+text).AppendTo(nil))
	}
	socket.Close()
}

// add counts a session in, unless the server shuts down.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.conns[c] = true
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.closing && len(s.conns) == 0 {
		close(s.ended)
	}
}

// Shutdown stops listening, ends the sessions that are between transactions
// with 421, and waits for the others. When ctx ends, the recipients that are
// still undecided are answered 451, and Shutdown returns ctx's error after all
// sessions have ended.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	for _, l := range s.listeners {
		l.close()
	}
	if !s.closing && len(s.conns) == 0 {
		close(s.ended)
	}
	s.closing = true
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		c.close(false)
	}
	defer s.shadowing.tell()
	defer s.shadowing.running.Wait()
	defer s.cancel()
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
	}
	s.cancel()
	s.abort()
	return ctx.Err()
}

// abort gives the answers of the deliveries that were cancelled, and 421 to
// those who have not ended their message, a moment to go out. Then it closes
// what is still open.
func (s *Server) abort() {
	s.mu.Lock()
	for c := range s.conns {
		c.close(true)
	}
	s.mu.Unlock()
	select {
	case <-s.ended:
		return
	case <-time.After(time.Second):
	}
	s.mu.Lock()
	for c := range s.conns {
		c.socket.Close()
	}
	s.mu.Unlock()
	<-s.ended
}
