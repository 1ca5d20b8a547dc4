package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
)

// The plugin keeps the promises of all backends.
func TestContract(t *testing.T) {
	b, err := open(defaults)
	if err != nil {
		t.Fatal(err)
	}
	if err := backendtest.Test(b, backendtest.Options{}); err != nil {
		t.Fatal(err)
	}
}

func TestWhoHasLeftIsRefused(t *testing.T) {
	b, err := open(settings{Left: []string{"bob@example.org"}, Mark: "X-Mark: yes"})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		recipients []string
		want       []backends.Status // zero: to the next backend
	}{
		{[]string{"ann@example.org"}, []backends.Status{{}}},
		{[]string{"ann@example.org", "Bob@example.org"}, []backends.Status{{}, hasLeft}},
	}
	for _, tt := range tests {
		tx := &backends.DataContext{Body: strings.NewReader("Subject: test\r\n\r\n")}
		for _, address := range tt.recipients {
			tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: address})
		}
		if _, err := backends.Run(t.Context(), b, tx, backends.Hooks{}); err != nil {
			t.Errorf("%q: %v", tt.recipients, err)
		}
		var got []backends.Status
		for i := range tt.recipients {
			got = append(got, tx.Status(i))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %v, want %v", tt.recipients, got, tt.want)
		}
		if fields := tx.Edits().Fields; len(fields) != 1 || fields[0].Field != "X-Mark: yes" {
			t.Errorf("%q: got the edits %v", tt.recipients, fields)
		}
	}
}

func TestBadMark(t *testing.T) {
	if _, err := open(settings{Mark: "seen"}); err == nil {
		t.Error("a mark that is no header field is taken")
	}
}
