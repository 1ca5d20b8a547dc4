package backends_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// A relay tells what it can do and may edit.
type relay struct{ backends.Func }

func (relay) Capabilities() backends.Capabilities {
	return backends.Capabilities{Size: 1000, DSN: true}
}
func (relay) MayEdit() backends.EditKinds { return backends.EditHeader }

// A backend that tells nothing stores every message, and may edit all of it.
func TestBackendThatTellsNothing(t *testing.T) {
	if got := backends.CapabilitiesOf(backends.Func(nil)); got != backends.Storing {
		t.Errorf("got %+v, want %+v", got, backends.Storing)
	}
	if got := backends.EditsOf(backends.Func(nil)); got != backends.EditAll {
		t.Errorf("got %v, want %v", got, backends.EditAll)
	}
	if got := backends.CapabilitiesOf(relay{}); got.Size != 1000 || !got.DSN || got.EightBitMIME {
		t.Errorf("got %+v", got)
	}
	if got := backends.EditsOf(relay{}); got != backends.EditHeader {
		t.Errorf("got %v", got)
	}
}

// Each edit is of the kind under which it is announced.
func TestKindsOfEdits(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(tx *backends.DataContext) error
		want string
	}{
		"nothing":         {func(*backends.DataContext) error { return nil }, "none"},
		"AddField":        {func(tx *backends.DataContext) error { return tx.AddField(0, "X: 1") }, "header"},
		"ReplaceField":    {func(tx *backends.DataContext) error { return tx.ReplaceField(0, "X: 1") }, "header"},
		"RemoveField":     {func(tx *backends.DataContext) error { return tx.RemoveField(0) }, "header"},
		"ReplaceMessage":  {func(tx *backends.DataContext) error { return tx.ReplaceMessage(tx.Body) }, "message"},
		"SetSender":       {func(tx *backends.DataContext) error { return tx.SetSender("") }, "envelope"},
		"SetSenderParams": {func(tx *backends.DataContext) error { return tx.SetSenderParams(nil) }, "envelope"},
		"Redirect":        {func(tx *backends.DataContext) error { return tx.Redirect(0, "a@example.org") }, "envelope"},
		"AddRecipient": {func(tx *backends.DataContext) error {
			return tx.AddRecipient(backends.Recipient{Address: "a@example.org"})
		}, "envelope"},
		"Divert": {func(tx *backends.DataContext) error { return tx.Divert(0, "quarantine") }, "envelope"},
		"two": {func(tx *backends.DataContext) error {
			return errors.Join(tx.AddField(0, "X: 1"), tx.Divert(0, "quarantine"))
		}, "header, envelope"},
	} {
		tx := transaction(1)
		if err := test.edit(tx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if e := tx.Edits(); e.Kinds().String() != test.want {
			t.Errorf("%s: got %q, want %q", name, e.Kinds(), test.want)
		}
	}
	if got := backends.EditAll.String(); got != "header, message, envelope" {
		t.Errorf("got %q", got)
	}
}

func TestWroteReachesTheHook(t *testing.T) {
	var got []backends.Digest
	want := backends.Digest{Fields: []uint64{1, 2}}
	b := backends.Func(func(_ context.Context, tx *backends.DataContext) error {
		tx.Wrote(want)
		tx.SetAll(backends.Delivered)
		return nil
	})
	for _, hooks := range []backends.Hooks{{}, {Wrote: func(d backends.Digest) { got = append(got, d) }}} {
		if _, err := backends.Run(t.Context(), b, transaction(1), hooks); err != nil {
			t.Error(err)
		}
	}
	if len(got) != 1 || !slices.Equal(got[0].Fields, want.Fields) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// The operator is told each key, however errors are wrapped.
func TestSettingErrors(t *testing.T) {
	cause := errors.New("is missing")
	err := errors.Join(backends.SettingError{Key: "rule[0].to", Err: cause}, backends.SettingError{Key: "url", Err: cause})
	if s, ok := errors.AsType[backends.SettingError](err); !ok || s.Key != "rule[0].to" || !errors.Is(err, cause) || s.Error() != "rule[0].to: is missing" {
		t.Errorf("got %v, %t", s, ok)
	}
}

// Every topic has a name, and none that there is not panics.
func TestTopicsHaveNames(t *testing.T) {
	var names []string
	for _, topic := range append(backends.Topics(), 0, 99, -1) {
		names = append(names, topic.String())
	}
	want := []string{"connection", "HELO", "sender", "recipient", "AUTH", "SCRAM", "VRFY", "EXPN", "nothing", "topic 99", "topic -1"}
	if !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}
