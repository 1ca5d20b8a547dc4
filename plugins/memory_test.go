package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
)

func TestUnreadMessageIsCheap(t *testing.T) {
	h, _ := run(t, "discard")
	body := &counter{r: endless{}}
	tx := message("", "one")
	tx.Size, tx.Body = 1<<40, body
	if o := deliver(t.Context(), h, tx); o.err != nil || o.statuses[0] != backends.Delivered {
		t.Fatalf("got %v and the error %v", o.statuses, o.err)
	}
	if most := int64(1 << 20); body.n > most {
		t.Errorf("%d octets of the message were read, want at most %d", body.n, most)
	}
}

// Whether plugins read or not, the gateway holds some chunks of each message.
func TestMemoryOfManyTransactionsIsBounded(t *testing.T) {
	const n, most = 100, 256 << 10
	h, _ := run(t, "hangs")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer within(t, "Deliver", wg.Wait)
	defer cancel()
	before := heap()
	for range n {
		tx := message("", "one", "two")
		tx.Size, tx.Body = 25<<20, endless{}
		wg.Go(func() { h.Deliver(ctx, tx) })
		eventually(t, "the first recipient has its status", func() bool { return !tx.Status(0).IsZero() })
	}
	if each := (heap() - before) / n; each > most {
		t.Errorf("a transaction holds %d octets, want at most %d", each, most)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // the first leaves what is in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// A message that has left is not kept to be sent again. Over the lane it does not
// leave before somebody reads it.
func TestSentMessageIsNotKept(t *testing.T) {
	const n, size = 50, 190 << 10
	c := command(t, "silent", newGatewayLog())
	overGRPC(&c)
	h := runCommand(t, c, defaultTimes)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer within(t, "Deliver", wg.Wait)
	defer cancel()
	before := heap()
	var left atomic.Int64
	for range n {
		tx := message("", "one")
		tx.Size = size
		tx.Body = io.MultiReader(io.LimitReader(endless{}, size-1), iotest.OneByteReader(readerFunc(func(p []byte) (int, error) {
			left.Add(1)
			return 1, nil
		})))
		wg.Go(func() { h.Deliver(ctx, tx) })
	}
	eventually(t, "all messages were read", func() bool { return left.Load() == n })
	eventually(t, "the messages were sent", func() bool { return (heap()-before)/n < size/2 })
}

// poured is how much of the endless message a plugin that pours has sent.
var poured atomic.Int64

// pour does what the first recipient says.
func pour(_ context.Context, tx *backends.DataContext) error {
	switch tx.Envelope.Recipients[0].Address {
	case "for ever":
		return tx.ReplaceMessage(readerFunc(func(p []byte) (int, error) {
			poured.Add(int64(len(p)))
			return len(p), nil
		}))
	case "some":
		return tx.ReplaceMessage(io.LimitReader(endless{}, 8<<20))
	}
	tx.SetStatus(0, backends.NewStatus(250, "2.0.0", fmt.Sprint(poured.Load())))
	return nil
}

// Whatever a plugin sends, the gateway takes no more than a window's worth
// before it reads it.
func TestPluginThatIsNotReadMustWait(t *testing.T) {
	h, _ := run(t, "pours")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer within(t, "Deliver", wg.Wait)
	defer cancel()
	begun := make(chan struct{})
	wg.Go(func() {
		backends.Run(ctx, h, message("", "for ever"), backends.Hooks{Replace: func(io.Reader) (backends.Message, error) {
			close(begun)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
	})
	within(t, "Deliver", func() { <-begun })
	// The streams of a connection take turns: while these come, the one that
	// is not read could send as much.
	for range 4 {
		if o := deliver(t.Context(), h, message("", "some")); o.err != nil {
			t.Fatal(o.err)
		}
	}
	o := deliver(t.Context(), h, message("", "how much"))
	n, err := strconv.Atoi(o.statuses[0].Text)
	if most := 512 << 10; err != nil || n > most {
		t.Errorf("the plugin has sent %d octets, want at most %d; %v", n, most, o.err)
	}
}

// endless is a message without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A counter is a message that counts how much of it is read.
type counter struct {
	r      io.Reader
	n      int64
	closed bool
}

func (c *counter) Read(p []byte) (int, error) {
	if c.closed {
		return 0, errors.New("closed")
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
