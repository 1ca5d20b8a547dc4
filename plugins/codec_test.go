package plugins

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// wholeMessages returns messages of both directions, with chunks of some
// sizes, and constructors of empty ones.
func wholeMessages() map[string]struct {
	message protobuf.Message
	empty   func() protobuf.Message
} {
	type pair = struct {
		message protobuf.Message
		empty   func() protobuf.Message
	}
	toPlugin := func() protobuf.Message { return &pb.ToPlugin{} }
	toGateway := func() protobuf.Message { return &pb.ToGateway{} }
	chunk := func(n int) []byte { return []byte(long[:n]) }
	return map[string]pair{
		"empty":               {&pb.ToPlugin{}, toPlugin},
		"transaction":         {&pb.ToPlugin{Transaction: transactionToWire(wholeTransaction())}, toPlugin},
		"transaction, chunk":  {&pb.ToPlugin{Transaction: transactionToWire(wholeTransaction()), Last: true, Chunk: chunk(4096)}, toPlugin},
		"one octet":           {&pb.ToPlugin{Chunk: chunk(1)}, toPlugin},
		"chunk":               {&pb.ToPlugin{Chunk: chunk(maxChunk)}, toPlugin},
		"last chunk":          {&pb.ToPlugin{Chunk: chunk(1000), Last: true}, toPlugin},
		"status":              {&pb.ToGateway{Statuses: status250(3)}, toGateway},
		"returned":            {returnEdits(&pb.Edits{Sender: []byte{}, Message: true}), toGateway},
		"chunk of a message":  {&pb.ToGateway{First: true, Last: true, Chunk: chunk(70000)}, toGateway},
		"everything at once ": {&pb.ToGateway{Started: []uint32{1, 2}, Statuses: status250(3), SmtpResponse: &pb.Status{Code: 250}, Chunk: chunk(300)}, toGateway},
	}
}

// asFrame is message as the codec takes it.
func asFrame(message protobuf.Message) *frame {
	f := &frame{}
	switch m := protobuf.Clone(message).(type) {
	case *pb.ToPlugin:
		f.chunk, m.Chunk, f.message = mem.BufferSlice{mem.SliceBuffer(m.Chunk)}, nil, m
	case *pb.ToGateway:
		f.chunk, m.Chunk, f.message = mem.BufferSlice{mem.SliceBuffer(m.Chunk)}, nil, m
	}
	return f
}

// whole is the message of a frame with its chunk.
func whole(f *frame) protobuf.Message {
	chunk := f.chunk.Materialize()
	switch m := f.message.(type) {
	case *pb.ToPlugin:
		m.Chunk = chunk
	case *pb.ToGateway:
		m.Chunk = chunk
	}
	return f.message
}

func TestCodecWritesWhatProtobufWrites(t *testing.T) {
	for name, test := range wholeMessages() {
		want, err := protobuf.MarshalOptions{Deterministic: true}.Marshal(test.message)
		if err != nil {
			t.Fatal(err)
		}
		got, err := newCodec(0).Marshal(asFrame(test.message))
		if err != nil || !bytes.Equal(got.Materialize(), want) {
			t.Errorf("%s: got %d octets and the error %v, want these %d", name, got.Len(), err, len(want))
		}
	}
}

func TestCodecReadsWhatProtobufWrites(t *testing.T) {
	for name, test := range wholeMessages() {
		octets, err := protobuf.Marshal(test.message)
		if err != nil {
			t.Fatal(err)
		}
		// gRPC gives a message in buffers of any size.
		for _, size := range []int{1, 2, 3, 7, 1000, 16384, len(octets) + 1} {
			f := &frame{message: test.empty().(interface {
				protobuf.Message
				GetChunk() []byte
			})}
			if err := newCodec(0).Unmarshal(split(octets, size), f); err != nil {
				t.Errorf("%s, buffers of %d: %v", name, size, err)
			} else if !protobuf.Equal(whole(f), test.message) {
				t.Errorf("%s, buffers of %d: got another message", name, size)
			}
		}
	}
}

