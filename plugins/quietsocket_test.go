package plugins

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func quietPair(t testing.TB) (near, far *quietSocket) {
	t.Helper()
	a, b := socketPair(t)
	for conn, s := range map[*net.UnixConn]**quietSocket{a: &near, b: &far} {
		var err error
		if *s, err = newQuietSocket(conn); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*s).Close() })
	}
	return near, far
}

// Both ends write more than there is room for, before they read, several goroutines at
// once, and each piece arrives in one piece.
func TestQuietSocketWaitsForRoom(t *testing.T) {
	near, far := quietPair(t)
	const writers, size = 4, 1 << 20
	var all sync.WaitGroup
	for _, s := range []*quietSocket{near, far} {
		var written sync.WaitGroup
		for i := range writers {
			written.Go(func() {
				if n, err := s.Write(bytes.Repeat([]byte{byte('a' + i)}, size)); n != size || err != nil {
					t.Errorf("wrote %d, %v", n, err)
				}
			})
		}
		all.Go(written.Wait)
	}
	for _, s := range []*quietSocket{near, far} {
		all.Go(func() {
			got := make([]byte, writers*size)
			if _, err := io.ReadFull(s, got); err != nil {
				t.Error(err)
			}
			for ; len(got) > 0; got = got[size:] {
				if piece := got[:size]; bytes.Count(piece, piece[:1]) != size {
					t.Error("something came between")
				}
			}
		})
	}
	within(t, "both ends", all.Wait)
}

// A backend that reads into nothing gets nothing, and does not wait for it.
func TestQuietSocketReadsNothing(t *testing.T) {
	near, _ := quietPair(t)
	if n, err := near.Read(nil); n != 0 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
}

// Whoever waits is told of the end: his own, or that of the other end.
func TestQuietSocketEnds(t *testing.T) {
	large := make([]byte, 4<<20)
	for _, test := range []struct {
		name        string
		end         func(near, far *quietSocket)
		read, write error
	}{
		{"closed", func(near, _ *quietSocket) { near.Close(); near.Close() }, net.ErrClosed, net.ErrClosed},
		{"closed at the other end, with something unread", func(_, far *quietSocket) { far.Close() }, unix.ECONNRESET, unix.EPIPE},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := quietPair(t)
			var waiting sync.WaitGroup
			waiting.Go(func() {
				if _, err := near.Read(make([]byte, 1)); !errors.Is(err, test.read) {
					t.Errorf("read: got %v, want %v", err, test.read)
				}
			})
			waiting.Go(func() {
				if _, err := near.Write(large); !errors.Is(err, test.write) {
					t.Errorf("write: got %v, want %v", err, test.write)
				}
			})
			if _, err := far.Read(make([]byte, 1)); err != nil { // so that the write has begun
				t.Error(err)
			}
			test.end(near, far)
			within(t, "who waits", waiting.Wait)
		})
	}
}

// A write that waits ends at its deadline, and the next one does not suffer from it.
func TestQuietSocketDeadline(t *testing.T) {
	near, far := quietPair(t)
	near.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	n, err := near.Write(make([]byte, 4<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	near.SetWriteDeadline(time.Time{})
	var reading sync.WaitGroup
	reading.Go(func() { io.ReadFull(far, make([]byte, n+5)) })
	if n, err := near.Write([]byte("hello")); n != 5 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	within(t, "the other end", reading.Wait)
}

// It leaves no descriptors.
func TestQuietSocketGivesItsDescriptorsBack(t *testing.T) {
	before := countDescriptors(t)
	for range 100 {
		near, far := quietPair(t)
		near.Close()
		far.Close()
	}
	if after := countDescriptors(t); after > before {
		t.Errorf("%d descriptors after, %d before", after, before)
	}
}
