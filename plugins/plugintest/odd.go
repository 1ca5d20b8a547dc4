package plugintest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// unknownField is one that no version of the protocol has.
var unknownField = protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "later")

// testLaterVersions sends what a later version of the protocol may have. What
// is unknown is as if it were not there.
func (t *tester) testLaterVersions() error {
	return t.with(func(ctx context.Context, p *instance) error {
		err := t.deliver(ctx, p, func(first *pb.ToPlugin) {
			first.ProtoReflect().SetUnknown(unknownField)
			first.Transaction.ProtoReflect().SetUnknown(unknownField)
			first.Transaction.Session.ProtoReflect().SetUnknown(unknownField)
			first.Transaction.Recipients[0].ProtoReflect().SetUnknown(unknownField)
		})
		if err != nil {
			return fmt.Errorf("unknown fields: %w", err)
		}
		answer, err := p.plugin.Ask(ctx, &pb.Question{Topic: 99, Session: &pb.Session{Id: "test"}})
		if err == nil && answer.GetFailure() == "" && answer.GetResult() != nil {
			return fmt.Errorf("a question about nothing known has the answer %v", answer)
		}
		if err := p.Conn.Invoke(ctx, "/mailgw.plugin.v1.Plugin/Later", &pb.WatchRequest{}, &pb.WatchRequest{}); err == nil {
			return errors.New("a method that does not exist has an answer")
		}
		return t.works(ctx, p)
	})
}

// testGarbage sends what no gateway sends. The answer does not matter, but what
// follows.
func (t *tester) testGarbage() error {
	return t.with(func(ctx context.Context, p *instance) error {
		for _, method := range []string{"Deliver", "Ask"} {
			for _, octets := range []string{"", "\xff", strings.Repeat("\x0a\x00", 1000), "\x0a\xff\xff\xff\xff\x0f"} {
				if err := t.sendOctets(ctx, p, method, octets); err != nil {
					return fmt.Errorf("%s of the octets %.20q: %w", method, octets, err)
				}
			}
		}
		// A client that gives up.
		for range 20 {
			tx, err := t.open(ctx, p, func(first *pb.ToPlugin) { first.Transaction.Id = overID })
			if err != nil {
				return err
			}
			tx.cancel()
		}
		return t.works(ctx, p)
	})
}

// testBreakOff ends calls before the message has come to its end.
func (t *tester) testBreakOff() error {
	return t.with(func(ctx context.Context, p *instance) error {
		for range 10 {
			tx, err := t.open(ctx, p)
			if err == nil {
				err = tx.breakOff(t.IgnoresMessage)
			}
			if err != nil {
				return err
			}
		}
		return t.works(ctx, p)
	})
}

// sendOctets calls a method and waits until that ends.
func (t *tester) sendOctets(ctx context.Context, p *instance, method, octets string) error {
	ctx, cancel := context.WithTimeout(ctx, t.Patience)
	defer cancel()
	stream, err := p.Conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/mailgw.plugin.v1.Plugin/"+method, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		return err
	}
	if octets != "" && stream.SendMsg(octets) == nil || octets == "" {
		stream.CloseSend()
	}
	for {
		var answer string
		if stream.RecvMsg(&answer) != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the call does not end within %v", t.Patience)
	}
	return nil
}

// works makes sure that nothing has done harm.
func (t *tester) works(ctx context.Context, p *instance) error {
	err := t.deliver(ctx, p)
	if err == nil {
		err = p.healthy(ctx)
	}
	if err != nil {
		return fmt.Errorf("afterwards: %w", err)
	}
	return nil
}

// A rawCodec sends octets as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return []byte(v.(string)), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*string) = string(data); return nil }
func (rawCodec) Name() string                       { return "proto" }
