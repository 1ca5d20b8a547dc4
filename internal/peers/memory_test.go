package peers

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

const (
	clients     = 100
	messageSize = 25 << 20
	mostMemory  = 96 << 20
)

// All clients end their messages at the same moment, so that all messages are
// in the gateway at once and go to the plugin at once.
func TestMemoryIsBounded(t *testing.T) {
	g := gatewaytest.Start(t, gatewaytest.Plain, gatewaytest.LMTP, gatewaytest.ToInbox, gatewaytest.Inbox)
	needSpace(t, g.Dir, 2*clients*messageSize) // in the spool and in Maildirs

	var sent, all sync.WaitGroup
	sent.Add(clients)
	delivered := make(chan int, clients)
	for i := range clients {
		all.Go(func() {
			if err := sendLarge(g.Address("lmtp"), i, &sent); err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			delivered <- i
		})
	}
	go func() {
		all.Wait()
		close(delivered)
	}()
	for i := range delivered {
		checkLarge(t, g, i)
	}

	peak := gatewaytest.Memory(t, g.PID(), "VmHWM")
	t.Logf("the gateway had up to %d MiB", peak>>20)
	if peak >= mostMemory {
		t.Errorf("that is not below %d MiB", mostMemory>>20)
	}
	for _, p := range g.Running() {
		if p.PID != g.PID() {
			t.Logf("the plugin had up to %d MiB", gatewaytest.Memory(t, p.PID, "VmHWM")>>20)
		}
	}
}

// needSpace skips the test if the disk has no room.
func needSpace(t *testing.T, dir string, octets uint64) {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < octets {
		gatewaytest.Without(t, "%s has %d MiB free, want %d", dir, free>>20, octets>>20)
	}
}

// sendLarge sends the message of client i, and ends it when all others have
// sent theirs too.
func sendLarge(socket string, i int, sent *sync.WaitGroup) error {
	arrived := sync.OnceFunc(sent.Done)
	defer arrived()
	c, err := connect("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.begin("sender@peers.example", clientName(i)+"@peers.example"); err != nil {
		return err
	}
	for _, part := range largeMessage(i) {
		if _, err := c.W.Write(part); err != nil {
			return err
		}
	}
	if err := c.W.Flush(); err != nil {
		return err
	}
	arrived()
	sent.Wait()
	if err := c.end(1); err != nil {
		return err
	}
	return c.quit()
}

func clientName(i int) string { return fmt.Sprintf("client-%d", i) }

// largeLines are as long as a message, and no two of them are the same.
var largeLines = sync.OnceValue(func() []byte {
	text := make([]byte, 0, messageSize)
	for n := 0; len(text) < messageSize; n++ {
		text = fmt.Appendf(text, "%062d\r\n", n)
	}
	return text
})

// largeMessage returns the message of client i in parts.
func largeMessage(i int) [][]byte {
	text := largeLines()
	turn := i * len(text) / clients / 64 * 64 // whole lines
	return [][]byte{fmt.Appendf(nil, "Subject: message of %s\r\n\r\n", clientName(i)), text[turn:], text[:turn]}
}

// checkLarge checks that the message of client i has arrived as it was, and
// removes it.
func checkLarge(t *testing.T, g *gatewaytest.Gateway, i int) {
	t.Helper()
	files := g.MailFiles(clientName(i))
	if len(files) != 1 {
		t.Errorf("client %d: %d messages have arrived", i, len(files))
		return
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	same := true
	for _, part := range largeMessage(i) {
		if text, same = bytes.CutPrefix(text, part); !same {
			break
		}
	}
	if !same || len(text) > 0 {
		t.Errorf("client %d: the message was changed", i)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
}
