package plugins

import (
	"bytes"
	"net/netip"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// The messages that each transaction has, encoded and decoded without
// reflection and without structures between. Tests hold this against the
// generated code, octet by octet. What is rare is left to that: the decoders
// report false for a message that has anything else in it.

// appendTransaction encodes what transactionToWire returns.
func appendTransaction(b []byte, tx *backends.DataContext) []byte {
	b = appendText(b, 1, tx.ID)
	b = appendMessage(b, 2, &tx.Session, appendSession)
	b = appendText(b, 3, tx.Envelope.Sender)
	b = appendTexts(b, 4, tx.Envelope.Params)
	for i := range tx.Envelope.Recipients {
		b = appendMessage(b, 5, &tx.Envelope.Recipients[i], appendRecipient)
	}
	return appendNumber(b, 6, uint64(tx.Size))
}

func appendRecipient(b []byte, r *backends.Recipient) []byte {
	return appendTexts(appendText(b, 1, r.Address), 2, r.Params)
}

func appendSession(b []byte, s *backends.Session) []byte {
	b = appendText(b, 1, s.ID)
	b = appendText(b, 2, s.Listener)
	b = appendText(b, 3, s.Protocol)
	b = appendMessage(b, 4, &s.Peer, appendPeer)
	b = appendText(b, 5, s.Local)
	b = appendText(b, 6, s.HELO)
	if s.XForward != nil {
		b = appendMessage(b, 7, s.XForward, appendXForward)
	}
	if s.TLS != nil || s.Client != nil {
		rare := sessionToWire(backends.Session{TLS: s.TLS, Client: s.Client})
		rare.Peer = nil
		octets, _ := protobuf.MarshalOptions{Deterministic: true}.Marshal(rare) // fields in order
		b = append(b, octets...)
	}
	b = appendText(b, 10, s.User)
	b = appendText(b, 11, s.Mechanism)
	return appendText(b, 12, s.Gateway)
}

func appendPeer(b []byte, p *backends.Peer) []byte {
	if p.Addr.IsValid() {
		b = appendMessage(b, 1, &p.Addr, func(b []byte, a *netip.AddrPort) []byte { return a.AppendTo(b) })
	}
	b = appendNumber(b, 2, uint64(p.UID))
	b = appendNumber(b, 3, uint64(p.GID))
	return appendNumber(b, 4, uint64(int64(p.PID)))
}

func appendXForward(b []byte, x *xforward.Attrs) []byte {
	b = appendText(b, 1, x.Name)
	b = appendText(b, 2, x.Addr)
	b = appendText(b, 3, x.Port)
	b = appendText(b, 4, x.Proto)
	b = appendText(b, 5, x.HELO)
	b = appendText(b, 6, x.Ident)
	b = appendText(b, 7, x.Source)
	return appendNumber(b, 8, protowire.EncodeBool(x.Forwarded))
}

// appendText encodes a field of type string or bytes, but for the empty one.
func appendText[S ~string | ~[]byte](b []byte, field protowire.Number, s S) []byte {
	if len(s) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendTexts(b []byte, field protowire.Number, all []string) []byte {
	for _, s := range all {
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendString(b, s)
	}
	return b
}

func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

// appendMessage encodes a message, or whatever f appends. Few are so long that
// they have to make room for their length.
func appendMessage[M any](b []byte, field protowire.Number, m M, f func([]byte, M) []byte) []byte {
	b = append(protowire.AppendTag(b, field, protowire.BytesType), 0)
	start := len(b)
	b = f(b, m)
	size := len(b) - start
	if more := protowire.SizeVarint(uint64(size)) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[start+more:], b[start:])
	}
	protowire.AppendVarint(b[:start-1], uint64(size))
	return b
}

// decodeTransaction decodes a Transaction, whose texts share one copy of it.
func decodeTransaction(octets []byte) (*backends.DataContext, bool) {
	tx := &backends.DataContext{}
	d := decoder{rest: string(octets)}
	for seen := false; d.next(); {
		switch d.field {
		case 1:
			tx.ID = d.text()
		case 2:
			d.failed = d.failed || seen // a second one is added to the first
			seen = true
			outer := d.enter()
			d.session(&tx.Session)
			d.rest = outer
		case 3:
			tx.Envelope.Sender = d.bytes()
		case 4:
			tx.Envelope.Params = append(tx.Envelope.Params, d.bytes())
		case 5:
			if tx.Envelope.Recipients == nil {
				tx.Envelope.Recipients = make([]backends.Recipient, 0, d.following())
			}
			outer := d.enter()
			tx.Envelope.Recipients = append(tx.Envelope.Recipients, d.recipient())
			d.rest = outer
		case 6:
			tx.Size = int64(d.number())
		default:
			d.failed = true
		}
	}
	return tx, !d.failed
}

