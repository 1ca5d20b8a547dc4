package backendtest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// checkEdits finds edits that cannot be applied for the next backend. The
// gateway refuses them and the recipients would get 451.
func (c *call) checkEdits(e backends.Edits) {
	may := backends.EditsOf(c.backend)
	if beyond := e.Kinds() &^ may; beyond != 0 {
		c.faultf("edit: %v, but MayEdit announces %v", beyond, may)
	}
	if routes := backends.DiversionsOf(c.backend); routes != nil {
		for _, route := range e.Diversions {
			if !slices.Contains(routes, route) {
				c.faultf("edit: diversion to %q, but DivertsTo announces %q", route, routes)
			}
		}
	}
	for _, f := range e.Fields {
		if f.Op != backends.AddField && f.At >= c.message.fields {
			c.faultf("edit: there is no header field %d, only %d", f.At, c.message.fields)
		}
	}
	if e.Message != nil {
		if (c.trouble == unreadable || c.trouble == breaksOff) && !c.IgnoresMessage {
			c.faultf("edit: a new message in the place of one that could not be read")
		}
		if err := checkMessage(e.Message); err != nil {
			c.faultf("edit: new message: %v", err)
		}
	}
	if e.Sender != nil && *e.Sender != "" {
		c.checkAddress("sender", *e.Sender)
	}
	if err := smtp.CheckParamsOf("MAIL", e.SenderParams, c.utf8()); err != nil {
		c.faultf("edit: parameters of the sender: %v", err)
	}
	for i, addresses := range e.Redirects {
		for _, a := range addresses {
			c.checkRecipient(fmt.Sprintf("redirect of recipient %d", i), a)
		}
	}
	for _, r := range e.Added {
		c.checkRecipient("added recipient", r.Address)
		if err := smtp.CheckParamsOf("RCPT", r.Params, c.utf8()); err != nil {
			c.faultf("edit: parameters of added recipient %q: %v", r.Address, err)
		}
	}
	if c.Final && e.Added != nil {
		c.faultf("edit: a recipient is added, and no backend follows")
	}
}

// checkRecipient checks what DataContext leaves to the gateway. "postmaster"
// may stand alone: RFC 5321, section 4.5.1.
func (c *call) checkRecipient(what, address string) {
	if !strings.EqualFold(address, "postmaster") {
		c.checkAddress(what, address)
	}
}

func (c *call) checkAddress(what, address string) {
	if _, err := smtp.CheckMailbox(address, c.utf8()); err != nil {
		c.faultf("edit: %s: %q: %v", what, address, err)
	}
}

func (c *call) utf8() bool {
	_, ok := c.tx.Envelope.Params.Lookup("SMTPUTF8")
	return ok
}

// checkMessage reads m to its end. Every CR and LF has to be in a CRLF.
func checkMessage(m backends.Message) error {
	r := io.NewSectionReader(m, 0, m.Size())
	buf := make([]byte, 32<<10)
	var last byte
	for read := int64(0); ; {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if (b == '\n') != (last == '\r') {
				return errors.New("bare CR or LF")
			}
			last = b
		}
		read += int64(n)
		switch {
		case err == io.EOF && last == '\r':
			return errors.New("bare CR at the end")
		case err == io.EOF && read < m.Size():
			return fmt.Errorf("%d octets, and Size says %d", read, m.Size())
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
