package maildir

import (
	"net/mail"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

func TestFieldsBeforeTheMessage(t *testing.T) {
	const message = "Subject: test\r\n\r\nhello\r\n"
	tests := []struct {
		change func(*Settings)
		sender string
		to     string
		want   string
	}{
		{func(*Settings) {}, "sender@example.net", "ann@example.org", ""},
		{func(s *Settings) { s.ReturnPath = true }, "sender@example.net", "ann@example.org", "Return-Path: <sender@example.net>\r\n"},
		{func(s *Settings) { s.ReturnPath = true }, "", "ann@example.org", "Return-Path: <>\r\n"},
		{func(s *Settings) { s.ReturnPath = true }, "a\r\nX: y@example.net", "ann@example.org", "Return-Path: <a??X: y@example.net>\r\n"},
		{func(s *Settings) { s.DeliveredTo = true }, "", "Ann+news@example.org", "Delivered-To: Ann+news@example.org\r\n"},
		{func(s *Settings) { s.ReturnPath, s.DeliveredTo = true, true }, "", "ann@example.org", "Return-Path: <>\r\nDelivered-To: ann@example.org\r\n"},
	}
	for _, tt := range tests {
		dir, b := newBackend(t, tt.change)
		tx := transaction(message, tt.to, "bob@example.org")
		tx.Envelope.Sender = tt.sender
		deliver(t, b, tx)
		got := mustRead(t, mustList(t, filepath.Join(dir, "example.org/ann/new"))[0])
		if got != tt.want+message {
			t.Errorf("to %s from %s: got %q, want %q", tt.to, tt.sender, got, tt.want+message)
		}
		if tt.want == "" || !strings.Contains(tt.want, "Delivered-To") {
			continue
		}
		got = mustRead(t, mustList(t, filepath.Join(dir, "example.org/bob/new"))[0])
		if !strings.Contains(got, "Delivered-To: bob@example.org\r\n") || strings.Contains(got, tt.to) || !strings.HasSuffix(got, "\r\n"+message) {
			t.Errorf("to bob: got %q", got)
		}
	}
}

func TestReceived(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.FixedZone("", -3600))
	const date = ";\r\n\tWed, 4 Mar 2026 05:06:07 -0100\r\n"
	peer := backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25")}
	one := []string{"ann@example.org"}
	tests := []struct {
		name    string
		session backends.Session
		to      []string
		want    string
	}{
		{"a peer", backends.Session{Protocol: "ESMTP", HELO: "mx.example.net", Peer: peer}, one,
			"Received: from mx.example.net ([192.0.2.1])\r\n\tby gw.example.org with ESMTP id tx1\r\n\tfor <ann@example.org>"},
		{"IPv6", backends.Session{Protocol: "LMTP", HELO: "mx", Peer: backends.Peer{Addr: netip.MustParseAddrPort("[fe80::1%eth0]:25")}}, one,
			"Received: from mx ([IPv6:fe80::1])\r\n\tby gw.example.org with LMTP id tx1\r\n\tfor <ann@example.org>"},
		{"IPv4 in IPv6", backends.Session{Protocol: "LMTP", HELO: "mx", Peer: backends.Peer{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:25")}}, one,
			"Received: from mx ([192.0.2.1])\r\n\tby gw.example.org with LMTP id tx1\r\n\tfor <ann@example.org>"},
		{"a unix socket", backends.Session{Protocol: "LMTP", HELO: "mx", Peer: backends.Peer{UID: 105}}, one,
			"Received: from mx\r\n\tby gw.example.org with LMTP id tx1\r\n\tfor <ann@example.org>"},

		// Each recipient would learn of the others.
		{"two recipients", backends.Session{Protocol: "LMTP", HELO: "mx", Peer: peer}, []string{"ann@example.org", "bob@example.org"},
			"Received: from mx ([192.0.2.1])\r\n\tby gw.example.org with LMTP id tx1"},

		// The client is the peer, or who XFORWARD says, and never a mixture.
		{"XFORWARD", backends.Session{Protocol: "LMTP", HELO: "proxy", Peer: peer, XForward: &xforward.Attrs{
			Forwarded: true, Name: "mx.example.net", Addr: "198.51.100.1", Port: "99", Proto: "ESMTP", HELO: "hello", Ident: "4XyZ"}}, one,
			"Received: from hello (mx.example.net [198.51.100.1])\r\n\tby gw.example.org with ESMTP id tx1\r\n\tfor <ann@example.org>"},
		{"XFORWARD of an unknown client", backends.Session{Protocol: "LMTP", HELO: "proxy", Peer: peer, XForward: &xforward.Attrs{Forwarded: true}}, one,
			"Received: from unknown\r\n\tby gw.example.org id tx1\r\n\tfor <ann@example.org>"},
		{"XFORWARD of an identifier alone", backends.Session{Protocol: "LMTP", HELO: "proxy", Peer: peer, XForward: &xforward.Attrs{Ident: "4XyZ"}}, one,
			"Received: from proxy ([192.0.2.1])\r\n\tby gw.example.org with LMTP id tx1\r\n\tfor <ann@example.org>"},

		// The same goes for the client that PROXY or XCLIENT has told.
		{"XCLIENT", backends.Session{Protocol: "ESMTP", HELO: "proxy", Peer: peer, Client: &backends.Client{
			Addr: netip.MustParseAddrPort("198.51.100.1:99"), Name: "mx.example.net", HELO: "hello"}}, one,
			"Received: from hello (mx.example.net [198.51.100.1])\r\n\tby gw.example.org with ESMTP id tx1\r\n\tfor <ann@example.org>"},
		{"PROXY of an unknown client", backends.Session{Protocol: "ESMTP", HELO: "client", Peer: peer, Client: &backends.Client{}}, one,
			"Received: from client\r\n\tby gw.example.org with ESMTP id tx1\r\n\tfor <ann@example.org>"},

		// Nothing that a stranger says breaks out of its place.
		{"hostile HELO", backends.Session{Protocol: "LMTP", HELO: "a\r\nX: (y) <z> \"\\\xff;", Peer: peer}, one,
			"Received: from a??X:??y???z?????? ([192.0.2.1])\r\n\tby gw.example.org with LMTP id tx1\r\n\tfor <ann@example.org>"},
		{"long HELO", backends.Session{Protocol: "LMTP", HELO: strings.Repeat("h", 2000), Peer: peer}, one,
			"Received: from " + strings.Repeat("h", 255) + " ([192.0.2.1])\r\n\tby gw.example.org with LMTP id tx1\r\n\tfor <ann@example.org>"},
		{"no HELO", backends.Session{Protocol: "SMTP", Peer: peer}, one,
			"Received: from unknown ([192.0.2.1])\r\n\tby gw.example.org with SMTP id tx1\r\n\tfor <ann@example.org>"},
		{"hostile recipient", backends.Session{Protocol: "LMTP", HELO: "mx", Peer: peer}, []string{"\"a\r\n\"@example.org"},
			"Received: from mx ([192.0.2.1])\r\n\tby gw.example.org with LMTP id tx1\r\n\tfor <\"a??\"@example.org>"},
		{"long recipient", backends.Session{Protocol: "LMTP", HELO: "mx", Peer: peer}, []string{strings.Repeat("a", 1000) + "@example.org"},
			"Received: from mx ([192.0.2.1])\r\n\tby gw.example.org with LMTP id tx1"},
	}
	for _, tt := range tests {
		tx := transaction("", tt.to...)
		tx.ID, tx.Session = "tx1", tt.session
		got := received(tx, "gw.example.org", now)
		if got != tt.want+date {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want+date)
		}
	}
}

// A delivered message is still one that others can read.
func TestReceivedIsAField(t *testing.T) {
	dir, b := newBackend(t, func(s *Settings) { s.Received, s.Hostname = true, "gw.example.org" })
	tx := transaction("Subject: test\r\n\r\nhello\r\n", "ann@example.org")
	tx.Session = backends.Session{Protocol: "LMTP", HELO: "mx.example.net"}
	deliver(t, b, tx)
	m, err := mail.ReadMessage(strings.NewReader(mustRead(t, mustList(t, filepath.Join(dir, "example.org/ann/new"))[0])))
	if err != nil {
		t.Fatal(err)
	}
	field := m.Header.Get("Received")
	if want := "from mx.example.net by gw.example.org with LMTP id test for <ann@example.org>; "; !strings.HasPrefix(field, want) {
		t.Errorf("got %q, want %q...", field, want)
	}
	_, date, _ := strings.Cut(field, "; ")
	if at, err := mail.ParseDate(date); err != nil || time.Since(at) > time.Minute {
		t.Errorf("got date %q, %v", date, err)
	}
	if got := m.Header.Get("Subject"); got != "test" {
		t.Errorf("got subject %q", got)
	}
}
