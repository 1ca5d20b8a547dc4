package rspamd

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/mailgw/mailgw/backends"
)

const (
	maxAnswer       = 4 << 20 // octets of an answer; a few thousand are usual
	maxAnswerHeader = 64 << 10

	// maxRecipients is how many octets of the request tell of recipients. rspamd
	// hangs up on one with more than 80 KiB before the message, and forgets
	// recipients after the 1024th (max_recipients).
	maxRecipients = 64 << 10
)

// newTransport has a connection for each request. rspamd closes them anyway,
// and a message can be read once, so that a connection that turns out to be
// closed would cost a message its scan.
func newTransport(network, address string) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

// scan sends the message and returns rspamd's answer. When it returns, the
// message is read no more.
func (b *backend) scan(ctx context.Context, tx *backends.DataContext, m *message) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, b.Timeout)
	text, err := b.post(ctx, tx, m)
	cancel()
	<-m.closed // The transport may outlast an answer that came early.
	switch {
	case err != nil:
		return nil, err
	case m.sent != tx.Size:
		return nil, fmt.Errorf("it answered after %d of %d octets", m.sent, tx.Size)
	}
	return parseAnswer(text)
}

// post returns the text of the answer. It does without http.Client, which would
// follow redirects.
func (b *backend) post(ctx context.Context, tx *backends.DataContext, m *message) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url, m)
	if err != nil {
		m.Close()
		return nil, err
	}
	request.ContentLength = tx.Size
	if tx.Size == 0 { // which would mean that the size is not known
		m.Close()
		request.Body = http.NoBody
	}
	request.Header = b.facts(tx)
	response, err := b.transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %.200q", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		err = fmt.Errorf("the answer has more than %d octets", maxAnswer)
	}
	return text, err
}

// facts are what rspamd is told beside the message. What is not known is left
// out.
func (b *backend) facts(tx *backends.DataContext) http.Header {
	h := http.Header{}
	add := func(name, value string) {
		if value != "" {
			h.Add(name, oneLine(value))
		}
	}
	add("User-Agent", "mailgw")
	add("Password", b.password)
	add("MTA-Name", b.Hostname)
	add("Settings-Id", b.SettingsID)
	add("From", "<"+tx.Envelope.Sender+">")
	to := tx.Envelope.Recipients
	room := maxRecipients
	for _, r := range to {
		if room -= len("Rcpt: <>\r\n") + len(r.Address); room < 0 {
			break
		}
		add("Rcpt", "<"+r.Address+">")
	}
	if len(to) == 1 {
		add("Deliver-To", to[0].Address)
	}
	id := tx.ID
	if x := tx.Session.XForward; x != nil {
		id = cmp.Or(x.Ident, id) // rspamd's log then has the queue id of the MTA
	}
	add("Queue-Id", id)
	c := clientOf(&tx.Session)
	add("IP", c.addr)
	add("Hostname", c.name)
	add("Helo", c.helo)
	add("User", c.user)
	if c.tls != nil {
		add("TLS-Version", c.tls.Version)
		add("TLS-Cipher", c.tls.Cipher)
	}
	return h
}

// A client is who sent the message, as far as it is known.
type client struct {
	addr, name, helo, user string
	tls                    *backends.TLS
}

// clientOf mixes no facts: HELO, user and TLS of a session are not those of a
// client that a proxy tells of by XFORWARD.
func clientOf(s *backends.Session) client {
	var c client
	if addr := s.ClientAddr(); addr.IsValid() {
		c.addr = addr.Unmap().WithZone("").String()
	}
	if x := s.XForward; x != nil && x.Forwarded {
		c.name, c.helo = x.Name, x.HELO
		return c
	}
	c.helo, c.user, c.tls = s.HELO, s.User, s.TLS
	if s.Client != nil {
		c.name, c.helo = s.Client.Name, cmp.Or(s.Client.HELO, s.HELO)
		if s.Client.Source == "XCLIENT" {
			c.tls = nil // the proxy's own
		}
	}
	return c
}

// oneLine returns s in a form that is safe in a field of HTTP.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

// A message is the body of a request. Its fields are to be read when closed is.
type message struct {
	r      io.Reader
	sent   int64
	err    error // why the rest cannot be had
	closed chan struct{}
	close  func()
}

// newMessage puts the header back before the body.
func newMessage(fields [][]byte, body io.Reader) *message {
	parts := make([]io.Reader, 0, len(fields)+1)
	for _, f := range fields {
		parts = append(parts, bytes.NewReader(f))
	}
	m := &message{r: io.MultiReader(append(parts, body)...), closed: make(chan struct{})}
	m.close = sync.OnceFunc(func() { close(m.closed) })
	return m
}

func (m *message) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.sent += int64(n)
	if err != io.EOF {
		m.err = err
	}
	return n, err
}

// Close is called by the transport when it reads no more.
func (m *message) Close() error {
	m.close()
	return nil
}
