package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// conn is one session on a socket: it reads what the dialog decides about
// and does what the dialog decided.
type conn struct {
	*dialog
	socket net.Conn
	stream net.Conn         // the socket, or TLS on it
	r      *bufio.Reader    // reads through conn.Read
	said   []byte           // and not sent yet
	lost   error            // why nothing can be sent any more
	logger *slog.Logger     // made by log; nil while nothing was logged
	ends   time.Time        // of the session
	tells  bool             // said has answers, of which the log is to tell first
	named  *backends.Client // that logger names
	debugs bool             // the log has the dialogue
	ended  func()           // is called at the end of the session

	rests    time.Time // when the session rests, if it is to, before the deadline
	armed    time.Time // the deadline of the socket for reading; zero once it has come
	writable time.Time // that for writing

	mu       sync.Mutex
	deadline time.Time // of what is being read
	waiting  bool      // between transactions, so the session may be ended
	closing  bool      // the server shuts down
	ending   bool      // and has no more time for what the client has begun
}

var errClosing = errors.New("the server shuts down")

func newConn(d *dialog, accepted net.Conn) *conn {
	socket := newSocket(accepted)
	c := &conn{dialog: d, socket: socket, stream: socket, ended: func() {}}
	c.resetLog()
	c.ends = time.Now().Add(d.Limits.SessionTimeout)
	c.takeBuffers()
	return c
}

// serve holds the session from its beginning.
func (c *conn) serve(ctx context.Context) {
	c.hold(ctx, func() error { return c.open(ctx) })
}

// hold holds the session, which goes on with what first does, until it ends or
// another goroutine holds it.
func (c *conn) hold(ctx context.Context, first func() error) {
	var err error
	defer func() {
		if r := recover(); r != nil {
			c.log().Error("refused", "error", fmt.Sprintf("panic: %v", r), "stack", string(debug.Stack()))
			c.say(c.farewell("4.3.0", "internal error"))
		}
		if err != errHandedOn {
			c.finish()
		}
	}()
	for err = first(); err == nil; {
		err = c.converse(ctx)
	}
	if err != errHungUp && err != errHandedOn {
		c.hangUp(err)
	}
}

// open begins the session.
func (c *conn) open(ctx context.Context) error {
	c.debug("connected")
	if len(c.Proxy) > 0 {
		if c.introduce() != nil {
			return errHungUp
		}
	}
	if c.TLS.Mode == "implicit" {
		if err := c.startTLS(ctx, c.ahead()); err != nil {
			return errHungUp
		}
	}
	return c.begin(ctx)
}

// finish ends the session.
func (c *conn) finish() {
	c.flush()
	c.stream.Close()
	c.giveBuffers()
	c.reset() // of a transaction that the client has left
	c.ended()
}

// converse reads a command and does what it asks for.
func (c *conn) converse(ctx context.Context) error {
	line, err := c.readCommand()
	shown := c.loggable(line)
	var r smtp.Reply
	var next action
	switch {
	case err == smtp.ErrLineTooLong, err == smtp.ErrBareNewline, err == smtp.ErrLostChunk:
		r, next = c.badLine(err)
	case err != nil:
		return err
	default:
		if c.tx == nil && c.exchange == nil {
			c.renew()
		}
		if c.debugs {
			c.log().Debug("dialog", "C", shown)
		}
		c.hasty = c.r.Buffered() > 0
		r, next = c.command(line)
	}
	return c.follow(ctx, shown, r, next)
}

// follow says the reply to a command and does what comes next. An error ends
// the session.
func (c *conn) follow(ctx context.Context, command string, r smtp.Reply, next action) error {
	if next == askBackends {
		if err := c.flush(); err != nil {
			return err
		}
		r, next = c.answer(ctx)
	}
	switch {
	case command == "": // the greeting, which begin has looked after
	case next == readChunk, next == skipChunk, next == hangUp: // more has to follow, or does not matter
	case c.spokeOn():
		r, next = c.tooHasty()
	}
	if r.Code >= 400 {
		c.logRefused(command, r)
		if err := c.pause(ctx); err != nil {
			return err
		}
	}
	if next == readChunk {
		var err error
		if next, err = c.readChunk(ctx); err != nil {
			return err
		}
	} else {
		c.say(r)
	}
	return c.do(ctx, next)
}

