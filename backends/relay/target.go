package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/mailgw/mailgw/internal/smtpclient"
)

// A target is a server that mail goes to, with its connections.
type target struct {
	server
	options
	rest rest

	slots chan struct{} // has an element for each connection in use
	leave sync.WaitGroup

	mu      sync.Mutex
	idle    []*conn     // those that were used last at the end
	sweeper *time.Timer // ends those that are idle for too long; nil if there are none
	closed  bool
	known   offer     // of the last EHLO
	heard   time.Time // when that was
	asked   bool      // whether it answered or not
}

// Options are the same for all targets.
type options struct {
	hello       string
	credentials string // path; may be empty
	tls         *tls.Config
	idleTime    time.Duration
	maxAge      time.Duration
	learned     func() // is called when a target has told what it can do, or could not be asked
}

// A conn is a connection of a target.
type conn struct {
	*smtpclient.Conn
	offer
	opened time.Time
	used   time.Time // last
	sent   int       // transactions
	single bool      // it is for one transaction only
}

// Stages of a connection that come before those of package smtpclient.
const (
	connecting smtpclient.Stage = "connection"
	handshake  smtpclient.Stage = "TLS handshake"
)

const (
	// connectTimeout is for a host that does not answer at all, so that there
	// is time left for others. It is that of Postfix.
	connectTimeout = 30 * time.Second

	// probeTimeout is how long a server that was idle has to show that it is
	// still there.
	probeTimeout = 10 * time.Second

	// quitTimeout bounds what takes up nobody's time but ours. A plugin has two
	// seconds to end.
	quitTimeout = time.Second
)

var errBusy = errors.New("all connections were in use for too long")

// connect returns a connection that is ready for a transaction: an idle one that
// still answers, or a new one. It waits until there are less than the most that
// the target may have. The caller releases it.
func (t *target) connect(ctx context.Context) (*conn, error) {
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, errBusy
	}
	for c := t.takeIdle(); c != nil; c = t.takeIdle() {
		err := t.probe(ctx, c)
		if err == nil {
			return c, nil
		}
		t.leave.Go(func() { t.quit(context.Background(), c) })
		if errors.Is(err, context.DeadlineExceeded) {
			t.endIdle() // they went the way of this one
		}
	}
	c, err := t.open(ctx)
	if err != nil {
		<-t.slots
		return nil, err
	}
	return c, nil
}

var errOld = errors.New("the connection is older than max_age")

// probe finds out whether an idle connection can be used again. RSET tells, and
// leaves nothing of the transaction before. One that says nothing, because it was
// forgotten somewhere on the way, leaves time for a new one.
func (t *target) probe(ctx context.Context, c *conn) error {
	if time.Since(c.opened) > t.maxAge {
		return errOld
	}
	patience := probeTimeout
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.Reset(ctx)
}

// open opens a connection and begins the session.
func (t *target) open(ctx context.Context) (*conn, error) {
	raw, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: smtpclient.New(raw, smtpclient.Settings{LMTP: t.lmtp, Name: t.hello}), opened: time.Now()}
	if err := t.begin(ctx, c); err != nil {
		c.Close()
		return nil, err
	}
	c.offer = offerOf(c.Conn)
	t.learn(c.offer)
	return c, nil
}

func (t *target) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, &smtpclient.Error{Stage: connecting, Err: err}
	}
	if t.server.tls != implicitTLS {
		return raw, nil
	}
	secured := tls.Client(raw, t.tlsConfig())
	if err := secured.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &smtpclient.Error{Stage: handshake, Err: err}
	}
	return secured, nil
}

// tlsConfig returns that of a connection to t.
func (t *target) tlsConfig() *tls.Config {
	config := t.options.tls.Clone()
	config.ServerName = cmp.Or(config.ServerName, t.host)
	return config
}

// begin greets the target, and tells it who we are.
func (t *target) begin(ctx context.Context, c *conn) error {
	if err := c.Hello(ctx); err != nil {
		return err
	}
	if t.server.tls == startTLS {
		if err := c.StartTLS(ctx, t.tlsConfig()); err != nil {
			return err
		}
	}
	if t.credentials == "" {
		return nil
	}
	user, password, err := readCredentials(t.credentials)
	if err != nil {
		return &smtpclient.Error{Stage: smtpclient.AUTH, Err: err}
	}
	return c.Auth(ctx, smtpclient.Credentials{User: user, Password: password, InClear: t.private()})
}

// full reports whether the target takes no more transactions over the connection:
// MAILMAX of RFC 9422.
func (c *conn) full() bool {
	most := c.limit("MAILMAX")
	return most > 0 && c.sent >= most
}

// release gives back a connection. It is kept for the next transaction if it is of
// use, and ended if it is not.
func (t *target) release(c *conn) {
	c.used = time.Now()
	if c.Err() == nil && !c.single && !c.full() && time.Since(c.opened) < t.maxAge && t.keep(c) {
		<-t.slots
		return
	}
	t.leave.Go(func() {
		t.quit(context.Background(), c)
		<-t.slots
	})
}

// keep makes a connection idle, unless the target is closed.
func (t *target) keep(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.idle = append(t.idle, c)
	if t.sweeper == nil {
		t.sweeper = time.AfterFunc(t.idleTime, t.sweep)
	}
	return true
}

// takeIdle returns the connection that was used last, or nil.
func (t *target) takeIdle() *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.idle) == 0 {
		return nil
	}
	c := t.idle[len(t.idle)-1]
	t.idle = t.idle[:len(t.idle)-1]
	return c
}

// sweep ends the connections that were idle for too long.
func (t *target) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.idle) > 0 && time.Since(t.idle[0].used) >= t.idleTime {
		c := t.idle[0]
		t.idle = t.idle[1:]
		t.leave.Go(func() { t.quit(context.Background(), c) })
	}
	t.sweeper = nil
	if len(t.idle) > 0 && !t.closed {
		t.sweeper = time.AfterFunc(t.idleTime-time.Since(t.idle[0].used), t.sweep)
	}
}

// quit ends a connection: RFC 5321, section 4.1.1.10.
func (t *target) quit(ctx context.Context, c *conn) {
	ctx, cancel := context.WithTimeout(ctx, quitTimeout)
	defer cancel()
	c.Quit(ctx)
}

// close ends all connections. No transaction is under way any more.
func (t *target) close() {
	t.mu.Lock()
	t.closed = true
	if t.sweeper != nil {
		t.sweeper.Stop()
	}
	t.mu.Unlock()
	t.endIdle()
	t.leave.Wait()
}

// endIdle ends the connections that are idle.
func (t *target) endIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.idle {
		t.leave.Go(func() { t.quit(context.Background(), c) })
	}
	t.idle = nil
}

// busy returns how many connections are in use.
func (t *target) busy() int { return len(t.slots) }
