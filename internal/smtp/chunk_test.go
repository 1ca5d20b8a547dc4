package smtp

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseChunk(t *testing.T) {
	for args, want := range map[string]struct {
		size int64
		last bool
		ok   bool
	}{
		"0":                   {0, false, true},
		"86":                  {86, false, true},
		"86 LAST":             {86, true, true},
		"086  last ":          {86, true, true},
		"9223372036854775807": {1<<63 - 1, false, true},

		// Whatever is not clear is refused: a wrong size is a wrong command later.
		"9223372036854775808": {},
		"":                    {},
		"LAST":                {},
		"-1":                  {},
		"+1":                  {},
		"1e3":                 {},
		"0x10":                {},
		"10 LAST LAST":        {},
		"10 LA\u017fT":        {},
		"10LAST":              {},
		"\u0661":              {},
	} {
		size, last, err := ParseChunk(args)
		if size != want.size || last != want.last || (err == nil) != want.ok {
			t.Errorf("%q: got %d, %v, %v, want %+v", args, size, last, err, want)
		}
	}
}

// A chunk ends where it said, whatever is in it; an input that ends before is
// no end of a chunk.
func TestChunkReader(t *testing.T) {
	const input = "a\r\n.\r\n\x00\nQUIT\r\n"
	for size := range len(input) + 1 {
		r := bufio.NewReader(iotest.OneByteReader(strings.NewReader(input)))
		got, err := io.ReadAll(NewChunkReader(r, int64(size)))
		rest, _ := io.ReadAll(r)
		if string(got) != input[:size] || string(rest) != input[size:] || err != nil {
			t.Errorf("%d octets: got %q and left %q, %v", size, got, rest, err)
		}
	}
	_, err := io.ReadAll(NewChunkReader(bufio.NewReader(strings.NewReader(input)), int64(len(input))+1))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an input that is too short: %v", err)
	}
}

// A chunk is exactly as long as BDAT says, and what follows is left where it
// is.
func FuzzChunk(f *testing.F) {
	f.Fuzz(func(t *testing.T, args, octets string) {
		size, last, err := ParseChunk(args)
		if err != nil {
			return
		}
		if again, lastAgain, err := ParseChunk(strings.ToLower(strings.TrimRight(args, " "))); err != nil || again != size || lastAgain != last || size < 0 {
			t.Errorf("%q: %d, %t, but %d, %t, %v", args, size, last, again, lastAgain, err)
		}
		in := strings.NewReader(octets)
		r := bufio.NewReaderSize(in, 16)
		chunk, err := io.ReadAll(NewChunkReader(r, size))
		if short := int64(len(octets)) < size; short != (err == io.ErrUnexpectedEOF) || !short && err != nil {
			t.Errorf("%d of %q: %v", size, octets, err)
		}
		rest, _ := io.ReadAll(r)
		if string(chunk)+string(rest) != octets || err == nil && int64(len(chunk)) != size {
			t.Errorf("%d of %q: chunk %q, rest %q", size, octets, chunk, rest)
		}
	})
}
