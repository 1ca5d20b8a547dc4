package relay

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

// forwarded returns what XFORWARD tells the target of the client: what a trusted
// proxy has told us, or else who the client is to us, but never something of
// both. The IDENT of the client, Postfix's queue id, is passed on; without one it
// is the ID of the transaction.
func forwarded(tx *backends.DataContext) xforward.Attrs {
	var a xforward.Attrs
	if x := tx.Session.XForward; x != nil {
		a = *x
	}
	if !a.Forwarded {
		c := clientOf(&tx.Session)
		a.Name, a.Addr, a.Port, a.Proto, a.HELO = c.Name, c.Addr, c.Port, c.Proto, c.HELO
		a.Forwarded = true
		a.Source = cmp.Or(a.Source, sourceOf(&tx.Session))
	}
	a.Ident = cmp.Or(a.Ident, tx.ID)
	return a
}

// presented returns what XCLIENT tells the target of the client.
func presented(s *backends.Session) xforward.ClientAttrs {
	if x := s.XForward; x != nil && x.Forwarded {
		return xforward.ClientAttrs{Name: x.Name, Addr: x.Addr, Port: x.Port, Proto: protoOf(x.Proto), HELO: x.HELO}
	}
	a := clientOf(s)
	a.Login = s.User
	return a
}

// clientOf returns who the client is to us.
func clientOf(s *backends.Session) xforward.ClientAttrs {
	a := xforward.ClientAttrs{Proto: protoOf(s.Protocol), HELO: s.HELO}
	if addr := addrOf(s); addr.Addr().IsValid() {
		a.Addr = addr.Addr().String()
		if addr.Port() != 0 {
			a.Port = strconv.Itoa(int(addr.Port()))
		}
	}
	if c := s.Client; c != nil {
		a.Name, a.ReverseName = c.Name, c.ReverseName
		a.HELO = cmp.Or(c.HELO, s.HELO)
		a.Proto = cmp.Or(protoOf(c.Protocol), a.Proto)
	}
	return a
}

func addrOf(s *backends.Session) netip.AddrPort {
	addr := s.Peer.Addr
	if s.Client != nil {
		addr = s.Client.Addr
	}
	return netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
}

// protoOf returns the protocol in the words of Postfix, which has SMTP and ESMTP:
// what comes by LMTP has extensions as ESMTP has.
func protoOf(protocol string) string {
	if protocol == "" || protocol == "SMTP" {
		return protocol
	}
	return "ESMTP"
}

// sourceOf tells processes on this machine from other hosts. Postfix rewrites the
// header of what is local, so a client of which a proxy tells no address is not.
func sourceOf(s *backends.Session) string {
	addr := addrOf(s).Addr()
	if addr.IsLoopback() || !addr.IsValid() && s.Client == nil {
		return "LOCAL"
	}
	return "REMOTE"
}

// isWord reports whether s can be the argument of EHLO.
func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
