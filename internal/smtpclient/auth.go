package smtpclient

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"

	"github.com/mailgw/mailgw/internal/smtp"
)

// Credentials are what Auth needs.
type Credentials struct {
	User, Password string

	// InClear lets the password go over a connection that others can read.
	InClear bool
}

// mechanisms are those that Auth knows, the best first.
var mechanisms = []struct {
	name    string
	inClear bool // sends the password
	client  func(user, password string) (sasl.Client, error)
}{
	{"SCRAM-SHA-256", false, newScramClient},
	{"PLAIN", true, func(user, password string) (sasl.Client, error) { return sasl.NewPlainClient("", user, password), nil }},
	{"LOGIN", true, func(user, password string) (sasl.Client, error) { return &loginClient{user, password}, nil }},
}

// Auth authenticates (RFC 4954) with the best mechanism that the server
// announces: SCRAM-SHA-256, PLAIN or LOGIN. The last two send the password, and
// so do it over TLS or a unix socket only, unless it may go in clear.
func (c *Conn) Auth(ctx context.Context, credentials Credentials) error {
	defer c.during(ctx)()
	if c.broken != nil {
		return c.broken
	}
	offered := c.Words("AUTH")
	for _, m := range mechanisms {
		if !slices.Contains(offered, m.name) || m.inClear && !credentials.InClear && !c.secure() {
			continue
		}
		client, err := m.client(credentials.User, credentials.Password)
		if err != nil {
			return &Error{Stage: AUTH, Err: err}
		}
		return c.authenticate(client)
	}
	return &Error{Stage: AUTH, Err: fmt.Errorf("the server offers %q, which cannot be used here", strings.Join(offered, " "))}
}

// maxInitial is how long an initial response may be, so that the command has
// no more than 512 octets: RFC 4954, section 4.
const maxInitial = 480

func (c *Conn) authenticate(client sasl.Client) error {
	name, response, err := client.Start()
	if err != nil {
		return &Error{Stage: AUTH, Err: err}
	}
	command := line{stage: AUTH, text: "AUTH " + name}
	initial := response != nil && base64.StdEncoding.EncodedLen(len(response)) <= maxInitial
	if initial {
		command.trace = command.text + " ***"
		command.text += " " + cmp.Or(base64.StdEncoding.EncodeToString(response), "=")
	}
	c.say(command)
	for held := response != nil && !initial; ; held = false {
		reply, err := c.expect(AUTH, challenge)
		if err != nil {
			return err
		}
		if reply.Code != 334 {
			return c.mutual(client)
		}
		if !held {
			response, err = respond(client, reply)
		}
		if err != nil {
			return c.cancel(err)
		}
		c.say(line{stage: AUTH, text: base64.StdEncoding.EncodeToString(response), trace: "***"})
	}
}

// respond returns the response to a challenge.
func respond(client sasl.Client, reply smtp.Reply) ([]byte, error) {
	challenge, err := base64.StdEncoding.DecodeString(reply.Text)
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	return client.Next(challenge)
}

// cancel ends an exchange that makes no sense: RFC 4954, section 4.
func (c *Conn) cancel(err error) error {
	c.say(line{stage: AUTH, text: "*"})
	c.hear(AUTH)
	return &Error{Stage: AUTH, Err: err}
}

// mutual wants that the server has proved who it is, where the mechanism has
// it do so.
func (c *Conn) mutual(client sasl.Client) error {
	if s, ok := client.(*scramClient); ok && !s.conversation.Valid() {
		return c.fail(AUTH, errors.New("the server has not proved that it knows the user"))
	}
	return nil
}

// A loginClient answers the two questions of LOGIN, however they are worded.
type loginClient struct{ user, password string }

func (l *loginClient) Start() (name string, initial []byte, err error) { return "LOGIN", nil, nil }

func (l *loginClient) Next([]byte) (response []byte, err error) {
	if l.password == "" {
		return nil, sasl.ErrUnexpectedServerChallenge
	}
	if l.user == "" {
		response, l.password = []byte(l.password), ""
		return response, nil
	}
	response, l.user = []byte(l.user), ""
	return response, nil
}

// A scramClient is the mechanism SCRAM-SHA-256 (RFC 5802, RFC 7677).
type scramClient struct{ conversation *scram.ClientConversation }

func newScramClient(user, password string) (sasl.Client, error) {
	client, err := scram.SHA256.NewClient(user, password, "")
	if err != nil {
		return nil, err
	}
	return &scramClient{client.NewConversation()}, nil
}

func (s *scramClient) Start() (name string, initial []byte, err error) {
	first, err := s.conversation.Step("")
	return "SCRAM-SHA-256", []byte(first), err
}

// iterations finds how much work the server wants, and maxIterations bounds it.
var iterations = regexp.MustCompile(`,i=([0-9]+)`)

const maxIterations = 1_000_000 // less than a second

func (s *scramClient) Next(challenge []byte) (response []byte, err error) {
	if m := iterations.FindSubmatch(challenge); m != nil {
		if n, err := strconv.Atoi(string(m[1])); err != nil || n > maxIterations {
			return nil, fmt.Errorf("the server wants %s iterations, which are too many", m[1])
		}
	}
	next, err := s.conversation.Step(string(challenge))
	return []byte(next), err
}
