package gateway

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

// A logHandler writes each line at once, with those that were held before it.
//
// Its lines are those of slog's handlers, octet by octet. What is plain it formats
// itself, since that costs less: numbers, durations, and strings that no format
// escapes. A line with anything else is slog's as a whole, so that what needs care
// is done in one place, whatever strangers send.
type logHandler struct {
	lines *logLines
	level slog.Level
	json  bool

	plain bool   // what WithAttrs was given; else all lines are slog's
	attrs []byte // which it was given, as they stand in each line

	parent *logHandler // to which WithAttrs gave with; nil if slog is known
	with   []slog.Attr
	once   sync.Once
	slog   slog.Handler // see whole
}

func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	err := h.add(r)
	h.lines.flush()
	return err
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if h.plain {
		line, ok := h.appendAttrs(h.attrs[:len(h.attrs):len(h.attrs)], attrs)
		if ok {
			return &logHandler{lines: h.lines, level: h.level, json: h.json, plain: true, attrs: line, parent: h, with: attrs}
		}
	}
	return &logHandler{lines: h.lines, level: h.level, slog: h.whole().WithAttrs(attrs)}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{lines: h.lines, level: h.level, slog: h.whole().WithGroup(name)}
}

// whole returns the handler of slog that writes the same lines. It is made for the
// first line that needs it, and few do.
func (h *logHandler) whole() slog.Handler {
	h.once.Do(func() {
		if h.parent != nil {
			h.slog = h.parent.whole().WithAttrs(h.with)
		}
	})
	return h.slog
}

// add adds the line of r to those that wait.
func (h *logHandler) add(r slog.Record) error {
	var scratch [512]byte
	line, ok := h.begin(scratch[:0], r.Time, r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if ok {
			line, ok = h.appendAttr(line, a)
		}
		return ok
	})
	if !ok {
		return h.whole().Handle(context.Background(), r)
	}
	_, err := h.lines.Write(h.end(line))
	return err
}

// addEach adds a line for each value of an attribute that comes before the others.
// What the lines have in common is formatted once.
func (h *logHandler) addEach(now time.Time, message, key string, values []string, attrs []slog.Attr) {
	var scratch, last [512]byte
	line, plain := h.begin(scratch[:0], now, slog.LevelInfo, message)
	rest, ok := h.appendAttrs(last[:0], attrs)
	rest = h.end(rest)
	n, plain := len(line), plain && ok
	for _, value := range values {
		if line, ok = h.appendString(line[:n], key, value); ok && plain {
			line = append(line, rest...)
			h.lines.Write(line)
			continue
		}
		r := recordOf(now, message, slog.String(key, value))
		r.AddAttrs(attrs...)
		h.whole().Handle(context.Background(), r)
	}
}

// begin appends all that comes before the attributes of a record. It reports false if
// that is not plain.
func (h *logHandler) begin(line []byte, now time.Time, level slog.Level, message string) ([]byte, bool) {
	if !h.plain || now.IsZero() {
		return line, false
	}
	if h.json {
		line = append(line, `{"time":"`...)
		line = now.AppendFormat(line, time.RFC3339Nano)
		line = append(line, `","level":"`...)
		line = append(line, level.String()...)
		line = append(line, '"')
	} else {
		line = append(line, "time="...)
		line = now.AppendFormat(line, "2006-01-02T15:04:05.000Z07:00")
		line = append(line, " level="...)
		line = append(line, level.String()...)
	}
	line, ok := h.appendString(line, slog.MessageKey, message)
	return append(line, h.attrs...), ok
}

func (h *logHandler) end(line []byte) []byte {
	if h.json {
		line = append(line, '}')
	}
	return append(line, '\n')
}

// appendAttrs appends attributes. It reports false if one of them is not plain.
func (h *logHandler) appendAttrs(line []byte, attrs []slog.Attr) ([]byte, bool) {
	for _, a := range attrs {
		var ok bool
		if line, ok = h.appendAttr(line, a); !ok {
			return line, false
		}
	}
	return line, true
}

func (h *logHandler) appendAttr(line []byte, a slog.Attr) ([]byte, bool) {
	if a.Value.Kind() == slog.KindString {
		return h.appendString(line, a.Key, a.Value.String())
	}
	line, ok := h.appendKey(line, a.Key)
	switch a.Value.Kind() {
	case slog.KindInt64:
		line = strconv.AppendInt(line, a.Value.Int64(), 10)
	case slog.KindBool:
		line = strconv.AppendBool(line, a.Value.Bool())
	case slog.KindDuration:
		d := a.Value.Duration()
		if !h.json {
			return append(line, d.String()...), ok
		}
		// Smaller numbers have an exponent in JSON.
		ok = ok && (d == 0 || d.Abs() >= time.Microsecond)
		line = strconv.AppendFloat(line, d.Seconds(), 'f', -1, 64)
	default:
		return line, false
	}
	return line, ok
}

func (h *logHandler) appendString(line []byte, key, value string) ([]byte, bool) {
	line, ok := h.appendKey(line, key)
	if !ok {
		return line, false
	}
	return h.appendPlain(line, value)
}

func (h *logHandler) appendKey(line []byte, key string) ([]byte, bool) {
	separator, is := byte(' '), byte('=')
	if h.json {
		separator, is = ',', ':'
	}
	line, ok := h.appendPlain(append(line, separator), key)
	return append(line, is), ok
}

// appendPlain appends a string of printable ASCII without octets that a format
// escapes. It reports false for any other.
func (h *logHandler) appendPlain(line []byte, s string) ([]byte, bool) {
	quoted := h.json || s == ""
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c > '~' || c == '"' || c == '\\':
			return line, false
		case c == ' ' || c == '=':
			quoted = true
		}
	}
	if !quoted {
		return append(line, s...), true
	}
	line = append(line, '"')
	line = append(line, s...)
	return append(line, '"'), true
}
