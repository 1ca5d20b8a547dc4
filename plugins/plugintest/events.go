package plugintest

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// An event is a record of the gateway's log: started, exited, stopped.
type event struct {
	name   string
	pid    int
	how    string
	output any // its last words
}

// events are what the log has told of the program.
type events struct {
	mu      sync.Mutex
	all     []event
	ignored []string // answers that the program's own side of the border has kept back
}

// maxIgnored bounds events.ignored.
const maxIgnored = 20

// note notes the attributes of a record.
func (e *events) note(said map[string]slog.Value) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if said["event"].String() != "log" {
		one := event{name: said["event"].String(), how: said["how"].String(), output: said["output"].Any()}
		if pid := said["pid"]; pid.Kind() == slog.KindInt64 {
			one.pid = int(pid.Int64())
		}
		e.all = append(e.all, one)
		return
	}
	// The plugin logs what it likes, but this is what it is to log, in whatever language.
	to, about := said["recipient"]
	why, because := said["reason"]
	id := said["tx"].String()
	if said["text"].String() != "ignored" || !about || !because || strings.HasPrefix(id, overID) {
		return
	}
	answer := fmt.Sprintf("transaction %s: recipient %v: %v", id, to, why)
	if len(e.ignored) < maxIgnored && !slices.Contains(e.ignored, answer) {
		e.ignored = append(e.ignored, answer)
	}
}

func (e *events) logger(log *slog.Logger) *slog.Logger {
	handler := slog.DiscardHandler
	if log != nil {
		handler = log.Handler()
	}
	return slog.New(eventHandler{handler, e, nil})
}

// find returns the nth event of that name, or false.
func (e *events) find(name string, n int) (event, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, one := range e.all {
		if one.name == name {
			if n--; n == 0 {
				return one, true
			}
		}
	}
	return event{}, false
}

// count returns how many events of that name there were.
func (e *events) count(name string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, one := range e.all {
		if one.name == name {
			n++
		}
	}
	return n
}

func (e *events) ignoredAnswers() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ignored
}

// An eventHandler notes events and passes all records on.
type eventHandler struct {
	slog.Handler
	events *events
	attrs  []slog.Attr // of With
}

// Enabled has the host log what is noted here.
func (h eventHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.Handler.Enabled(ctx, level)
}

func (h eventHandler) Handle(ctx context.Context, r slog.Record) error {
	said := map[string]slog.Value{}
	note := func(a slog.Attr) bool {
		said[a.Key] = a.Value
		return true
	}
	for _, a := range h.attrs {
		note(a)
	}
	r.Attrs(note)
	h.events.note(said)
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h eventHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return eventHandler{h.Handler.WithAttrs(attrs), h.events, append(slices.Clip(h.attrs), attrs...)}
}

func (h eventHandler) WithGroup(name string) slog.Handler {
	return eventHandler{h.Handler.WithGroup(name), h.events, h.attrs}
}

// until waits for a condition of which nobody tells, and reports whether it
// came true.
func (t *tester) until(condition func() bool) bool {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(t.Patience); !condition(); <-ticker.C {
		if time.Now().After(end) || t.ctx.Err() != nil {
			return false
		}
	}
	return true
}
