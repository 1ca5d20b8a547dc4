// Plugin is what mailgw is measured with. It reads each message to its end, in
// its own process, and then takes it or, with pass, leaves it to the next
// backend. The backend discard that ships does not read, so that what it costs
// to bring a message there would not be seen.
package main

import (
	"context"
	"io"
	"net"
	"net/http"
	_ "net/http/pprof"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

type settings struct {
	Pass  bool   `toml:"pass"`
	Pprof string `toml:"pprof"` // the path of a socket for net/http/pprof
}

func open(s settings) (backends.Backend, error) {
	l, err := net.Listen("unix", s.Pprof)
	if err != nil {
		return nil, err
	}
	go http.Serve(l, nil)
	return backend{pass: s.Pass}, nil
}

type backend struct{ pass bool }

// MayEdit returns that it edits nothing, as that of discard does.
func (backend) MayEdit() backends.EditKinds { return 0 }

func (b backend) Deliver(_ context.Context, tx *backends.DataContext) error {
	if _, err := io.Copy(io.Discard, tx.Body); err != nil {
		return err
	}
	if !b.pass {
		tx.SetAll(backends.Delivered)
	}
	return nil
}

func main() { plugins.Serve(settings{}, open) }
