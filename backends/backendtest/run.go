package backendtest

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A call is one transaction in the hands of the backend.
type call struct {
	*tester
	transaction
	tx   *backends.DataContext
	body *body

	decided  chan int          // recipients that have their status
	statuses []backends.Status // of those that came out of decided
}

// run gives the backend a transaction and judges what becomes of it. The
// faults begin with name.
func (t *tester) run(name string, tr transaction) {
	if t.gaveUp() {
		return
	}
	id := tr.id()
	tr.name = name
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if tr.trouble == overAtStart {
		cancel()
	}
	c := &call{
		tester:      t,
		transaction: tr,
		decided:     make(chan int, tr.recipients),
		statuses:    make([]backends.Status, tr.recipients),
	}
	c.body = &body{message: tr.message, trouble: tr.trouble, ctx: ctx, cancel: cancel, late: func() {
		c.faultf("the message was read after the transaction had ended")
	}}
	c.tx = &backends.DataContext{ID: id, Session: session, Envelope: c.envelope(), Size: tr.message.size(), Body: c.body}

	end, ok := c.deliver(ctx)
	if !ok || !c.await(tr.recipients-len(end.undecided)) {
		return
	}
	c.body.close()
	if c.crashed(name, end.err) {
		return
	}
	c.judge(end)
	if edits := c.tx.Edits(); end.err == nil && (len(end.undecided) > 0 || edits.Added != nil) {
		c.checkEdits(edits)
	}
	if !reflect.DeepEqual(c.tx.Envelope, c.envelope()) {
		c.faultf("the envelope was changed, which is for reading")
	}
}

var session = backends.Session{
	ID:       "test",
	Listener: "test",
	Protocol: "LMTP",
	Peer:     backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25252")},
	Local:    "192.0.2.2:24",
	HELO:     "client.example.net",
}

func (c *call) envelope() backends.Envelope {
	e := backends.Envelope{Sender: c.sender, Params: c.params()}
	for i := range c.recipients {
		if c.same {
			i = 0
		}
		address := c.Recipients[i%len(c.Recipients)]
		e.Recipients = append(e.Recipients, backends.Recipient{Address: address})
	}
	return e
}

// params are those of MAIL.
func (t *tester) params() backends.Params {
	if smtp.IsASCII(strings.Join(t.Recipients, "")) {
		return backends.Params{"BODY=8BITMIME"}
	}
	return backends.Params{"BODY=8BITMIME", "SMTPUTF8"}
}

// An ending is how a call of the backend ended.
type ending struct {
	undecided []int
	err       error
}

// deliver calls the backend. ok is false if it does not return.
func (c *call) deliver(ctx context.Context) (e ending, ok bool) {
	watched := backends.Func(func(ctx context.Context, tx *backends.DataContext) error {
		defer func() {
			if r := recover(); r != nil {
				c.faultf("panic: %v", r)
				panic(r)
			}
		}()
		return c.backend.Deliver(ctx, tx)
	})
	returned := make(chan ending, 1)
	go func() {
		undecided, err := backends.Run(ctx, watched, c.tx, c.hooks())
		returned <- ending{undecided, err}
	}()
	select {
	case e := <-returned:
		return e, true
	case <-time.After(c.Patience):
		c.giveUp("Deliver did not return within %v", c.Patience)
		return ending{}, false
	}
}

func (c *call) hooks() backends.Hooks {
	return backends.Hooks{
		Status: func(i int, s backends.Status) {
			c.checkStatus(i, s)
			if s.Positive() && c.trouble == noTrouble && !c.IgnoresMessage && !c.body.whole() {
				c.faultf("recipient %d: %q before the message was read to its end", i, s.Error())
			}
			c.statuses[i] = s
			c.decided <- i
		},
		Ignored: func(i int, s backends.Status, why string) {
			if c.tx.Status(i) != backends.TimedOut { // which StartDelivery gives it
				c.faultf("recipient %d: status %q is ignored: %s", i, s.Error(), why)
			}
		},
		SMTPResponse: func(s backends.Status) {
			if !s.Positive() || !isSanitized(s) {
				c.faultf("SMTP response %q cannot stand for a success", s.Error())
			}
		},
	}
}

