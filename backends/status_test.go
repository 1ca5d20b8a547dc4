package backends_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

func TestStatusOf(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want backends.Status
	}{
		{"a status", backends.NoSuchUser, backends.NoSuchUser},
		{"a wrapped status", fmt.Errorf("lookup: %w", busy), busy},
		{"a status among others", errors.Join(errors.New("cleanup"), busy), busy},
		{"a success that is returned", backends.Delivered, backends.Delivered},
		{"a success that went wrong", fmt.Errorf("no flush after %w", backends.Delivered), backends.TryLater},
		{"a success among errors", errors.Join(errors.New("disk broken"), backends.Delivered), backends.TryLater},
		{"the zero status is no answer", backends.Status{}, backends.TryLater},
		{"a deadline", fmt.Errorf("read: %w", context.DeadlineExceeded), backends.TimedOut},
		{"a context that was cancelled", context.Canceled, backends.TryLater},
		{"strangers see no path", errors.New("open /var/mail/bob: permission denied"), backends.TryLater},
		{"no error is no answer either", nil, backends.TryLater},
	}
	for _, tt := range tests {
		if got := backends.StatusOf(tt.err); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestSanitized(t *testing.T) {
	type status = backends.Status
	long := strings.Repeat("x", 500)
	tests := []struct{ in, want status }{
		// What may stand in a reply stays.
		{status{250, "2.1.5", "ok"}, status{250, "2.1.5", "ok"}},
		{status{252, "2.0.0", "maybe"}, status{252, "2.0.0", "maybe"}},
		{status{459, "4.999.999", ""}, status{459, "4.999.999", ""}},
		{status{550, "5.1.1", "two\nlines"}, status{550, "5.1.1", "two\nlines"}},

		// Codes that are no answer for a recipient are never a yes.
		{status{}, backends.TryLater},
		{status{0, "2.0.0", "ok"}, backends.TryLater},
		{status{200, "2.0.0", "ok"}, backends.TryLater},
		{status{253, "2.0.0", "ok"}, backends.TryLater},
		{status{354, "", "go on"}, backends.TryLater},
		{status{460, "4.0.0", "no"}, backends.TryLater},
		{status{560, "5.0.0", "no"}, backends.TryLater},
		{status{-250, "2.0.0", "ok"}, backends.TryLater},
		{status{2500, "2.0.0", "ok"}, backends.TryLater},
		{status{421, "4.3.2", "bye"}, status{451, "4.3.2", "bye"}},

		// The enhanced code agrees with the code.
		{status{250, "", "ok"}, status{250, "2.0.0", "ok"}},
		{status{250, "5.1.1", "ok"}, status{250, "2.0.0", "ok"}},
		{status{550, "2.1.5", "no"}, status{550, "5.0.0", "no"}},
		{status{550, "5.1", "no"}, status{550, "5.0.0", "no"}},
		{status{550, "5.01.1", "no"}, status{550, "5.0.0", "no"}},
		{status{550, "5.1.1000", "no"}, status{550, "5.0.0", "no"}},
		{status{550, "5.1.1\r\n250 ok", "no"}, status{550, "5.0.0", "no"}},

		// No text breaks out of its line.
		{status{550, "5.0.0", "a\r\nb"}, status{550, "5.0.0", "a\nb"}},
		{status{550, "5.0.0", "a\rb\tc\x00d\x7f"}, status{550, "5.0.0", "a b c?d?"}},
		{status{550, "5.0.0", "gr\u00fc\u00dfe \xff"}, status{550, "5.0.0", "gr??e ?"}},
		{status{550, "5.0.0", "end\r\n"}, status{550, "5.0.0", "end"}},
		{status{550, "5.0.0", long}, status{550, "5.0.0", long[:400]}},
		{status{550, "5.0.0", strings.Repeat("l\n", 20)}, status{550, "5.0.0", strings.Repeat("l\n", 9) + "l"}},
		{status{550, "5.0.0", "a" + strings.Repeat("\n", 20) + "b"}, status{550, "5.0.0", "a"}},
	}
	for _, tt := range tests {
		if got := tt.in.Sanitized(); got != tt.want {
			t.Errorf("%+v: got %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

// Whatever a backend says, the client gets a reply that is one, that says
// yes only where the backend did, and that does not change any more.
func FuzzSanitized(f *testing.F) {
	f.Add(250, "2.0.0", "delivered")
	f.Add(421, "4.3.2", "bye\r\n221 bye")
	f.Add(550, "5.1.1000", strings.Repeat("\xff\n", 30))
	f.Fuzz(func(t *testing.T, code int, enhanced, text string) {
		s := backends.NewStatus(code, enhanced, text)
		got := s.Sanitized()
		if again := got.Sanitized(); again != got {
			t.Errorf("%+v: got %+v, and again %+v", s, got, again)
		}
		if !got.Positive() && !got.Temporary() && !got.Permanent() || got.Positive() && code/10 != 25 {
			t.Errorf("%+v: got %+v", s, got)
		}
		lines := strings.Split(got.Text, "\n")
		if len(lines) > 10 {
			t.Errorf("%+v: %d lines", s, len(lines))
		}
		for _, line := range lines {
			if len(line) > 400 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%+v: got line %q", s, line)
			}
		}
	})
}

func TestStatusIsOneLineInTheLog(t *testing.T) {
	if got, want := backends.NewStatus(550, "5.1.1", "no\nsuch user").Error(), "550 5.1.1 no such user"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
