package relay

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
	"github.com/mailgw/mailgw/gateway"
)

// startGateway starts a gateway in this process as a target, which gives its mail
// to b, and returns where it listens.
func startGateway(t *testing.T, listener string, b backends.Backend) (address string) {
	t.Helper()
	if !strings.Contains(listener, "address") {
		listener = "address = 'tcp:127.0.0.1:0'\n" + listener
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.toml")
	text := "hostname = 'mx.example.org'\n[[listener]]\nname = 'in'\nroutes = { '*' = ['inbox'] }\n" +
		listener + "\n[backend.inbox]\nplugin = 'inbox'\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := gateway.Load(path, []string{"inbox"})
	if err != nil {
		t.Fatal(err)
	}
	server, err := gateway.New(c, map[string]backends.Backend{"inbox": b}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	t.Cleanup(func() { server.Shutdown(context.Background()) })
	return server.Addrs()["in"].String()
}

// newRelay makes a relay with more settings than the defaults, and closes it at
// the end of the test.
func newRelay(t *testing.T, s Settings) *backend {
	t.Helper()
	b, err := open(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// to returns settings for targets.
func to(targets ...string) Settings {
	s := Defaults
	s.Targets = targets
	return s
}

func TestContract(t *testing.T) {
	takes := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		if _, err := io.Copy(io.Discard, tx.Body); err != nil {
			return err
		}
		tx.SetAll(backends.Delivered)
		return nil
	})
	for _, protocol := range []string{"smtp", "lmtp"} {
		t.Run(protocol, func(t *testing.T) {
			address := startGateway(t, "protocol = '"+protocol+"'\nchunking = true\nbare_newlines = 'pass'", takes)
			b := newRelay(t, to(protocol+"://"+address))
			if err := backendtest.Test(b, backendtest.Options{Final: true}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A relay whose target is the gateway that it serves notices it at once, by the
// name of the gateway's process. That is told to those who are trusted, and to a
// relay by its name.
func TestLoop(t *testing.T) {
	for _, listener := range []string{"xforward = ['unix']", ""} {
		w := &witness{}
		logTo(t, w)
		socket := filepath.Join(t.TempDir(), "s")
		s := to("smtp+unix:" + socket)
		b := newRelay(t, s)
		startGateway(t, "protocol = 'smtp'\naddress = 'unix:"+socket+"'\n"+listener, b)
		if got := deliver(t, newRelay(t, s)); !strings.HasPrefix(got, "451 4.4.6 routing loop: the next hop is this gateway") {
			t.Errorf("%q: got %q", listener, got)
		}
		if want := []string{"log the target is this gateway"}; !slices.Equal(w.told, want) {
			t.Errorf("%q: the log has %q, want %q", listener, w.told, want)
		}
	}
}