// log names the session, and the client that PROXY or XCLIENT has told.
func (c *conn) log() *slog.Logger {
	if c.logger == nil || c.session.Client != c.named {
		c.logger, c.named = c.sessionLog(), c.session.Client
	}
	return c.logger
}

// resetLog is for a session that has come to the log of another configuration.
func (c *conn) resetLog() {
	c.logger = nil
	c.debugs = c.gen.log.Enabled(context.Background(), slog.LevelDebug)
}

func (c *conn) debug(message string, attrs ...any) {
	if c.debugs {
		c.log().Debug(message, attrs...)
	}
}

var (
	// errHungUp says that the session has ended, and all is said.
	errHungUp = errors.New("hung up")

	// errHandedOn says that another goroutine holds the session.
	errHandedOn = errors.New("handed on")
)

// do does what follows a reply.
func (c *conn) do(ctx context.Context, next action) error {
	switch next {
	case readMessage:
		return c.readMessage(ctx)
	case skipChunk:
		_, err := io.Copy(io.Discard, c.patiently(smtp.NewChunkReader(c.r, c.chunk.size)))
		return err
	case startTLS:
		if c.startTLS(ctx, c.socket) != nil {
			return errHungUp
		}
	case hangUp:
		return errHungUp
	}
	return nil
}

