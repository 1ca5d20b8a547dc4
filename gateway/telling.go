package gateway

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/mailgw/mailgw/internal/smtp"
)

// Backends are called by the goroutine that holds the session, as far as one is
// enough: no other one has to be woken for a message. So it is whoever decides a
// recipient that tells the client, be it the session, another call or the deadline.
// And where a call goes on after its answers, the session goes on without it.

// replies are what the client of a delivery is told. In LMTP that is one reply for each
// recipient, in the order of RCPT, as soon as it and its predecessors are known
// (RFC 2033, section 4.2). In SMTP it is one for all, unless the client asked
// for PRDR.
type replies struct {
	delivery *delivery
	protocol string
	said     int  // recipients
	begun    bool // by PRDR
	over     bool // there are no more
}

// next returns the next reply, if it is known and there is one.
func (r *replies) next() (reply smtp.Reply, known bool) {
	d := r.delivery
	switch {
	case r.over:
	case r.protocol == "lmtp":
		if reply, known = r.nextOfEach(); known {
			r.over = r.said == len(d.recipients)
		}
	case d.prdr && len(d.recipients) > 1:
		return r.nextOfPRDR()
	case d.isAnswered():
		r.over = true
		s := d.fold()
		d.logReply(s)
		return d.reply("", s), true
	}
	return reply, known
}

func (r *replies) nextOfEach() (reply smtp.Reply, known bool) {
	d := r.delivery
	s := d.poll(r.said)
	if s.IsZero() {
		return reply, false
	}
	to := d.recipients[r.said].Address
	r.said++
	return d.reply(to, s), true
}

func (r *replies) nextOfPRDR() (smtp.Reply, bool) {
	d := r.delivery
	switch {
	case !r.begun:
		r.begun = true
		return reply(353, "", "an answer for each recipient follows"), true
	case r.said < len(d.recipients):
		return r.nextOfEach()
	}
	// Exim takes the last one for what became of the message: a
	// refusal there would override the answers before it.
	r.over = true
	return d.reply("", bestOf(d.answers())), true
}

// A telling brings the replies of one delivery to its client. Only one goroutine
// does so at a time, and nothing else is done with the connection meanwhile.
type telling struct {
	conn    *conn
	ctx     context.Context // of the session
	replies replies
	taken   bool // a recipient has got the message
	told    bool // all

	news  atomic.Int32  // calls of tell since somebody has begun to say what is known
	done  chan struct{} // has an element when all is told
	back  atomic.Bool   // somebody goes on with the session
	timer *time.Timer   // of who would, if the call does not return
}

// heldFor is for how long the session waits for the end of a call that has given
// all of its answers.
const heldFor = 5 * time.Millisecond

// carry has the message delivered and tells the client what becomes of it. It
// returns errHandedOn if another goroutine goes on with the session.
func (c *conn) carry(ctx context.Context, d *delivery) error {
	growStack()
	c.flush() // the client may be waiting for what was said
	t := &telling{conn: c, ctx: ctx, replies: replies{delivery: d, protocol: c.Protocol}, done: make(chan struct{}, 1)}
	d.tell = t.tell
	t.tell()
	d.carry(ctx)
	if !t.back.CompareAndSwap(false, true) {
		return errHandedOn
	}
	return t.goOn()
}

// goOn waits until all is told. It does what follows.
func (t *telling) goOn() error {
	<-t.done
	if t.timer != nil {
		t.timer.Stop()
	}
	if t.conn.lost != nil || t.taken {
		return t.conn.lost
	}
	return t.conn.tookNothing(t.ctx)
}

// tell says what has become known. It does not wait for a client that does not
// read, for whom no backend is to wait.
func (t *telling) tell() {
	if t.news.Add(1) > 1 {
		return // who does so already looks again
	}
	if !t.say(false) {
		go t.say(true)
	}
}

// say says what is known, until there is no news. It reports false if it is to be
// called again by somebody who may wait.
func (t *telling) say(patient bool) bool {
	for {
		seen := t.news.Load()
		if !t.told && !t.sayKnown(patient) {
			return false
		}
		if t.news.CompareAndSwap(seen, 0) {
			return true
		}
	}
}

// sayKnown is one round of say.
func (t *telling) sayKnown(patient bool) bool {
	defer t.recovered()
	c := t.conn
	for {
		r, known := t.replies.next()
		if known {
			if r.Code/100 == 2 {
				c.forgive()
				t.taken = true
			}
			c.tells = true
			c.put(r)
		}
		if !known || t.replies.over || len(c.said) >= mostSaid {
			if !patient && !c.flushNow() && !c.takesMore() {
				return false
			}
			c.flush() // goOn has its error
		}
		if !known || t.replies.over {
			break
		}
	}
	if t.replies.over {
		t.end()
	}
	return true
}

// end notes that all is told. If the session is still in the call, it is to
// come back soon.
func (t *telling) end() {
	t.told = true
	if !t.back.Load() {
		t.timer = time.AfterFunc(heldFor, t.handOn)
	}
	t.done <- struct{}{}
}

// handOn goes on with a session that has not come back from a call.
func (t *telling) handOn() {
	if t.back.CompareAndSwap(false, true) {
		t.conn.hold(t.ctx, t.goOn)
	}
}

// recovered ends the session if the gateway itself has a bug.
func (t *telling) recovered() {
	if r := recover(); r != nil {
		t.conn.log().Error("refused", "error", fmt.Sprintf("panic: %v", r), "stack", string(debug.Stack()))
		if t.conn.lost = errHungUp; !t.told {
			t.end()
		}
	}
}
