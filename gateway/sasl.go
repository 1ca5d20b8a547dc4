package gateway

import (
	"cmp"
	"errors"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"

	"github.com/mailgw/mailgw/backends"
)

// loginServer is the mechanism LOGIN, which no RFC defines: it asks for the
// user, and then for the password. Outlook still wants it.
type loginServer struct {
	authenticate func(identity, user, password string) error
	asked        int
	user         string
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if response != nil && l.asked == 0 {
		l.asked = 1 // the initial response is the user
	}
	l.asked++
	switch l.asked {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		l.user = string(response)
		return []byte("Password:"), false, nil
	case 3:
		return nil, true, l.authenticate("", l.user, string(response))
	}
	return nil, false, sasl.ErrUnexpectedClientResponse
}

// scramServer is the mechanism SCRAM-SHA-256 (RFC 5802, RFC 7677).
type scramServer struct {
	conversation *scram.ServerConversation
	accept       func(user string)
	user         string // whose verifier it is
	failed       error  // of lookup
}

// newSCRAMServer calls accept with the user who has proved to know the
// password that fits what lookup returns.
func newSCRAMServer(lookup func(user string) (backends.SCRAMVerifier, error), accept func(user string)) sasl.Server {
	s := &scramServer{accept: accept}
	server, err := scram.SHA256.NewServer(func(user string) (scram.StoredCredentials, error) {
		v, err := lookup(user)
		s.user, s.failed = cmp.Or(v.User, user), err
		return scram.StoredCredentials{
			KeyFactors: scram.KeyFactors{Salt: string(v.Salt), Iters: v.Iterations},
			StoredKey:  v.StoredKey,
			ServerKey:  v.ServerKey,
		}, err
	})
	if err != nil {
		panic(err) // NewServer has none to give
	}
	s.conversation = server.NewConversation()
	return s
}

func (s *scramServer) Next(response []byte) (challenge []byte, done bool, err error) {
	c := s.conversation
	switch {
	case response == nil:
		return nil, false, nil
	case c.Valid():
		// The client has checked the server's proof, and has nothing to say.
		if len(response) > 0 {
			return nil, false, sasl.ErrUnexpectedClientResponse
		}
		s.accept(s.user)
		return nil, true, nil
	}
	first := c.Username() == ""
	message, err := c.Step(string(response))
	switch {
	case s.failed != nil:
		return nil, false, s.failed
	case err != nil && first:
		return nil, false, err
	case err != nil:
		return nil, false, errors.Join(backends.BadCredentials, err)
	case c.Valid() && c.AuthzID() != "" && c.AuthzID() != c.Username() && c.AuthzID() != s.user: // after the proof, so that nobody learns who exists
		return nil, false, backends.BadCredentials
	}
	return []byte(message), false, nil
}
