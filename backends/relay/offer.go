package relay

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/internal/smtpclient"
)

// An offer is what a target can do, as it has announced it on a connection.
type offer struct {
	extensions map[string]string // by keyword, in upper case

	// secure says that the connection has TLS, and the target a certificate for
	// its name. A unix socket has neither.
	secure bool
}

func offerOf(c *smtpclient.Conn) offer {
	o := offer{extensions: map[string]string{}}
	for _, keyword := range c.Keywords() {
		o.extensions[keyword], _ = c.Extension(keyword)
	}
	if state := c.TLS(); state != nil {
		o.secure = len(state.VerifiedChains) > 0
	}
	return o
}

func (o offer) has(keyword string) bool {
	_, ok := o.extensions[keyword]
	return ok
}

// size returns the size of the largest message that the target takes, 0 if it
// tells of none (RFC 1870, section 3).
func (o offer) size() int64 {
	n, _ := strconv.ParseInt(strings.TrimSpace(o.extensions["SIZE"]), 10, 64)
	return max(n, 0)
}

// limit returns a limit of RFC 9422, 0 if there is none.
func (o offer) limit(name string) int {
	for word := range strings.FieldsSeq(o.extensions["LIMITS"]) {
		if key, value, _ := strings.Cut(word, "="); strings.EqualFold(key, name) {
			n, _ := strconv.Atoi(value)
			return max(n, 0)
		}
	}
	return 0
}

// capabilities returns what the relay can do with such a target.
func (o offer) capabilities() backends.Capabilities {
	return backends.Capabilities{
		Size:         o.size(),
		EightBitMIME: o.has("8BITMIME"),
		SMTPUTF8:     o.has("SMTPUTF8"),
		BinaryMIME:   o.has("BINARYMIME") && o.has("CHUNKING"),
		DSN:          o.has("DSN"),
		RequireTLS:   o.has("REQUIRETLS") && o.secure,
		Digest:       true,
		Relays:       true,
	}
}

// What a message gets that the next hop cannot take as it is. Nothing is ever
// converted on its way.
var (
	tooLarge = backends.NewStatus(552, "5.3.4", "message is larger than the next hop takes") // RFC 1870, section 6.1

	noEightBit = backends.NewStatus(554, "5.6.3", "the next hop takes no 8-bit message, and none is converted")  // RFC 6152, section 3
	noBinary   = backends.NewStatus(554, "5.6.3", "the next hop takes no binary message, and none is converted") // RFC 3030, section 3

	// RFC 6531, section 3.5.
	noUTF8Address = backends.NewStatus(553, "5.6.7", "the next hop takes no address beyond US-ASCII")
	noUTF8Header  = backends.NewStatus(554, "5.6.9", "the next hop takes no header beyond US-ASCII")

	noRequireTLS = backends.NewStatus(550, "5.7.30", "REQUIRETLS is not supported by the next hop") // RFC 8689, section 4.2.1

	// RFC 3461, section 5.2.2 (b): who relays to a server without DSN has to
	// tell a sender who wants to hear of success. The relay cannot. A client
	// that comes again finds DSN no longer announced, and does so itself.
	noSuccess = backends.NewStatus(451, "4.3.3", "the next hop cannot notify of success")
)

// refuses returns what a whole message gets that the target cannot take, as far as
// that is known before it is read; the zero Status if it can.
func (o offer) refuses(tx *backends.DataContext) backends.Status {
	params := tx.Envelope.Params
	body, _ := params.Lookup("BODY")
	_, requireTLS := params.Lookup("REQUIRETLS")
	switch can := o.capabilities(); {
	case can.Size > 0 && tx.Size > can.Size:
		return tooLarge
	case requireTLS && !can.RequireTLS:
		return noRequireTLS
	case strings.EqualFold(body, "BINARYMIME") && !can.BinaryMIME:
		return noBinary
	case !smtp.IsASCII(tx.Envelope.Sender) && !can.SMTPUTF8:
		return noUTF8Address
	}
	return backends.Status{}
}

// refusesRecipient returns what one recipient gets.
func (o offer) refusesRecipient(r backends.Recipient) backends.Status {
	notify, _ := r.Params.Lookup("NOTIFY")
	switch {
	case !smtp.IsASCII(r.Address+strings.Join(r.Params, "")) && !o.has("SMTPUTF8"):
		return noUTF8Address
	case strings.Contains(strings.ToUpper(notify), "SUCCESS") && !o.has("DSN"):
		return noSuccess
	}
	return backends.Status{}
}

// keywordOf has the extensions of the parameters that are not called the same.
// What is on no list of RFCs, XVERP of Postfix for one, is.
var keywordOf = map[string]string{
	"BODY":      "8BITMIME",      // RFC 6152, RFC 3030
	"RET":       "DSN",           // RFC 3461
	"ENVID":     "DSN",           // RFC 3461
	"NOTIFY":    "DSN",           // RFC 3461
	"ORCPT":     "DSN",           // RFC 3461
	"BY":        "DELIVERBY",     // RFC 2852
	"HOLDFOR":   "FUTURERELEASE", // RFC 4865
	"HOLDUNTIL": "FUTURERELEASE", // RFC 4865
}

// known returns those parameters whose extension the target announces. The
// listener announces none but those that can be refused above, so that the
// others come only from clients that send what nobody offered: without an
// extension they would be of no effect there either.
func (o offer) known(params backends.Params) (kept []string) {
	for _, p := range params {
		keyword, value, _ := strings.Cut(p, "=")
		keyword = strings.ToUpper(keyword)
		extension, ok := keywordOf[keyword]
		if !ok {
			extension = keyword
		}
		if keyword == "BODY" && strings.EqualFold(value, "BINARYMIME") {
			extension = "BINARYMIME"
		}
		if o.has(extension) {
			kept = append(kept, p)
		}
	}
	return kept
}

// ofHop are the parameters of MAIL that are between a client and its server, so
// that the target gets our own or none. PRDR has the server answer for each
// recipient, which we do: to us the target gives one answer for all.
var ofHop = map[string]bool{"SIZE": true, "AUTH": true, "PRDR": true}

// mailParams returns the parameters of MAIL as the target gets them.
func (o offer) mailParams(tx *backends.DataContext) []string {
	params := slices.DeleteFunc(slices.Clone(tx.Envelope.Params), func(p string) bool {
		keyword, _, _ := strings.Cut(p, "=")
		return ofHop[strings.ToUpper(keyword)]
	})
	all := o.known(params)
	if o.has("SIZE") {
		all = append(all, fmt.Sprint("SIZE=", tx.Size))
	}
	if auth, ok := tx.Envelope.Params.Lookup("AUTH"); ok && o.has("AUTH") {
		all = append(all, "AUTH="+authOf(&tx.Session, auth))
	}
	return all
}

// authOf returns who has submitted a message as the target hears of it: RFC
// 4954, section 5. That is what the client says if there is reason to believe
// it, because it has proved who it is, or is a proxy that is trusted.
func authOf(s *backends.Session, auth string) string {
	if s.User != "" || s.XForward != nil {
		return auth
	}
	return "<>"
}
