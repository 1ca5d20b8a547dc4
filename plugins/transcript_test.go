package plugins

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// A transcript has the messages of some calls in protobuf's text format. It is
// a text, or a page with such texts in fences. The line "# Deliver" begins a
// call; "# to the plugin" and "# to the gateway" begin its messages.
type transcript []transcribed

// transcribed is one call of a transcript.
type transcribed struct {
	method   protoreflect.MethodDescriptor
	messages []spoken
}

// spoken is a message of a call.
type spoken struct {
	toPlugin bool
	text     string
	message  protobuf.Message
}

var transcriptLine = regexp.MustCompile(`^# (to the plugin|to the gateway|[A-Z]\w+)$`)

// readTranscript reads a transcript of the service. new makes its messages.
func readTranscript(path string, service protoreflect.ServiceDescriptor, new func(protoreflect.MessageDescriptor) protobuf.Message) (calls transcript, err error) {
	page, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	inFence := !strings.HasSuffix(path, ".md")
	var text *string // of the message at hand
	for line := range strings.Lines(string(page)) {
		found := transcriptLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		switch {
		case strings.HasPrefix(line, "```"):
			inFence, text = line == "```textproto\n", nil
		case !inFence:
		case found == nil:
			if text != nil {
				*text += line
			}
		case strings.HasPrefix(found[1], "to the "):
			call := &calls[len(calls)-1]
			call.messages = append(call.messages, spoken{toPlugin: found[1] == "to the plugin"})
			text = &call.messages[len(call.messages)-1].text
		default:
			method := service.Methods().ByName(protoreflect.Name(found[1]))
			if method == nil {
				return nil, fmt.Errorf("%s: there is no method %s", path, found[1])
			}
			calls, text = append(calls, transcribed{method: method}), nil
		}
	}
	for _, call := range calls {
		for i := range call.messages {
			m := &call.messages[i]
			d := call.method.Output()
			if m.toPlugin {
				d = call.method.Input()
			}
			m.message = new(d)
			if err := prototext.Unmarshal([]byte(m.text), m.message); err != nil {
				return nil, fmt.Errorf("%s: %s: %v in\n%s", path, call.method.Name(), err, m.text)
			}
		}
	}
	return calls, nil
}

// A player is a plugin that knows the protocol from testdata/v1.binpb alone. It
// expects what the calls of a transcript send to it, and answers what they
// answer.
type player struct{ transcript }

const version1File = "testdata/v1.binpb"

// version1 returns the service as it was in version 1.
func version1() (protoreflect.ServiceDescriptor, error) {
	octets, err := os.ReadFile(version1File)
	if err != nil {
		return nil, err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := protobuf.Unmarshal(octets, set); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, err
	}
	d, err := files.FindDescriptorByName("mailgw.plugin.v1.Plugin")
	if err != nil {
		return nil, err
	}
	return d.(protoreflect.ServiceDescriptor), nil
}

func newDynamic(d protoreflect.MessageDescriptor) protobuf.Message { return dynamicpb.NewMessage(d) }

// servePlayer is the plugin. Its second argument is the transcript.
func servePlayer() {
	service1, err := version1()
	var p player
	if err == nil {
		p.transcript, err = readTranscript(os.Args[3], service1, newDynamic)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	desc := grpc.ServiceDesc{ServiceName: string(service1.FullName())}
	for i := range service1.Methods().Len() {
		method := service1.Methods().Get(i)
		desc.Streams = append(desc.Streams, grpc.StreamDesc{
			StreamName:    string(method.Name()),
			ServerStreams: true, // on the wire a single message is a stream of one
			ClientStreams: true,
			Handler:       func(_ any, stream grpc.ServerStream) error { return p.play(method, stream) },
		})
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins: plugin.PluginSet{pluginName: service{
			register: func(s *grpc.Server) { s.RegisterService(&desc, nil) },
		}},
		GRPCServer: plugin.DefaultGRPCServer,
		Logger:     silent(),
	})
}