// startTLS does a handshake on the socket. The client has CommandTimeout for
// all of it. What it sent in the clear after STARTTLS is thrown away: RFC 3207,
// section 4.2.
func (c *conn) startTLS(ctx context.Context, socket net.Conn) error {
	if err := c.flush(); err != nil {
		return err
	}
	deadline := c.soonest(time.Now(), c.Limits.CommandTimeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if !c.beginHandshake(deadline) {
		return errClosing
	}
	secure := tls.Server(socket, c.tls.server)
	if err := secure.HandshakeContext(ctx); err != nil {
		c.log().Info("refused", "reason", "TLS handshake", "error", cause(err))
		return err
	}
	c.stream = secure
	c.r.Reset(c)
	c.startedTLS(tlsSession(secure.ConnectionState()))
	c.debug("TLS", "version", c.session.TLS.Version, "cipher", c.session.TLS.Cipher, "client_certificate", c.session.TLS.ClientCertificate)
	return nil
}

// beginHandshake sets until when a handshake may take. It reports false if
// the server shuts down; one that has begun is ended by close.
func (c *conn) beginHandshake(deadline time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = true
	c.socket.SetDeadline(deadline)
	c.armed, c.writable = deadline, deadline
	return !c.closing
}

// hangUp takes leave of a client that went away, is too slow, or that the
// server has no more time for.
func (c *conn) hangUp(err error) {
	switch {
	case errors.Is(err, errClosing):
		c.say(c.farewell("4.3.2", "shutting down"))
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.log().Info("refused", "reply", "421 4.4.2", "reason", "timeout")
		c.say(c.farewell("4.4.2", "timeout"))
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		c.debug("disconnected")
	default:
		c.log().Info("disconnected", "error", cause(err))
	}
}

// cause is what is wrong with a connection, without the addresses, which the
// log has. Of a unix socket they would be those from before it had its name.
func cause(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return err.Error()
}

func (c *conn) farewell(enhanced, text string) smtp.Reply {
	return reply(421, enhanced, c.hostname+" "+text)
}

func (c *conn) logRefused(line string, r smtp.Reply) {
	log := c.transactionLog(c.log())
	if c.opinionOf != "" {
		log = log.With("backend", c.opinionOf)
	}
	if c.claims != "" {
		log = log.With("user", c.claims[:min(len(c.claims), 255)])
	}
	if c.overRate != "" {
		log = log.With("rate", c.overRate)
	}
	log.Info("refused", "command", line[:min(len(line), 512)], "reply", r.String())
}

// say keeps a reply until flush. Read sends it before it waits.
func (c *conn) say(r smtp.Reply) {
	if c.put(r); len(c.said) >= mostSaid {
		c.flush() // the next one has its error
	}
}

// put keeps a reply.
func (c *conn) put(r smtp.Reply) {
	if c.debugs {
		for line := range strings.SplitSeq(r.String(), "\n") {
			c.debug("dialog", "S", line)
		}
	}
	c.said = r.AppendTo(c.said)
}

// soonest returns the time d from now, or the end of the session if that is
// earlier.
func (c *conn) soonest(now time.Time, d time.Duration) time.Time {
	if t := now.Add(d); t.Before(c.ends) {
		return t
	}
	return c.ends
}

// leaves reports whether the session is to end now. The caller holds c.mu.
func (c *conn) leaves() bool { return c.ending || c.closing && c.waiting }

// close ends the session when it is between two transactions or, if hurried,
// as soon as it waits for the client.
func (c *conn) close(hurried bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing, c.ending = true, hurried
	if c.leaves() {
		c.socket.SetReadDeadline(time.Unix(0, 0))
	}
}

func (c *conn) readCommand() (string, error) {
	longest := int(c.Limits.CommandLine)
	if c.exchange != nil {
		longest = maxResponse
	}
	if err := c.awaitCommand(); err != nil {
		return "", err
	}
	line, err := smtp.ReadLine(c.r, longest)
	return string(line), err
}

// awaitCommand waits until there is something to read, unless a whole line has
// been read already, and sets until when the rest may take.
func (c *conn) awaitCommand() error {
	read, _ := c.r.Peek(c.r.Buffered())
	if bytes.IndexByte(read, '\n') >= 0 {
		return nil
	}
	now := time.Now()
	deadline := c.soonest(now, c.Limits.CommandTimeout)
	if c.tx != nil && c.tx.ends.Before(deadline) {
		deadline = c.tx.ends
	}
	c.expect(deadline, c.tx == nil)
	if len(read) > 0 {
		return nil
	}
	return c.await(now.Add(restAfter))
}

// readMessage reads the message of the transaction, has it delivered, and
// says what became of it. An error means that the client is gone.
func (c *conn) readMessage(ctx context.Context) error {
	dots := smtp.NewDotReader(c.r)
	d, err := c.gen.receive(ctx, c.dialog, c.patiently(dots), dots.Bare, c.log())
	if err != nil {
		return err
	}
	return c.carry(ctx, d)
}

// readChunk reads a part of the message, and after the last part goes on as
// readMessage does. It returns what follows the reply.
func (c *conn) readChunk(ctx context.Context) (action, error) {
	d, r, err := c.gen.receiveChunk(ctx, c.dialog, c.patiently(smtp.NewChunkReader(c.r, c.chunk.size)), c.log())
	switch {
	case err != nil:
		return hangUp, err
	case d != nil:
		return readCommand, c.carry(ctx, d)
	}
	next := readCommand
	if r.Code >= 400 {
		r, next = c.refuse(r)
		c.logRefused("BDAT", r)
		if err := c.pause(ctx); err != nil {
			return hangUp, err
		}
	}
	c.say(r)
	return next, nil
}

// tookNothing is for a message that nobody got: it counts as a refused command.
func (c *conn) tookNothing(ctx context.Context) error {
	if r, next := c.refuse(smtp.Reply{}); next == hangUp {
		c.logRefused("end of the message", r)
		c.say(r)
		return errHungUp
	}
	return c.pause(ctx)
}
