package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A transaction is what a client asked for between MAIL and the end of the
// message.
type transaction struct {
	id         string
	session    backends.Session
	sender     string
	params     backends.Params
	recipients []recipient
	utf8       bool      // SMTPUTF8
	binary     bool      // BODY=BINARYMIME
	prdr       bool      // PRDR
	charged    int64     // octets of the spool's budget that the envelope takes
	began      time.Time // at MAIL
	ends       time.Time // by which all of the message has to be here
	declared   int64     // octets of the message, by SIZE of MAIL

	rates  *rates
	shares map[share]time.Time // in rates, until the transaction is over

	message *message // as far as it has come
	lines   lineEnds // of chunks
	fault   error    // why the message is refused, once that is known

	digester *backends.Digester // nil if no backend tells digests
}

// envelope is what backends are told that are asked about a command.
func (tx *transaction) envelope() *backends.Envelope {
	return &backends.Envelope{Sender: tx.sender, Params: tx.params}
}

// A recipient is one accepted RCPT and where it goes.
type recipient struct {
	backends.Recipient
	route *route
}

// namedBackend is a backend and what the configuration says of it.
type namedBackend struct {
	backends.Backend
	name string
	log  *slog.Logger // of what is about no transaction
	BackendConfig
	opinions opinions
	suspects *suspects
}

// A delivery carries one transaction through the backends and gathers the
// answers. Each recipient gets exactly one.
//
// The recipients of one route are a branch. A backend answers some of its
// recipients, and the others form the next branch, with the edits that the
// backend made. At the deadline, all that have no answer get one.
//
// Backends may add recipients. As long as one may come, or has no answer,
// nobody's success is told.
type delivery struct {
	*transaction
	backends map[string]*namedBackend
	routes   map[string]*route // for those who are diverted
	log      *slog.Logger
	spool    *spool
	maxSize  int64           // of a replaced message; zero is no limit
	digest   backends.Digest // of the message as it came, if there is a digester
	received time.Time
	budget   time.Duration // for all answers
	tell     func()        // is called after answers were given

	ctx     context.Context
	cancel  context.CancelFunc
	unwatch func() bool // stops waiting for the end of ctx

	summed   sync.Once // of content
	sum      []byte
	unsummed error

	shadows    map[string]*namedBackend // by whose shadow they are
	shadowing  *shadowing
	recordings *recordings
	parent     context.Context // of ctx

	mu       sync.Mutex
	fates    []fate          // of the transaction's recipients, in order, and of those added
	answered int             // of the transaction's recipients
	adders   int             // calls that may still add recipients
	ended    bool            // all have answers, so that nobody may be added
	response backends.Status // by SetSMTPResponse

	gathering  int // calls of together
	first, end int // of the recipients that were decided since one began or ended

	busy     atomic.Int32 // calls of backends that may still read messages
	messages []*message   // to be closed when none is busy; guarded by mu
}

// A fate is what becomes of one recipient.
type fate struct {
	address    string
	added      bool            // by a backend, so that the client does not know of it
	holder     string          // the backend that has it, or has decided it
	divertedBy string          // the backend that has diverted it, if one has
	route      string          // the named route to which
	edited     *edits          // between the message that came and the one that left, if that is known
	decided    backends.Status // by a backend
	answer     backends.Status // what the client is told
}

// edits tell how a message differs from the one that came.
type edits struct{ body, header string }

// carry has the message delivered, or refuses it. It closes the message in the
// end. It does itself what one goroutine can do, and does not wait for others: tell
// is called when answers have come. A bug of the gateway itself goes no further: it
// leaves who has no answer to finish, or to the deadline.
func (d *delivery) carry(ctx context.Context) {
	defer func() {
		if r := recover(); r != nil {
			d.logPanic("", r)
		}
	}()
	if refusal, ok := refusalOf(d.fault); ok {
		d.refuse(refusal, d.fault)
		return
	}
	d.begin(ctx).do()
}

// begin begins the calls of the backends, and leaves one job of them to the caller.
func (d *delivery) begin(ctx context.Context) *job {
	d.parent = ctx
	d.ctx, d.cancel = context.WithTimeout(ctx, d.budget)
	d.unwatch = context.AfterFunc(d.ctx, func() { d.answerAll(backends.StatusOf(context.Cause(d.ctx))) })
	d.messages = []*message{d.message}
	d.busy.Store(1)
	defer d.finish()
	d.adding(1) // until all branches have begun
	defer d.adding(-1)
	if d.digester != nil {
		d.digest = d.digester.Digest()
	}
	d.logReceived()
	return d.run(d.branches()...)
}