// play finds the call that begins like this one, and goes on with it.
func (p player) play(method protoreflect.MethodDescriptor, stream grpc.ServerStream) error {
	first, err := p.receive(method, stream)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(p.transcript, func(call transcribed) bool {
		return call.method == method && protobuf.Equal(comparable(call.messages[0].message), first)
	})
	if i < 0 {
		return fmt.Errorf("no call %s of the transcript begins with\n%s", method.Name(), prototext.Format(first))
	}
	for _, m := range p.transcript[i].messages[1:] {
		if !m.toPlugin {
			if err := stream.SendMsg(m.message); err != nil {
				return err
			}
			continue
		}
		got, err := p.receive(method, stream)
		if err != nil {
			return err
		}
		if !protobuf.Equal(got, m.message) {
			return fmt.Errorf("%s: got\n%s\nwant\n%s", method.Name(), prototext.Format(got), m.text)
		}
	}
	if method.IsStreamingServer() && !method.IsStreamingClient() {
		<-stream.Context().Done()
	}
	return nil
}

func (p player) receive(method protoreflect.MethodDescriptor, stream grpc.ServerStream) (protobuf.Message, error) {
	m := newDynamic(method.Input())
	if err := stream.RecvMsg(m); err != nil {
		return nil, err
	}
	return comparable(m), nil
}

// comparable returns what version 1 knows of a message, but for the version of
// the gateway.
func comparable(m protobuf.Message) protobuf.Message {
	octets, err := protobuf.Marshal(m)
	if err != nil {
		panic(err)
	}
	known := newDynamic(m.ProtoReflect().Descriptor())
	if err := (protobuf.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(octets, known); err != nil {
		panic(err)
	}
	if f := known.ProtoReflect().Descriptor().Fields().ByName("gateway_version"); f != nil {
		known.ProtoReflect().Clear(f)
	}
	return known
}

// playTranscript has the gateway make the calls of a transcript to a player, and
// checks that what the player has answered arrives.
func playTranscript(t *testing.T, path string) {
	t.Helper()
	calls, err := readTranscript(path, pb.File_plugin_proto.Services().ByName("Plugin"), newGenerated)
	if err != nil {
		t.Fatal(err)
	}
	var h *Host
	for _, call := range calls {
		switch call.method.Name() {
		case "Configure":
			if started := playConfigure(t, path, call); started != nil {
				h = started
			}
		case "Watch":
			last := call.messages[len(call.messages)-1].message.(*pb.Capabilities)
			waitFor(t, h, capabilitiesFromWire(last))
		case "Ask":
			playAsk(t, h, call)
		case "Deliver":
			playDeliver(t, h, call)
		}
	}
}

func newGenerated(d protoreflect.MessageDescriptor) protobuf.Message {
	for _, m := range []protobuf.Message{
		&pb.ConfigureRequest{}, &pb.ConfigureResponse{}, &pb.WatchRequest{}, &pb.Capabilities{},
		&pb.ToPlugin{}, &pb.ToGateway{}, &pb.Question{}, &pb.Answer{},
	} {
		if m.ProtoReflect().Descriptor() == d {
			return m
		}
	}
	panic(d.FullName())
}

// playConfigure starts a plugin. It returns nil if the plugin is to refuse.
func playConfigure(t *testing.T, path string, call transcribed) *Host {
	t.Helper()
	request := call.messages[0].message.(*pb.ConfigureRequest)
	want := call.messages[1].message.(*pb.ConfigureResponse)
	c := command(t, "player", newGatewayLog())
	c.Args = append(c.Args, path)
	if err := json.Unmarshal([]byte(request.SettingsJson), &c.Settings); err != nil {
		t.Fatal(err)
	}
	if refused := refusal(want); refused != nil {
		if _, err := startHost(t, t.Context(), c, defaultTimes); err == nil || !strings.HasSuffix(err.Error(), refused.Error()) {
			t.Errorf("got the error %v, want %v", err, refused)
		}
		return nil
	}
	h := runCommand(t, c, defaultTimes)
	if got := mayEditToWire(h.MayEdit()); !protobuf.Equal(got, want.MayEdit) || h.IsEffectFree() != want.EffectFree {
		t.Errorf("got %v, effect_free %t; want %v", got, h.IsEffectFree(), want)
	}
	if got := h.Needs(); !slices.Equal(got, want.Needs) {
		t.Errorf("got the needs %q, want %q", got, want.Needs)
	}
	if got := h.DivertsTo(); !slices.Equal(got, want.DivertsTo) {
		t.Errorf("got the routes %q, want %q", got, want.DivertsTo)
	}
	if wanted := announcementFromWire(want.Answers); !maps.Equal(h.answers, wanted) {
		t.Errorf("got the topics %v, want %v", h.answers, wanted)
	}
	if got, want := h.Capabilities(), capabilitiesFromWire(want.Capabilities); got != want && !h.running[0].changing {
		t.Errorf("got %v, want %v", got, want)
	}
	return h
}

func playAsk(t *testing.T, h *Host, call transcribed) {
	t.Helper()
	question := call.messages[0].message.(*pb.Question)
	q := questionFromWire(question)
	want, wantErr := answerFromWire(call.messages[1].message.(*pb.Answer), q.About)
	got, err := h.Ask(t.Context(), q)
	if !reflect.DeepEqual(got, want) || fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Errorf("%v: got %+v, %v; want %+v, %v", question, got, err, want, wantErr)
	}
}

