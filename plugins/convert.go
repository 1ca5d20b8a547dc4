package plugins

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// What crosses the border, in pairs: to the messages of plugin.proto and
// back.

func transactionToWire(tx *backends.DataContext) *pb.Transaction {
	t := &pb.Transaction{
		Id:      tx.ID,
		Session: sessionToWire(tx.Session),
		Sender:  []byte(tx.Envelope.Sender),
		Params:  toBytes(tx.Envelope.Params),
		Size:    tx.Size,
	}
	for _, r := range tx.Envelope.Recipients {
		t.Recipients = append(t.Recipients, &pb.Recipient{Address: []byte(r.Address), Params: toBytes(r.Params)})
	}
	return t
}

// transactionFromWire leaves the Body to the caller.
func transactionFromWire(t *pb.Transaction) *backends.DataContext {
	tx := &backends.DataContext{
		ID:       t.GetId(),
		Session:  sessionFromWire(t.GetSession()),
		Envelope: backends.Envelope{Sender: string(t.GetSender()), Params: toStrings(t.GetParams())},
		Size:     t.GetSize(),
	}
	for _, r := range t.GetRecipients() {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients,
			backends.Recipient{Address: string(r.GetAddress()), Params: toStrings(r.GetParams())})
	}
	return tx
}

func sessionToWire(s backends.Session) *pb.Session {
	session := &pb.Session{
		Id:       s.ID,
		Listener: s.Listener,
		Protocol: s.Protocol,
		Peer:     &pb.Peer{Uid: s.Peer.UID, Gid: s.Peer.GID, Pid: s.Peer.PID},
		Local:    s.Local,
		Helo:     []byte(s.HELO),
	}
	if s.Peer.Addr.IsValid() {
		session.Peer.Addr = s.Peer.Addr.String()
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
	session := backends.Session{
		ID:       s.GetId(),
		Listener: s.GetListener(),
		Protocol: s.GetProtocol(),
		Peer:     backends.Peer{UID: s.GetPeer().GetUid(), GID: s.GetPeer().GetGid(), PID: s.GetPeer().GetPid()},
		Local:    s.GetLocal(),
		HELO:     string(s.GetHelo()),
	}
	if addr, err := netip.ParseAddrPort(s.GetPeer().GetAddr()); err == nil {
		session.Peer.Addr = addr
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

func statusToWire(s backends.Status) *pb.Status {
	return &pb.Status{Code: uint32(s.Code), Enhanced: toUTF8(s.Enhanced), Text: toUTF8(s.Text)}
}

// statusFromWire returns an error for a status that is no answer at all. What
// else is wrong with one, is for the gateway to mend.
func statusFromWire(wire *pb.Status) (backends.Status, error) {
	s := backends.NewStatus(int(wire.GetCode()), cut(wire.GetEnhanced()), cut(wire.GetText()))
	if s.IsZero() {
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
	for i, addresses := range e.Redirects {
		edits.Redirects = append(edits.Redirects, &pb.Redirect{Recipient: uint32(i), Addresses: toBytes(addresses)})
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
		tx.SetSender(string(e.Sender))
	}
	for _, r := range e.GetRedirects() {
		if err := tx.Redirect(int(r.GetRecipient()), toStrings(r.GetAddresses())...); err != nil {
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

// toUTF8 makes text of bounded length that protobuf takes for a string.
func toUTF8(s string) string { return cut(strings.ToValidUTF8(cut(s), "?")) }

// cut bounds what is said of a plugin, or by it.
func cut(s string) string {
	const longest = 8 << 10
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "")
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