// finish notes that a call that may read messages has ended. After the last
// one the messages are given back; a recipient without an answer would be a
// bug by then, and gets TryLater.
func (d *delivery) finish() {
	if d.busy.Add(-1) > 0 {
		return
	}
	d.release()
	if d.unwatch() {
		d.answerAll(backends.TryLater)
	}
	d.cancel()
}

// release gives back what the transaction holds. No backend may read it any
// more.
func (d *delivery) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.messages {
		m.Close()
	}
	d.messages = nil
	d.spool.refund(d.charged)
	d.charged = 0
	d.rates.leave(d.transaction)
}

// decide gives recipient i its status, unless it has one.
func (d *delivery) decide(i int, backend string, s backends.Status) {
	said := s
	if s = s.Sanitized(); s.Code != said.Code {
		d.ignored(backend, d.addressOf(i), said, "it is no answer to a message, so that it becomes "+s.Error())
	}
	late := false
	d.settling(func() (first, end int) {
		f := &d.fates[i]
		if late = !f.decided.IsZero(); late {
			return 0, 0
		}
		f.holder, f.decided = backend, s
		first, end = i, i+1
		if f.added {
			first, end = 0, len(d.fates)
		}
		if d.gathering > 0 {
			d.first, d.end = min(d.first, first), max(d.end, end)
			return 0, 0
		}
		return first, end
	})
	// That the deadline has passed is known already.
	if late && (d.ctx == nil || s != backends.StatusOf(context.Cause(d.ctx))) {
		d.ignored(backend, d.addressOf(i), s, "the recipient was answered already")
	}
}

func (d *delivery) addressOf(i int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fates[i].address
}

// together answers those at once whom f decides.
func (d *delivery) together(f func()) {
	d.gather(1)
	defer d.gather(-1)
	f()
}

// gather notes that n calls of together begin, or end if it is negative. At the
// end of each, all are answered who have been decided.
func (d *delivery) gather(n int) {
	d.settling(func() (first, end int) {
		d.gathering += n
		first, end = d.first, d.end
		d.first, d.end = len(d.fates), 0
		return first, end
	})
}

// settling settles, after a change of what is known, the recipients that it names,
// and tells it, even if there is a bug in what logs it.
func (d *delivery) settling(change func() (first, end int)) {
	news := true
	defer func() {
		if news {
			d.tell()
		}
	}()
	news = d.settled(change)
}

func (d *delivery) settled(change func() (first, end int)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	first, end := change()
	return first < end && d.settle(first, end)
}

// settle answers those of the recipients from first up to end that are
// decided, but for a success that an added recipient may still turn into a
// failure. The caller holds d.mu, and is to call tell when it does not any more, if
// settle returns true.
func (d *delivery) settle(first, end int) bool {
	final, failure := d.added()
	var told []*fate
	for i := first; i < end; i++ {
		f := &d.fates[i]
		if f.decided.IsZero() || !f.answer.IsZero() || !final && !f.added && f.decided.Positive() {
			continue
		}
		f.answer = f.decided
		if !f.added && f.answer.Positive() && !failure.IsZero() {
			f.answer = failure
		}
		told = append(told, f)
		if !f.added {
			d.answered++
		}
	}
	if d.answered == len(d.recipients) {
		// The client goes on, and need not wait until all calls have ended.
		d.rates.leave(d.transaction)
	}
	d.logAnswers(told)
	return len(told) > 0
}

// added tells whether all recipients that backends add are known and decided,
// and the worst of what they got if that is no success. The caller holds d.mu.
func (d *delivery) added() (final bool, failure backends.Status) {
	final = d.adders == 0 || d.ended
	var failures []backends.Status
	for _, f := range d.fates[len(d.recipients):] {
		final = final && !f.decided.IsZero()
		if !f.decided.IsZero() && !f.decided.Positive() {
			failures = append(failures, f.decided)
		}
	}
	if failures == nil {
		return final, backends.Status{}
	}
	return final, worstOf(failures)
}

// logAnswers logs the lines that tell the whole story of each recipient, those
// together that follow one another and differ in the address only.
func (d *delivery) logAnswers(told []*fate) {
	now := time.Now()
	to := make([]string, 0, len(told))
	for len(told) > 0 {
		f := told[0]
		for to = to[:0]; len(told) > 0 && told[0].like(f); told = told[1:] {
			to = append(to, told[0].address)
		}
		d.logAnswer(f, to, now)
	}
}

// like reports whether two fates differ in the address at most.
func (f *fate) like(other *fate) bool {
	same := *other
	same.address = f.address
	return *f == same
}

