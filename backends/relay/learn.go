package relay

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// What targets can do is learned from each EHLO. A target that was not greeted
// for so long is asked without a message.
const askAgain = 5 * time.Minute

// askTimeout is how long a target may take to answer that, while no message has the
// connection.
const askTimeout = time.Minute

// knowledge is what the relay can do by what is known of its targets.
type knowledge struct {
	mu      sync.Mutex
	now     backends.Capabilities
	changed chan struct{}
}

// Capabilities returns what all targets can do, by what they announced last. As
// long as one of them has not answered since the start, that is nothing.
func (b *backend) Capabilities() backends.Capabilities {
	b.known.mu.Lock()
	defer b.known.mu.Unlock()
	return b.known.now
}

// Changed returns a channel that is closed when Capabilities returns something
// new.
func (b *backend) Changed() <-chan struct{} {
	b.known.mu.Lock()
	defer b.known.mu.Unlock()
	return b.known.changed
}

// learned takes note that a target has told what it can do.
func (b *backend) learned() {
	b.known.mu.Lock()
	defer b.known.mu.Unlock()
	all := b.targets[0].capabilities()
	for _, t := range b.targets[1:] {
		all = both(all, t.capabilities())
	}
	if all != b.known.now {
		b.known.now = all
		close(b.known.changed)
		b.known.changed = make(chan struct{})
	}
}

// both returns what x and y can do.
func both(x, y backends.Capabilities) backends.Capabilities {
	x.Size = smaller(x.Size, y.Size)
	x.EightBitMIME = x.EightBitMIME && y.EightBitMIME
	x.SMTPUTF8 = x.SMTPUTF8 && y.SMTPUTF8
	x.BinaryMIME = x.BinaryMIME && y.BinaryMIME
	x.DSN = x.DSN && y.DSN
	x.RequireTLS = x.RequireTLS && y.RequireTLS
	x.Unknown = x.Unknown || y.Unknown
	return x
}

// smaller returns the smaller limit of two of which 0 is none.
func smaller(x, y int64) int64 {
	if x == 0 || y != 0 && y < x {
		return y
	}
	return x
}

// capabilities returns what the target can do by what it announced last.
func (t *target) capabilities() backends.Capabilities {
	t.mu.Lock()
	defer t.mu.Unlock()
	can := t.known.capabilities()
	can.Unknown = t.heard.IsZero()
	return can
}

// learn takes note of what the target has announced.
func (t *target) learn(o offer) {
	t.mu.Lock()
	t.known, t.heard = o, time.Now()
	t.mu.Unlock()
	t.learned()
}

// keepAsking asks the target until ctx ends: at once, and then whenever it has not
// been heard of for long.
func (t *target) keepAsking(ctx context.Context) {
	for ctx.Err() == nil {
		if !t.askedNext().After(time.Now()) {
			t.ask(ctx)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(t.askedNext())):
		}
	}
}

// askedNext returns when the target is to be asked: when what is known is old, and
// its rest is over.
func (t *target) askedNext() time.Time {
	t.mu.Lock()
	next := t.heard.Add(askAgain)
	t.mu.Unlock()
	if end := t.rest.until(); next.Before(end) {
		return end
	}
	return next
}

// ask asks the target what it can do. What it finds out about its health is
// logged when it is news.
func (t *target) ask(ctx context.Context) {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return
	}
	began := time.Now()
	inTime, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := t.open(inTime)
	switch {
	case err == nil:
		t.rest.well()
		t.quit(ctx, c)
	case ctx.Err() == nil:
		if pause, wasWell := t.rest.failed(began, time.Now()); wasWell {
			slog.WarnContext(ctx, "a target is rested", "target", t.url, "error", err, "pause", pause)
		}
	}
}
