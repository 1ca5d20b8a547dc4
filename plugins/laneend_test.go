package plugins

import (
	"fmt"
	"testing"
)

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