// logAnswer logs a line for each of to, whose fates are like f.
func (d *delivery) logAnswer(f *fate, to []string, now time.Time) {
	attrs := append(make([]slog.Attr, 0, 13),
		slog.String("backend", f.holder),
		slog.Int("code", f.answer.Code),
		slog.String("enhanced", f.answer.Enhanced),
		slog.String("text", f.answer.Text),
		slog.Duration("delay", now.Sub(d.began).Round(time.Microsecond)),
		slog.Duration("wait", now.Sub(d.received).Round(time.Microsecond)))
	if f.edited != nil {
		attrs = append(attrs, slog.String("body", f.edited.body), slog.String("header", f.edited.header))
	}
	if f.route != "" {
		attrs = append(attrs, slog.String("route", f.route), slog.String("diverted_by", f.divertedBy))
	}
	if f.added {
		attrs = append(attrs, slog.Bool("added", true))
	}
	if f.answer != f.decided {
		attrs = append(attrs, slog.String("decided", f.decided.Error()))
	}
	logEach(d.log, now, "status", "to", to, attrs...)
}

// logReply logs the one reply to a message, unless it is what all recipients have.
func (d *delivery) logReply(s backends.Status) {
	if slices.ContainsFunc(d.answers(), func(answer backends.Status) bool { return answer != s }) {
		logTogether(d.log, time.Now(), "reply",
			slog.Int("code", s.Code), slog.String("enhanced", s.Enhanced), slog.String("text", s.Text))
	}
}

// answerAll answers every recipient that has no answer yet, in the name of
// the backend that has it. Nobody is added from then on.
func (d *delivery) answerAll(s backends.Status) {
	s = s.Sanitized()
	d.settling(func() (first, end int) {
		d.ended = true
		for i := range d.fates {
			if f := &d.fates[i]; f.decided.IsZero() {
				f.decided = s
			}
		}
		return 0, len(d.fates)
	})
}

// add makes a recipient that a backend adds one of the transaction's.
func (d *delivery) add(to backends.Recipient) (destination, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return destination{}, fmt.Errorf("edit: add recipient %q: the transaction has ended", to.Address)
	}
	i := len(d.fates)
	d.fates = append(d.fates, fate{address: to.Address, added: true})
	return destination{to, i, d.decide}, nil
}

// addFailed is for a backend that has added somebody, in vain: nobody is to
// believe that the added one has the message.
func (d *delivery) addFailed(backend, address string) {
	d.settling(func() (first, end int) {
		if !d.ended {
			d.fates = append(d.fates, fate{address: address, added: true, holder: backend, decided: backends.TryLater})
		}
		return 0, len(d.fates)
	})
}

// adding notes that n calls begin, or end if it is negative, that may add
// recipients.
func (d *delivery) adding(n int) {
	d.settling(func() (first, end int) {
		if d.adders += n; n > 0 {
			return 0, 0
		}
		return 0, len(d.fates)
	})
}

func (d *delivery) ignored(backend, to string, s backends.Status, why string) {
	d.log.Warn("backend", "backend", backend, "event", "ignored", "to", to, "status", s.Error(), "reason", why)
}

// poll returns the status of recipient i if it has one.
func (d *delivery) poll(i int) backends.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fates[i].answer
}

// isAnswered reports whether all recipients that the client has named have their
// statuses.
func (d *delivery) isAnswered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answered == len(d.recipients)
}

// answers returns the statuses of the recipients that the client has named, when
// all have theirs.
func (d *delivery) answers() []backends.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]backends.Status, len(d.recipients))
	for i := range all {
		all[i] = d.fates[i].answer
	}
	return all
}

// fold makes one answer of all: any 4yz gives the first 4yz; else any 5yz
// gives the first 5yz; else it is a success. All are known.
func (d *delivery) fold() backends.Status {
	worst := worstOf(d.answers())
	d.mu.Lock()
	defer d.mu.Unlock()
	if response := d.response.Sanitized(); worst.Positive() && response.Positive() {
		return response
	}
	return worst
}

// bestOf returns the first 2yz, else the first 4yz, else the first status.
func bestOf(all []backends.Status) backends.Status {
	for _, is := range []func(backends.Status) bool{backends.Status.Positive, backends.Status.Temporary} {
		if i := slices.IndexFunc(all, is); i >= 0 {
			return all[i]
		}
	}
	return all[0]
}

// worstOf returns the first 4yz, else the first 5yz, else the first status.
func worstOf(all []backends.Status) backends.Status {
	for _, is := range []func(backends.Status) bool{backends.Status.Temporary, backends.Status.Permanent} {
		if i := slices.IndexFunc(all, is); i >= 0 {
			return all[i]
		}
	}
	return all[0]
}
