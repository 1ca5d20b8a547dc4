package gateway

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/xforward"
)

// judge says what a client may tell of others: by its address or, if it is a
// process on this machine, by its user; and by its certificate. A proxy that
// speaks PROXY may tell nothing but that.
func (d *dialog) judge() {
	d.trusted, d.mayXClient = d.trusts(d.trust), d.trusts(d.xclientTrust)
}

func (d *dialog) trusts(t xforward.Trust) bool {
	switch {
	case t.Certificate(d.certificate()):
		return true
	case d.elsewhere():
		// Whom we trust is not to be trusted for those whom it lets through.
		return t.Addr(d.session.Client.Addr.Addr())
	case len(d.Proxy) > 0:
		// LOCAL is what HAProxy says of the sessions that it opens to see whether
		// we are well, and of those from its own unix sockets, too.
		return false
	}
	return trustsPeer(t, d.session.Peer)
}

// elsewhere reports whether a proxy has told that the client is not the peer
// of the socket.
func (d *dialog) elsewhere() bool { return d.proxied != nil || d.client.Readdressed }

// certificate returns the certificate of the client; empty if it has shown
// none, or the one that was shown is that of a proxy which has put another
// client in its place.
func (d *dialog) certificate() string {
	if d.session.TLS == nil || d.client.Readdressed {
		return ""
	}
	return d.session.TLS.ClientCertificate
}

// trustsPeer reports whether the other end of a socket is trusted.
func trustsPeer(t xforward.Trust, p backends.Peer) bool {
	if p.Addr.IsValid() {
		return t.Addr(p.Addr.Addr())
	}
	return t.Unix(p.UID, p.GID)
}

// introduced goes on with the client that PROXY has told.
func (d *dialog) introduced(c *backends.Client) {
	d.proxied, d.session.Client = c, c
	d.judge()
}

// xclient puts another client in the place of the proxy, and begins the
// session anew: XCLIENT_README of Postfix.
func (d *dialog) xclient(args string) smtp.Reply {
	switch {
	case d.tx != nil:
		return reply(503, "5.5.1", "MAIL transaction in progress")
	case args == "":
		return reply(501, "5.5.4", "syntax: XCLIENT attribute=value...")
	case !d.mayXClient:
		return reply(550, "5.7.0", "insufficient authorization")
	}
	if err := d.client.Parse(args); err != nil {
		return reply(501, "5.5.4", err.Error())
	}
	d.forget()
	d.session.Client = d.clientOf(d.client)
	if d.client.Login != "" {
		d.session.User, d.session.Mechanism = d.client.Login, "XCLIENT"
	}
	d.judge()
	if err := d.count(); err != nil {
		return reply(421, "4.7.0", d.hostname+" "+tooManyConnections)
	}
	return d.welcome()
}

// clientOf returns the client that the attributes of XCLIENT tell of. As long
// as they do not tell its address, it is the one that was there before.
func (d *dialog) clientOf(a xforward.ClientAttrs) *backends.Client {
	c := backends.Client{Addr: d.session.Peer.Addr}
	switch {
	case a.Readdressed:
		c.Addr = addrPort(a.Addr, a.Port)
	case d.proxied != nil:
		c = *d.proxied
	}
	c.Source = "XCLIENT"
	c.Name, c.ReverseName, c.HELO, c.Protocol = a.Name, a.ReverseName, a.HELO, a.Proto
	if a.DestAddr != "" {
		c.Local = addrPort(a.DestAddr, a.DestPort)
	}
	return &c
}

// addrPort returns a checked address, if it is known, with its port.
func addrPort(addr, port string) netip.AddrPort {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}
	}
	n, _ := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(ip, uint16(n))
}

// countKey is what connections_per_peer counts the session by: the address of
// the client without its port, or the user; "" if it is known that the client
// is another than the peer, but not which.
func (d *dialog) countKey() string {
	addr := d.session.Peer.Addr
	if d.elsewhere() {
		addr = d.session.Client.Addr
	}
	switch {
	case addr.IsValid():
		return addr.Addr().String()
	case d.elsewhere():
		return ""
	}
	return d.session.Peer.String()
}

// clientName names the client in the log.
func clientName(c *backends.Client) string {
	if !c.Addr.IsValid() {
		return fmt.Sprintf("unknown, by %s", c.Source)
	}
	return c.Addr.String()
}

func (d *dialog) xforwardAttrs(args string) smtp.Reply {
	switch {
	case d.tx != nil:
		return reply(503, "5.5.1", "MAIL transaction in progress")
	case args == "":
		return reply(501, "5.5.4", "syntax: XFORWARD attribute=value...")
	case !d.trusted:
		return reply(550, "5.7.0", "insufficient authorization")
	}
	attrs := xforward.Attrs{}
	if d.xforward != nil {
		attrs = *d.xforward
	}
	if err := attrs.Parse(args); err != nil {
		return reply(501, "5.5.4", err.Error())
	}
	d.xforward = &attrs
	return reply(250, "2.0.0", "ok")
}