func (d *decoder) recipient() (r backends.Recipient) {
	for d.next() {
		switch d.field {
		case 1:
			r.Address = d.bytes()
		case 2:
			r.Params = append(r.Params, d.bytes())
		default:
			d.failed = true
		}
	}
	return r
}

func (d *decoder) session(s *backends.Session) {
	for seen := false; d.next(); {
		switch d.field {
		case 1:
			s.ID = d.text()
		case 2:
			s.Listener = d.text()
		case 3:
			s.Protocol = d.text()
		case 4:
			d.failed = d.failed || seen
			seen = true
			outer := d.enter()
			d.peer(&s.Peer)
			d.rest = outer
		case 5:
			s.Local = d.text()
		case 6:
			s.HELO = d.bytes()
		case 7:
			d.failed = d.failed || s.XForward != nil
			s.XForward = &xforward.Attrs{}
			outer := d.enter()
			d.xforward(s.XForward)
			d.rest = outer
		case 10:
			s.User = d.bytes()
		case 11:
			s.Mechanism = d.text()
		case 12:
			s.Gateway = d.text()
		default:
			d.failed = true
		}
	}
}

func (d *decoder) peer(p *backends.Peer) {
	for d.next() {
		switch d.field {
		case 1:
			p.Addr = addrFromWire(d.text())
		case 2:
			p.UID = uint32(d.number())
		case 3:
			p.GID = uint32(d.number())
		case 4:
			p.PID = int32(d.number())
		default:
			d.failed = true
		}
	}
}

func (d *decoder) xforward(x *xforward.Attrs) {
	texts := [...]*string{1: &x.Name, 2: &x.Addr, 3: &x.Port, 4: &x.Proto, 5: &x.HELO, 6: &x.Ident, 7: &x.Source}
	for d.next() {
		switch {
		case d.field > 0 && int(d.field) < len(texts):
			*texts[d.field] = d.bytes()
		case d.field == 8:
			x.Forwarded = d.number() != 0
		default:
			d.failed = true
		}
	}
}

// noEdits is what most backends return, and withoutEdits the ToGateway with it.
var (
	noEdits      = &pb.Returned{Result: &pb.Returned_Edits{Edits: &pb.Edits{}}}
	withoutEdits = &pb.ToGateway{Returned: noEdits}
	nothing      = []byte{4<<3 | 2, 2, 3<<3 | 2, 0}
)

// appendAnswer encodes a ToGateway.
func appendAnswer(b []byte, m *pb.ToGateway) ([]byte, error) {
	if m == withoutEdits {
		return append(b, nothing...), nil
	}
	return protobuf.MarshalOptions{}.MarshalAppend(b, m)
}

// appendStatuses encodes what statusesToWire returns, and the status once.
func appendStatuses(b []byte, recipients []int, s backends.Status) []byte {
	buffer := chunks.Get(0)
	defer chunks.Put(buffer)
	said := appendMessage(*buffer, 2, s, appendStatus)
	for _, i := range recipients {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		size := len(said)
		if i > 0 {
			size += 1 + protowire.SizeVarint(uint64(i))
		}
		b = protowire.AppendVarint(b, uint64(size))
		b = append(appendNumber(b, 1, uint64(i)), said...)
	}
	return b
}

func appendStatus(b []byte, s backends.Status) []byte {
	b = appendNumber(b, 1, uint64(s.Code))
	b = appendText(b, 2, s.Enhanced)
	return appendText(b, 3, s.Text)
}

// answerRoom is where answers are decoded, one after the other.
type answerRoom struct {
	message  pb.ToGateway
	statuses []*pb.RecipientStatus // with their statuses
}

// clear keeps no texts, and room for a few statuses.
func (r *answerRoom) clear() {
	const few = 64
	if len(r.statuses) > few {
		r.statuses = nil
	}
	r.message.Statuses = nil
	for _, s := range r.statuses {
		s.Status.Enhanced, s.Status.Text = "", ""
	}
}

