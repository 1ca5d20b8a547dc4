package gateway

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// rates are what the tables [[listener.rate]] of a listener allow, and what
// of it is in use. A transaction takes part in a rate under a key: at MAIL
// under those of its client and sender, at RCPT under those of the recipient.
// It takes a message then, and the octets that the client has announced.
type rates struct {
	seed maphash.Seed // secret, so that nobody can choose keys that collide

	list []*rate

	mu sync.Mutex // of what is in use
}

type rate struct {
	RateConfig
	messages, recipients, bytes *buckets       // nil if there is no limit
	underway                    map[uint64]int // transactions, by key
}

// A share is the part that a transaction takes in a rate.
type share struct {
	rate *rate
	key  uint64
}

func newRates(list []RateConfig) *rates {
	rs := &rates{seed: maphash.MakeSeed()}
	for _, c := range list {
		rs.list = append(rs.list, &rate{
			RateConfig: c,
			messages:   newBuckets(int64(c.Messages), c.Per),
			recipients: newBuckets(int64(c.Recipients), c.Per),
			bytes:      newBuckets(int64(c.Bytes), c.Per),
			underway:   map[uint64]int{},
		})
	}
	return rs
}

// An excess is a rate that has no more for a transaction.
type excess struct {
	rate string // for the log
	text string // for the client
}

// A use is what a command adds to the part of a transaction in a rate.
type use struct {
	share
	name  string // that stands for the key
	joins bool   // the transaction takes no part yet
	rcpt  int64  // recipients
	size  int64  // of the message, as far as the client has told it
}

