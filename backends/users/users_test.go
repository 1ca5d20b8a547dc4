package users

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
)

func TestConformance(t *testing.T) {
	b := newBackend(t, "ann"+bcryptField("pencil", 4), "protected")
	if err := backendtest.Test(b, backendtest.Options{IgnoresMessage: true}); err != nil {
		t.Error(err)
	}
}

func TestAnswers(t *testing.T) {
	b := newBackend(t, "", "own")
	for about, want := range map[backends.Topic]bool{
		backends.AboutAUTH: true, backends.AboutSCRAM: true, backends.AboutSender: true,
		backends.AboutVRFY: false, backends.AboutEXPN: false, backends.AboutRecipient: false,
	} {
		if got := backends.Answers(b, about); got != want {
			t.Errorf("%v: answers %t, want %t", about, got, want)
		}
	}
}

func TestAuthenticate(t *testing.T) {
	long := strings.Repeat("x", 72)
	b := newBackend(t, secretLine+
		"ann@Example.org"+bcryptField("pencil", 4)+" cert="+annsCert+"\n"+
		"bob"+bcryptField("IX", 4)+"\n"+
		"carol"+scramField("pencil", "salt", 4096)+"\n"+
		"dave\n"+
		"long"+bcryptField(long, 4)+"\n"+
		"J\u00fcrgen@example.org"+bcryptField("pencil", 4)+"\n", "own")
	by := func(certificate, name string) *backends.TLS {
		return &backends.TLS{ClientCertificate: certificate, ClientName: name}
	}
	other := strings.Repeat("0", 64)
	tests := []struct {
		mechanism, identity, user, password string
		tls                                 *backends.TLS
		want                                string // "": refused
	}{
		{"PLAIN", "", "ann@Example.org", "pencil", nil, "ann@Example.org"},
		{"LOGIN", "", "ann@Example.org", "pencil", nil, "ann@Example.org"},
		{"PLAIN", "", "ann@Example.org", "Pencil", nil, ""},
		{"PLAIN", "", "ann@Example.org", "", nil, ""},
		{"PLAIN", "", "ann@Example.org", "pencil", by(annsCert, ""), "ann@Example.org"},

		// Names, as people and their telephones write them.
		{"PLAIN", "", "Ann@example.ORG", "pencil", nil, "ann@Example.org"},
		{"PLAIN", "", "ann", "pencil", nil, ""},
		{"PLAIN", "", "ann@", "pencil", nil, ""},
		{"PLAIN", "", "", "pencil", nil, ""},
		{"PLAIN", "", "ju\u0308rgen@example.org", "pencil", nil, "J\u00fcrgen@example.org"},
		{"PLAIN", "", "ann@example.org\x00", "pencil", nil, ""},

		// The examples of RFC 4013, section 3: the same password in the form of
		// SASLprep, and one that has none.
		{"PLAIN", "", "bob", "I\u00adX", nil, "bob"},
		{"PLAIN", "", "bob", "\u2168", nil, "bob"},
		{"PLAIN", "", "bob", "IX\u0007", nil, ""},

		// bcrypt does not look at the 73rd octet.
		{"PLAIN", "", "long", long, nil, "long"},
		{"PLAIN", "", "long", long + "y", nil, ""},

		// Who has only a verifier, or nothing.
		{"PLAIN", "", "carol", "pencil", nil, ""},
		{"PLAIN", "", "dave", "", nil, ""},
		{"PLAIN", "", "dave", "pencil", nil, ""},

		// Nobody acts as another one.
		{"PLAIN", "ANN@example.org", "ann@example.org", "pencil", nil, "ann@Example.org"},
		{"PLAIN", "bob", "ann@example.org", "pencil", nil, ""},
		{"PLAIN", "\u0007", "ann@example.org", "pencil", nil, ""},
		{"EXTERNAL", "ann@example.org", "", "", by(annsCert, ""), "ann@Example.org"},
		{"EXTERNAL", "bob", "", "", by(annsCert, ""), ""},

		// Certificates: the fingerprint is worth more than the name.
		{"EXTERNAL", "", "", "", by(annsCert, ""), "ann@Example.org"},
		{"EXTERNAL", "", "", "", by(annsCert, "bob"), "ann@Example.org"},
		{"EXTERNAL", "", "", "", by(other, "bob"), "bob"},
		{"EXTERNAL", "", "", "", by(other, "DAVE"), "dave"},
		{"EXTERNAL", "", "", "", by(other, "nobody"), ""},
		{"EXTERNAL", "", "", "", by(other, ""), ""},
		{"EXTERNAL", "", "", "", by("", ""), ""},
		{"EXTERNAL", "", "", "", nil, ""},
		{"EXTERNAL", "", "ann@example.org", "pencil", nil, ""},
	}
	for _, tt := range tests {
		c := backends.Credentials{Mechanism: tt.mechanism, Identity: tt.identity, User: tt.user, Password: tt.password}
		got, err := b.Authenticate(t.Context(), &backends.Session{TLS: tt.tls}, c)
		if got != tt.want || (tt.want == "") != (err == backends.BadCredentials) || tt.want != "" && err != nil {
			t.Errorf("%+v, TLS %+v: got %q, error %v, want %q", c, tt.tls, got, err, tt.want)
		}
	}
	if got, err := b.Authenticate(t.Context(), &backends.Session{}, backends.Credentials{Mechanism: "GSSAPI"}); got != "" || err != nil {
		t.Errorf("GSSAPI: got %q, error %v, want no opinion", got, err)
	}
}