func split(octets []byte, size int) (s mem.BufferSlice) {
	for len(octets) > size {
		s = append(s, mem.SliceBuffer(octets[:size]))
		octets = octets[size:]
	}
	return append(s, mem.SliceBuffer(octets))
}

// Other encoders may order fields as they like, and repeat them.
func TestCodecReadsOtherEncodings(t *testing.T) {
	chunk := func(s string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, chunkField, protowire.BytesType), s)
	}
	last := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1)
	for name, octets := range map[string][]byte{
		"chunk first":    append(chunk("hello"), last...),
		"chunk repeated": append(chunk("no"), append(last, chunk("hello")...)...),
		"empty chunk":    append(chunk("hello"), last...),
		"unknown field":  append(protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "?"), append(last, chunk("hello")...)...),
	} {
		message := &pb.ToPlugin{}
		f := &frame{message: message}
		if err := newCodec(0).Unmarshal(split(octets, len(octets)), f); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := string(f.chunk.Materialize()); got != "hello" || !message.Last {
			t.Errorf("%s: got the chunk %q and last %v", name, got, message.Last)
		}
	}
	for _, octets := range []string{"\x7a", "\x7a\x05hell", "\xff", "\x10", "\x00\x00"} {
		if err := newCodec(0).Unmarshal(split([]byte(octets), 100), &frame{message: &pb.ToPlugin{}}); err == nil {
			t.Errorf("%q was decoded", octets)
		}
	}
}

func FuzzCodecReadsLikeProtobuf(f *testing.F) {
	for _, test := range wholeMessages() {
		octets, _ := protobuf.Marshal(test.message)
		f.Add(octets[:min(len(octets), 500)], 10)
	}
	f.Fuzz(func(t *testing.T, octets []byte, size int) {
		want := &pb.ToGateway{}
		wantErr := protobuf.Unmarshal(octets, want)
		got := &frame{message: &pb.ToGateway{}}
		err := newCodec(0).Unmarshal(split(octets, max(size, 1)), got)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("got the error %v, want %v", err, wantErr)
		}
		if err == nil && !protobuf.Equal(whole(got), want) {
			t.Errorf("got %v, want %v", got.message, want)
		}
	})
}

// What a plugin sends is bounded before it is decoded, whatever it is made of.
func TestMemoryForOneMessageIsBounded(t *testing.T) {
	nest := func(octets []byte, fields ...protowire.Number) []byte {
		for _, f := range fields {
			octets = protowire.AppendBytes(protowire.AppendTag(nil, f, protowire.BytesType), octets)
		}
		return octets
	}
	repeat := func(s string) []byte { return bytes.Repeat([]byte(s), (maxMessage-100)/len(s)) }
	for name, octets := range map[string][]byte{
		"statuses":          repeat("\x12\x00"),
		"statuses of parts": repeat("\x12\x02\x12\x00"),
		"started":           repeat("\x08\x01"),
		"started, packed":   nest(repeat("\x01"), 1),
		"fields":            nest(repeat("\x0a\x00"), 3, 4),
		"redirects":         nest(repeat("\x22\x00"), 3, 4),
		"added":             nest(repeat("\x2a\x00"), 3, 4),
		"params of added":   nest(repeat("\x12\x00"), 5, 3, 4),
		"diversions":        nest(repeat("\x32\x00"), 3, 4),
		"addresses":         nest(repeat("\x12\x00"), 4, 3, 4),
		"results":           nest(repeat("\x12\x00\x1a\x00"), 4),
		"chunk before":      append([]byte("\x7a\x01x"), repeat("\x12\x00")...),
	} {
		data := split(octets, len(octets))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := newCodec(maxParts).Unmarshal(data, &frame{message: &pb.ToGateway{}})
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), "parts, which is more than 4096") {
			t.Errorf("%s: got the error %v", name, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 2*maxMessage {
			t.Errorf("%s: took %d octets of memory, want at most %d", name, used, 2*maxMessage)
		}
	}
}