// decode decodes a ToGateway that has nothing but statuses, or that they are all.
func (r *answerRoom) decode(octets []byte) (*pb.ToGateway, bool) {
	m := &r.message
	if bytes.Equal(octets, nothing) {
		m.Statuses, m.Returned = nil, noEdits
		return m, true
	}
	n, said := 0, ""
	d := decoder{rest: string(octets)}
	for ; d.next(); n++ {
		if d.field != 2 || 2*n == maxParts {
			return nil, false
		}
		if n == len(r.statuses) {
			r.statuses = append(r.statuses, &pb.RecipientStatus{Status: &pb.Status{}})
		}
		outer := d.enter()
		said = d.recipientStatus(r.statuses[n], r.statuses[max(n-1, 0)].Status, said)
		d.rest = outer
	}
	m.Statuses, m.Returned = r.statuses[:n], nil
	return m, n > 0 && !d.failed
}

// recipientStatus decodes a RecipientStatus, and returns the octets of its status.
// If they are those of the one before, so is the status.
func (d *decoder) recipientStatus(s *pb.RecipientStatus, before *pb.Status, said string) (says string) {
	s.Recipient = 0
	seen := false
	for d.next() {
		switch d.field {
		case 1:
			s.Recipient = uint32(d.number())
		case 2:
			d.failed = d.failed || seen
			seen = true
			outer := d.enter()
			if says = d.rest; says != "" && says == said {
				s.Status.Code, s.Status.Enhanced, s.Status.Text = before.Code, before.Enhanced, before.Text
			} else {
				d.status(s.Status)
			}
			d.rest = outer
		default:
			d.failed = true
		}
	}
	d.failed = d.failed || !seen
	return says
}

func (d *decoder) status(s *pb.Status) {
	s.Code, s.Enhanced, s.Text = 0, "", ""
	for d.next() {
		switch d.field {
		case 1:
			s.Code = uint32(d.number())
		case 2:
			s.Enhanced = d.text()
		case 3:
			s.Text = d.text()
		default:
			d.failed = true
		}
	}
}

// A decoder reads the fields of a message. It fails at what is malformed, and at
// what the generated code takes in ways of its own.
type decoder struct {
	rest   string
	field  protowire.Number
	kind   protowire.Type
	failed bool
}

// next reports whether there is a field, whose value is to be read.
func (d *decoder) next() bool {
	if d.failed || d.rest == "" {
		return false
	}
	tag := d.varint()
	d.field, d.kind = protowire.Number(tag>>3), protowire.Type(tag&7)
	d.failed = d.failed || tag>>3 > 15 // no message here has more
	return !d.failed
}

// varint reads a number of at most 9 octets, as all are but negative ones.
func (d *decoder) varint() (n uint64) {
	if d.rest != "" && d.rest[0] < 0x80 { // as most are
		n, d.rest = uint64(d.rest[0]), d.rest[1:]
		return n
	}
	for i := range min(len(d.rest), 9) {
		n |= uint64(d.rest[i]&0x7f) << (7 * i)
		if d.rest[i] < 0x80 {
			d.rest = d.rest[i+1:]
			return n
		}
	}
	d.failed = true
	return 0
}

func (d *decoder) number() uint64 {
	if d.kind != protowire.VarintType {
		d.failed = true
		return 0
	}
	return d.varint()
}

// bytes reads octets.
func (d *decoder) bytes() string {
	n := uint64(0)
	if d.kind != protowire.BytesType {
		d.failed = true
	} else {
		n = d.varint()
	}
	if d.failed || n > uint64(len(d.rest)) {
		d.failed = true
		return ""
	}
	value := d.rest[:n]
	d.rest = d.rest[n:]
	return value
}

// text reads a string, which is UTF-8.
func (d *decoder) text() string {
	s := d.bytes()
	d.failed = d.failed || !utf8.ValidString(s)
	return s
}

// following counts this field and those after it with the same number.
func (d decoder) following() (n int) {
	for field, more := d.field, true; more && d.field == field; more = d.next() {
		d.bytes()
		n++
	}
	return n
}

// enter goes on with the fields of a message within. What follows it is to be
// put back in the end.
func (d *decoder) enter() (outer string) {
	inner := d.bytes()
	outer, d.rest = d.rest, inner
	return outer
}
