package plugins

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// What a backend does at the end of a transaction, and after it, is no part of the next
// one, which has the same connection.
func TestNothingFollowsTheLastAnswer(t *testing.T) {
	for _, name := range []string{"talks on", "reads on"} {
		t.Run(name, func(t *testing.T) {
			h, _ := run(t, name)
			for n := range 300 {
				o := deliver(t.Context(), h, message(long, "one"))
				if o.err != nil {
					t.Fatalf("transaction %d: got the error %v", n, o.err)
				}
				if got := o.status(t, 0); got != backends.Delivered {
					t.Fatalf("transaction %d: got %v", n, got)
				}
			}
		})
	}
}

// Who reads a message that is given up has nothing of what follows it.
func TestNobodyReadsAMessageThatIsGivenUp(t *testing.T) {
	h, log := run(t, "reads for ever")
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		backends.Run(ctx, h, message(long, "one"), backends.Hooks{
			SMTPResponse: func(backends.Status) { cancel() },
			Status:       func(int, backends.Status) { close(ended) },
		})
		within(t, "the delivery", func() { <-ended })
		cancel()
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	for _, record := range log.records {
		if text := fmt.Sprint(record["text"]); strings.Contains(text, "DATA RACE") {
			t.Fatal("the plugin has a data race")
		}
	}
}

// The end of a transaction may be more than its socket holds.
func TestLongEnd(t *testing.T) {
	near, far := socketPair(t)
	far.SetWriteBuffer(1)
	serveLane(t, testBackends["many edits"], near, far)
	c, err := newLaneConn(near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	octets := appendTransaction(nil, message("", "one"))
	c.Write(rawFrame(1, []byte{0, 0, 0, 1}, octets, nil))
	f, err := c.frame(maxMessage)
	if err != nil || f.kind != laneEnd || f.length < 200_000 {
		t.Fatalf("got the frame %+v and the error %v", f, err)
	}
	if _, err := c.message(f.length); err != nil {
		t.Error(err)
	}
}

// A connection that waits does not hold what a large answer needed.
func TestLaneKeepsLittle(t *testing.T) {
	room, large := &answerRoom{}, &pb.ToGateway{}
	for range maxParts / 2 {
		large.Statuses = append(large.Statuses, status250(0)...)
	}
	before := inUse()
	for range 20 {
		room.decode(octetsOf(t, large))
		room.clear()
	}
	if n := inUse() - before; n > 64<<10 {
		t.Errorf("%d octets are kept", n)
	}
	runtime.KeepAlive(room)
	runtime.KeepAlive(large)
}

// Nor does it hold what a large envelope needed, in the plugin.
func TestPluginKeepsLittleOfTheLane(t *testing.T) {
	near, far := socketPair(t)
	before := inUse()
	serveLane(t, testBackends["discard"], near, far)
	c, err := newLaneConn(near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i, size := range []int{32 << 20, 1, 1} {
		octets := appendTransaction(nil, &backends.DataContext{Envelope: backends.Envelope{Sender: strings.Repeat("x", size)}})
		c.Write(rawFrame(1, []byte{0, 0, 0, byte(i + 1)}, octets, nil))
		if f, err := c.frame(maxMessage); err != nil || f.kind != laneEnd {
			t.Fatalf("got the frame %+v and the error %v", f, err)
		} else if _, err := c.message(f.length); err != nil {
			t.Fatal(err)
		}
	}
	if n := inUse() - before; n > 16<<20 {
		t.Errorf("%d octets are kept", n)
	}
	runtime.KeepAlive(c)
}

// inUse is how much memory is in use.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // what is in a pool is there for one more
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A connection that was closed takes nothing of the transaction, which goes by another
// one as a whole.
func TestClosedLaneTakesNothing(t *testing.T) {
	h, _ := run(t, "echo")
	for _, text := range []string{"hello", long, long} {
		o := deliver(t.Context(), h, message(text, "one"))
		if want := fmt.Sprintf("%d %x", len(text), hash([]byte(text))); o.err != nil || o.statuses[0].Text != want {
			t.Errorf("got %v and the error %v, want %s", o.statuses, o.err, want)
		}
		l := h.running[0].lane
		l.mu.Lock()
		for _, link := range l.idle {
			link.Close()
		}
		l.mu.Unlock()
	}
}

// acceptLane returns a lane whose plugin is the test, and its next connection.
func acceptLane(t *testing.T) (l *lane, accept func() *net.UnixConn) {
	t.Helper()
	path := socketPath(t)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return newLane(slog.New(slog.DiscardHandler), path, uint32(os.Geteuid()), os.Getpid()), func() *net.UnixConn {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return nil
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

var laneGreeting = rawFrame(4, make([]byte, 4), nil, nil)

// The plugin ends while a connection is being made, which is not used then.
func TestLaneThatEndsWhileItConnects(t *testing.T) {
	l, accept := acceptLane(t)
	taken := make(chan *laneLink)
	go func() { taken <- l.take(t.Context()) }()
	conn := accept()
	l.close()
	conn.Write(laneGreeting)
	if link := <-taken; link != nil || len(l.open) > 0 {
		t.Errorf("got the connection %v, and %d are left", link, len(l.open))
	}
}

// A connection is made in time, or it is not used: the end of that time would close it
// under its transaction.
func TestLaneThatIsMadeAtTheLastMoment(t *testing.T) {
	l, accept := acceptLane(t)
	for range 1000 {
		ctx, cancel := context.WithCancel(t.Context())
		taken := make(chan *laneLink)
		go func() { taken <- l.take(ctx) }()
		conn := accept()
		go cancel()
		conn.Write(laneGreeting)
		if link := <-taken; link != nil {
			<-ctx.Done()
			for range 10 {
				runtime.Gosched() // to who would close it
			}
			conn.Write([]byte("x"))
			if _, err := link.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			l.drop(link)
		}
		conn.Close()
	}
}

// A plugin that cannot even take a transaction from a new connection gets it over
// gRPC, and is not connected to again and again.
func TestLaneThatTakesNothing(t *testing.T) {
	l, accept := acceptLane(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var accepted atomic.Int32
	go func() {
		for conn := accept(); conn != nil; conn = accept() {
			if accepted.Add(1) == 100 {
				cancel()
			}
			conn.CloseRead()
			conn.Write(laneGreeting)
		}
	}()
	for range 2 {
		c := &call{tx: message("", "one"), caller: ctx}
		if s, err := l.begin(c); s != nil || err != nil {
			t.Errorf("got the stream %v and the error %v", s, err)
		}
	}
	if n := accepted.Load(); n != 1 || len(l.open) > 0 {
		t.Errorf("%d connections were made, and %d are left", n, len(l.open))
	}
}

// A plugin that sends nothing more on a connection that is free may still take the next
// transaction. That does not wait for its deadline.
func TestLaneThatIsHalfClosed(t *testing.T) {
	f := newFakeLane(t)
	l := f.host.running[0].lane
	waits, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		n := 0
		l.idle[0].readable.Read(func(uintptr) bool {
			if n++; n == 1 {
				close(waits)
			}
			return n == 2
		})
	}()
	<-waits
	f.Conn.(*net.UnixConn).CloseWrite()
	within(t, "Go's poller", func() { <-told }) // so that the end is nothing new
	go io.Copy(io.Discard, f)
	done := make(chan *outcome, 1)
	go func() { done <- deliver(t.Context(), f.host, message("hello", "one")) }()
	eventually(t, "Deliver returns", func() bool {
		l.look()
		return len(done) > 0
	})
	o := <-done
	o.wantError(t, "has closed its socket")
	o.wantUndecided(t, 0)
}