func TestCodecLeavesOtherMessagesAlone(t *testing.T) {
	c := newCodec(0)
	if c.Name() != encoding.GetCodecV2(proto.Name).Name() {
		t.Errorf("the codec is called %q", c.Name())
	}
	want := &pb.ConfigureRequest{SettingsJson: "{}"}
	octets, err := c.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := &pb.ConfigureRequest{}
	if err := c.Unmarshal(octets, got); err != nil || !protobuf.Equal(got, want) {
		t.Errorf("got %v and the error %v", got, err)
	}
}

func TestChunkIsNotCopied(t *testing.T) {
	f := asFrame(&pb.ToPlugin{Last: true, Chunk: []byte(long[:maxChunk])})
	octets, err := newCodec(maxParts).Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := &octets[1].ReadOnlyData()[0], &f.chunk[0].ReadOnlyData()[0]; got != want {
		t.Error("it is copied when it is encoded")
	}
	data := split(octets.Materialize(), maxChunk/4) // as gRPC reads it
	read := &frame{message: &pb.ToPlugin{}}
	if err := newCodec(maxParts).Unmarshal(data, read); err != nil {
		t.Fatal(err)
	}
	for i, part := range read.chunk[1:] {
		if got, want := &part.ReadOnlyData()[0], &data[i+1].ReadOnlyData()[0]; got != want {
			t.Errorf("part %d is copied when it is decoded", i+1)
		}
	}
	if len(read.chunk) != len(data) {
		t.Errorf("it is decoded to %d parts, want %d", len(read.chunk), len(data))
	}
}

// A chunk goes back to the pool only when its sender and gRPC are done.
func TestChunkLivesUntilItIsWritten(t *testing.T) {
	chunk, err := readChunk(strings.NewReader(long), maxChunk)
	if err != nil {
		t.Fatal(err)
	}
	octets, err := newCodec(0).Marshal(&frame{message: &pb.ToPlugin{}, chunk: chunk})
	if err != nil {
		t.Fatal(err)
	}
	chunk.Free()
	for range 10 {
		b := chunks.Get(maxChunk)
		clear(*b)
	}
	if got := octets.Materialize(); !bytes.HasSuffix(got, []byte(long[:maxChunk])) {
		t.Error("the chunk has changed")
	}
	octets.Free()
}

func TestReadChunk(t *testing.T) {
	bad := errors.New("bad disk")
	for _, test := range []struct {
		r    io.Reader
		n    int
		want string
		err  error
	}{
		{strings.NewReader("hello"), 5, "hello", nil},
		{iotest.OneByteReader(strings.NewReader("hello")), 4, "hell", nil},
		{strings.NewReader("hello"), 6, "hello", io.EOF},
		{iotest.DataErrReader(strings.NewReader("hello")), 5, "hello", nil},
		{strings.NewReader(""), 1, "", io.EOF},
		{io.MultiReader(strings.NewReader("h"), iotest.ErrReader(io.ErrUnexpectedEOF)), 5, "h", io.ErrUnexpectedEOF},
		{iotest.ErrReader(bad), 5, "", bad},
		{nil, 0, "", nil},
	} {
		chunk, err := readChunk(test.r, test.n)
		if got := string(chunk.Materialize()); got != test.want || err != test.err {
			t.Errorf("got %q and %v, want %q and %v", got, err, test.want, test.err)
		}
	}
}

// Those that are there to be used again are too small for a large message.
func TestBuffersAreLargeEnough(t *testing.T) {
	for range 100 { // a pool may forget
		for _, length := range []int{0, smallBuffer, smallBuffer + 1, maxChunk, maxChunk + 1, maxMessage} {
			b := chunks.Get(length)
			if len(*b) != length {
				t.Fatalf("got %d octets, want %d", len(*b), length)
			}
			chunks.Put(b)
		}
	}
}