// check returns the rate that has no more for what MAIL, without to, or RCPT
// adds to tx. It is nil if there is none.
func (rs *rates) check(tx *transaction, to string) *excess {
	if len(rs.list) == 0 {
		return nil
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return firstExcess(rs.uses(tx, to), time.Now())
}

// take does what check does and, if there is enough of all rates, takes it.
func (rs *rates) take(tx *transaction, to string) *excess {
	if len(rs.list) == 0 {
		return nil
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	uses, now := rs.uses(tx, to), time.Now()
	if over := firstExcess(uses, now); over != nil {
		return over
	}
	for _, u := range uses {
		if u.joins {
			if tx.shares == nil {
				tx.shares = map[share]time.Time{}
			}
			tx.shares[u.share] = now
			u.rate.underway[u.key]++
		}
		if u.joins && u.rate.messages != nil {
			u.rate.messages.take(u.key, 1, now)
		}
		if u.joins && u.rate.bytes != nil {
			u.rate.bytes.take(u.key, u.size, now)
		}
		if u.rcpt > 0 && u.rate.recipients != nil {
			u.rate.recipients.take(u.key, u.rcpt, now)
		}
	}
	return nil
}

// settle ends what tx takes: the octets that came, instead of those announced,
// and nothing for a message that never began. The octets may be more than there
// are: a message that was let in is taken, and those after it wait.
func (rs *rates) settle(tx *transaction) {
	if len(rs.list) == 0 {
		return
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	now := time.Now()
	for s, taken := range tx.shares {
		if tx.message == nil && s.rate.messages != nil {
			s.rate.messages.give(s.key, 1, now.Sub(taken))
		}
		if s.rate.bytes == nil {
			continue
		}
		came := int64(0)
		if tx.message != nil {
			came = tx.message.size
		}
		if came > tx.declared {
			s.rate.bytes.take(s.key, came-tx.declared, now)
		} else {
			s.rate.bytes.give(s.key, tx.declared-came, now.Sub(taken))
		}
	}
}

// leave ends the part of tx in all rates. It may be called again.
func (rs *rates) leave(tx *transaction) {
	if tx.shares == nil {
		return
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for s := range tx.shares {
		if s.rate.underway[s.key]--; s.rate.underway[s.key] == 0 {
			delete(s.rate.underway, s.key)
		}
	}
	tx.shares = nil
}

func (rs *rates) uses(tx *transaction, to string) (uses []use) {
	for _, r := range rs.list {
		name := r.keyOf(tx, to)
		if name == "" {
			continue
		}
		u := use{share: share{r, maphash.String(rs.seed, name)}, name: name, size: tx.declared}
		_, taken := tx.shares[u.share]
		u.joins = !taken
		if to != "" {
			u.rcpt = 1
		}
		uses = append(uses, u)
	}
	return uses
}

// keyOf returns what tx counts under, or "" if it does not.
func (r *rate) keyOf(tx *transaction, to string) string {
	switch r.By {
	case "client":
		return r.network(tx.session.ClientAddr())
	case "user":
		return folded(tx.session.User)
	case "sender":
		return folded(tx.sender)
	case "sender_domain":
		_, domain := smtp.FoldMailbox(tx.sender)
		return domain
	case "recipient":
		return folded(to)
	case "recipient_domain":
		_, domain := smtp.FoldMailbox(to)
		return domain
	}
	panic("gateway: rate by " + r.By)
}

// folded returns an address, or the name of a user, in the form that all its
// spellings share.
func folded(address string) string {
	local, domain := smtp.FoldMailbox(address)
	if domain == "" {
		return local
	}
	return local + "@" + domain
}

// network returns the network of a client, or "" if it has no address.
func (r *rate) network(client netip.Addr) string {
	if !client.IsValid() {
		return ""
	}
	client = client.Unmap()
	bits := r.IPv6Prefix
	if client.Is4() {
		bits = r.IPv4Prefix
	}
	return netip.PrefixFrom(client, bits).Masked().String()
}

func firstExcess(uses []use, now time.Time) *excess {
	for _, u := range uses {
		if over := u.excess(now); over != nil {
			return over
		}
	}
	return nil
}

// excess tells whether a rate has no more for a use, and what of.
func (u use) excess(now time.Time) *excess {
	r := u.rate
	switch {
	case u.joins && r.AtOnce > 0 && u.rate.underway[u.key] >= r.AtOnce:
		return u.over(fmt.Sprintf("%d transactions at once", r.AtOnce), "too many transactions at once")
	case u.joins && r.messages != nil && !r.messages.has(u.key, 1, now):
		return u.over(fmt.Sprintf("%d messages per %v", r.Messages, r.Per), "too many messages")
	case u.joins && r.bytes != nil && !r.bytes.has(u.key, max(u.size, 1), now):
		return u.over(fmt.Sprintf("bytes %v per %v", r.Bytes, r.Per), "too much mail")
	case r.recipients != nil && !r.recipients.has(u.key, u.rcpt, now):
		return u.over(fmt.Sprintf("%d recipients per %v", r.Recipients, r.Per), "too many recipients")
	}
	return nil
}

func (u use) over(limit, text string) *excess {
	if strings.HasPrefix(u.rate.By, "recipient") {
		text += " for this " + map[string]string{"recipient": "recipient", "recipient_domain": "domain"}[u.rate.By]
	}
	return &excess{
		rate: fmt.Sprintf("%s %.256s: %s", u.rate.By, u.name, limit),
		text: text + ", try again later",
	}
}

// within returns the refusal of what MAIL or RCPT adds to tx, if a rate has no
// more for it.
func (d *dialog) within(over *excess) (smtp.Reply, bool) {
	if over == nil {
		return smtp.Reply{}, true
	}
	d.overRate = over.rate
	return statusReply(backends.NewStatus(450, "4.7.1", over.text)), false
}

// String returns "by client (/32, /64): 100 messages per 1h0m0s, 5 at once".
func (c RateConfig) String() string {
	var allowed []string
	if c.Messages > 0 {
		allowed = append(allowed, fmt.Sprintf("%d messages per %v", c.Messages, c.Per))
	}
	if c.Recipients > 0 {
		allowed = append(allowed, fmt.Sprintf("%d recipients per %v", c.Recipients, c.Per))
	}
	if c.Bytes > 0 {
		allowed = append(allowed, fmt.Sprintf("bytes %v per %v", c.Bytes, c.Per))
	}
	if c.AtOnce > 0 {
		allowed = append(allowed, fmt.Sprintf("%d transactions at once", c.AtOnce))
	}
	by := c.By
	if by == "client" {
		by = fmt.Sprintf("client (/%d, /%d)", c.IPv4Prefix, c.IPv6Prefix)
	}
	return "by " + by + ": " + strings.Join(allowed, ", ")
}
