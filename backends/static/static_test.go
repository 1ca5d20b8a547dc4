package static

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
)

func TestConformance(t *testing.T) {
	b, err := New(Settings{Rules: []Rule{
		{To: "now@example.org", Status: "250 2.1.5 taken"},
		{To: "soon@example.org", Status: "250 taken", Delay: time.Millisecond},
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = backendtest.Test(b, backendtest.Options{
		Recipients:     []string{"now@example.org", "soon@example.org", "unmatched@example.org"},
		IgnoresMessage: true,
	})
	if err != nil {
		t.Error(err)
	}
}

func TestFirstMatchingRuleDecides(t *testing.T) {
	b, err := New(Settings{Rules: []Rule{
		{To: "bob@example.org", Status: "250 2.0.0 exact"},
		{To: `"odd one"@Example.org`, Status: "250 2.0.0 quoted"},
		{To: "carol@*", Status: "250 2.0.0 user"},
		{To: "Postmaster", Status: "250 2.0.0 no domain"},
		{To: "@example.org", Status: "450 4.2.1 domain"},
		{To: "*@example.com", Status: "451 domain, too"},
		{To: "bob@example.org", Status: "550 5.1.1 never reached"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ to, want string }{
		{"bob@example.org", "250 2.0.0 exact"},
		{"BOB@EXAMPLE.ORG", "250 2.0.0 exact"},
		{`"bob"@example.org`, "250 2.0.0 exact"},
		{`"Odd\ One"@example.org`, "250 2.0.0 quoted"},
		{"carol@example.org", "250 2.0.0 user"},
		{"carol@example.net", "250 2.0.0 user"},
		{"dave@example.org", "450 4.2.1 domain"},
		{"dave@example.com", "451 4.0.0 domain, too"},
		{"dave@sub.example.org", ""},
		{"postmaster", "250 2.0.0 no domain"},
		{"postmaster@example.net", ""},
	}
	for _, tt := range tests {
		tx := transaction(tt.to)
		undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if err != nil {
			t.Errorf("%s: %v", tt.to, err)
		}
		got := ""
		if s := tx.Status(0); !s.IsZero() {
			got = s.Error()
		}
		if got != tt.want || (len(undecided) == 1) != (tt.want == "") {
			t.Errorf("%s: got %q, undecided %v, want %q", tt.to, got, undecided, tt.want)
		}
	}
}

func TestStarMatchesAll(t *testing.T) {
	b, err := New(Settings{Rules: []Rule{{To: "*", Status: "550 5.7.1 closed"}}})
	if err != nil {
		t.Fatal(err)
	}
	tx := transaction("bob@example.org", "postmaster", "x@[192.0.2.1]")
	if undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); err != nil || undecided != nil {
		t.Errorf("got undecided %v, error %v, want none", undecided, err)
	}
}

// The delays of several recipients pass side by side, each status comes when
// its own delay is over, and Deliver does not wait for them.
func TestDelaysPassSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New(Settings{Rules: []Rule{
			{To: "slow@*", Status: "250 2.0.0 slow", Delay: 3 * time.Second},
			{To: "quick@*", Status: "250 2.0.0 quick", Delay: 2 * time.Second},
			{To: "now@*", Status: "250 2.0.0 now"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		type answer struct {
			text  string
			after time.Duration
		}
		began := time.Now()
		answers := make(chan answer, 3)
		hooks := backends.Hooks{Status: func(_ int, s backends.Status) { answers <- answer{s.Text, time.Since(began)} }}
		tx := transaction("slow@example.org", "quick@example.org", "now@example.org")
		if undecided, err := backends.Run(t.Context(), b, tx, hooks); err != nil || undecided != nil {
			t.Errorf("got undecided %v, error %v, want none", undecided, err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("Deliver took %v", took)
		}
		for _, want := range []answer{{"now", 0}, {"quick", 2 * time.Second}, {"slow", 3 * time.Second}} {
			if got := <-answers; got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
	})
}

func TestDelayEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New(Settings{Rules: []Rule{{To: "*", Status: "250 too late", Delay: time.Hour}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tx := transaction("bob@example.org")
		if _, err := backends.Run(ctx, b, tx, backends.Hooks{}); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		synctest.Wait()
		if got := tx.Status(0); got != backends.TimedOut {
			t.Errorf("got %q, want %q", got.Error(), backends.TimedOut.Error())
		}
	})
}

func TestBadSettingsNameTheirKey(t *testing.T) {
	good := Rule{To: "*", Status: "250 ok"}
	tests := []struct {
		rule Rule
		want string
	}{
		{Rule{To: "", Status: "250 ok"}, `rule[1].to: ""`},
		{Rule{To: "bob", Status: "250 ok"}, `rule[1].to: "bob"`},
		{Rule{To: "*-list@example.org", Status: "250 ok"}, `rule[1].to: "*-list@example.org"`},
		{Rule{To: "bob@exa mple", Status: "250 ok"}, `rule[1].to: "bob@exa mple"`},
		{Rule{To: "*", Status: ""}, `rule[1].status: ""`},
		{Rule{To: "*", Status: "no"}, `rule[1].status: "no"`},
		{Rule{To: "*", Status: "250-ok"}, `rule[1].status: "250-ok"`},
		{Rule{To: "*", Status: "354 go on"}, `rule[1].status: "354 go on"`},
		{Rule{To: "*", Status: "421 4.3.2 bye"}, `rule[1].status: "421 4.3.2 bye"`},
		{Rule{To: "*", Status: "450 4.2.1 b\u00fcsy"}, `rule[1].status: "450 4.2.1 b`},
		{Rule{To: "*", Status: "250 ok", Delay: -time.Second}, `rule[1].delay: -1s`},
	}
	for _, tt := range tests {
		_, err := New(Settings{Rules: []Rule{good, tt.rule}})
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: got error %v, want %s...", tt.rule, err, tt.want)
		}
	}
}

func transaction(recipients ...string) *backends.DataContext {
	tx := &backends.DataContext{ID: "test"}
	for _, r := range recipients {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: r})
	}
	return tx
}
