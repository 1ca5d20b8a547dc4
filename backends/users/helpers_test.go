package users

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/xdg-go/scram"
	"golang.org/x/crypto/bcrypt"

	"github.com/mailgw/mailgw/backends"
)

const (
	secretLine = "!secret MDEyMzQ1Njc4OWFiY2RlZg==\n"
	annsCert   = "aa11223344556677889900aabbccddeeff00112233445566778899aabbccddee"
)

// usersFile writes a users file and returns its path.
func usersFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newBackend returns a backend with these users, whose last line may lack its
// end. senders is of the Settings.
func newBackend(t *testing.T, text, senders string) *backend {
	t.Helper()
	b, err := New(Settings{File: usersFile(t, text+"\n"), Senders: senders})
	if err != nil {
		t.Fatal(err)
	}
	return b.(*backend)
}

// bcryptField and scramField return fields for a password that cost little.
func bcryptField(password string, cost int) string {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		panic(err)
	}
	return " bcrypt=" + string(hash)
}

func scramField(password, salt string, iterations int) string {
	client, err := scram.SHA256.NewClient("", password, "")
	if err != nil {
		panic(err)
	}
	kept, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: salt, Iters: iterations})
	if err != nil {
		panic(err)
	}
	u := user{scram: backends.SCRAMVerifier{Salt: []byte(salt), Iterations: iterations, StoredKey: kept.StoredKey, ServerKey: kept.ServerKey}}
	return u.String()
}

// scramLogin reports whether a client with that password and a server with the
// verifier of b come to terms.
func scramLogin(t *testing.T, b *backend, name, password string) bool {
	t.Helper()
	server, err := scram.SHA256.NewServer(func(name string) (scram.StoredCredentials, error) {
		v, err := b.SCRAMVerifier(t.Context(), &backends.Session{}, name)
		return scram.StoredCredentials{
			KeyFactors: scram.KeyFactors{Salt: string(v.Salt), Iters: v.Iterations},
			StoredKey:  v.StoredKey,
			ServerKey:  v.ServerKey,
		}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	client, err := scram.SHA256.NewClient(name, password, "")
	if err != nil {
		t.Fatal(err)
	}
	c, s := client.NewConversation(), server.NewConversation()
	message := ""
	for !c.Done() {
		if message, err = c.Step(message); err != nil {
			break
		}
		if message, err = s.Step(message); err != nil {
			break
		}
	}
	return s.Valid() && c.Valid()
}