// Nobody can tell from the time that it takes whether there is a user: a wrong
// password is compared for as many rounds of bcrypt for each name, as many as
// the most costly hash of the file has.
func TestWrongPasswordsCostTheSame(t *testing.T) {
	b := newBackend(t, secretLine+"ann"+bcryptField("pencil", 7)+"\nbob"+bcryptField("pencil", 4)+"\n"+
		"carol"+scramField("pencil", "salt", 4096)+"\ndave"+bcryptField("pencil", 6)+"\n", "own")
	rounds := 0
	b.compare = func(hash, password []byte) error {
		cost, err := bcrypt.Cost(hash)
		if err != nil {
			t.Errorf("%q: %v", hash, err)
		}
		rounds += 1 << cost
		return bcrypt.CompareHashAndPassword(hash, password)
	}
	for _, name := range []string{"ann", "bob", "carol", "dave", "nobody", "", "\x00"} {
		rounds = 0
		_, err := b.Authenticate(t.Context(), &backends.Session{}, backends.Credentials{Mechanism: "PLAIN", User: name, Password: "wrong"})
		if err != backends.BadCredentials || rounds != 1<<7 {
			t.Errorf("%q: %d rounds, error %v, want %d", name, rounds, err, 1<<7)
		}
	}
	for cost := minCost; cost <= 7; cost++ {
		if err := bcrypt.CompareHashAndPassword(falseHash(cost), []byte("wrong")); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
			t.Errorf("the false hash of cost %d: %v", cost, err)
		}
	}
}

// Even if the false hash fitted, it would let nobody in.
func TestFalseHashLetsNobodyIn(t *testing.T) {
	b := newBackend(t, secretLine+"carol"+scramField("pencil", "salt", 4096)+"\n", "own")
	b.compare = func(hash, password []byte) error { return nil }
	for _, name := range []string{"carol", "nobody", ""} {
		got, err := b.Authenticate(t.Context(), &backends.Session{}, backends.Credentials{Mechanism: "PLAIN", User: name, Password: "x"})
		if err != backends.BadCredentials {
			t.Errorf("%q: got %q, error %v", name, got, err)
		}
	}
}

func TestSCRAM(t *testing.T) {
	text := secretLine + "ann@example.org" + scramField("pencil", "salt-of-sixteen!", 5000) + "\nbob" + bcryptField("pencil", 4) + "\n"
	b := newBackend(t, text, "own")
	for _, tt := range []struct {
		name, password string
		want           bool
	}{
		{"ann@example.org", "pencil", true},
		{"Ann@Example.org", "pencil", true},
		{"ann@example.org", "pen\u00adcil", true},
		{"ann@example.org", "wrong", false},
		{"bob", "pencil", false}, // has no verifier
		{"nobody", "pencil", false},
	} {
		if got := scramLogin(t, b, tt.name, tt.password); got != tt.want {
			t.Errorf("%s, %s: got %t, want %t", tt.name, tt.password, got, tt.want)
		}
	}
	// Whatever a client writes, it is the user of the file.
	for name, want := range map[string]string{
		"ann@example.org": "ann@example.org", "ANN@example.org": "ann@example.org", "\uff21nn@Example.ORG": "ann@example.org",
		"bob": "", "nobody": "",
	} {
		v, err := b.SCRAMVerifier(t.Context(), &backends.Session{}, name)
		if v.User != want || err != nil {
			t.Errorf("%q: the verifier is of user %q, error %v, want %q", name, v.User, err, want)
		}
	}
	if _, err := b.SCRAMVerifier(t.Context(), &backends.Session{}, "\x00"); err != backends.BadCredentials {
		t.Errorf("a name that cannot be: error %v", err)
	}
}

