package users

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/xdg-go/stringprep"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// A user is what a line of the file says.
type user struct {
	line int
	name string // in the form of SASLprep
	key  string // in the form in which names are compared

	bcrypt string
	cost   int // of bcrypt
	scram  backends.SCRAMVerifier
	certs  []string // SHA-256 in lower case, without colons
	sendAs []string

	patterns []smtp.Pattern // of sendAs and, if it is an address, the name
}

// fields are what may follow a name, with how they are read.
var fields = map[string]func(u *user, value string) error{
	"bcrypt":  (*user).setBcrypt,
	"scram":   (*user).setSCRAM,
	"cert":    (*user).addCert,
	"send-as": (*user).addSendAs,
}

const fieldsWanted = "bcrypt=, scram=, cert= or send-as="

// parseUser reads the words of a line. Its errors show none of them, not even the
// name: who forgets a space or breaks a line has a hash there, and logs are read
// by more people than the file.
func parseUser(words []string) (*user, error) {
	u, err := newUser(words[0])
	if err != nil {
		return nil, err
	}
	for _, word := range words[1:] {
		field, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, errors.New("a word without =; want " + fieldsWanted)
		}
		set, ok := fields[field]
		if !ok {
			return nil, errors.New("unknown field; want " + fieldsWanted)
		}
		if err := set(u, value); err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
	}
	return u, nil
}

// newUser returns a user with nothing but a name.
func newUser(name string) (*user, error) {
	prepared, err := prepare(name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the name of the user has %w", err)
	case prepared == "":
		return nil, errors.New("the name of the user is empty")
	case strings.ContainsFunc(prepared, unicode.IsSpace):
		return nil, errors.New("the name of the user has a space")
	case strings.ContainsAny(prepared[:1], `#!"@`), strings.HasSuffix(prepared, "@"):
		return nil, errors.New(`the name of a user may not begin with #, !, " or @, nor end with @`)
	case strings.ContainsAny(prepared, "=$:"):
		// A line of htpasswd or of /etc/shadow, or a field without its user.
		return nil, errors.New("the name of a user may not have =, $ or : in it")
	}
	u := &user{name: prepared, key: fold(prepared)}
	if address, err := smtp.CheckMailbox(prepared, true); err == nil && address == prepared {
		u.patterns = smtp.PatternsOf(address)[:1]
	}
	return u, nil
}

// keyOf returns the form in which a name is compared.
func keyOf(name string) (string, error) {
	name, err := prepare(name)
	return fold(name), err
}

// prepare is SASLprep (RFC 4013). Its errors do not show the text, which may
// be a password.
func prepare(text string) (string, error) {
	prepared, err := stringprep.SASLprep.Prepare(text)
	if err != nil {
		return "", errors.New("a character that SASLprep (RFC 4013) does not allow, such as a control character or an emoji, or left-to-right text mixed with right-to-left")
	}
	return prepared, nil
}

func fold(name string) string {
	local, domain := smtp.FoldMailbox(name)
	return local + "@" + domain
}

// bcryptDigits are the digits of a bcrypt hash after its cost: 22 of the salt,
// and 31 of the hash.
const bcryptDigits = 53

// bcryptHash matches what Go, PHP and Apache write. $2x$ stands for a fault of
// an old implementation.
var bcryptHash = regexp.MustCompile(fmt.Sprintf(`^\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{%d}$`, bcryptDigits))

// A comparison at the highest cost takes a few seconds, which is all that a
// client may have to wait. It cannot be broken off.
const minCost, maxCost = 4, 16

func (u *user) setBcrypt(value string) error {
	match := bcryptHash.FindStringSubmatch(value)
	switch {
	case u.bcrypt != "":
		return errTwice
	case match == nil:
		return errors.New("no bcrypt hash; want $2b$10$ and 53 characters")
	}
	u.bcrypt = value
	u.cost, _ = strconv.Atoi(match[1])
	if u.cost < minCost || u.cost > maxCost {
		return fmt.Errorf("cost %d is not within %d to %d", u.cost, minCost, maxCost)
	}
	return nil
}

var errTwice = errors.New("given twice")

const scramName = "SCRAM-SHA-256"

// minIterations is of RFC 7677, section 4. Clients refuse fewer.
const minIterations = 4096

func (u *user) setSCRAM(value string) error {
	if !u.scram.IsZero() {
		return errTwice
	}
	parts := strings.FieldsFunc(value, func(r rune) bool { return r == '$' || r == ':' })
	if len(parts) != 5 || value != fmt.Sprintf("%s$%s:%s$%s:%s", parts[0], parts[1], parts[2], parts[3], parts[4]) || parts[0] != scramName {
		return errors.New("no verifier; want " + scramName + "$ITERATIONS:SALT$STOREDKEY:SERVERKEY")
	}
	iterations, err := strconv.ParseUint(parts[1], 10, 31)
	if err != nil || iterations < minIterations {
		return fmt.Errorf("want at least %d iterations", minIterations)
	}
	v := backends.SCRAMVerifier{Iterations: int(iterations)}
	for i, octets := range []*[]byte{&v.Salt, &v.StoredKey, &v.ServerKey} {
		if *octets, err = base64.StdEncoding.Strict().DecodeString(parts[2+i]); err != nil {
			return errors.New("the salt or a key is not base64")
		}
	}
	if len(v.StoredKey) != sha256.Size || len(v.ServerKey) != sha256.Size {
		return fmt.Errorf("a key that has not %d octets", sha256.Size)
	}
	u.scram = v
	return nil
}

func (u *user) addCert(value string) error {
	sum, err := hex.DecodeString(strings.ReplaceAll(value, ":", ""))
	if err != nil || len(sum) != sha256.Size {
		return errors.New("want the 64 hexadecimal digits of a SHA-256")
	}
	u.certs = append(u.certs, hex.EncodeToString(sum))
	return nil
}

func (u *user) addSendAs(value string) error {
	p, err := smtp.ParsePattern(value)
	switch {
	case err != nil:
		return err
	case strings.ContainsFunc(value, unicode.IsSpace):
		return errors.New("a space")
	}
	u.sendAs = append(u.sendAs, value)
	u.patterns = append(u.patterns, p)
	return nil
}

// owns reports whether u may send as sender. Nobody, nil, may not.
func (u *user) owns(sender string) bool {
	return u != nil && slices.ContainsFunc(smtp.PatternsOf(sender), func(p smtp.Pattern) bool {
		return slices.Contains(u.patterns, p)
	})
}

// String returns the line that parses as u, without its end.
func (u *user) String() string {
	words := []string{u.name}
	if u.bcrypt != "" {
		words = append(words, "bcrypt="+u.bcrypt)
	}
	if v := u.scram; !v.IsZero() {
		encode := base64.StdEncoding.EncodeToString
		words = append(words, fmt.Sprintf("scram=%s$%d:%s$%s:%s", scramName, v.Iterations, encode(v.Salt), encode(v.StoredKey), encode(v.ServerKey)))
	}
	for _, c := range u.certs {
		words = append(words, "cert="+c)
	}
	for _, p := range u.sendAs {
		words = append(words, "send-as="+p)
	}
	return strings.Join(words, " ")
}
