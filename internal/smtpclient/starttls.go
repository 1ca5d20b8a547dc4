package smtpclient

import (
	"context"
	"crypto/tls"
	"errors"
)

// StartTLS begins TLS (RFC 3207), and the session anew: what the server has
// announced before is forgotten.
func (c *Conn) StartTLS(ctx context.Context, config *tls.Config) error {
	defer c.during(ctx)()
	if !c.announces("STARTTLS") {
		return &Error{Stage: STARTTLS, Err: errors.New("the server does not announce it")}
	}
	if _, err := c.command(STARTTLS, "STARTTLS"); err != nil {
		return err
	}
	if c.r.Buffered() > 0 {
		// Somebody in the middle may have said it, to be taken for what the
		// server says over TLS.
		return c.fail(STARTTLS, errors.New("text in clear after the reply"))
	}
	conn := tls.Client(c.raw, config)
	err := c.await(c.timeout(STARTTLS))
	if err == nil {
		err = conn.Handshake()
	}
	if err != nil {
		return c.fail(STARTTLS, err)
	}
	c.use(conn)
	return c.ehlo()
}

// secure reports whether nobody else can read what is said.
func (c *Conn) secure() bool {
	return c.TLS() != nil || c.raw.LocalAddr().Network() == "unix"
}
