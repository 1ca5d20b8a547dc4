package plugins

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// changing is a relay whose target is known, and can do more each time, from
// the first transaction on. The one to "exit" ends the plugin.
type changing struct {
	mu      sync.Mutex
	can     backends.Capabilities
	changed chan struct{}
}

var nextHop = &changing{can: backends.Capabilities{Relays: true, Unknown: true}, changed: make(chan struct{})}

func (c *changing) Deliver(_ context.Context, tx *backends.DataContext) error {
	switch tx.Envelope.Recipients[0].Address {
	case "exit":
		os.Exit(3)
	case "panic":
		crashed := make(chan bool)
		go func() { panic("a bug") }() // where nobody recovers it
		<-crashed
	}
	c.mu.Lock()
	c.can.Unknown = false
	c.can.Size++
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	tx.Wrote(backends.Digest{Fields: []uint64{1, 1 << 63}, Body: [32]byte{31: 1}})
	tx.SetAll(backends.Delivered)
	return nil
}

func (c *changing) Capabilities() backends.Capabilities {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.can
}

func (c *changing) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *changing) MayEdit() backends.EditKinds { return backends.EditHeader | backends.EditEnvelope }

func (c *changing) IsEffectFree() bool { return true }

func (c *changing) Needs() []string { return []string{"writes /var/\xff", strings.Repeat("x", 1000)} }

func (c *changing) DivertsTo() []string { return slices.Repeat([]string{"quarantine"}, maxTold+1) }

// waitFor asks for what is known of the plugin until it is as wanted.
func waitFor(t *testing.T, h *Host, want backends.Capabilities) {
	t.Helper()
	for deadline := time.Now().Add(patience); h.Capabilities() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("got %+v, want %+v", h.Capabilities(), want)
		}
	}
}

func TestCapabilitiesThatChange(t *testing.T) {
	log := newGatewayLog()
	h := runCommand(t, command(t, "changing", log), defaultTimes)
	if got := h.Capabilities(); got != (backends.Capabilities{Relays: true, Unknown: true}) {
		t.Errorf("at the start: %+v", got)
	}
	deliver(t.Context(), h, message("", "one"))
	waitFor(t, h, backends.Capabilities{Relays: true, Size: 1})
	deliver(t.Context(), h, message("", "one"))
	waitFor(t, h, backends.Capabilities{Relays: true, Size: 2})

	// The next plugin does not know the target yet: what was known last holds.
	deliver(t.Context(), h, message("", "exit"))
	log.wait(t, 2, "started", "")
	if got := h.Capabilities(); got != (backends.Capabilities{Relays: true, Size: 2}) {
		t.Errorf("after a restart: %+v", got)
	}
	deliver(t.Context(), h, message("", "one"))
	waitFor(t, h, backends.Capabilities{Relays: true, Size: 1})
}

func TestAnnouncedEdits(t *testing.T) {
	h := runCommand(t, command(t, "changing", newGatewayLog()), defaultTimes)
	if got := h.MayEdit(); got != backends.EditHeader|backends.EditEnvelope {
		t.Errorf("got %v", got)
	}
	if !h.IsEffectFree() {
		t.Error("that it is free of effects is lost")
	}
	if got, want := h.Needs(), []string{"writes /var/?", strings.Repeat("x", maxToldText)}; !slices.Equal(got, want) {
		t.Errorf("got the needs %q, want %q", got, want)
	}
	if got, want := h.DivertsTo(), slices.Repeat([]string{"quarantine"}, maxTold); !slices.Equal(got, want) {
		t.Errorf("got the routes %q, want %q", got, want)
	}
	for _, k := range []backends.EditKinds{0, backends.EditHeader, backends.EditMessage, backends.EditEnvelope, backends.EditAll} {
		if got := mayEditFromWire(mayEditToWire(k)); got != k {
			t.Errorf("got %v, want %v", got, k)
		}
	}
	if got := mayEditFromWire(nil); got != backends.EditAll {
		t.Errorf("got %v of a plugin that announces nothing", got)
	}
}

func TestDigestCrossesTheBorder(t *testing.T) {
	h := runCommand(t, command(t, "changing", newGatewayLog()), defaultTimes)
	var got backends.Digest
	var before bool
	_, err := backends.Run(t.Context(), h, message("", "one"), backends.Hooks{
		Wrote:  func(d backends.Digest) { got = d },
		Status: func(int, backends.Status) { before = got.Fields != nil },
	})
	if want := (backends.Digest{Fields: []uint64{1, 1 << 63}, Body: [32]byte{31: 1}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if !before {
		t.Error("the status came before the digest")
	}
	for _, bad := range []*pb.Digest{{}, {Body: make([]byte, 31)}, {Body: make([]byte, 32), Fields: make([]byte, 7)}} {
		if _, err := digestFromWire(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
