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
	var level slog.Level
	level.UnmarshalText([]byte(c.Level)) // Load has checked it
	options.Level = level
	lines := &logLines{w: w, longest: longestHold}
	if c.Format == "json" {
		// A number of nanoseconds is nothing for people.
		options.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindDuration {
				a.Value = slog.Float64Value(a.Value.Duration().Seconds())
			}
			return a
		}
		return slog.New(&logHandler{slog.NewJSONHandler(lines, &options), lines})
	}
	return slog.New(&logHandler{slog.NewTextHandler(lines, &options), lines})
}

// A logHandler writes each line at once, with those that were held before it.
type logHandler struct {
	slog.Handler
	lines *logLines
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	h.lines.flush()
	return err
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.Handler.WithAttrs(attrs), h.lines}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.Handler.WithGroup(name), h.lines}
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

// logTogether logs a line that may wait for others of its transaction, until
// flushLog.
func logTogether(log *slog.Logger, now time.Time, message string, attrs ...slog.Attr) {
	if !log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	r := slog.NewRecord(now, slog.LevelInfo, message, 0) // nobody asks for the place in the source
	r.AddAttrs(attrs...)
	h, ok := log.Handler().(*logHandler)
	if !ok {
		log.Handler().Handle(context.Background(), r)
		return
	}
	h.Handler.Handle(context.Background(), r)
	h.lines.hold()
}

// flushLog writes the lines that wait.
func flushLog(log *slog.Logger) {
	if h, ok := log.Handler().(*logHandler); ok {
		h.lines.flush()
	}
}
