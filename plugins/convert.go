package plugins

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// What crosses the border, in pairs: to the messages of plugin.proto and
// back.

func transactionToWire(tx *backends.DataContext) *pb.Transaction {
	return &pb.Transaction{
		Id:         tx.ID,
		Session:    sessionToWire(tx.Session),
		Sender:     []byte(tx.Envelope.Sender),
		Params:     toBytes(tx.Envelope.Params),
		Recipients: recipientsToWire(tx.Envelope.Recipients),
		Size:       tx.Size,
	}
}

// transactionFromWire leaves the Body to the caller.
func transactionFromWire(t *pb.Transaction) *backends.DataContext {
	return &backends.DataContext{
		ID:      t.GetId(),
		Session: sessionFromWire(t.GetSession()),
		Envelope: backends.Envelope{
			Sender:     string(t.GetSender()),
			Params:     toStrings(t.GetParams()),
			Recipients: recipientsFromWire(t.GetRecipients()),
		},
		Size: t.GetSize(),
	}
}

func recipientToWire(r backends.Recipient) *pb.Recipient {
	return &pb.Recipient{Address: []byte(r.Address), Params: toBytes(r.Params)}
}

func recipientFromWire(r *pb.Recipient) backends.Recipient {
	return backends.Recipient{Address: string(r.GetAddress()), Params: toStrings(r.GetParams())}
}

func recipientsToWire(from []backends.Recipient) (to []*pb.Recipient) {
	for _, r := range from {
		to = append(to, recipientToWire(r))
	}
	return to
}

func recipientsFromWire(from []*pb.Recipient) (to []backends.Recipient) {
	for _, r := range from {
		to = append(to, recipientFromWire(r))
	}
	return to
}

func sessionToWire(s backends.Session) *pb.Session {
	session := &pb.Session{
		Id:        s.ID,
		Listener:  s.Listener,
		Protocol:  s.Protocol,
		Peer:      &pb.Peer{Addr: addrToWire(s.Peer.Addr), Uid: s.Peer.UID, Gid: s.Peer.GID, Pid: s.Peer.PID},
		Local:     s.Local,
		Helo:      []byte(s.HELO),
		Client:    clientToWire(s.Client),
		User:      []byte(s.User),
		Mechanism: s.Mechanism,
		Gateway:   s.Gateway,
	}
	if t := s.TLS; t != nil {
		session.Tls = &pb.TLS{
			Version: t.Version, Cipher: t.Cipher, ServerName: []byte(t.ServerName),
			ClientCertificate: t.ClientCertificate, ClientName: []byte(t.ClientName),
		}
	}
	if x := s.XForward; x != nil {
		session.Xforward = &pb.XForward{
			Name: []byte(x.Name), Addr: []byte(x.Addr), Port: []byte(x.Port), Proto: []byte(x.Proto),
			Helo: []byte(x.HELO), Ident: []byte(x.Ident), Source: []byte(x.Source), Forwarded: x.Forwarded,
		}
	}
	return session
}

func sessionFromWire(s *pb.Session) backends.Session {
	peer := s.GetPeer()
	session := backends.Session{
		ID:        s.GetId(),
		Listener:  s.GetListener(),
		Protocol:  s.GetProtocol(),
		Peer:      backends.Peer{Addr: addrFromWire(peer.GetAddr()), UID: peer.GetUid(), GID: peer.GetGid(), PID: peer.GetPid()},
		Local:     s.GetLocal(),
		HELO:      string(s.GetHelo()),
		Client:    clientFromWire(s.GetClient()),
		User:      string(s.GetUser()),
		Mechanism: s.GetMechanism(),
		Gateway:   s.GetGateway(),
	}
	if t := s.GetTls(); t != nil {
		session.TLS = &backends.TLS{
			Version: t.Version, Cipher: t.Cipher, ServerName: string(t.ServerName),
			ClientCertificate: t.ClientCertificate, ClientName: string(t.ClientName),
		}
	}
	if x := s.GetXforward(); x != nil {
		session.XForward = &xforward.Attrs{
			Name: string(x.Name), Addr: string(x.Addr), Port: string(x.Port), Proto: string(x.Proto),
			HELO: string(x.Helo), Ident: string(x.Ident), Source: string(x.Source), Forwarded: x.Forwarded,
		}
	}
	return session
}

