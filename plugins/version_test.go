package plugins

import (
	"bytes"
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// A plugin that was built for version 1 works with every later gateway. What
// version 1 is, is in four files that nobody changes after the first release:
//
//	testdata/v1.textproto  calls with every field
//	testdata/v1.binpb      plugin.proto, compiled
//	testdata/v1.hex        the octets of the messages of those calls, a line each
//	testdata/v1.lane.hex   the octets of each transaction on the lane: a line to the
//	                       plugin, and one to the gateway
//
// Until then a field that plugin.proto gets is added to the first one by hand, what
// it means to meaning_test.go, and the others are made anew by
//
//	go test ./plugins -run TestVersion1 -freeze
var freeze = flag.Bool("freeze", false, "make the other files of version 1 anew from testdata/v1.textproto")

const (
	version1Calls  = "testdata/v1.textproto"
	version1Octets = "testdata/v1.hex"
	version1Lane   = "testdata/v1.lane.hex"
)

var frozen sync.Once

// openVersion1 returns the service as it was in version 1, and the calls.
func openVersion1(t *testing.T) (protoreflect.ServiceDescriptor, transcript) {
	t.Helper()
	if *freeze {
		frozen.Do(func() { freezeVersion1(t) })
	}
	service, err := version1()
	if err != nil {
		t.Fatal(err)
	}
	calls, err := readTranscript(version1Calls, service, newDynamic)
	if err != nil {
		t.Fatal(err)
	}
	return service, calls
}

func freezeVersion1(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("protoc", "--descriptor_set_out="+version1File, "plugin.proto").CombinedOutput(); err != nil {
		t.Fatalf("protoc: %v\n%s", err, out)
	}
	service, err := version1()
	if err != nil {
		t.Fatal(err)
	}
	calls, err := readTranscript(version1Calls, service, newDynamic)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, call := range calls {
		for _, m := range call.messages {
			fmt.Fprintf(&lines, "%x\n", octetsOf(t, m.message))
		}
	}
	if err := os.WriteFile(version1Octets, []byte(lines.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	lines.Reset()
	for _, call := range calls {
		if call.method.Name() == "Deliver" {
			toPlugin, toGateway := onLane(t, call)
			fmt.Fprintf(&lines, "%x\n%x\n", toPlugin, toGateway)
		}
	}
	if err := os.WriteFile(version1Lane, []byte(lines.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// onLane returns what a call of Deliver is on the lane.
func onLane(t *testing.T, call transcribed) (toPlugin, toGateway []byte) {
	t.Helper()
	number := []byte{0, 0, 0, 1}
	var body []byte
	for i, m := range call.messages {
		octets := octetsOf(t, m.message)
		if m.toPlugin {
			whole := &pb.ToPlugin{}
			if err := protobuf.Unmarshal(octets, whole); err != nil {
				t.Fatal(err)
			}
			if whole.Transaction != nil {
				toPlugin = rawFrame(1, number, octetsOf(t, whole.Transaction), nil)
			}
			body = append(body, whole.Chunk...)
			continue
		}
		answer := &pb.ToGateway{}
		if err := protobuf.Unmarshal(octets, answer); err != nil {
			t.Fatal(err)
		}
		chunk := answer.Chunk
		answer.Chunk = nil
		kind := 3
		if i == len(call.messages)-1 {
			kind = 4
		}
		toGateway = append(toGateway, rawFrame(kind, number, octetsOf(t, answer), chunk)...)
	}
	return append(toPlugin, body...), toGateway
}

func octetsOf(t *testing.T, m protobuf.Message) []byte {
	t.Helper()
	octets, err := protobuf.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return octets
}

// A plugin that knows version 1 alone works with this gateway.
func TestVersion1IsUnderstood(t *testing.T) {
	openVersion1(t)
	playTranscript(t, version1Calls)
}

// The octets of version 1 mean what they meant.
func TestVersion1ByteForByte(t *testing.T) {
	_, then := openVersion1(t)
	now, err := readTranscript(version1Calls, pb.File_plugin_proto.Services().ByName("Plugin"), newGenerated)
	if err != nil {
		t.Fatal(err)
	}
	recorded, err := os.ReadFile(version1Octets)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(recorded), "\n")
	for i, call := range then {
		for j, m := range call.messages {
			line := lines[0]
			lines = lines[1:]
			octets, err := hex.DecodeString(line)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(octetsOf(t, m.message)); got != line {
				t.Errorf("%s: got %s, recorded was %s for\n%s", call.method.Name(), got, line, m.text)
			}
			want := now[i].messages[j].message
			got := newGenerated(want.ProtoReflect().Descriptor())
			if err := protobuf.Unmarshal(octets, got); err != nil || !protobuf.Equal(got, want) {
				t.Errorf("%s: %s means now %v, %v; want\n%s", call.method.Name(), line, got, err, m.text)
			}
			if again := hex.EncodeToString(octetsOf(t, got)); again != line {
				t.Errorf("%s: got %s, recorded was %s for\n%s", call.method.Name(), again, line, m.text)
			}
		}
	}
	if len(lines) != 1 {
		t.Errorf("%s has %d lines too many", version1Octets, len(lines)-1)
	}
}

// The octets on the lane are those of version 1 in both directions.
func TestVersion1OnTheLane(t *testing.T) {
	openVersion1(t)
	calls, err := readTranscript(version1Calls, pb.File_plugin_proto.Services().ByName("Plugin"), newGenerated)
	if err != nil {
		t.Fatal(err)
	}
	recorded, err := os.ReadFile(version1Lane)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(recorded))
	for _, call := range calls {
		if call.method.Name() != "Deliver" {
			continue
		}
		toPlugin, _ := hex.DecodeString(lines[0])
		toGateway, _ := hex.DecodeString(lines[1])
		lines = lines[2:]
		f := newFakeLane(t)
		sent := make(chan []byte, 1)
		go func() {
			octets := make([]byte, len(toPlugin))
			io.ReadFull(f, octets)
			sent <- octets
			f.Write(toGateway)
		}()
		id := call.messages[0].message.(*pb.ToPlugin).Transaction.Id
		playDeliver(t, f.host, id)
		if got := <-sent; !bytes.Equal(got, toPlugin) {
			t.Errorf("got  %x\nwant %x", got, toPlugin)
		}
		takeFromLane(t, toPlugin, id)
	}
	if len(lines) > 0 {
		t.Errorf("%s has %d lines too many", version1Lane, len(lines))
	}
}

// takeFromLane has a plugin take a transaction.
func takeFromLane(t *testing.T, octets []byte, id string) {
	t.Helper()
	want := deliveries()[id]
	want.tx.Size = int64(len(want.body))
	taken := make(chan struct{})
	b := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		defer close(taken)
		if got := transactionToWire(tx); !protobuf.Equal(got, transactionToWire(want.tx)) {
			t.Errorf("the plugin takes %v for %v", got, want.tx)
		}
		if body, err := io.ReadAll(tx.Body); string(body) != want.body || err != nil {
			t.Errorf("the plugin reads %q, %v", body, err)
		}
		return nil
	})
	near, far := socketPair(t)
	serveLane(t, b, near, far)
	near.Write(octets)
	within(t, "the plugin", func() { <-taken })
}

// Nothing of version 1 is gone or of another kind. What is new has a number of
// its own.
func TestVersion1IsPartOfTheProtocol(t *testing.T) {
	service, _ := openVersion1(t)
	then, now := service.ParentFile(), pb.File_plugin_proto
	if then.Package() != now.Package() {
		t.Errorf("the package is %s, was %s", now.Package(), then.Package())
	}
	compareMessages(t, then.Messages(), now.Messages())
	methods := now.Services().ByName(service.Name()).Methods()
	for i := range service.Methods().Len() {
		was := service.Methods().Get(i)
		is := methods.ByName(was.Name())
		if is == nil || describeMethod(is) != describeMethod(was) {
			t.Errorf("%s is not what it was", was.FullName())
		}
	}
}

func describeMethod(m protoreflect.MethodDescriptor) string {
	return fmt.Sprint(m.Input().FullName(), m.IsStreamingClient(), m.Output().FullName(), m.IsStreamingServer())
}

func compareMessages(t *testing.T, then, now protoreflect.MessageDescriptors) {
	t.Helper()
	for i := range then.Len() {
		was := then.Get(i)
		is := now.ByName(was.Name())
		if is == nil {
			t.Errorf("%s is gone", was.FullName())
			continue
		}
		for i := range was.Fields().Len() {
			f := was.Fields().Get(i)
			same := is.Fields().ByNumber(f.Number())
			if same == nil || describeField(same) != describeField(f) {
				t.Errorf("%s is not what it was: %s", f.FullName(), describeField(f))
			}
		}
		compareMessages(t, was.Messages(), is.Messages())
		compareEnums(t, was.Enums(), is.Enums())
	}
}

// describeField tells all that matters on the wire and in text.
func describeField(f protoreflect.FieldDescriptor) string {
	what := []any{f.Number(), f.Name(), f.Kind(), f.Cardinality(), f.HasPresence(), f.IsPacked()}
	if f.Message() != nil {
		what = append(what, f.Message().FullName())
	}
	if f.Enum() != nil {
		what = append(what, f.Enum().FullName())
	}
	if f.ContainingOneof() != nil {
		what = append(what, f.ContainingOneof().Name())
	}
	return fmt.Sprintln(what...)
}

func compareEnums(t *testing.T, then, now protoreflect.EnumDescriptors) {
	t.Helper()
	for i := range then.Len() {
		was := then.Get(i)
		for j := range was.Values().Len() {
			value := was.Values().Get(j)
			is := now.ByName(was.Name())
			if is == nil || is.Values().ByNumber(value.Number()) == nil || is.Values().ByNumber(value.Number()).Name() != value.Name() {
				t.Errorf("%s = %d is not what it was", value.FullName(), value.Number())
			}
		}
	}
}

// The calls have each field of version 1, and each value of an enum.
func TestVersion1IsWhole(t *testing.T) {
	service, calls := openVersion1(t)
	said := map[protoreflect.FullName]bool{}
	for _, call := range calls {
		for _, m := range call.messages {
			note(said, m.message.ProtoReflect())
		}
	}
	messages := service.ParentFile().Messages()
	for i := range messages.Len() {
		fields := messages.Get(i).Fields()
		for j := range fields.Len() {
			f := fields.Get(j)
			if !said[f.FullName()] {
				t.Errorf("no call of %s has %s", version1Calls, f.FullName())
			}
			for k := 1; f.Enum() != nil && k < f.Enum().Values().Len(); k++ { // the first one is the default
				if value := f.Enum().Values().Get(k).FullName(); !said[value] {
					t.Errorf("no call of %s has %s", version1Calls, value)
				}
			}
		}
	}
}

// note notes the names of all that is set in a message.
func note(said map[protoreflect.FullName]bool, m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		said[f.FullName()] = true
		values := []protoreflect.Value{v}
		if f.IsList() {
			values = nil
			for i := range v.List().Len() {
				values = append(values, v.List().Get(i))
			}
		}
		for _, v := range values {
			switch {
			case f.Message() != nil:
				note(said, v.Message())
			case f.Enum() != nil:
				if value := f.Enum().Values().ByNumber(v.Enum()); value != nil {
					said[value.FullName()] = true
				}
			}
		}
		return true
	})
}