func playDeliver(t *testing.T, h *Host, call transcribed) {
	t.Helper()
	tx := transactionFromWire(call.messages[0].message.(*pb.ToPlugin).Transaction)
	want := &pb.ToGateway{} // all answers in one
	var body, replaced []byte
	for _, m := range call.messages {
		switch m := m.message.(type) {
		case *pb.ToPlugin:
			body = append(body, m.Chunk...)
		case *pb.ToGateway:
			if m.First {
				replaced = nil
			}
			replaced = append(replaced, m.Chunk...)
			protobuf.Merge(want, m)
		}
	}
	tx.Body = strings.NewReader(string(body))
	o := deliver(t.Context(), h, tx)
	edited := transactionFromWire(call.messages[0].message.(*pb.ToPlugin).Transaction)
	if want.Returned.GetEdits().GetMessage() {
		edited.ReplaceMessage(strings.NewReader(string(replaced)))
		if got := readAll(t, tx.Edits().Message); got != string(replaced) {
			t.Errorf("%s: got the message %q, want %q", tx.ID, got, replaced)
		}
	}
	wantErr, broken := returnedFromWire(want.Returned, edited)
	if err := errors.Join(broken, compareEdits(tx.Edits(), edited.Edits())); err != nil || fmt.Sprint(o.err) != fmt.Sprint(wantErr) {
		t.Errorf("%s: got the error %v, want %v; %v", tx.ID, o.err, wantErr, err)
	}
	for _, s := range want.Statuses {
		wanted, _ := statusFromWire(s.Status)
		if got := o.status(t, int(s.Recipient)); got != wanted {
			t.Errorf("%s: recipient %d: got %v, want %v", tx.ID, s.Recipient, got, wanted)
		}
	}
	var started []uint32
	for _, i := range o.started {
		started = append(started, uint32(i))
	}
	if !slices.Equal(started, want.Started) || len(o.ignored) > 0 {
		t.Errorf("%s: started %v, ignored %v; want %v", tx.ID, started, o.ignored, want.Started)
	}
	if s := want.SmtpResponse; s != nil && !protobuf.Equal(statusToWire(o.response), s) {
		t.Errorf("%s: got the response %v, want %v", tx.ID, o.response, s)
	}
	if d := want.Digest; d != nil && !protobuf.Equal(digestToWire(o.digest), d) {
		t.Errorf("%s: got the digest %v, want %v", tx.ID, o.digest, d)
	}
}

// compareEdits compares all but the message.
func compareEdits(got, want backends.Edits) error {
	got.Message, want.Message = nil, nil
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("got %+v, want %+v", got, want)
	}
	return nil
}
