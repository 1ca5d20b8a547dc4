package backends

import (
	"log/slog"
	"net/netip"
	"slices"
	"strconv"

	"github.com/mailgw/mailgw/xforward"
)

// A Session is the connection that a transaction came over.
type Session struct {
	// ID names the connection in the log.
	ID string

	// Listener is the name of the listener.
	Listener string

	// Protocol is what stands in the WITH clause of a Received field (RFC
	// 3848, RFC 6531): "SMTP", after EHLO "ESMTP", or "LMTP"; "UTF8SMTP" or
	// "UTF8LMTP" in a transaction with SMTPUTF8. After EHLO and LHLO an "S"
	// follows if there is TLS, and then an "A" if the client has proved who
	// it is: "ESMTPS", "LMTPA", "UTF8SMTPSA".
	Protocol string

	// Peer is the other end of the socket.
	Peer Peer

	// Client is what a trusted proxy at the other end of the socket told of
	// the client, for the whole session: by PROXY or XCLIENT. It is nil if
	// none did. Nothing of the client is to be taken from Peer then.
	Client *Client

	// Gateway is a random name of the gateway's process. The gateway announces
	// it to trusted peers, as "X-MAILGW NAME" in the answer to EHLO: a target
	// that announces the same is the gateway itself.
	Gateway string

	// Local is the address that the peer connected to: "192.0.2.1:25", or a
	// socket's path.
	Local string

	// TLS is what was agreed on with the peer. It is nil in the clear.
	TLS *TLS

	// HELO is the argument of HELO, EHLO or LHLO.
	HELO string

	// User is who the client has proved to be by AUTH, and Mechanism how. They
	// are empty if it has not.
	User      string
	Mechanism string // "SCRAM-SHA-256", or "XCLIENT" if a proxy says so

	// XForward says what a trusted proxy told of the original client of one
	// transaction. It is nil if no XFORWARD was sent. If its Forwarded is set,
	// the client is what XForward says, and nothing of it is to be taken from
	// Client and Peer.
	XForward *xforward.Attrs
}

// ClientAddr returns the address of the client as far as it is known: by
// XForward, else by Client, else that of Peer. The zero Addr says that it is
// not known, or that the client is a process on this machine.
func (s *Session) ClientAddr() netip.Addr {
	switch {
	case s.XForward != nil && s.XForward.Forwarded:
		addr, _ := netip.ParseAddr(s.XForward.Addr)
		return addr
	case s.Client != nil:
		return s.Client.Addr.Addr()
	}
	return s.Peer.Addr.Addr()
}

// ClientUser returns who the client has proved to be by AUTH, and how. That is
// nobody if XForward tells of the client: User is the proxy itself then.
func (s *Session) ClientUser() (user, mechanism string) {
	if s.XForward != nil && s.XForward.Forwarded {
		return "", ""
	}
	return s.User, s.Mechanism
}

// Clone returns a copy that shares nothing with s.
func (s *Session) Clone() Session {
	c := *s
	if s.Client != nil {
		client := *s.Client
		client.TLVs = slices.Clone(client.TLVs)
		c.Client = &client
	}
	if s.TLS != nil {
		agreed := *s.TLS
		c.TLS = &agreed
	}
	if s.XForward != nil {
		attrs := *s.XForward
		c.XForward = &attrs
	}
	return c
}

// A Client is what a proxy tells of the client that it speaks for. Texts are
// empty and addresses are zero where it does not know.
type Client struct {
	// Source is "PROXY" (the PROXY protocol of HAProxy) or "XCLIENT" (that of
	// Postfix).
	Source string

	Addr  netip.AddrPort // port 0 is unknown
	Local netip.AddrPort // that the client connected to

	// By XCLIENT: the verified name of the client, the unverified one, and
	// what it said to the proxy.
	Name        string
	ReverseName string
	HELO        string
	Protocol    string // "SMTP", "ESMTP", "LMTP"

	// TLVs are what came with version 2 of PROXY.
	TLVs []TLV
}

// A TLV is an extension of version 2 of the PROXY protocol, section 2.2.
type TLV struct {
	Type  byte
	Value []byte
}

// A TLS is what a handshake agreed on.
type TLS struct {
	Version    string // "TLS 1.3"
	Cipher     string // "TLS_AES_128_GCM_SHA256"
	ServerName string // that the client asked for (SNI); may be empty

	// ClientCertificate is the SHA-256 of the certificate that the client
	// showed, in hexadecimal digits; empty if it showed none. ClientName is
	// a name in it, if it was issued by a CA that the listener trusts.
	ClientCertificate string
	ClientName        string
}

// A Peer is the other end of a socket.
type Peer struct {
	// Addr is the address of a TCP peer. It is the zero AddrPort on a unix
	// socket.
	Addr netip.AddrPort

	// UID, GID and PID are of the process at the other end of a unix socket
	// when it connected (SO_PEERCRED).
	UID, GID uint32
	PID      int32
}

// String returns "192.0.2.1:1234", or "unix:uid=1000".
func (p Peer) String() string {
	if p.Addr.IsValid() {
		return p.Addr.String()
	}
	return "unix:uid=" + strconv.FormatUint(uint64(p.UID), 10)
}

// LogValue returns what String does, for slog.
func (p Peer) LogValue() slog.Value { return slog.StringValue(p.String()) }
