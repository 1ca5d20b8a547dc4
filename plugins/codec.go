package plugins

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// chunkField is the number of the field chunk in ToPlugin and ToGateway. No
// field of theirs has a higher one, so that the chunk is encoded last.
const chunkField = 15

// A frame is a message of a Deliver stream with its chunk apart, so that
// codec need not copy it. Whoever has a frame frees its chunk.
type frame struct {
	message interface {
		protobuf.Message
		GetChunk() []byte
	}
	chunk mem.BufferSlice

	// written is closed when the message is in the socket, or never will be.
	written chan struct{}
}

// codec encodes and decodes frames without copying chunks, and leaves other
// messages to gRPC's own codec. Both write and read the same octets.
type codec struct {
	encoding.CodecV2

	// most is how many parts a message may have that is decoded; 0 is any
	// number of them.
	most int
}

func newCodec(most int) codec { return codec{encoding.GetCodecV2(proto.Name), most} }

// Marshal takes references of its own to the chunk of a frame, because the
// octets are written after SendMsg returned.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head, err := protobuf.Marshal(f.message)
	if err != nil {
		return nil, err
	}
	n := f.chunk.Len()
	if n == 0 {
		return mem.BufferSlice{f.telling(head)}, nil
	}
	head = protowire.AppendTag(head, chunkField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(n))
	f.chunk.Ref()
	return append(mem.BufferSlice{mem.SliceBuffer(head)}, f.chunk...), nil
}

// telling is a buffer with octets that closes f.written when gRPC frees it:
// once it has written them, because the plugin's server has no write buffer.
func (f *frame) telling(octets []byte) mem.Buffer {
	if f.written == nil {
		return mem.SliceBuffer(octets)
	}
	octets = slices.Grow(octets, poolable-len(octets))
	return mem.NewBuffer(&octets, onPut(f.written))
}

// poolable is a capacity of buffers for which gRPC calls Put of their pools.
const poolable = 2 << 10

// An onPut is a pool for one buffer, and closed when that is put back.
type onPut chan struct{}

func (p onPut) Get(length int) *[]byte { return chunks.Get(length) }
func (p onPut) Put(*[]byte)            { close(p) }

// Unmarshal counts the parts of a message before it makes them: two octets of
// a message can be a hundred of memory.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return c.unmarshalWhole(data, v)
	}
	f.chunk = nil
	head, start, ok := findChunk(data)
	if !ok {
		// There is no chunk, or a peer has encoded it in a way of its own.
		if err := c.unmarshalWhole(data, f.message); err != nil {
			return err
		}
		if chunk := f.message.GetChunk(); len(chunk) > 0 {
			f.chunk = mem.BufferSlice{mem.SliceBuffer(chunk)}
		}
		return nil
	}
	first := data[0]
	if err := c.decode(first.ReadOnlyData()[:head], f.message); err != nil {
		return err
	}
	data[1:].Ref()
	f.chunk = append(mem.BufferSlice{first.Slice(start, first.Len())}, data[1:]...)
	return nil
}

