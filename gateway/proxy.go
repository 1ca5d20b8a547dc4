package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/mailgw/mailgw/backends"
)

// proxyTimeout is how long a proxy may take for its header, which it sends at
// once. Postfix has 5 seconds, too (smtpd_upstream_proxy_timeout).
const proxyTimeout = 5 * time.Second

// readProxy reads the header of the PROXY protocol, in either version. It
// returns nil for a connection of the proxy's own, and a client of whom nothing
// is known if the proxy says so.
func readProxy(r *bufio.Reader) (*backends.Client, error) {
	if err := awaitLine(r); err != nil {
		return nil, err
	}
	h, err := proxyproto.Read(r)
	switch {
	case err != nil:
		return nil, err
	case h.Version == 1 && h.TransportProtocol.IsUnspec(): // UNKNOWN
		return &backends.Client{Source: "PROXY"}, nil
	case h.Command.IsLocal():
		return nil, nil
	case !h.TransportProtocol.IsStream():
		return nil, errors.New("proxy: not a stream")
	}
	c := &backends.Client{Source: "PROXY", Addr: tcpAddr(h.SourceAddr), Local: tcpAddr(h.DestinationAddr)}
	tlvs, err := h.TLVs()
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	for _, t := range tlvs {
		c.TLVs = append(c.TLVs, backends.TLV{Type: byte(t.Type), Value: t.Value})
	}
	return c, nil
}

// awaitLine waits until a header of version 1 is in the buffer to its end. The
// library does not take one that comes in pieces, which a network may make of
// it. What cannot be such a header is not waited for.
func awaitLine(r *bufio.Reader) error {
	const begin, longest = "PROXY ", 107
	for n := 1; n <= longest; n++ {
		read, err := r.Peek(n)
		if err != nil {
			return err
		}
		if last := read[n-1]; last == '\n' || n <= len(begin) && last != begin[n-1] {
			return nil
		}
	}
	return nil
}

// tcpAddr returns the zero AddrPort for what is no address of TCP.
func tcpAddr(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// introduce hears from a proxy whom it speaks for. Until then nothing is said:
// the one who would hear it is not known.
func (c *conn) introduce() error {
	c.expect(c.soonest(time.Now(), min(proxyTimeout, c.Limits.CommandTimeout)), true)
	client, err := readProxy(c.r)
	if errors.Is(err, io.EOF) && c.r.Buffered() == 0 {
		c.debug("disconnected") // to see whether somebody listens
		return err
	}
	if err != nil {
		c.log().Info("refused", "reason", "PROXY", "error", cause(err))
		return err
	}
	if client != nil {
		c.introduced(client)
	}
	if err := c.count(); err != nil {
		c.log().Info("refused", "reason", err.Error())
		if c.TLS.Mode != "implicit" { // else nobody could read it
			c.say(c.farewell("4.7.0", tooManyConnections))
		}
		return err
	}
	return nil
}

// readAhead is a socket of which something was read already.
type readAhead struct {
	net.Conn
	r io.Reader
}

func (s readAhead) Read(p []byte) (int, error) { return s.r.Read(p) }

// ahead returns the socket with what is in the buffer before it.
func (c *conn) ahead() net.Conn {
	read, _ := c.r.Peek(c.r.Buffered())
	return readAhead{c.socket, io.MultiReader(bytes.NewReader(bytes.Clone(read)), c.socket)}
}