// await waits for the statuses of n recipients. Those of deliveries that were
// started may come after the return of Deliver.
func (c *call) await(n int) bool {
	patience := time.After(c.Patience)
	for range n {
		select {
		case <-c.decided:
		case <-patience:
			c.giveUp("a started delivery did not end within %v", c.Patience)
			return false
		}
	}
	return true
}

// judge compares the fates of the recipients with the trouble that there was.
// What is wrong in the same way with many of them is told once.
func (c *call) judge(end ending) {
	var faults []string
	recipients := map[string][]int{} // by fault
	for i, s := range c.statuses {
		if fault := c.fault(i, s, end); fault != "" {
			if recipients[fault] == nil {
				faults = append(faults, fault)
			}
			recipients[fault] = append(recipients[fault], i)
		}
	}
	for _, fault := range faults {
		those := recipients[fault]
		if more := len(those) - 1; more > 0 {
			fault = fmt.Sprintf("%s; so %d more", fault, more)
		}
		c.faultf("recipient %d%s", those[0], fault)
	}
}

// fault says what is wrong with the fate of a recipient, or nothing.
func (c *call) fault(i int, s backends.Status, end ending) string {
	why := ""
	if slices.Contains(end.undecided, i) {
		if end.err == nil {
			if _, diverted := c.tx.Edits().Diversions[i]; c.Final && !diverted {
				return " was left undecided"
			}
			return ""
		}
		s = backends.StatusOf(end.err)
		c.checkStatus(i, s)
		why = fmt.Sprintf(" (Deliver returned: %v)", end.err)
	}
	switch {
	case c.trouble == noTrouble && !s.Positive():
		if c.message == plain && c.sender != "" {
			c.noteRefusal(c.envelope().Recipients[i].Address, s)
		}
		return fmt.Sprintf(": %q, want 2yz%s", s.Error(), why)
	case c.trouble != noTrouble && s.Permanent():
		return fmt.Sprintf(": %q for a trouble that is not the message's", s.Error())
	case c.trouble != noTrouble && s.Positive() && (!c.IgnoresMessage || c.trouble == overAtStart):
		return fmt.Sprintf(": %q, want no 2yz", s.Error())
	}
	return ""
}

// noteRefusal notes a status that may mean that the backend does not know the
// address: RFC 5321, section 4.2.3, and RFC 3463, section 3.2.
func (t *tester) noteRefusal(address string, s backends.Status) {
	ofAddress := s.Code == 550 || s.Code == 551 || s.Code == 553 || strings.HasPrefix(s.Enhanced, "5.1.")
	t.mu.Lock()
	defer t.mu.Unlock()
	if ofAddress && t.refused == nil {
		t.refused = &RefusedError{address, s}
	}
}

func (c *call) checkStatus(i int, s backends.Status) {
	if !isSanitized(s) {
		c.faultf("recipient %d: status %q would be sent as %q", i, s.Error(), s.Sanitized().Error())
	}
}

// isSanitized reports whether s reaches the client as it is. The enhanced
// code may be left to be filled in.
func isSanitized(s backends.Status) bool {
	sanitized := s.Sanitized()
	if s.Enhanced == "" {
		sanitized.Enhanced = ""
	}
	return s == sanitized
}

func (c *call) faultf(format string, args ...any) {
	c.tester.faultf("%s: %s", c.name, fmt.Sprintf(format, args...))
}

func (c *call) giveUp(format string, args ...any) {
	c.tester.giveUp("%s: %s", c.name, fmt.Sprintf(format, args...))
}

// giveUp notes a fault after which it makes no sense to go on.
func (t *tester) giveUp(format string, args ...any) {
	t.faultf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
}

func (t *tester) gaveUp() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}
