package main

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/backendtest"
)

var users = []string{"ann@example.org", "bob@example.org"}

func TestContract(t *testing.T) {
	b := gatekeeper{settings{Users: users, Archive: "archive@example.org", Spam: "X-Spam-Flag: YES"}}
	if err := backendtest.Test(b, backendtest.Options{Recipients: users}); err != nil {
		t.Fatal(err)
	}
}

func TestStrangersAreRefusedForAWhile(t *testing.T) {
	b := gatekeeper{settings{Users: users, Hold: time.Minute}}
	for address, want := range map[string]backends.Opinion{
		"Ann@example.org": {},
		"eve@example.org": {Status: backends.NoSuchUser, For: time.Minute},
	} {
		got, err := b.CheckRecipient(t.Context(), nil, nil, backends.Recipient{Address: address})
		if got != want || err != nil {
			t.Errorf("%s: got %v, %v; want %v", address, got, err, want)
		}
	}
}

func TestSpamIsDivertedAndNotArchived(t *testing.T) {
	b := gatekeeper{settings{Archive: "archive@example.org", Spam: "X-Spam-Flag: YES"}}
	for message, spam := range map[string]bool{
		"Subject: x\r\nx-spam-flag: yes\r\n\r\n":          true,
		"Subject: x\r\n\r\nX-Spam-Flag: YES\r\n":          false, // in the body
		"Subject: " + strings.Repeat("x", 1<<16) + "\r\n": false,
	} {
		tx := &backends.DataContext{Body: strings.NewReader(message)}
		for _, user := range users {
			tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: user})
		}
		undecided, err := backends.Run(t.Context(), b, tx, backends.Hooks{})
		if len(undecided) != 2 || err != nil {
			t.Errorf("%.60q: undecided %v, %v; want both", message, undecided, err)
		}
		edits := tx.Edits()
		quarantined := maps.Equal(edits.Diversions, map[int]string{0: "quarantine", 1: "quarantine"})
		if archived := len(edits.Added) == 1; quarantined != spam || archived == spam {
			t.Errorf("%.60q: quarantined %t, archived %t; want spam %t", message, quarantined, archived, spam)
		}
	}
}