// unmarshalWhole decodes a message with all that is in it.
func (c codec) unmarshalWhole(data mem.BufferSlice, v any) error {
	m, ok := v.(protobuf.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	return c.decode(whole.ReadOnlyData(), m)
}

func (c codec) decode(octets []byte, m protobuf.Message) error {
	if c.most > 0 {
		if n := parts(octets, m.ProtoReflect().Descriptor()); n > c.most {
			return fmt.Errorf("a message of %d parts, which is more than %d", n, c.most)
		}
	}
	return protobuf.Unmarshal(octets, m)
}

// parts counts the messages and the elements of lists in a message. What is
// malformed, it leaves to Unmarshal.
func parts(octets []byte, d protoreflect.MessageDescriptor) (n int) {
	for len(octets) > 0 {
		number, kind, tag := protowire.ConsumeTag(octets)
		if tag < 0 {
			return n
		}
		size := protowire.ConsumeFieldValue(number, kind, octets[tag:])
		if size < 0 {
			return n
		}
		value := octets[tag : tag+size]
		octets = octets[tag+size:]
		switch field := d.Fields().ByNumber(number); {
		case field == nil:
		case field.Message() != nil && kind == protowire.BytesType:
			inner, _ := protowire.ConsumeBytes(value)
			n += 1 + parts(inner, field.Message())
		case field.IsPacked():
			n += size // at least as many as there are, packed or not
		case field.IsList():
			n++
		}
	}
	return n
}

// findChunk returns the length of what comes before the chunk's tag, and
// where its octets start. It does so only if both are in the first buffer and
// nothing follows the chunk.
func findChunk(data mem.BufferSlice) (head, start int, ok bool) {
	if len(data) == 0 {
		return 0, 0, false
	}
	for b, at := data[0].ReadOnlyData(), 0; at < len(b); {
		number, kind, tag := protowire.ConsumeTag(b[at:])
		if tag < 0 {
			break
		}
		if number == chunkField && kind == protowire.BytesType {
			size, n := protowire.ConsumeVarint(b[at+tag:])
			start = at + tag + n
			return at, start, n > 0 && size > 0 && size == uint64(data.Len()-start)
		}
		value := protowire.ConsumeFieldValue(number, kind, b[at+tag:])
		if value < 0 {
			break
		}
		at += tag + value
	}
	return 0, 0, false
}

const (
	// maxChunk is the size of chunks between Go peers.
	maxChunk = 64 << 10

	// smallChunk is the size of chunks for peers that announce none.
	smallChunk = 31 << 10

	// maxMessage and maxParts bound one message from a plugin, and with it
	// what a sick one can make the gateway hold.
	maxMessage = 256 << 10
	maxParts   = 4096

	// maxTransaction bounds one message for a plugin, which has the envelope
	// with as many recipients as the listener allows.
	maxTransaction = 64 << 20
)

// chunks is the pool of buffers for chunks. gRPC's own pool has nothing
// between 32 KiB and 1 MiB, and clears its buffers.
var chunks chunkPool

type chunkPool struct{ small, large sync.Pool }

// smallBuffer is enough for most messages.
const smallBuffer = maxChunk / 4

// Get returns a buffer with that length. Its contents are whatever they are.
func (p *chunkPool) Get(length int) *[]byte {
	if length > maxChunk { // a large message to the gateway, which is rare
		b := make([]byte, length)
		return &b
	}
	pool, size := &p.small, smallBuffer
	switch {
	case length > maxChunk:
		b := make([]byte, length)
		return &b
	case length > smallBuffer:
		pool, size = &p.large, maxChunk
	}
	if b, ok := pool.Get().(*[]byte); ok {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, size)
	return &b
}

func (p *chunkPool) Put(b *[]byte) {
	switch cap(*b) {
	case smallBuffer:
		p.small.Put(b)
	case maxChunk:
		p.large.Put(b)
	}
}

// readChunk reads length octets. If there are fewer, or if it fails, it
// returns those that it has read, and the error of r.
func readChunk(r io.Reader, length int) (chunk mem.BufferSlice, err error) {
	b := chunks.Get(length)
	n := 0
	for n < length && err == nil {
		var more int
		more, err = r.Read((*b)[n:])
		n += more
	}
	if n == length {
		err = nil
	}
	*b = (*b)[:n]
	return mem.BufferSlice{mem.NewBuffer(b, &chunks)}, err
}

// A chunkReader reads the chunks that next returns, one after the other,
// until next returns an error.
type chunkReader struct {
	next  func() (mem.BufferSlice, error)
	chunk mem.Reader
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(p) > 0 && r.chunk.Remaining() == 0 {
		chunk, err := r.next()
		if err != nil {
			return 0, err
		}
		r.chunk.Reset(chunk)
		chunk.Free()
	}
	return r.chunk.Read(p)
}
