package plugins

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// What the calls of the transcripts mean, in the words of package backends. It is
// written by hand, so that a conversion is found that is wrong there and back.

// A delivery is what the messages of a call Deliver mean.
type delivery struct {
	tx       *backends.DataContext // without its body
	body     string
	statuses map[int]backends.Status
	started  []int
	response backends.Status
	digest   backends.Digest
	err      error
	edits    backends.Edits // without the message
	message  string
}

// anybody is the session of calls that are not about it.
var anybody = backends.Session{ID: "S1"}

func recipients(addresses ...string) (e backends.Envelope) {
	for _, a := range addresses {
		e.Recipients = append(e.Recipients, backends.Recipient{Address: a})
	}
	return e
}

// deliveries are those of all transcripts, by the ID of the transaction.
func deliveries() map[string]delivery {
	sender, null := "new@example.net", ""
	return map[string]delivery{
		"edits": {
			tx: &backends.DataContext{
				ID: "edits",
				Session: backends.Session{
					ID: "S1", Listener: "in", Protocol: "UTF8SMTPSA", Local: "[2001:db8::1]:25",
					HELO: "client.example.net\xff", User: "ann\xff", Mechanism: "PLAIN", Gateway: "G",
					Peer: backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25252"), UID: 1, GID: 2, PID: 3},
					XForward: &xforward.Attrs{
						Name: "client.example.net", Addr: "192.0.2.3", Port: "1234", Proto: "ESMTP",
						HELO: "h\xff", Ident: "4ZyX", Source: "REMOTE", Forwarded: true,
					},
					TLS: &backends.TLS{
						Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", ServerName: "mx.example.org",
						ClientCertificate: "ab01", ClientName: "client\xff",
					},
					Client: &backends.Client{
						Source: "PROXY", Addr: netip.MustParseAddrPort("192.0.2.2:0"), Local: netip.MustParseAddrPort("192.0.2.4:25"),
						Name: "n\xff", ReverseName: "r\xff", HELO: "h\xff", Protocol: "ESMTP",
						TLVs: []backends.TLV{{Type: 224, Value: []byte("v\xff")}, {Type: 4}},
					},
				},
				Envelope: backends.Envelope{
					Sender: "sénder@example.net", Params: backends.Params{"SIZE=22", "SMTPUTF8"},
					Recipients: []backends.Recipient{
						{Address: "ann@example.org", Params: backends.Params{"NOTIFY=NEVER", "X=\xff"}},
						{Address: "bob@example.org"},
						{Address: "eve@example.org"},
					},
				},
			},
			body:     "A: b\r\n\r\nhello, world\r\n",
			statuses: map[int]backends.Status{2: {Code: 550, Enhanced: "5.1.1", Text: "no such user"}},
			edits: backends.Edits{
				Fields: []backends.FieldEdit{
					{Op: backends.AddField, At: 0, Field: "X-First: \xff"},
					{Op: backends.ReplaceField, At: 1, Field: "A: c,\r\n folded"},
					{Op: backends.RemoveField, At: 2},
				},
				Sender: &sender, SenderParams: backends.Params{"RET=HDRS"}, // SMTPUTF8 is of the message, and stays
				Redirects:  map[int][]string{1: {"b1@example.org", "b2@example.org"}},
				Added:      []backends.Recipient{{Address: "archive@example.org", Params: backends.Params{"NOTIFY=NEVER"}}},
				Diversions: map[int]string{1: "quarantine"},
			},
		},
		"message": {
			tx:       &backends.DataContext{ID: "message", Envelope: recipients("ann@example.org", "bob@example.org", "cyd@example.org")},
			body:     "A: b\r\n",
			started:  []int{0, 1},
			response: backends.Status{Code: 250, Enhanced: "2.6.0", Text: "two lines\nof text"},
			statuses: map[int]backends.Status{
				0: {Code: 450, Enhanced: "4.2.1", Text: "later"},
				1: {Code: 250, Enhanced: "2.0.0", Text: "late"},
			},
			digest:  backends.Digest{Fields: []uint64{0x3031323334353637}, Body: [32]byte([]byte("01234567890123456789012345678901"))},
			edits:   backends.Edits{Sender: &null},
			message: "A: c\r\n",
		},
		"status": {
			tx:  &backends.DataContext{ID: "status", Envelope: recipients("ann@example.org")},
			err: backends.Status{Code: 554, Enhanced: "5.7.1", Text: "no"},
		},
		"failure": {
			tx:  &backends.DataContext{ID: "failure", Envelope: recipients("ann@example.org")},
			err: errors.New("the disk is on fire"),
		},
		// docs/protocol.md
		"06gztyg6q151rdby": {
			tx: &backends.DataContext{
				ID: "06gztyg6q151rdby",
				Session: backends.Session{
					ID: "06gztyg6q1000000", Listener: "lmtp", Protocol: "LMTP",
					Peer: backends.Peer{UID: 104, GID: 111, PID: 4711}, Local: "/var/spool/postfix/mailgw/lmtp.sock", HELO: "mail.example.org",
					XForward: &xforward.Attrs{
						Name: "client.example.net", Addr: "192.0.2.1", Port: "50312", Proto: "ESMTP",
						HELO: "client.example.net", Ident: "4ZyXwV1tSr", Source: "REMOTE", Forwarded: true,
					},
				},
				Envelope: backends.Envelope{
					Sender: "sender@example.net", Params: backends.Params{"SIZE=49"},
					Recipients: []backends.Recipient{{Address: "ann@example.org"}, {Address: "eve@example.org", Params: backends.Params{"NOTIFY=NEVER"}}},
				},
			},
			body:     "From: sender@example.net\r\nSubject: hello\r\n\r\nbye\r\n",
			statuses: map[int]backends.Status{1: {Code: 550, Enhanced: "5.1.1", Text: "no such user"}},
			edits:    backends.Edits{Fields: []backends.FieldEdit{{Op: backends.AddField, At: 0, Field: "X-Roster: known"}}},
		},
	}
}

