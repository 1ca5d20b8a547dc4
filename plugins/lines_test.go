package plugins

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLinesOfPlugin(t *testing.T) {
	for _, test := range []struct {
		written string
		want    string // level and text, then what else there is
	}{
		{"plain\n", "WARN plain"},
		{"a\r\n\n\nb", "WARN a; WARN b"},
		{strings.Repeat("x", maxLine) + "\n", "WARN " + strings.Repeat("x", maxLine)},
		{strings.Repeat("x", 3*maxLine) + "\nnext\n", "WARN " + strings.Repeat("x", maxLine) + " cut=true; WARN next"},

		// Records of slog.
		{`{"time":"t","level":"ERROR","msg":"m","k":"v","n":12345678901234567}` + "\n", "ERROR m k=v n=1.2345678901234568e+16"},
		{`{"level":"debug","msg":""}` + "\n", "DEBUG "},
		{`{"level":"INFO+2","msg":"m"}` + "\n", "INFO+2 m"},
		{`{"level":"INFO","msg":"m","backend":"x","pid":1,"text":"t","event":"started"}` + "\n",
			"INFO m plugin.backend=x plugin.event=started plugin.pid=1 plugin.text=t"},

		// What only looks like one.
		{`{"@message":5}` + "\n", `WARN {"@message":5}`},
		{`{"level":"LOUD","msg":"m"}` + "\n", `WARN {"level":"LOUD","msg":"m"}`},
		{`{"level":"INFO","msg":"m"} {}` + "\n", `WARN {"level":"INFO","msg":"m"} {}`},
		{`{"level":"INFO","msg":"` + strings.Repeat("x", maxLine) + `"}` + "\n",
			`WARN {"level":"INFO","msg":"` + strings.Repeat("x", maxLine-len(`{"level":"INFO","msg":"`)) + " cut=true"},
	} {
		for _, size := range []int{1, 100, len(test.written)} {
			log := newGatewayLog()
			l := &lines{log: log.logger(), level: slog.LevelWarn, last: &words{}, rate: &rate{}}
			for rest := test.written; rest != ""; rest = rest[min(size, len(rest)):] {
				l.Write([]byte(rest[:min(size, len(rest))]))
			}
			l.Flush()
			var got []string
			for _, r := range log.records {
				got = append(got, printRecord(r))
			}
			if got := strings.Join(got, "; "); got != test.want {
				t.Errorf("%.100q in writes of %d: got %.300q, want %.300q", test.written, size, got, test.want)
			}
		}
	}
}

func printRecord(r map[string]any) string {
	text := fmt.Sprint(r["level"], " ", r["text"])
	for _, key := range []string{"cut", "k", "n", "plugin.backend", "plugin.event", "plugin.pid", "plugin.text"} {
		if v, ok := r[key]; ok {
			text += fmt.Sprintf(" %s=%v", key, v)
		}
	}
	return text
}

func TestMemoryForLinesIsBounded(t *testing.T) {
	l := &lines{log: slog.New(slog.DiscardHandler), last: &words{}, rate: &rate{}}
	for range 1000 {
		l.Write(make([]byte, 100_000))
	}
	if cap(l.line) > 2*maxLine {
		t.Errorf("%d octets of a line are kept", cap(l.line))
	}
}

func TestLinesInTheLogAreBounded(t *testing.T) {
	log := newGatewayLog()
	var r rate
	now := time.Now()
	logged := func(n int, after time.Duration) (logged int) {
		now = now.Add(after)
		for range n {
			if r.take(log.logger(), now) {
				logged++
			}
		}
		return logged
	}
	for _, test := range []struct {
		n     int
		after time.Duration
		want  int
	}{
		{5000, time.Hour, 1000}, {1, 500 * time.Millisecond, 0}, {500, 500 * time.Millisecond, 100}, {1, time.Second, 1}, {5000, time.Hour, 1000},
	} {
		if got := logged(test.n, test.after); got != test.want {
			t.Errorf("%d lines after %v: logged %d, want %d", test.n, test.after, got, test.want)
		}
	}
	r.flush(log.logger())
	var told []any
	for _, record := range log.records {
		told = append(told, record["text"])
	}
	if want := []any{"4001 lines dropped", "400 lines dropped", "4000 lines dropped"}; !slices.Equal(told, want) {
		t.Errorf("got %v, want %v", told, want)
	}
}

func TestAttributesKeepTheirOrder(t *testing.T) {
	r, ok := parseRecord([]byte(`{"level":"INFO","z":1,"msg":"m","a":[2],"event":3,"g":{"y":1}}`))
	var keys []string
	for _, a := range r.attrs {
		keys = append(keys, a.Key)
	}
	if want := []string{"event", "text", "z", "a", "plugin.event", "g"}; !ok || !slices.Equal(keys, want) {
		t.Errorf("got %v, %v, want %v", keys, ok, want)
	}
}

func TestLastWords(t *testing.T) {
	numbers := func(from, to int) (lines []string) {
		for i := from; i < to; i++ {
			lines = append(lines, fmt.Sprint(i))
		}
		return lines
	}
	for _, test := range []struct {
		lines       []string
		first, last string
	}{
		{numbers(0, 100), "80", "99"},
		{append(numbers(0, 100), "last"), "81", "last"},
		// The cause of a crash is at the top of its trace.
		{append(append(numbers(0, 100), "panic: bug"), numbers(0, 100)...), "panic: bug", "18"},
		{append([]string{"panic: one"}, append(numbers(0, 100), "fatal error: two", "end")...), "fatal error: two", "end"},
		{append(append(numbers(0, 100), "runtime/cgo: pthread_create failed"), numbers(0, 100)...), "runtime/cgo: pthread_create failed", "18"},
	} {
		var w words
		for _, line := range test.lines {
			w.add(line)
		}
		all := w.all()
		if got := all[len(all)-1]; all[0] != test.first || got != test.last || len(all) > lastWords {
			t.Errorf("got %d lines, %q to %q, want %q to %q", len(all), all[0], got, test.first, test.last)
		}
	}
}
