package plugins

import (
	"io"
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"
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
}

// codec encodes and decodes frames without copying chunks, and leaves other
// messages to gRPC's own codec. Both write and read the same octets.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

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
		return mem.BufferSlice{mem.SliceBuffer(head)}, nil
	}
	head = protowire.AppendTag(head, chunkField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(n))
	f.chunk.Ref()
	return append(mem.BufferSlice{mem.SliceBuffer(head)}, f.chunk...), nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	f.chunk = nil
	head, start, ok := findChunk(data)
	if !ok {
		// There is no chunk, or a peer has encoded it in a way of its own.
		if err := c.CodecV2.Unmarshal(data, f.message); err != nil {
			return err
		}
		if chunk := f.message.GetChunk(); len(chunk) > 0 {
			f.chunk = mem.BufferSlice{mem.SliceBuffer(chunk)}
		}
		return nil
	}
	first := data[0]
	if err := protobuf.Unmarshal(first.ReadOnlyData()[:head], f.message); err != nil {
		return err
	}
	data[1:].Ref()
	f.chunk = append(mem.BufferSlice{first.Slice(start, first.Len())}, data[1:]...)
	return nil
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

	// maxMessage bounds one message from a plugin. A message for a plugin
	// has the envelope, with as many recipients as the listener allows.
	maxMessage = 4 << 20
)

// chunks is the pool of buffers for chunks. gRPC's own pool has nothing
// between 32 KiB and 1 MiB, and clears its buffers.
var chunks chunkPool

type chunkPool struct{ large sync.Pool }

// Get returns a buffer with that length. Its contents are whatever they are.
func (p *chunkPool) Get(length int) *[]byte {
	if length > maxChunk/4 {
		if b, ok := p.large.Get().(*[]byte); ok {
			*b = (*b)[:length]
			return b
		}
		b := make([]byte, length, maxChunk)
		return &b
	}
	b := make([]byte, length)
	return &b
}

func (p *chunkPool) Put(b *[]byte) {
	if cap(*b) == maxChunk {
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
