package plugins

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
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
	return &pb.ConfigureResponse{
		Features:     append([]string{"later.v9"}, rawLane()...),
		Capabilities: &pb.Capabilities{Dsn: true, RequireTls: true},
		Answers:      []pb.Question_Topic{pb.Question_EXPN, pb.Question_NOTHING, 99},
	}, nil
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
	answers := rawAnswers[address].answers
	if address == "ignored" {
		answers = ignoredAnswers
	}
	for _, answer := range answers {
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
	c := command(t, "raw", newGatewayLog())
	overGRPC(&c) // whose chunks they are
	h := runCommand(t, c, defaultTimes)
	if got := h.Capabilities(); got != (backends.Capabilities{DSN: true, RequireTLS: true}) {
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
	"many ignored answers":    {slices.Repeat([]*pb.ToGateway{{Statuses: status250(2)}}, maxIgnored+1), "more than 10 answers"},
	"many ignored deliveries": {[]*pb.ToGateway{{Started: slices.Repeat([]uint32{7}, maxIgnored+1)}}, "more than 10 answers"},
	"many empty statuses":     {[]*pb.ToGateway{unknown("\x12\x00", maxMessage/2-100)}, "a message of 130972 parts"},
	"no status":               {[]*pb.ToGateway{{Statuses: []*pb.RecipientStatus{{Recipient: 1}}}}, "an empty status"},
	"no code":                 {[]*pb.ToGateway{{Statuses: []*pb.RecipientStatus{{Recipient: 1, Status: &pb.Status{Text: "x"}}}}}, "an empty status"},
	"no response":             {[]*pb.ToGateway{{SmtpResponse: &pb.Status{}}}, "an empty status"},
	"no answer":               {nil, errNoAnswer.Error()},
	"returned status":         {[]*pb.ToGateway{{Returned: &pb.Returned{Result: &pb.Returned_Status{}}}}, "an empty status"},
	"chunk alone":             {[]*pb.ToGateway{{Chunk: []byte("x")}}, "chunk without a first one"},
	"chunk with returned":     {[]*pb.ToGateway{{First: true, Chunk: []byte("x"), Returned: &pb.Returned{}}}, "together with a chunk"},
	"message in part": {[]*pb.ToGateway{{First: true, Chunk: []byte("x")}, returnEdits(&pb.Edits{Message: true})},
		"the other way round"},
	"message not wanted": {[]*pb.ToGateway{{First: true, Last: true, Chunk: []byte("x")}, returnEdits(&pb.Edits{})},
		"the other way round"},
	"message and no edits": {[]*pb.ToGateway{{First: true, Last: true, Chunk: []byte("x")}, {Returned: &pb.Returned{}}},
		"the other way round"},
	"message and fields": {[]*pb.ToGateway{{First: true, Last: true, Chunk: []byte("x")},
		returnEdits(&pb.Edits{Message: true, Fields: []*pb.FieldEdit{{Field: []byte("A: b")}}})}, "cannot both be edited"},
	"crash in a message": {[]*pb.ToGateway{{First: true, Chunk: []byte("x")}}, errNoAnswer.Error()},
	"bad field": {[]*pb.ToGateway{returnEdits(&pb.Edits{Fields: []*pb.FieldEdit{{Field: []byte("A: b\r\nfrom@example.org")}}})},
		"folded line"},
	"bad operation": {[]*pb.ToGateway{returnEdits(&pb.Edits{Fields: []*pb.FieldEdit{{Op: 9}}})}, "unknown edit 9"},
	"bad redirect":  {[]*pb.ToGateway{returnEdits(&pb.Edits{Redirects: []*pb.Redirect{{Recipient: 9, Addresses: [][]byte{[]byte("a@example.org")}}}})}, "redirect recipient 9"},
	"bad diversion": {[]*pb.ToGateway{returnEdits(&pb.Edits{Diversions: []*pb.Diversion{{Recipient: 9, Route: "r"}}})}, "divert recipient 9"},
	"large message": {[]*pb.ToGateway{{First: true, Chunk: make([]byte, maxMessage+1)}}, "larger than max"},
	"then waits":    {[]*pb.ToGateway{{SmtpResponse: &pb.Status{}}}, "an empty status"},
	"long failure": {[]*pb.ToGateway{{Returned: &pb.Returned{Result: &pb.Returned_Failure{Failure: strings.Repeat("x", maxMessage-100)}}}},
		"xxx"},
}

// unknown is a message with n times the same octets.
func unknown(octets string, n int) *pb.ToGateway {
	m := &pb.ToGateway{}
	m.ProtoReflect().SetUnknown([]byte(strings.Repeat(octets, n)))
	return m
}

// ignoredAnswers has some that do not count, among others that do.
var ignoredAnswers = []*pb.ToGateway{
	{Started: []uint32{7}},
	{Statuses: status250(2)},
	{Statuses: status250(0)},
	{Statuses: []*pb.RecipientStatus{{Status: &pb.Status{Code: 550}}, {Recipient: 1<<32 - 1, Status: &pb.Status{Code: 250}}}},
	{Returned: &pb.Returned{}},
}

func TestAnswersThatDoNotCount(t *testing.T) {
	h, _ := run(t, "raw")
	o := deliver(t.Context(), h, message("hello", "ignored", "two"))
	if o.err != nil || o.statuses[0].Code != 250 {
		t.Errorf("got %v and the error %v", o.statuses, o.err)
	}
	o.wantUndecided(t, 1)
	none, second := "there is no such recipient", "the recipient has its status already"
	if want := []string{none, none, second, none}; !slices.Equal(o.ignored, want) {
		t.Errorf("got %q, want %q", o.ignored, want)
	}
}

func TestPluginThatBreaksTheProtocol(t *testing.T) {
	h, log := run(t, "raw")
	for name, test := range rawAnswers {
		t.Run(name, func(t *testing.T) {
			tx := message("hello", name, "two")
			o := deliver(t.Context(), h, tx)
			want := test.err
			if want == errNoAnswer.Error() && h.running[0].lane != nil {
				want = "has closed its socket"
			}
			o.wantError(t, want)
			if n := len(o.err.Error()); n > 10_000 {
				t.Errorf("the error has %d octets", n)
			}
			o.wantUndecided(t, 0, 1)
		})
	}
	if len(log.wait(t, 1, "started", "")) != 1 || gone(log.pid(t, 1)) {
		t.Error("the plugin was restarted")
	}
}
