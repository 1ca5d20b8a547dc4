package plugins

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

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
