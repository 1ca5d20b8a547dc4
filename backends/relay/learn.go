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

// Capabilities returns what all targets can do, by what they announced last, but
// those that could not be reached since the start. It is nothing as long as none was
// reached, or one may still answer when it is asked first.
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

// learned takes note that a target has told what it can do, or that it cannot be
// asked.
func (b *backend) learned() {
	b.known.mu.Lock()
	defer b.known.mu.Unlock()
	all := b.together()
	if all != b.known.now {
		b.known.now = all
		close(b.known.changed)
		b.known.changed = make(chan struct{})
	}
}

// together returns what all targets can do that have told.
func (b *backend) together() backends.Capabilities {
	unknown := offer{}.capabilities()
	unknown.Unknown = true
	all := unknown
	for _, t := range b.targets {
		switch can, asked := t.capabilities(); {
		case !asked:
			return unknown
		case can.Unknown: // it is away, and may be for ever
		case all.Unknown:
			all = can
		default:
			all = both(all, can)
		}
	}
	return all
}

// both returns what x and y can do.
func both(x, y backends.Capabilities) backends.Capabilities {
	x.Size = smaller(x.Size, y.Size)
	x.EightBitMIME = x.EightBitMIME && y.EightBitMIME
	x.SMTPUTF8 = x.SMTPUTF8 && y.SMTPUTF8
	x.BinaryMIME = x.BinaryMIME && y.BinaryMIME
	x.DSN = x.DSN && y.DSN
	x.RequireTLS = x.RequireTLS && y.RequireTLS
	return x
}

// smaller returns the smaller limit of two of which 0 is none.
func smaller(x, y int64) int64 {
	if x == 0 || y != 0 && y < x {
		return y
	}
	return x
}

// capabilities returns what the target can do by what it announced last, and whether
// it was asked.
func (t *target) capabilities() (can backends.Capabilities, asked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	can = t.known.capabilities()
	can.Unknown = t.heard.IsZero()
	return can, t.asked
}

// learn takes note of what the target has announced.
func (t *target) learn(o offer) {
	t.mu.Lock()
	t.known, t.heard, t.asked = o, time.Now(), true
	t.mu.Unlock()
	t.learned()
}

// askedInVain takes note that the target could not be asked.
func (t *target) askedInVain() {
	t.mu.Lock()
	t.asked = true
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
		t.askedInVain()
	}
}
