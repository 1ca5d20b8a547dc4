package plugins

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// raw is a plugin that does without Serve and its codec, as one in another
// language does. What it answers is in rawAnswers under the address of the
// first recipient.
type raw struct{ pb.UnimplementedPluginServer }

func serveRaw() {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins: plugin.PluginSet{pluginName: service{
			register: func(s *grpc.Server) { pb.RegisterPluginServer(s, raw{}) },
		}},
		GRPCServer: plugin.DefaultGRPCServer,
		Logger:     silent(),
	})
}

func (raw) Configure(_ context.Context, r *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	if r.SettingsJson != "{}" || r.LogLevel != slog.LevelDebug.String() {
		return &pb.ConfigureResponse{Error: "bad request: " + r.String()}, nil
	}
	return &pb.ConfigureResponse{Capabilities: &pb.Capabilities{Dsn: true}}, nil
}

func (raw) Deliver(stream grpc.BidiStreamingServer[pb.ToPlugin, pb.ToGateway]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	address := string(first.Transaction.Recipients[0].Address)
	if address == "chunks" {
		return answerChunks(stream, first)
	}
	if address == "garbage" {
		writeGarbage(os.Stdout, "stdout")
		writeGarbage(os.Stderr, "stderr")
		return stream.Send(&pb.ToGateway{
			Statuses: []*pb.RecipientStatus{{Status: statusToWire(backends.Delivered)}},
			Returned: &pb.Returned{},
		})
	}
	for _, answer := range rawAnswers[address].answers {
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
	if strings.HasPrefix(address, "then waits") {
		<-stream.Context().Done()
	}
	return nil
}

// answerChunks sends the message back, with one header field more, and tells
// the size of the largest chunk.
func answerChunks(stream grpc.BidiStreamingServer[pb.ToPlugin, pb.ToGateway], m *pb.ToPlugin) (err error) {
	stream.Send(&pb.ToGateway{First: true, Chunk: []byte("A: b\r\n")})
	largest := 0
	for {
		largest = max(largest, len(m.Chunk))
		stream.Send(&pb.ToGateway{Chunk: m.Chunk, Last: m.Last})
		if m.Last {
			break
		}
		if m, err = stream.Recv(); err != nil {
			return err
		}
	}
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("after the last chunk: %v", err)
	}
	stream.Send(&pb.ToGateway{Statuses: []*pb.RecipientStatus{
		{Recipient: 0, Status: &pb.Status{Code: 250, Text: fmt.Sprint(largest)}}}})
	return stream.Send(&pb.ToGateway{Returned: &pb.Returned{Result: &pb.Returned_Edits{Edits: &pb.Edits{Message: true}}}})
}

func TestPeerWithItsOwnCodec(t *testing.T) {
	h, _ := run(t, "raw")
	if got := h.Capabilities(); got != (backends.Capabilities{DSN: true}) {
		t.Errorf("got the capabilities %v", got)
	}
	tx := message(long, "chunks")
	o := deliver(t.Context(), h, tx)
	if o.err != nil {
		t.Fatal(o.err)
	}
	if got, want := o.statuses[0].Text, fmt.Sprint(smallChunk); got != want {
		t.Errorf("the largest chunk has %s octets, want %s", got, want)
	}
	if got := readAll(t, tx.Edits().Message); got != "A: b\r\n"+long {
		t.Errorf("got a message of %d octets, want %d", len(got), len(long)+6)
	}
}

func status250(i uint32) []*pb.RecipientStatus {
	return []*pb.RecipientStatus{{Recipient: i, Status: &pb.Status{Code: 250, Enhanced: "2.0.0", Text: "ok"}}}
}

func returnEdits(e *pb.Edits) *pb.ToGateway {
	return &pb.ToGateway{Returned: &pb.Returned{Result: &pb.Returned_Edits{Edits: e}}}
}

// rawAnswers are answers that break the protocol, and the error that comes of
// them.
var rawAnswers = map[string]struct {
	answers []*pb.ToGateway
	err     string
}{
	"no such recipient":         {[]*pb.ToGateway{{Statuses: status250(2)}}, "recipient 2 of 2"},
	"no such recipient at all":  {[]*pb.ToGateway{{Statuses: status250(1<<32 - 1)}}, "recipient 4294967295 of 2"},
	"no such recipient started": {[]*pb.ToGateway{{Started: []uint32{7}}}, "recipient 7 of 2"},
	"no status":                 {[]*pb.ToGateway{{Statuses: []*pb.RecipientStatus{{Recipient: 1}}}}, "an empty status"},
	"no response":               {[]*pb.ToGateway{{SmtpResponse: &pb.Status{}}}, "an empty status"},
	"no answer":                 {nil, "without an answer"},
	"returned status":           {[]*pb.ToGateway{{Returned: &pb.Returned{Result: &pb.Returned_Status{}}}}, "an empty status"},
	"chunk alone":               {[]*pb.ToGateway{{Chunk: []byte("x")}}, "chunk without a first one"},
	"chunk with returned":       {[]*pb.ToGateway{{First: true, Chunk: []byte("x"), Returned: &pb.Returned{}}}, "together with a chunk"},
	"message in part": {[]*pb.ToGateway{{First: true, Chunk: []byte("x")}, returnEdits(&pb.Edits{Message: true})},
		"the other way round"},
	"message not wanted": {[]*pb.ToGateway{{First: true, Last: true, Chunk: []byte("x")}, returnEdits(&pb.Edits{})},
		"the other way round"},
	"message and no edits": {[]*pb.ToGateway{{First: true, Last: true, Chunk: []byte("x")}, {Returned: &pb.Returned{}}},
		"the other way round"},
	"message and fields": {[]*pb.ToGateway{{First: true, Last: true, Chunk: []byte("x")},
		returnEdits(&pb.Edits{Message: true, Fields: []*pb.FieldEdit{{Field: []byte("A: b")}}})}, "cannot both be edited"},
	"crash in a message": {[]*pb.ToGateway{{First: true, Chunk: []byte("x")}}, "without an answer"},
	"bad field": {[]*pb.ToGateway{returnEdits(&pb.Edits{Fields: []*pb.FieldEdit{{Field: []byte("A: b\r\nfrom@example.org")}}})},
		"folded line"},
	"bad operation": {[]*pb.ToGateway{returnEdits(&pb.Edits{Fields: []*pb.FieldEdit{{Op: 9}}})}, "unknown edit 9"},
	"bad redirect":  {[]*pb.ToGateway{returnEdits(&pb.Edits{Redirects: []*pb.Redirect{{Recipient: 9}}})}, "no recipient 9"},
	"large message": {[]*pb.ToGateway{{First: true, Chunk: make([]byte, maxMessage+1)}}, "larger than max"},
	"then waits":    {[]*pb.ToGateway{{Statuses: status250(9)}}, "recipient 9 of 2"},
}

func TestPluginThatBreaksTheProtocol(t *testing.T) {
	h, log := run(t, "raw")
	for name, test := range rawAnswers {
		t.Run(name, func(t *testing.T) {
			tx := message("hello", name, "two")
			o := deliver(t.Context(), h, tx)
			o.wantError(t, test.err)
			o.wantUndecided(t, 0, 1)
		})
	}
	if len(log.wait(t, 1, "started", "")) != 1 || gone(log.pid(t, 1)) {
		t.Error("the plugin was restarted")
	}
}
