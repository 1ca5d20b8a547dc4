package plugins

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
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
	if len(line) > 0 {
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
	var fields map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if d.Decode(&fields) != nil || d.InputOffset() != int64(len(line)) {
		return r, false
	}
	level, isText := fields[slog.LevelKey].(string)
	message, hasMessage := fields[slog.MessageKey].(string)
	if !isText || !hasMessage || r.level.UnmarshalText([]byte(level)) != nil {
		return r, false
	}
	for _, key := range []string{slog.TimeKey, slog.LevelKey, slog.MessageKey} {
		delete(fields, key)
	}
	r.attrs = []slog.Attr{slog.String("event", "log"), slog.String("text", message)}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		value := fields[key]
		if slices.Contains(reserved, key) {
			key = "plugin." + key
		}
		r.attrs = append(r.attrs, slog.Any(key, value))
	}
	return r, true
}

// words keeps the last lines that were not made for a log, or the first ones
// of the trace of a Go program.
type words struct {
	mu    sync.Mutex
	lines []string
	trace bool
}

func (w *words) add(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
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
