package webhook

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// A way is a hook that redirects, and what is behind it.
type way struct {
	asked []string // host and path of requests, in order
	last  *http.Request
	body  string
}

// redirecting starts a hook that sends /N on to /N-1, and answers 204 at /0;
// other paths are redirected to what the function makes of them.
func (w *way) redirecting(t *testing.T, status int, location func(path string) string) *httptest.Server {
	return serve(t, func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.asked = append(w.asked, r.URL.Path)
		w.last, w.body = r, string(body)
		if r.URL.Path == "/0" {
			rw.WriteHeader(http.StatusNoContent)
			return
		}
		if to := location(r.URL.Path); to != "" {
			rw.Header().Set("Location", to)
		}
		rw.WriteHeader(status)
	})
}

func TestRedirects(t *testing.T) {
	countdown := map[string]string{"/3": "/2", "/2": "/1", "/1": "0"}
	for _, test := range []struct {
		name     string
		start    string
		status   int
		follow   int
		location string // of /x
		asked    int
		reason   string // empty: it got to /0
	}{
		{"none is followed by default", "/1", 307, 0, "", 1, "307 Temporary Redirect, and redirects is 0"},
		{"one", "/1", 307, 1, "", 2, ""},
		{"for good", "/1", 308, 1, "", 2, ""},
		{"as many as may be", "/3", 308, 3, "", 4, ""},
		{"one too many", "/3", 307, 2, "", 3, "redirects is 2"},
		{"those that make it a GET", "/1", 302, 5, "", 1, "answered 302"},
		{"303", "/1", 303, 5, "", 1, "answered 303"},
		{"no Location", "/x", 307, 5, "", 1, "without a Location"},
		{"a Location that is no URL", "/x", 307, 5, "http://[", 1, "no URL"},
		{"another scheme", "/x", 307, 5, "ftp://example.org/0", 1, `has the scheme "ftp"`},
		{"a file", "/x", 307, 5, "file:///etc/passwd", 1, `has the scheme "file"`},
		{"a user", "/x", 307, 5, "//user:password@127.0.0.1/0", 1, "has a user"},
		{"round in circles", "/x", 307, 10, "/x", 11, "redirects is 10"},
	} {
		var w way
		hook := w.redirecting(t, test.status, func(path string) string {
			if path == "/x" {
				return test.location
			}
			return countdown[path]
		})
		b := newBackend(t, hook.URL+test.start, func(s *Settings) { s.Redirects = test.follow }, withSecret(t))
		want := map[bool]string{false: later}[test.reason == ""]
		run(t, b, transaction(hello)).wants(t, test.name, test.reason, want, want)
		if len(w.asked) != test.asked {
			t.Errorf("%s: asked %q, want %d", test.name, w.asked, test.asked)
		}
		if !strings.Contains(w.body, hello) || w.last.Header.Get("Idempotency-Key") == "" || w.last.Header.Get("Mailgw-Signature") == "" || w.last.Method != http.MethodPost {
			t.Errorf("%s: the last request was not whole: %v", test.name, w.last.Header)
		}
	}
}

func TestRedirectFromTLS(t *testing.T) {
	var w way
	plain := w.redirecting(t, 307, nil)
	hook := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/0", http.StatusTemporaryRedirect))
	defer hook.Close()
	ca := certificateOf(t, hook)
	b := newBackend(t, hook.URL, func(s *Settings) { s.Redirects, s.Addresses, s.CA = 5, []string{"127.0.0.1"}, ca })
	run(t, b, transaction(hello)).wants(t, "to http", "from https to http://", later, later)
	if w.asked != nil {
		t.Errorf("asked %q", w.asked)
	}
}

// A redirect does not lead into the network of the gateway, and the token
// stays with the hook.
func TestRedirectsToOtherHosts(t *testing.T) {
	var inside, outside way
	to := inside.redirecting(t, 307, nil)
	hook := outside.redirecting(t, 307, func(string) string { return to.URL + "/0" })
	bearer := file(t, "token", 0o600)
	ask := func(name, reason, want string, changes ...func(*Settings)) {
		t.Helper()
		follow := func(s *Settings) { s.Redirects, s.BearerFile = 1, bearer }
		run(t, newBackend(t, hook.URL, append(changes, follow)...), transaction(hello)).wants(t, name, reason, want, want)
		if a := outside.last.Header.Get("Authorization"); a != "Bearer token" {
			t.Errorf("%s: got Authorization %q", name, a)
		}
	}
	ask("by default", "127.0.0.1: connecting to this address is not allowed", later)
	if inside.asked != nil {
		t.Errorf("asked %q", inside.asked)
	}
	ask("allowed", "", "", func(s *Settings) { s.Addresses = []string{"127.0.0.0/8"} })
	if !slices.Equal(inside.asked, []string{"/0"}) || inside.last.Header.Get("Authorization") != "" {
		t.Errorf("asked %q with %v", inside.asked, inside.last.Header)
	}
}

// The list is of what a name resolves to.
func TestAddresses(t *testing.T) {
	hook := serve(t, says(204, ""))
	byName := strings.Replace(hook.URL, "127.0.0.1", "localhost", 1)
	for _, test := range []struct {
		url       string
		addresses []string
		allowed   bool
	}{
		{byName, nil, true},
		{byName, []string{"127.0.0.1"}, true},
		{byName, []string{"::1", "127.0.0.0/8"}, true},
		{byName, []string{"192.0.2.0/24"}, false},
		{hook.URL, []string{"192.0.2.0/24", "2001:db8::/32"}, false},
		{strings.Replace(hook.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1), []string{"127.0.0.1"}, true},
	} {
		b := newBackend(t, test.url, func(s *Settings) { s.Addresses = test.addresses })
		reason, want := "not allowed", later
		if test.allowed {
			reason, want = "", ""
		}
		run(t, b, transaction(hello)).wants(t, test.url, reason, want, want)
	}
}

func TestPublicAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"1.1.1.1": true, "9.255.255.255": true, "11.0.0.0": true, "172.32.0.1": true, "223.255.255.255": true,
		"2606:4700:4700::1111": true, "2a00::1": true,

		"0.0.0.0": false, "10.1.2.3": false, "100.64.0.1": false, "127.0.0.1": false, "169.254.169.254": false,
		"172.16.0.1": false, "172.31.255.255": false, "192.168.0.1": false, "198.19.0.1": false, "224.0.0.1": false,
		"255.255.255.255": false,
		"::":              false, "::1": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "fe80::1": false, "fd00::1": false,
		"fec0::1": false, "ff02::1": false, "2002:7f00:1::": false, "2001::1": false, "2001:db8::1": false, "100::1": false,
	} {
		if got := isPublic(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: got %t, want %t", text, got, want)
		}
	}
}

// A proxy in the environment would connect in our place, to any address.
func TestNoProxyFromTheEnvironment(t *testing.T) {
	b := newBackend(t, "http://example.org").(*backend)
	if b.hook.own.Proxy != nil || b.hook.beyond.Proxy != nil {
		t.Error("a proxy is asked for")
	}
}
