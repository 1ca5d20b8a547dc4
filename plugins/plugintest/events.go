package plugintest

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// An event is a record of the gateway's log: started, exited, stopped.
type event struct {
	name string
	pid  int
	how  string
}

// events are what the log has told of the program.
type events struct {
	mu  sync.Mutex
	all []event
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
	var e event
	note := func(a slog.Attr) bool {
		switch {
		case a.Key == "event":
			e.name = a.Value.String()
		case a.Key == "how":
			e.how = a.Value.String()
		case a.Key == "pid" && a.Value.Kind() == slog.KindInt64:
			e.pid = int(a.Value.Int64())
		}
		return true
	}
	for _, a := range h.attrs {
		note(a)
	}
	r.Attrs(note)
	if e.name != "log" { // of which there may be any number
		h.events.mu.Lock()
		h.events.all = append(h.events.all, e)
		h.events.mu.Unlock()
	}
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
