package gateway

import (
	"bytes"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// bothLogs returns the log of a format, the same of slog alone, and what they have
// written since.
func bothLogs(format string, with ...[]slog.Attr) (ours, slogs *slog.Logger, written func() (ours, slogs string)) {
	var buffers [2]bytes.Buffer
	ours = NewLogger(LogConfig{Level: "debug", Format: format}, &buffers[0])
	theirs := NewLogger(LogConfig{Level: "debug", Format: format}, &buffers[1])
	lines := theirs.Handler().(*logHandler).lines
	slogs = slog.New(theirs.Handler().(*logHandler).whole())
	for _, attrs := range with {
		ours, slogs = logWith(ours, attrs...), logWith(slogs, attrs...)
	}
	return ours, slogs, func() (string, string) {
		flushLog(ours)
		lines.flush()
		defer buffers[0].Reset()
		defer buffers[1].Reset()
		return buffers[0].String(), buffers[1].String()
	}
}

// strangers are strings that somebody may send who wants to confuse a log.
var strangers = []string{
	"", "a@example.org", "a b@example.org", `"a b"@example.org`, `a\b`, `a"b`, `\`, `"`, `\"`, "a=b", "to=b@example.org", " ",
	"bücher@example.org", "用户@例子.广告", "a\u2028b", "a\u00a0b", "a\u202eb", "\xff", "a\xc3", "a\nb", "a\r\nlevel=ERROR", "a\tb", "\x00", "\x1b[31m", "\x7f", "a~b",
	"<script>&amp;</script>", `","level":"ERROR`, `{}`, "'", "`", "%00", strings.Repeat("x", 2000), strings.Repeat("x y", 2000),
}

// Whoever formats a line, it is the same.
func TestLogLinesAreThoseOfSlog(t *testing.T) {
	now := time.Date(2026, 11, 21, 18, 0, 0, 120_900_000, time.UTC)
	for _, format := range []string{"text", "json"} {
		for _, from := range strangers {
			ours, slogs, written := bothLogs(format, []slog.Attr{slog.String("session", "s"), slog.Int("n", -1)}, []slog.Attr{slog.String("from", from)})
			for _, log := range []*slog.Logger{ours, slogs} {
				logTogether(log, now, "received", slog.String("helo", from))
				logEach(log, now, "status", "to", strangers, slog.String("text", "delivered"), slog.Duration("delay", 12*time.Microsecond))
				logEach(log, now, "status", "to", strangers, slog.String("text", from))
				logEach(log, now, from, "to", nil)
				logTogether(log, now, from)
			}
			if got, want := written(); got != want {
				t.Errorf("%s, %q: got\n%swant\n%s", format, from, got, want)
			}
		}
	}
}

// So it is for what is logged elsewhere.
func TestLogValuesAreThoseOfSlog(t *testing.T) {
	attrs := []slog.Attr{
		{}, slog.Int("", 1), slog.String("", ""), slog.String("a b", "1"), slog.String(`"`, "1"), slog.String("ü", "1"),
		slog.Int64("n", -1<<63), slog.Uint64("n", 1<<64-1), slog.Float64("n", 1e-7), slog.Bool("b", false),
		slog.Duration("d", 0), slog.Duration("d", 1), slog.Duration("d", 999), slog.Duration("d", -999), slog.Duration("d", time.Microsecond),
		slog.Duration("d", -time.Microsecond), slog.Duration("d", 1234567*time.Microsecond), slog.Duration("d", 1<<63-1), slog.Duration("d", -1<<63),
		slog.Time("t", time.Unix(1, 0)), slog.Any("error", errors.New("a b")), slog.Any("nil", nil), slog.Any("list", []string{"a", "b"}),
		slog.Any("level", slog.LevelWarn+1), slog.Group("g", "a", 1, "b", "2"), slog.Group("g"), slog.Any("valuer", valuer{}), slog.Any("bytes", []byte("a\n")),
	}
	for _, format := range []string{"text", "json"} {
		for _, a := range attrs {
			ours, slogs, written := bothLogs(format, []slog.Attr{slog.Int("n", 1)})
			for _, log := range []*slog.Logger{ours, slogs} {
				for _, zone := range []*time.Location{time.UTC, time.FixedZone("", -34200)} {
					for _, now := range []time.Time{{}, time.Unix(1795284000, 0), time.Unix(1795284000, 999_999_999), time.Unix(1795284000, 1_000_000)} {
						r := slog.NewRecord(now.In(zone), slog.LevelError+1, "a message", 0)
						r.AddAttrs(slog.String("to", "a"), a, slog.Int("n", 2))
						for _, log := range []*slog.Logger{log, logWith(log, a), logWith(log, a).With("n", 3), log.WithGroup("g"), logWith(log.WithGroup("g"), a)} {
							log.Handler().Handle(t.Context(), r)
						}
					}
				}
			}
			if got, want := written(); got != want {
				t.Errorf("%s, %v: got\n%swant\n%s", format, a, got, want)
			}
		}
	}
}

type valuer struct{}

func (valuer) LogValue() slog.Value { return slog.StringValue("a value") }

func FuzzLogLines(f *testing.F) {
	for i, s := range strangers {
		f.Add(s, strangers[(i+1)%len(strangers)], s, int64(i), int64(i))
	}
	f.Fuzz(func(t *testing.T, from, to, text string, n, nanoseconds int64) {
		now := time.Unix(0, nanoseconds) // from 1677 to 2262
		for _, format := range []string{"text", "json"} {
			ours, slogs, written := bothLogs(format, []slog.Attr{slog.String("from", from)})
			for _, log := range []*slog.Logger{ours, slogs} {
				logTogether(log, now, "received", slog.String("helo", text), slog.Int64("size", n))
				logEach(log, now, "status", "to", []string{"a", to, "b", text}, slog.Int64("code", n), slog.Duration("delay", time.Duration(n)))
				logEach(log, now, text, to, []string{to}, slog.String("text", text))
			}
			got, want := written()
			if got != want {
				t.Errorf("%s: got\n%swant\n%s", format, got, want)
			}
			if lines := strings.Count(got, "\n"); lines != 6 {
				t.Errorf("%s: %d lines, want 6\n%s", format, lines, got)
			}
		}
	})
}

// What the log mostly has does not need slog, and is formatted without allocations.
func TestLogLinesAllocateNothing(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		log, _, written := bothLogs(format, []slog.Attr{slog.String("tx", "1")}, []slog.Attr{slog.String("from", "ann@sender.example")})
		h := log.Handler().(*logHandler)
		to := []string{"bob@example.org", "carol+list=x@example.org"}
		allocated := testing.AllocsPerRun(100, func() {
			h.addEach(time.Now(), "status", "to", to, []slog.Attr{slog.Int("code", 250), slog.String("text", "it is delivered"), slog.Duration("delay", time.Millisecond)})
			h.lines.held = h.lines.held[:0]
		})
		if allocated != 0 || h.slog != nil {
			t.Errorf("%s: %v allocations, and slog is asked: %t", format, allocated, h.slog != nil)
		}
		written()
	}
}