// A conversation is what the messages of a call Ask mean.
type conversation struct {
	question backends.Question
	answer   backends.Answer
	err      error
}

// conversations are those of all transcripts, by the topic.
var conversations = map[string]conversation{
	"CONNECTION": {question: backends.Question{
		About:   backends.AboutConnection,
		Session: &backends.Session{ID: "S1", Peer: backends.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:25252")}},
	}},
	"HELO": {
		question: backends.Question{About: backends.AboutHELO, Session: &backends.Session{ID: "S1", HELO: "client.example.net"}},
		err:      backends.Status{Code: 550, Enhanced: "5.7.1", Text: "not you"},
	},
	"SENDER": {
		question: backends.Question{
			About: backends.AboutSender, Session: &anybody,
			Envelope: &backends.Envelope{Sender: "ann@example.org", Params: backends.Params{"SIZE=1000"}},
		},
		err: errors.New("the list cannot be read"),
	},
	"RECIPIENT": {
		question: backends.Question{
			About: backends.AboutRecipient, Session: &anybody,
			Envelope:  &backends.Envelope{Sender: "ann@example.org"},
			Recipient: backends.Recipient{Address: "bob@example.org", Params: backends.Params{"NOTIFY=NEVER"}},
		},
		answer: backends.Answer{Opinion: backends.Opinion{
			Status: backends.Status{Code: 250, Enhanced: "2.1.5", Text: "known"}, For: time.Minute, Key: "@example.org",
		}},
	},
	"AUTH": {
		question: backends.Question{
			About: backends.AboutAUTH, Session: &anybody,
			Credentials: backends.Credentials{Mechanism: "PLAIN", Identity: "i\xff", User: "u\xff", Password: "p\xff"},
		},
		answer: backends.Answer{User: "u\xff"},
	},
	"SCRAM": {
		question: backends.Question{About: backends.AboutSCRAM, Session: &anybody, Text: "ann"},
		answer: backends.Answer{SCRAM: backends.SCRAMVerifier{
			User: "ann@example.org", Salt: []byte("salt\xff"), Iterations: 4096,
			StoredKey: []byte("01234567890123456789012345678901"), ServerKey: []byte("98765432109876543210987654321098"),
		}},
	},
	"VRFY": {
		question: backends.Question{About: backends.AboutVRFY, Session: &anybody, Text: "ann"},
		answer:   backends.Answer{Opinion: backends.Opinion{Status: backends.Status{Code: 252, Enhanced: "2.1.5", Text: "perhaps"}}},
	},
	"EXPN": {
		question: backends.Question{About: backends.AboutEXPN, Session: &anybody, Text: "staff"},
		answer:   backends.Answer{Members: []string{"<ann@example.org>", "Bob \xff <bob@example.org>"}},
	},
}

// An announcing is what the messages of a call Configure mean.
type announcing struct {
	capabilities backends.Capabilities
	changing     bool
	topics       []backends.Topic
	mayEdit      backends.EditKinds
	effectFree   bool
	needs        []string
	divertsTo    []string
	chunk        int
	err          string // the end of it
}

// announcings are those of all transcripts, by the settings.
var announcings = map[string]map[string]announcing{
	version1Calls: {
		`{"users":["ann@example.org"]}`: {
			capabilities: backends.Capabilities{Size: 1000, EightBitMIME: true}, changing: true,
			topics: backends.Topics(), mayEdit: backends.EditHeader | backends.EditMessage | backends.EditEnvelope,
			effectFree: true, needs: []string{"writes /var/mail"}, divertsTo: []string{"quarantine"}, chunk: 8,
		},
		`{"user":1}`: {err: "settings: user: unknown key; users: is missing"},
		`{}`:         {err: ": the directory cannot be reached"},
	},
	protocolPage: {
		`{"users":["ann@example.org"]}`: {
			capabilities: backends.Capabilities{EightBitMIME: true, SMTPUTF8: true, BinaryMIME: true},
			mayEdit:      backends.EditHeader, chunk: 32,
		},
	},
}

// changedCapabilities are the last ones that Watch tells.
var changedCapabilities = backends.Capabilities{
	Size: 2000, EightBitMIME: true, SMTPUTF8: true, BinaryMIME: true, DSN: true, RequireTLS: true, Digest: true, Relays: true,
}

// playTranscript has the gateway make the calls of a transcript to a player, which
// compares what it gets, and checks that what the player has answered arrives.
func playTranscript(t *testing.T, path string) {
	t.Helper()
	calls, err := readTranscript(path, pb.File_plugin_proto.Services().ByName("Plugin"), newGenerated)
	if err != nil {
		t.Fatal(err)
	}
	var h *Host
	for _, call := range calls {
		switch first := call.messages[0].message.(type) {
		case *pb.ConfigureRequest:
			if started := playConfigure(t, path, first.SettingsJson); started != nil {
				h = started
			}
		case *pb.WatchRequest:
			waitFor(t, h, changedCapabilities)
		case *pb.Question:
			playAsk(t, h, first.Topic.String())
		case *pb.ToPlugin:
			playDeliver(t, h, first.Transaction.Id)
		}
	}
}

// playConfigure starts a plugin. It returns nil if the plugin is to refuse.
func playConfigure(t *testing.T, path, settings string) *Host {
	t.Helper()
	want, known := announcings[path][settings]
	c := command(t, "player", newGatewayLog())
	c.Args = append(c.Args, path)
	if err := json.Unmarshal([]byte(settings), &c.Settings); err != nil || !known {
		t.Fatalf("nobody has said what Configure with %s means; %v", settings, err)
	}
	if want.err != "" {
		if _, err := startHost(t, t.Context(), c, defaultTimes); err == nil || !strings.HasSuffix(err.Error(), want.err) {
			t.Errorf("got the error %v, want %s", err, want.err)
		}
		return nil
	}
	h := runCommand(t, c, defaultTimes)
	if h.MayEdit() != want.mayEdit || h.IsEffectFree() != want.effectFree {
		t.Errorf("got the edits %v, effect free %t; want %v, %t", h.MayEdit(), h.IsEffectFree(), want.mayEdit, want.effectFree)
	}
	if got := h.Needs(); !slices.Equal(got, want.needs) {
		t.Errorf("got the needs %q, want %q", got, want.needs)
	}
	if got := h.DivertsTo(); !slices.Equal(got, want.divertsTo) {
		t.Errorf("got the routes %q, want %q", got, want.divertsTo)
	}
	for _, topic := range backends.Topics() {
		if h.Answers(topic) != slices.Contains(want.topics, topic) {
			t.Errorf("it can be asked about %v: %t", topic, h.Answers(topic))
		}
	}
	r := h.running[0]
	if r.capabilities != want.capabilities || r.changing != want.changing || r.chunk != want.chunk {
		t.Errorf("got %+v, changing %t, chunks of %d; want %+v", r.capabilities, r.changing, r.chunk, want)
	}
	return h
}

func playAsk(t *testing.T, h *Host, topic string) {
	t.Helper()
	want, known := conversations[topic]
	if !known {
		t.Fatalf("nobody has said what Ask about %s means", topic)
	}
	got, err := h.Ask(t.Context(), want.question)
	if !reflect.DeepEqual(got, want.answer) || !sameError(err, want.err) {
		t.Errorf("%s: got %+v, %v; want %+v, %v", topic, got, err, want.answer, want.err)
	}
}

// sameError reports whether two errors mean the same status, in the same words.
func sameError(got, want error) bool {
	return fmt.Sprint(got) == fmt.Sprint(want) && (want == nil || backends.StatusOf(got) == backends.StatusOf(want))
}

func playDeliver(t *testing.T, h *Host, id string) {
	t.Helper()
	want, known := deliveries()[id]
	if !known {
		t.Fatalf("nobody has said what the transaction %s means", id)
	}
	tx := want.tx
	tx.Size, tx.Body = int64(len(want.body)), strings.NewReader(want.body)
	o := deliver(t.Context(), h, tx)
	if !sameError(o.err, want.err) {
		t.Errorf("%s: got the error %v, want %v", id, o.err, want.err)
	}
	for i, status := range want.statuses {
		if got := o.status(t, i); got != status {
			t.Errorf("%s: recipient %d: got %v, want %v", id, i, got, status)
		}
	}
	if !slices.Equal(o.started, want.started) || len(o.ignored) > 0 || len(o.statuses) != len(want.statuses) {
		t.Errorf("%s: started %v, ignored %v, statuses %v; want %+v", id, o.started, o.ignored, o.statuses, want)
	}
	if o.response != want.response || !reflect.DeepEqual(o.digest, want.digest) {
		t.Errorf("%s: got the response %v and the digest %v; want %+v", id, o.response, o.digest, want)
	}
	edits := tx.Edits()
	if message := edits.Message; (message != nil) != (want.message != "") || message != nil && readAll(t, message) != want.message {
		t.Errorf("%s: got the message %v, want %q", id, message, want.message)
	}
	if edits.Message = nil; !reflect.DeepEqual(edits, want.edits) {
		t.Errorf("%s: got the edits %+v, want %+v", id, edits, want.edits)
	}
}
