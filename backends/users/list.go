package users

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A list is what a users file says.
type list struct {
	lines  []string // all of them, each with its end
	users  []*user
	secret []byte

	byKey map[string]*user
	certs map[string]*user // by fingerprint
	owned map[smtp.Pattern]bool

	// What a login costs everybody, the most that a hash of the file does, and
	// what the verifiers are like of those who have none of their own.
	cost    int
	factors factors
}

// Factors are what a client learns of a verifier.
type factors struct{ iterations, salt int }

// Faults are what is wrong with a users file, each with its place.
type Faults []error

func (f Faults) Error() string { return errors.Join(f...).Error() }

// parse reads the text of the users file path.
func parse(path, text string) (*list, error) {
	l := &list{byKey: map[string]*user{}, certs: map[string]*user{}, owned: map[smtp.Pattern]bool{}}
	var faults Faults
	for line := range strings.Lines(text) {
		l.lines = append(l.lines, line)
		if err := l.add(line); err != nil {
			faults = append(faults, fmt.Errorf("%s:%d: %w", path, len(l.lines), err))
		}
	}
	for _, u := range l.users {
		if !u.scram.IsZero() && l.secret == nil {
			faults = append(faults, fmt.Errorf("%s:%d: scram takes a line with !secret; \"mailgw passwd\" makes one", path, u.line))
			break
		}
	}
	if faults != nil {
		return nil, faults
	}
	l.disguise()
	return l, nil
}

// add takes the last line.
func (l *list) add(line string) error {
	words := strings.Fields(line)
	switch {
	case !strings.HasSuffix(line, "\n"):
		return errors.New("the line has no end, so that some of the file may be missing")
	case len(words) == 0 || words[0][0] == '#':
		return nil
	case words[0] == "!secret":
		return l.addSecret(words[1:])
	case words[0][0] == '!':
		return errors.New("a line with ! that is not \"!secret BASE64\"")
	}
	u, err := parseUser(words)
	if err != nil {
		return err
	}
	u.line = len(l.lines)
	return l.addUser(u)
}

// minSecret is the least that nobody can guess.
const minSecret = 16

func (l *list) addSecret(words []string) error {
	if l.secret != nil {
		return errors.New("a second !secret")
	}
	var err error
	if len(words) == 1 {
		l.secret, err = base64.StdEncoding.DecodeString(words[0])
	}
	if err != nil || len(l.secret) < minSecret {
		l.secret = make([]byte, minSecret) // what is missing is told once
		return fmt.Errorf("!secret wants the base64 of at least %d octets", minSecret)
	}
	return nil
}

func (l *list) addUser(u *user) error {
	if other := l.byKey[u.key]; other != nil {
		return fmt.Errorf("the user is on line %d already", other.line)
	}
	for _, c := range u.certs {
		if other := l.certs[c]; other != nil {
			return fmt.Errorf("cert: the certificate is on line %d already", other.line)
		}
		l.certs[c] = u
	}
	for _, p := range u.patterns {
		l.owned[p] = true
	}
	l.byKey[u.key] = u
	l.users = append(l.users, u)
	return nil
}

// disguise finds out what strangers get.
func (l *list) disguise() {
	often := map[factors]int{}
	l.factors = factors{scramIterations, saltSize}
	for _, u := range l.users {
		l.cost = max(l.cost, u.cost)
		if u.scram.IsZero() {
			continue
		}
		f := factors{u.scram.Iterations, len(u.scram.Salt)}
		if often[f]++; often[f] > often[l.factors] {
			l.factors = f
		}
	}
	if l.cost == 0 {
		l.cost = bcrypt.DefaultCost
	}
}

// falseHash returns a hash that no password is known for.
func falseHash(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", bcryptDigits))
}

// find returns a user by name, or nil.
func (l *list) find(name string) *user {
	key, err := keyOf(name)
	if err != nil {
		return nil
	}
	return l.byKey[key]
}

// byCertificate returns the user whose certificate a client has shown, or nil.
func (l *list) byCertificate(t *backends.TLS) *user {
	switch {
	case t == nil || t.ClientCertificate == "":
		return nil
	case l.certs[t.ClientCertificate] != nil:
		return l.certs[t.ClientCertificate]
	}
	return l.find(t.ClientName)
}

// protects reports whether a sender belongs to a user. Patterns for all
// domains do not count: whoever may send as everybody owns nobody's address.
func (l *list) protects(sender string) bool {
	if sender == "" {
		return false
	}
	exact := smtp.PatternsOf(sender)
	return l.owned[exact[0]] || l.owned[exact[1]]
}

// falseVerifier returns a verifier that fits no password, always the same one
// for a name.
func (l *list) falseVerifier(key string) backends.SCRAMVerifier {
	derive := func(what string, n int) []byte {
		var b []byte
		for i := 0; len(b) < n; i++ {
			mac := hmac.New(sha256.New, l.secret)
			fmt.Fprintf(mac, "%s %d %s", what, i, key)
			b = mac.Sum(b)
		}
		return b[:n]
	}
	return backends.SCRAMVerifier{
		Salt:       derive("salt", l.factors.salt),
		Iterations: l.factors.iterations,
		StoredKey:  derive("stored key", sha256.Size),
		ServerKey:  derive("server key", sha256.Size),
	}
}

// set puts u into the lines, in the place of the user of that name if there
// is one. The list is to be written then, and of no other use.
func (l *list) set(u *user) {
	if old := l.byKey[u.key]; old != nil {
		l.lines[old.line-1] = u.String() + "\n"
		return
	}
	l.append(u.String())
}

// append puts a line at the end.
func (l *list) append(line string) { l.lines = append(l.lines, line+"\n") }

// remove takes u out of the lines.
func (l *list) remove(u *user) { l.lines = slices.Delete(l.lines, u.line-1, u.line) }

func (l *list) String() string { return strings.Join(l.lines, "") }