func clientToWire(c *backends.Client) *pb.Client {
	if c == nil {
		return nil
	}
	client := &pb.Client{
		Source: c.Source, Addr: addrToWire(c.Addr), Local: addrToWire(c.Local),
		Name: []byte(c.Name), ReverseName: []byte(c.ReverseName), Helo: []byte(c.HELO), Protocol: []byte(c.Protocol),
	}
	for _, t := range c.TLVs {
		client.Tlvs = append(client.Tlvs, &pb.TLV{Type: uint32(t.Type), Value: t.Value})
	}
	return client
}

func clientFromWire(c *pb.Client) *backends.Client {
	if c == nil {
		return nil
	}
	client := &backends.Client{
		Source: c.Source, Addr: addrFromWire(c.Addr), Local: addrFromWire(c.Local),
		Name: string(c.Name), ReverseName: string(c.ReverseName), HELO: string(c.Helo), Protocol: string(c.Protocol),
	}
	for _, t := range c.Tlvs {
		client.TLVs = append(client.TLVs, backends.TLV{Type: byte(t.GetType()), Value: t.GetValue()})
	}
	return client
}

// addrToWire makes the zero AddrPort the empty string.
func addrToWire(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func addrFromWire(s string) netip.AddrPort {
	a, _ := netip.ParseAddrPort(s)
	return a
}

func statusToWire(s backends.Status) *pb.Status {
	return &pb.Status{Code: uint32(s.Code), Enhanced: toUTF8(s.Enhanced), Text: toUTF8(s.Text)}
}

// statusesToWire says the same of several recipients.
func statusesToWire(recipients []int, s backends.Status) *pb.ToGateway {
	status := statusToWire(s)
	m := &pb.ToGateway{Statuses: make([]*pb.RecipientStatus, len(recipients))}
	statuses := make([]pb.RecipientStatus, len(recipients)) // in one piece
	for n, i := range recipients {
		m.Statuses[n] = &statuses[n]
		statuses[n].Recipient, statuses[n].Status = uint32(i), status
	}
	return m
}

// statusFromWire returns an error for a status that is no answer at all. What
// else is wrong with one, is for the gateway to mend.
func statusFromWire(wire *pb.Status) (backends.Status, error) {
	s := backends.NewStatus(int(wire.GetCode()), cut(wire.GetEnhanced()), cut(wire.GetText()))
	if s.Code == 0 {
		return s, errors.New("protocol: an empty status")
	}
	return s, nil
}

// errorToWire says what an error of Deliver means. The gateway need not know
// more of an error that means a Status of its own.
func errorToWire(err error) *pb.Returned {
	if s := backends.StatusOf(err); s != backends.TryLater {
		return &pb.Returned{Result: &pb.Returned_Status{Status: statusToWire(s)}}
	}
	return &pb.Returned{Result: &pb.Returned_Failure{Failure: toUTF8(err.Error())}}
}

// returnedFromWire returns the error that the backend has returned, or makes
// its edits on tx. The message that replaces the one at hand is there already.
// The other error says that the plugin has broken the protocol.
func returnedFromWire(r *pb.Returned, tx *backends.DataContext) (result, err error) {
	switch r := r.GetResult().(type) {
	case *pb.Returned_Failure:
		return errors.New(cut(r.Failure)), nil
	case *pb.Returned_Status:
		s, err := statusFromWire(r.Status)
		return s, err
	}
	return nil, editsFromWire(r.GetEdits(), tx)
}

func editsToWire(e backends.Edits) *pb.Returned {
	if e.IsZero() {
		return noEdits
	}
	edits := &pb.Edits{Message: e.Message != nil}
	for _, f := range e.Fields {
		edits.Fields = append(edits.Fields, &pb.FieldEdit{
			Op:    opsToWire[f.Op],
			At:    uint32(min(f.At, math.MaxInt32)), // no header has that many fields
			Field: []byte(f.Field),
		})
	}
	if e.Sender != nil {
		edits.Sender = append([]byte{}, *e.Sender...)
	}
	if e.SenderParams != nil {
		edits.SenderParams = &pb.SenderParams{Params: toBytes(e.SenderParams)}
	}
	for i, addresses := range e.Redirects {
		edits.Redirects = append(edits.Redirects, &pb.Redirect{Recipient: uint32(i), Addresses: toBytes(addresses)})
	}
	edits.Added = recipientsToWire(e.Added)
	for i, route := range e.Diversions {
		edits.Diversions = append(edits.Diversions, &pb.Diversion{Recipient: uint32(i), Route: route})
	}
	returned := &pb.Returned{Result: &pb.Returned_Edits{Edits: edits}}
	octets, err := protobuf.Marshal(&pb.ToGateway{Returned: returned})
	n := parts(octets, (*pb.ToGateway)(nil).ProtoReflect().Descriptor())
	switch {
	case err != nil:
		return errorToWire(err)
	case len(octets) > maxMessage || n > maxParts:
		return errorToWire(fmt.Errorf("the edits have %d octets and %d parts, more than %d and %d", len(octets), n, maxMessage, maxParts))
	}
	return returned
}

var opsToWire = map[backends.FieldOp]pb.FieldEdit_Op{
	backends.AddField:     pb.FieldEdit_ADD,
	backends.ReplaceField: pb.FieldEdit_REPLACE,
	backends.RemoveField:  pb.FieldEdit_REMOVE,
}

func editsFromWire(e *pb.Edits, tx *backends.DataContext) error {
	for _, f := range e.GetFields() {
		if err := editFieldFromWire(f, tx); err != nil {
			return err
		}
	}
	if e.GetMessage() != (tx.Edits().Message != nil) {
		return errors.New("protocol: a message was sent and is not wanted, or the other way round")
	}
	if e.GetSender() != nil {
		if err := tx.SetSender(string(e.Sender)); err != nil {
			return err
		}
	}
	if e.GetSenderParams() != nil {
		if err := tx.SetSenderParams(toStrings(e.SenderParams.GetParams())); err != nil {
			return err
		}
	}
	for _, r := range e.GetRedirects() {
		if err := tx.Redirect(int(r.GetRecipient()), toStrings(r.GetAddresses())...); err != nil {
			return err
		}
	}
	for _, r := range e.GetAdded() {
		if err := tx.AddRecipient(recipientFromWire(r)); err != nil {
			return err
		}
	}
	for _, d := range e.GetDiversions() {
		if err := tx.Divert(int(d.GetRecipient()), d.GetRoute()); err != nil {
			return err
		}
	}
	return nil
}

func editFieldFromWire(f *pb.FieldEdit, tx *backends.DataContext) error {
	at, field := int(f.GetAt()), string(f.GetField())
	switch f.GetOp() {
	case pb.FieldEdit_ADD:
		return tx.AddField(at, field)
	case pb.FieldEdit_REPLACE:
		return tx.ReplaceField(at, field)
	case pb.FieldEdit_REMOVE:
		return tx.RemoveField(at)
	}
	return fmt.Errorf("protocol: unknown edit %d", f.GetOp())
}

func digestToWire(d backends.Digest) *pb.Digest {
	wire := &pb.Digest{Body: d.Body[:]}
	for _, field := range d.Fields {
		wire.Fields = binary.BigEndian.AppendUint64(wire.Fields, field)
	}
	return wire
}

func digestFromWire(wire *pb.Digest) (d backends.Digest, err error) {
	if len(wire.GetBody()) != len(d.Body) || len(wire.GetFields())%8 != 0 {
		return d, errors.New("protocol: a digest of the wrong length")
	}
	copy(d.Body[:], wire.Body)
	for field := range slices.Chunk(wire.Fields, 8) {
		d.Fields = append(d.Fields, binary.BigEndian.Uint64(field))
	}
	return d, nil
}

// toUTF8 makes text of bounded length that protobuf takes for a string.
func toUTF8(s string) string { return cut(strings.ToValidUTF8(cut(s), "?")) }

// maxText bounds what is said of a plugin, or by it.
const maxText = 8 << 10

func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "")
}

func toBytes[S ~[]string](from S) [][]byte {
	var to [][]byte
	for _, s := range from {
		to = append(to, []byte(s))
	}
	return to
}

func toStrings(from [][]byte) []string {
	var to []string
	for _, b := range from {
		to = append(to, string(b))
	}
	return to
}
