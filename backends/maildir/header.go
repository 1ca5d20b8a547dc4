package maildir

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// header returns the fields that are put before the message for one
// recipient, by the settings.
func (b *backend) header(tx *backends.DataContext, to string) string {
	var h strings.Builder
	if b.ReturnPath {
		fmt.Fprintf(&h, "Return-Path: <%s>\r\n", oneLine(tx.Envelope.Sender))
	}
	if b.DeliveredTo {
		fmt.Fprintf(&h, "Delivered-To: %s\r\n", oneLine(to))
	}
	if b.Received {
		h.WriteString(received(tx, b.Hostname, time.Now()))
	}
	return h.String()
}

// received returns the trace field of a transaction: RFC 5321, section 4.4.
// With several recipients it names none of them, since each would learn of
// the others.
func received(tx *backends.DataContext, by string, now time.Time) string {
	c := clientOf(tx.Session)
	var h strings.Builder
	fmt.Fprintf(&h, "Received: from %s", word(c.helo))
	if info := c.tcpInfo(); info != "" {
		fmt.Fprintf(&h, " (%s)", info)
	}
	fmt.Fprintf(&h, "\r\n\tby %s", by)
	if c.protocol != "" {
		fmt.Fprintf(&h, " with %s", word(c.protocol))
	}
	fmt.Fprintf(&h, " id %s", word(tx.ID))
	if r := tx.Envelope.Recipients; len(r) == 1 && len(r[0].Address) < longestWord {
		fmt.Fprintf(&h, "\r\n\tfor <%s>", oneLine(r[0].Address))
	}
	fmt.Fprintf(&h, ";\r\n\t%s\r\n", now.Format("Mon, 2 Jan 2006 15:04:05 -0700"))
	return h.String()
}

// A client is who sent the message: the one that a trusted proxy told of, or
// else the peer. What is not known is empty.
type client struct{ helo, name, addr, protocol string }

func clientOf(s backends.Session) client {
	if x := s.XForward; x != nil && x.Forwarded {
		return client{x.HELO, x.Name, x.Addr, x.Proto}
	}
	c := client{helo: s.HELO, addr: s.ClientAddr().String(), protocol: s.Protocol}
	if s.Client != nil {
		c.helo, c.name = cmp.Or(s.Client.HELO, s.HELO), s.Client.Name
	}
	return c
}

// tcpInfo returns "name [192.0.2.1]" or what is known of it.
func (c client) tcpInfo() string {
	var info []string
	if c.name != "" {
		info = append(info, word(c.name))
	}
	if addr, err := netip.ParseAddr(c.addr); err == nil {
		addr = addr.Unmap().WithZone("")
		literal := "[" + addr.String() + "]"
		if addr.Is6() {
			literal = "[IPv6:" + addr.String() + "]"
		}
		info = append(info, literal)
	}
	return strings.Join(info, " ")
}

const longestWord = 255

// word returns what a stranger said in a form that cannot break out of its
// place in a field.
func word(s string) string {
	if s == "" {
		return "unknown"
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(`()<>@,;\"`, r) {
			return '?'
		}
		return r
	}, s[:min(len(s), longestWord)])
}

// oneLine returns an address without control characters, which none has that
// came in SMTP.
func oneLine(address string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, address)
}
