package gateway

import "sync"

// Copies of messages that no client waits for are bounded. What is beyond is not
// copied.
const (
	maxCopies     = 20
	maxCopyOctets = 32 << 20
)

// copies counts those that there are.
type copies struct {
	mu     sync.Mutex
	number int
	octets int64
}

// take reserves room for a copy, if there is some.
func (c *copies) take(octets int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.number == maxCopies || c.octets+octets > maxCopyOctets {
		return false
	}
	c.number++
	c.octets += octets
	return true
}

// give gives the room of a copy back.
func (c *copies) give(octets int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number--
	c.octets -= octets
}