// A stranger gets a salt that tells nothing: the same each time, whatever happens
// to other users, and like those of most users.
func TestFalseVerifier(t *testing.T) {
	text := secretLine +
		"u1" + scramField("x", "salt-of-sixteen!", 5000) + "\n" +
		"u2" + scramField("x", "salt of sixteen!", 5000) + "\n" +
		"u3" + scramField("x", "short", 70000) + "\n"
	verifier := func(text, name string) backends.SCRAMVerifier {
		t.Helper()
		v, err := newBackend(t, text, "own").SCRAMVerifier(t.Context(), &backends.Session{}, name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	same := func(a, b backends.SCRAMVerifier) bool {
		return bytes.Equal(a.Salt, b.Salt) && a.Iterations == b.Iterations && bytes.Equal(a.StoredKey, b.StoredKey) && bytes.Equal(a.ServerKey, b.ServerKey)
	}
	v := verifier(text, "nobody")
	if v.Iterations != 5000 || len(v.Salt) != 16 || len(v.StoredKey) != 32 || len(v.ServerKey) != 32 || bytes.Equal(v.StoredKey, v.ServerKey) {
		t.Errorf("got %+v", v)
	}
	if !same(v, verifier(text, "NOBODY")) {
		t.Error("another name for upper case, which users have not")
	}
	if !same(v, verifier(text+"u4"+bcryptField("x", 4), "nobody")) {
		t.Error("another one after a user was added")
	}
	if other := verifier(text, "nobody2"); bytes.Equal(v.Salt, other.Salt) || bytes.Equal(v.StoredKey, other.StoredKey) {
		t.Error("the same one for another name")
	}
	if other := verifier(strings.Replace(text, "MDEy", "MDEx", 1), "nobody"); bytes.Equal(v.Salt, other.Salt) {
		t.Error("the same one with another secret")
	}
	if v := verifier("ann"+bcryptField("x", 4), "ann"); !v.IsZero() {
		t.Errorf("without a secret: got %+v, want no opinion", v)
	}
	if v := verifier(secretLine, "ann"); v.Iterations != scramIterations || len(v.Salt) != saltSize {
		t.Errorf("without users: got %+v", v)
	}
}

func TestCheckSender(t *testing.T) {
	const text = "ann@Example.org send-as=<> send-as=@lists.example.org\n" +
		"bob send-as=bob@example.org\n" +
		"root send-as=*\n" +
		"abuse send-as=abuse@*\n" +
		"dave\n"
	const notOwned, notLoggedIn = "not owned by user ", "not logged in"
	tests := []struct{ senders, user, sender, want string }{
		{"own", "ann@example.org", "ann@example.org", ""},
		{"own", "ANN@example.org", "Ann@Example.ORG", ""},
		{"own", "ann@example.org", "", ""},
		{"own", "ann@example.org", "all@lists.example.org", ""},
		{"own", "ann@example.org", "all@sub.lists.example.org", notOwned + "ann@example.org"},
		{"own", "ann@example.org", "bob@example.org", notOwned + "ann@example.org"},
		{"own", "bob", "bob@example.org", ""},
		{"own", "bob", "bob@example.com", notOwned + "bob"},
		{"own", "bob", "bob", notOwned + "bob"},
		{"own", "bob", "", notOwned + "bob"},
		{"own", "root", "ann@example.org", ""},
		{"own", "root", "", ""},
		{"own", "abuse", "abuse@example.net", ""},
		{"own", "abuse", "ann@example.org", notOwned + "abuse"},
		{"own", "dave", "dave@example.org", notOwned + "dave"},
		{"own", "deleted", "ann@example.net", notOwned + "deleted"},
		{"own", "", "ann@example.org", ""},

		{"protected", "bob", "bob@example.org", ""},
		{"protected", "bob", "ann@example.org", notOwned + "bob"},
		{"protected", "", "ANN@example.org", notLoggedIn},
		{"protected", "", "bob@example.org", notLoggedIn},
		{"protected", "", "x@lists.example.org", notLoggedIn},
		{"protected", "", "x@example.org", ""},
		{"protected", "", "abuse@example.net", ""},
		{"protected", "", "x@example.net", ""},
		{"protected", "", "", ""},

		{"any", "bob", "ann@example.org", ""},
		{"any", "", "ann@example.org", ""},
	}
	for _, tt := range tests {
		b := newBackend(t, text, tt.senders)
		got, err := b.CheckSender(t.Context(), &backends.Session{User: tt.user}, &backends.Envelope{Sender: tt.sender})
		var want backends.Status
		if tt.want != "" {
			want = backends.NewStatus(553, "5.7.1", "<"+tt.sender+">: sender address rejected: "+tt.want)
		}
		if got != want || err != nil {
			t.Errorf("%s: %q as %q: got %v, error %v, want %v", tt.senders, tt.user, tt.sender, got, err, want)
		}
	}
}

func TestBadSettingsNameTheirKey(t *testing.T) {
	good := usersFile(t, "ann\n")
	for _, tt := range []struct {
		settings Settings
		want     []string
	}{
		{Settings{good, "all"}, []string{`senders: "all" is none of any, own, protected`}},
		{Settings{good + "x", "own"}, []string{"file: open " + good + `x: no such file or directory; "mailgw passwd" makes it`}},
		{Settings{usersFile(t, "ann\nann\n\nbob colour=red\n"), "none"}, []string{"senders: ", ":2: the user is on line 1 already", `:4: unknown field`}},
	} {
		_, err := New(tt.settings)
		lines := []string{""}
		if err != nil {
			lines = strings.Split(err.Error(), "\n")
		}
		if len(lines) != len(tt.want) {
			t.Errorf("%+v: got %q, want %q", tt.settings, lines, tt.want)
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%+v: got %q, want %q in it", tt.settings, lines[i], want)
			}
		}
	}
}
