package plugins

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxLine is how much of a line of a plugin is logged.
	maxLine = 8 << 10

	// lastWords and lastWordsLine are how many lines, and how much of each,
	// are repeated when a plugin ends on its own.
	lastWords     = 20
	lastWordsLine = 512
)

// lines logs what a plugin writes, line by line. A JSON object with a level
// and a message, such as Serve's log handler writes, becomes a record with
// its level and attributes. Any other line is logged as it is. Memory stays
// bounded whatever is written.
type lines struct {
	log   *slog.Logger
	level slog.Level // of lines that say none
	last  *words     // may be nil
	rate  *rate

	mu   sync.Mutex
	line []byte
	cut  bool
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, after, complete := bytes.Cut(rest, []byte("\n"))
		room := min(len(part), maxLine-len(l.line))
		l.line = append(l.line, part[:room]...)
		l.cut = l.cut || room < len(part)
		if complete {
			l.end()
		}
		rest = after
	}
	return len(p), nil
}

// Flush logs a line that has no end yet.
func (l *lines) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
}

func (l *lines) end() {
	line := bytes.TrimRight(l.line, "\r")
	if len(line) > 0 && !l.rate.take(l.log, time.Now()) {
		if l.last != nil && line[0] != '{' {
			l.last.add(string(line))
		}
	} else if len(line) > 0 {
		if record, ok := parseRecord(line); ok && !l.cut {
			l.log.LogAttrs(context.Background(), record.level, "backend", record.attrs...)
		} else {
			l.plain(string(line))
		}
	}
	l.line, l.cut = l.line[:0], false
}

func (l *lines) plain(line string) {
	attrs := []slog.Attr{slog.String("event", "log"), slog.String("text", line)}
	if l.cut {
		attrs = append(attrs, slog.Bool("cut", true))
	}
	l.log.LogAttrs(context.Background(), l.level, "backend", attrs...)
	if l.last != nil {
		l.last.add(line)
	}
}

const (
	burstLines     = 1000 // that a plugin may write at once
	linesPerSecond = 100  // that it may write in the long run
)

// A rate bounds the lines of one plugin in the log. Once they are too many, it
// drops all for a second, and then tells how many there were.
type rate struct {
	mu      sync.Mutex
	used    float64 // lines of the burst
	at      time.Time
	dropped int
}

// take reports whether a line may be logged.
func (r *rate) take(log *slog.Logger, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = max(0, r.used-now.Sub(r.at).Seconds()*linesPerSecond)
	r.at = now
	if r.used > burstLines-1 || r.dropped > 0 && r.used > burstLines-linesPerSecond {
		r.dropped++
		return false
	}
	r.tell(log)
	r.used++
	return true
}

// tell logs how many lines were dropped, if there are any.
func (r *rate) tell(log *slog.Logger) {
	if r.dropped > 0 {
		log.Warn("backend", "event", "log", "text", fmt.Sprintf("%d lines dropped", r.dropped))
		r.dropped = 0
	}
}

func (r *rate) flush(log *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell(log)
}

type record struct {
	level slog.Level
	attrs []slog.Attr
}

// reserved are the attributes that the gateway itself gives to a record, so
// that no plugin can speak in its name.
var reserved = []string{slog.TimeKey, slog.LevelKey, slog.MessageKey, "backend", "event", "pid", "text"}

// parseRecord parses a line of JSON as slog and many others write it.
func parseRecord(line []byte) (r record, ok bool) {
	if line[0] != '{' {
		return r, false
	}
	fields, ok := parseFields(line)
	if !ok {
		return r, false
	}
	r.attrs = []slog.Attr{slog.String("event", "log"), {}}
	hasLevel, hasMessage := false, false
	for _, f := range fields {
		text, isText := f.Value.Any().(string)
		switch {
		case f.Key == slog.TimeKey:
		case f.Key == slog.LevelKey:
			hasLevel = isText && r.level.UnmarshalText([]byte(text)) == nil
		case f.Key == slog.MessageKey:
			r.attrs[1], hasMessage = slog.String("text", text), isText
		case slices.Contains(reserved, f.Key):
			r.attrs = append(r.attrs, slog.Attr{Key: "plugin." + f.Key, Value: f.Value})
		default:
			r.attrs = append(r.attrs, f)
		}
	}
	return r, hasLevel && hasMessage
}

// parseFields returns the fields of a JSON object in their order.
func parseFields(object []byte) (fields []slog.Attr, ok bool) {
	if !json.Valid(object) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(object))
	d.UseNumber()
	d.Token()
	for d.More() {
		key, _ := d.Token()
		var value any
		if d.Decode(&value) != nil {
			return nil, false
		}
		fields = append(fields, slog.Any(key.(string), value))
	}
	return fields, true
}

// words keeps the last lines that were not made for a log, or the first ones
// of the trace of a Go program.
type words struct {
	mu    sync.Mutex
	lines []string
	trace bool
}

// traces is how the trace of a Go program begins.
var traces = []string{"panic: ", "fatal error: ", "runtime/cgo: "}

func (w *words) add(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.ContainsFunc(traces, func(begins string) bool { return strings.HasPrefix(line, begins) }) {
		w.lines, w.trace = nil, true
	}
	if len(w.lines) == lastWords {
		if w.trace {
			return
		}
		w.lines = slices.Delete(w.lines, 0, 1)
	}
	w.lines = append(w.lines, line[:min(len(line), lastWordsLine)])
}

// few are those that fit into an error.
func (w *words) few() []string {
	const few, longest = 3, 150
	all := w.all()
	if w.trace {
		all = all[:min(few, len(all))]
	}
	all = all[max(0, len(all)-few):]
	for i, line := range all {
		all[i] = line[:min(len(line), longest)]
	}
	return all
}

// last are those that may tell why the plugin has ended. One that was killed
// has nothing to say of that.
func (w *words) last(how string) []string {
	if how == "signal: killed" {
		return nil
	}
	return w.all()
}

func (w *words) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

// leastLevel returns the least level that log takes.
func leastLevel(log *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), level) {
			return level
		}
	}
	return slog.LevelError
}