// Recipients who are answered together keep their order, and nobody gets the line of
// somebody else.
func TestLogOfManyAnswers(t *testing.T) {
	ok, failed := backends.Delivered, backends.TryLater
	edited := &edits{body: "unchanged", header: "+1-0"}
	fates := []fate{
		{address: "a", holder: "x", answer: ok, decided: ok},
		{address: "b", holder: "x", answer: ok, decided: ok},
		{address: "c d", holder: "x", answer: ok, decided: ok},
		{address: "e", holder: "x", answer: ok, decided: ok},
		{address: "f", holder: "y", answer: ok, decided: ok},
		{address: "g", holder: "y", answer: failed, decided: failed},
		{address: "h", holder: "y", answer: failed, decided: ok},
		{address: "i", holder: "y", answer: ok, decided: ok, edited: edited},
		{address: "j", holder: "y", answer: ok, decided: ok, edited: edited},
		{address: "k", holder: "y", answer: ok, decided: ok, route: "q", divertedBy: "x"},
		{address: "l", holder: "y", answer: ok, decided: ok, route: "q", divertedBy: "z"},
		{address: "m", holder: "y", answer: ok, decided: ok, added: true},
		{address: "a", holder: "x", answer: ok, decided: ok},
	}
	want := `to=a backend=x code=250 enhanced=2.0.0 text=delivered
to=b backend=x code=250 enhanced=2.0.0 text=delivered
to="c d" backend=x code=250 enhanced=2.0.0 text=delivered
to=e backend=x code=250 enhanced=2.0.0 text=delivered
to=f backend=y code=250 enhanced=2.0.0 text=delivered
to=g backend=y code=451 enhanced=4.3.0 text="try again later"
to=h backend=y code=451 enhanced=4.3.0 text="try again later" decided="250 2.0.0 delivered"
to=i backend=y code=250 enhanced=2.0.0 text=delivered body=unchanged header=+1-0
to=j backend=y code=250 enhanced=2.0.0 text=delivered body=unchanged header=+1-0
to=k backend=y code=250 enhanced=2.0.0 text=delivered route=q diverted_by=x
to=l backend=y code=250 enhanced=2.0.0 text=delivered route=q diverted_by=z
to=m backend=y code=250 enhanced=2.0.0 text=delivered added=true
to=a backend=x code=250 enhanced=2.0.0 text=delivered
`
	log, _, written := bothLogs("text")
	d := &delivery{transaction: &transaction{}, log: log}
	var told []*fate
	for i := range fates {
		told = append(told, &fates[i])
	}
	d.logAnswers(told)
	got, _ := written()
	got = regexp.MustCompile(`(?m)^time=\S+ level=INFO msg=status | (delay|wait)=\S+`).ReplaceAllString(got, "")
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
