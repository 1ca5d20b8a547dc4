package gateway

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// NewLogger returns the log that the configuration asks for. Its lines are
// written to w one by one as they are logged, but for those of a transaction, which
// go out together: before the client hears what they tell, or after a moment.
func NewLogger(c LogConfig, w io.Writer) *slog.Logger {
	var options slog.HandlerOptions
	h := &logHandler{lines: &logLines{w: w, longest: longestHold}, plain: true}
	h.level.UnmarshalText([]byte(c.Level)) // Load has checked it
	options.Level = h.level
	if c.Format == "json" {
		h.json = true
		// A number of nanoseconds is nothing for people.
		options.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindDuration {
				a.Value = slog.Float64Value(a.Value.Duration().Seconds())
			}
			return a
		}
		h.slog = slog.NewJSONHandler(h.lines, &options)
	} else {
		h.slog = slog.NewTextHandler(h.lines, &options)
	}
	return slog.New(h)
}

const (
	// longestHold is how long a line may wait for others. If the gateway is
	// killed meanwhile, nobody has been told of what it says.
	longestHold = 10 * time.Millisecond

	// mostHeld is how many octets of lines wait at most.
	mostHeld = 64 << 10
)

// logLines are lines of the log that are not written yet.
type logLines struct {
	w       io.Writer
	longest time.Duration // that they wait

	writing sync.Mutex // keeps the lines in order; locked before mu
	written []byte     // an empty buffer; guarded by writing

	mu    sync.Mutex // is free while lines are written, so that others can be added
	held  []byte
	timed bool // a timer will write them
}

// Write takes a line.
func (l *logLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	l.held = append(l.held, line...)
	full := len(l.held) >= mostHeld
	l.mu.Unlock()
	if full {
		l.flush()
	}
	return len(line), nil
}

// hold lets the lines wait for a moment.
func (l *logLines) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.timed && len(l.held) > 0 {
		l.timed = true
		time.AfterFunc(l.longest, func() {
			l.mu.Lock()
			l.timed = false
			l.mu.Unlock()
			l.flush()
		})
	}
}

// flush returns when all lines are written that were taken before. There is nobody
// to tell of an error.
func (l *logLines) flush() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	lines := l.held
	l.held = l.written
	l.mu.Unlock()
	if len(lines) > 0 {
		l.w.Write(lines)
	}
	l.written = lines[:0]
}

// logWith does what log.With does, for less.
func logWith(log *slog.Logger, attrs ...slog.Attr) *slog.Logger {
	return slog.New(log.Handler().WithAttrs(attrs))
}

// logTogether logs a line that may wait for others of its transaction, until
// flushLog.
func logTogether(log *slog.Logger, now time.Time, message string, attrs ...slog.Attr) {
	if !log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	r := recordOf(now, message, attrs...)
	if h, ok := log.Handler().(*logHandler); ok {
		h.add(r)
		h.lines.hold()
	} else {
		log.Handler().Handle(context.Background(), r)
	}
}

// logEach logs what logTogether would log for each value of an attribute that comes
// before the others.
func logEach(log *slog.Logger, now time.Time, message, key string, values []string, attrs ...slog.Attr) {
	if !log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	if h, ok := log.Handler().(*logHandler); ok {
		h.addEach(now, message, key, values, attrs)
		h.lines.hold()
		return
	}
	for _, value := range values {
		r := recordOf(now, message, slog.String(key, value))
		r.AddAttrs(attrs...)
		log.Handler().Handle(context.Background(), r)
	}
}

// recordOf leaves out the place in the source, for which nobody asks.
func recordOf(now time.Time, message string, attrs ...slog.Attr) slog.Record {
	r := slog.NewRecord(now, slog.LevelInfo, message, 0)
	r.AddAttrs(attrs...)
	return r
}

// flushLog writes the lines that wait.
func flushLog(log *slog.Logger) {
	if h, ok := log.Handler().(*logHandler); ok {
		h.lines.flush()
	}
}
