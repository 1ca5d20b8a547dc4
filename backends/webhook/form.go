package webhook

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/textproto"
	"strconv"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// A form is what is posted for a transaction, any number of times.
type form struct {
	envelope    []byte
	key         string // of idempotency
	signature   string // if there is a secret
	contentType string
	head, tail  []byte // of the body, around the message
	message     *message
}

func newForm(tx *backends.DataContext, m *message) (*form, error) {
	e := describe(tx, m)
	envelope, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	w := multipart.NewWriter(&text) // its boundary is random, and in no message
	addPart(w, `form-data; name="envelope"`, "application/json")
	text.Write(envelope)
	addPart(w, `form-data; name="message"; filename="message.eml"`, "message/rfc822")
	head := text.Len()
	w.Close()
	return &form{
		envelope: envelope, key: e.IdempotencyKey, contentType: w.FormDataContentType(),
		head: text.Bytes()[:head], tail: text.Bytes()[head:], message: m,
	}, nil
}

// addPart begins a part. A bytes.Buffer takes everything.
func addPart(w *multipart.Writer, disposition, contentType string) {
	w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {disposition}, "Content-Type": {contentType}})
}

// body returns the body of a request.
func (f *form) body() io.Reader {
	return io.MultiReader(bytes.NewReader(f.head), f.message.Reader(), bytes.NewReader(f.tail))
}

func (f *form) size() int64 { return int64(len(f.head)) + f.message.size + int64(len(f.tail)) }

// sign makes the signature of the form.
func (f *form) sign(secret []byte, now time.Time) {
	t := strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%s.%s", t, f.envelope, f.message.sha256)
	f.signature = "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}

// An envelope is the field of that name, as the package comment has it.
type envelope struct {
	Transaction    string       `json:"transaction"`
	IdempotencyKey string       `json:"idempotency_key"`
	Ident          string       `json:"ident"`
	Session        session      `json:"session"`
	Client         client       `json:"client"`
	Sender         sender       `json:"sender"`
	Recipients     []recipient  `json:"recipients"`
	Message        aboutMessage `json:"message"`
}

type session struct {
	ID        string  `json:"id"`
	Listener  string  `json:"listener"`
	Peer      string  `json:"peer"`
	User      string  `json:"user"`
	Mechanism string  `json:"mechanism"`
	TLS       *agreed `json:"tls"`
}

type agreed struct {
	Version           string `json:"version"`
	Cipher            string `json:"cipher"`
	ServerName        string `json:"server_name"`
	ClientCertificate string `json:"client_certificate"`
	ClientName        string `json:"client_name"`
}

type client struct {
	Address  string `json:"address"`
	Name     string `json:"name"`
	HELO     string `json:"helo"`
	Protocol string `json:"protocol"`
}

type sender struct {
	Address string   `json:"address"`
	Params  []string `json:"params"`
}

type recipient struct {
	Index   int      `json:"index"`
	Address string   `json:"address"`
	Params  []string `json:"params"`
}

type aboutMessage struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// describe returns the envelope of a transaction.
func describe(tx *backends.DataContext, m *message) envelope {
	e := envelope{
		Transaction: tx.ID,
		Session:     describeSession(&tx.Session),
		Client:      clientOf(&tx.Session),
		Sender:      sender{tx.Envelope.Sender, list(tx.Envelope.Params)},
		Recipients:  []recipient{},
		Message:     aboutMessage{m.size, m.sha256},
	}
	if x := tx.Session.XForward; x != nil {
		e.Ident = x.Ident
	}
	for i, r := range tx.Envelope.Recipients {
		e.Recipients = append(e.Recipients, recipient{i, r.Address, list(r.Params)})
	}
	e.IdempotencyKey = e.key()
	return e
}

// list returns parameters, none as a list without elements.
func list(params backends.Params) []string { return append([]string{}, params...) }

// key returns a hash of what is the same when a client sends a message again.
func (e *envelope) key() string {
	text, _ := json.Marshal([]any{e.Ident, e.Sender, e.Recipients, e.Message}) // strings and numbers, which never fail
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func describeSession(s *backends.Session) session {
	described := session{ID: s.ID, Listener: s.Listener, Peer: s.Peer.String(), User: s.User, Mechanism: s.Mechanism}
	if s.TLS != nil {
		described.TLS = (*agreed)(s.TLS)
	}
	return described
}

// clientOf returns what is known of the client, by XForward, else by Client,
// else by what the peer said.
func clientOf(s *backends.Session) client {
	c := client{HELO: s.HELO, Protocol: s.Protocol}
	if addr := s.ClientAddr(); addr.IsValid() {
		c.Address = addr.String()
	}
	switch x := s.XForward; {
	case x != nil && x.Forwarded:
		c.Name, c.HELO, c.Protocol = x.Name, x.HELO, x.Proto
	case s.Client != nil:
		c.Name = s.Client.Name
		c.HELO = cmp.Or(s.Client.HELO, s.HELO)
		c.Protocol = cmp.Or(s.Client.Protocol, s.Protocol)
	}
	return c
}
