package plugins

import (
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// Capabilities are what the plugin has told last, or told last of a next hop
// that it knew.
func (h *Host) Capabilities() backends.Capabilities {
	h.capabilities.mu.Lock()
	defer h.capabilities.mu.Unlock()
	return h.capabilities.last
}

// MayEdit is what the plugin announced when it started first.
func (h *Host) MayEdit() backends.EditKinds { return h.mayEdit }

// IsEffectFree is what the plugin announced when it started first.
func (h *Host) IsEffectFree() bool { return h.effectFree }

// Needs is what the plugin announced when it started first.
func (h *Host) Needs() []string { return h.needs }

// DivertsTo is what the plugin announced when it started first.
func (h *Host) DivertsTo() []string { return h.divertsTo }

// maxTold and maxToldText bound what a plugin can tell of its needs, and of the
// routes that it diverts to.
const maxTold, maxToldText = 50, 500

func toldToWire(texts []string) (wire []string) {
	for _, text := range texts {
		wire = append(wire, toUTF8(text))
	}
	return wire
}

func toldFromWire(wire []string) (texts []string) {
	for _, text := range wire[:min(len(wire), maxTold)] {
		texts = append(texts, text[:min(len(text), maxToldText)])
	}
	return texts
}

// capabilities are what is known of a plugin's.
type capabilities struct {
	mu   sync.Mutex
	last backends.Capabilities
}

// learn takes what a plugin tells. One that has just started does not know
// what its predecessor knew of the next hop, which still holds.
func (c *capabilities) learn(can backends.Capabilities) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !can.Unknown || !c.last.Relays {
		c.last = can
	}
}

// follow learns how the capabilities of a plugin change, until it is stopped.
func (h *Host) follow(r *running) (ended <-chan struct{}) {
	done := make(chan struct{})
	if !r.changing {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		stream, err := r.plugin.Watch(h.ctx, &pb.WatchRequest{})
		for err == nil {
			var can *pb.Capabilities
			if can, err = stream.Recv(); err == nil {
				h.capabilities.learn(capabilitiesFromWire(can))
				// A sick plugin must not keep the gateway busy.
				select {
				case <-time.After(100 * time.Millisecond):
				case <-stream.Context().Done():
				}
			}
		}
	}()
	return done
}

// Watch tells the gateway how the capabilities of the backend change.
func (s *server) Watch(_ *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.Capabilities]) error {
	backend, err := s.enter()
	if err != nil {
		return err
	}
	defer s.calls.Done()
	changing, ok := backend.(backends.Changing)
	if !ok {
		return status.Error(codes.Unimplemented, "the capabilities of the plugin do not change")
	}
	for {
		changed := changing.Changed()
		if err := stream.Send(capabilitiesToWire(changing.Capabilities())); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func capabilitiesToWire(can backends.Capabilities) *pb.Capabilities {
	return &pb.Capabilities{
		Size: can.Size, EightBitMime: can.EightBitMIME, Smtputf8: can.SMTPUTF8, BinaryMime: can.BinaryMIME,
		Dsn: can.DSN, RequireTls: can.RequireTLS, Digest: can.Digest, Relays: can.Relays, Unknown: can.Unknown,
	}
}

func capabilitiesFromWire(can *pb.Capabilities) backends.Capabilities {
	if can == nil {
		return backends.Storing
	}
	return backends.Capabilities{
		Size: max(0, can.Size), EightBitMIME: can.EightBitMime, SMTPUTF8: can.Smtputf8, BinaryMIME: can.BinaryMime,
		DSN: can.Dsn, RequireTLS: can.RequireTls, Digest: can.Digest, Relays: can.Relays, Unknown: can.Unknown,
	}
}

func mayEditToWire(k backends.EditKinds) *pb.MayEdit {
	return &pb.MayEdit{Header: k&backends.EditHeader != 0, Message: k&backends.EditMessage != 0, Envelope: k&backends.EditEnvelope != 0}
}

func mayEditFromWire(may *pb.MayEdit) (k backends.EditKinds) {
	for kind, ok := range map[backends.EditKinds]bool{
		backends.EditHeader: may.GetHeader(), backends.EditMessage: may.GetMessage(), backends.EditEnvelope: may.GetEnvelope(),
	} {
		if ok || may == nil {
			k |= kind
		}
	}
	return k
}
