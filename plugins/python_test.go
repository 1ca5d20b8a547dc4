package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
	"github.com/mailgw/mailgw/xforward"
)

// python is testdata/contract.py as a plugin.
func python(t testing.TB, log *gatewayLog) Command {
	t.Helper()
	if out, err := exec.Command("/usr/bin/python3", "-c", "import grpc, google.protobuf").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("python3-grpcio: %v\n%s", err, out)
		}
		t.Skipf("python3-grpcio: %v\n%s", err, out)
	}
	c := command(t, "python", log)
	c.Path, c.Args = "testdata/contract.py", nil
	c.Env = map[string]string{"PYTHONPATH": "python", "PYTHONDONTWRITEBYTECODE": "1"}
	return c
}

func runPython(t testing.TB) (*Host, *gatewayLog) {
	t.Helper()
	log := newGatewayLog()
	return runCommand(t, python(t, log), defaultTimes), log
}

// Python is told all that a backend in Go is.
func TestPythonIsToldAll(t *testing.T) {
	h, _ := runPython(t)
	tx := wholeTransaction()
	tx.Size, tx.Body = 0, strings.NewReader("")
	tx.Envelope.Recipients[0].Address = "whole"
	if o := deliver(t.Context(), h, tx); o.err != nil {
		t.Fatal(o.err)
	}
	got := &pb.Transaction{}
	if err := protobuf.Unmarshal([]byte(readAll(t, tx.Edits().Message)), got); err != nil {
		t.Fatal(err)
	}
	if want := transactionToWire(tx); !protobuf.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	o := deliver(t.Context(), h, message("", "whole"))
	if o.err != nil {
		t.Error(o.err)
	}
}

func TestPythonAnswersEachRecipient(t *testing.T) {
	h, log := runPython(t)
	o := deliver(t.Context(), h, message("hello", "answers", "nobody", "delivered", "surrogate", "delivered"))
	want := map[int]backends.Status{
		1: backends.NoSuchUser,
		2: backends.Delivered,
		3: backends.NewStatus(450, "4.2.0", "na?ve"),
		4: backends.Delivered,
	}
	if o.err != nil || !reflect.DeepEqual(o.statuses, want) || !slices.Equal(o.order, []int{1, 2, 3, 4}) || o.response.Text != "taken" {
		t.Errorf("got %v in the order %v, response %v and the error %v; want %v", o.statuses, o.order, o.response, o.err, want)
	}
	o.wantUndecided(t, 0)

	o = deliver(t.Context(), h, message("hello", "twice", "other"))
	if o.statuses[0] != backends.Delivered || o.statuses[1] != backends.NoSuchUser || len(o.ignored) > 0 {
		t.Errorf("got %v, and ignored %v", o.statuses, o.ignored)
	}
	if record := log.wait(t, 1, "log", "ignored")[0]; record["level"] != "WARN" || record["tx"] != "T1" {
		t.Errorf("got the record %v", record)
	}
}

// What goes wrong in one transaction harms it alone.
func TestErrorOfPythonBackend(t *testing.T) {
	h, log := runPython(t)
	for does, want := range map[string]struct {
		text   string
		status backends.Status
	}{
		"refuses":          {"no such user", backends.NoSuchUser},
		"raises":           {"no such user", backends.NoSuchUser},
		"fails":            {"OSError: disk on fire at /secret", backends.TryLater},
		"exits":            {"SystemExit: a bug", backends.TryLater},
		"nonsense":         {"TypeError: deliver returned 250", backends.TryLater},
		"no code":          {"is no answer", backends.TryLater},
		"no status":        {"'250 ok' is no answer, want a Status", backends.TryLater},
		"raises nonsense":  {"is no answer", backends.TryLater},
		"raises none":      {"AttributeError", backends.TryLater},
		"unspeakable":      {"Unspeakable", backends.TryLater},
		"no recipient":     {"there is no recipient 2", backends.TryLater},
		"bad field":        {"is no header field", backends.TryLater},
		"both":             {"cannot both be edited", backends.TryLater},
		"bad address":      {"not of the form local@domain", backends.TryLater},
		"param of message": {"is of the message", backends.TryLater},
		"letters":          {"TypeError: params: want a list of strings, found 'RET=HDRS'", backends.TryLater},
		"letters added":    {"TypeError: params: want a list of strings, found 'NOTIFY=NEVER'", backends.TryLater},
		"a bug":            {"AttributeError", backends.TryLater},
	} {
		o := deliver(t.Context(), h, message("hello", does, "two"))
		if o.err == nil || !strings.Contains(o.err.Error(), want.text) || backends.StatusOf(o.err) != want.status {
			t.Errorf("%s: got the error %v, want %q, which means %v", does, o.err, want.text, want.status)
		}
		o.wantUndecided(t, 0, 1)
	}
	records := log.wait(t, 14, "log", "deliver")
	if !slices.ContainsFunc(records, func(r map[string]any) bool {
		return r["level"] == "ERROR" && r["tx"] == "T1" && strings.Contains(fmt.Sprint(r["stack"]), "in fails\n")
	}) {
		t.Errorf("got the records %v, want the stack of each", records)
	}
	if gone(log.pid(t, 1)) {
		t.Error("the plugin has ended")
	}
}

func TestEditsOfPython(t *testing.T) {
	h, _ := runPython(t)
	tx := message("hello", "edits", "two")
	if o := deliver(t.Context(), h, tx); o.err != nil {
		t.Fatal(o.err)
	}
	sender := "new@example.org"
	want := backends.Edits{
		Fields: []backends.FieldEdit{
			{Op: backends.AddField, At: 0, Field: "X-First: one"},
			{Op: backends.ReplaceField, At: 2, Field: "Subject: gr\xfc\xdfe,\r\n folded"},
			{Op: backends.RemoveField, At: 3},
		},
		Sender: &sender, SenderParams: backends.Params{"RET=HDRS", "ENVID=new"},
		Redirects:  map[int][]string{1: {"a@example.org", "b@example.org"}},
		Added:      []backends.Recipient{{Address: "archive@example.org", Params: backends.Params{"NOTIFY=NEVER"}}},
		Diversions: map[int]string{0: "quarantine"},
	}
	if got := tx.Edits(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	tx = message("hello", "no params")
	if o := deliver(t.Context(), h, tx); o.err != nil || !reflect.DeepEqual(tx.Edits(), backends.Edits{SenderParams: backends.Params{}}) {
		t.Errorf("no params: got %+v and the error %v", tx.Edits(), o.err)
	}
	for does, want := range map[string]string{"empties": "", "replaces": "new " + long, "breaks off": "second"} {
		tx := message(long, does)
		if o := deliver(t.Context(), h, tx); o.err != nil {
			t.Errorf("%s: %v", does, o.err)
		} else if got := readAll(t, tx.Edits().Message); got != want {
			t.Errorf("%s: got %d octets, want %d", does, len(got), len(want))
		}
	}
}

func TestMessageArrivesInPythonExactly(t *testing.T) {
	h, _ := runPython(t)
	octets := make([]byte, 6<<20)
	for i := range octets {
		octets[i] = byte(i * i >> 7)
	}
	for _, size := range []int{0, 1, smallChunk - 1, smallChunk, smallChunk + 1, 2 * smallChunk, len(octets)} {
		o := deliver(t.Context(), h, message(string(octets[:size]), "reads"))
		if got, want := backends.StatusOf(o.err).Text, fmt.Sprintf("%d %x", size, hash(octets[:size])); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// The positions of fields are those that the gateway counts.
func TestPythonReadsTheHeader(t *testing.T) {
	h, _ := runPython(t)
	for message_, want := range map[string]string{
		"":                               `([], b'', b'')`,
		"A: b\r\n":                       `([b'A: b\r\n'], b'', b'')`,
		"A: b\r\n c\r\nD :e\r\n\r\nbody": `([b'A: b\r\n c\r\n', b'D :e\r\n'], b'\r\n', b'body')`,
		"no field\r\nA: b\r\n":           `([], b'no field\r\n', b'A: b\r\n')`,
		" A: b\r\n":                      `([], b' A: b\r\n', b'')`,
		"A: b\r\nA b: c\r\nd":            `([b'A: b\r\n'], b'A b: c\r\n', b'd')`,
		"A\xff: b":                       `([], b'A\xff: b', b'')`,
	} {
		o := deliver(t.Context(), h, message(message_, "header"))
		if got := backends.StatusOf(o.err).Text; got != want {
			t.Errorf("%q: got %s, want %s", message_, got, want)
		}
	}
	o := deliver(t.Context(), h, message("A: "+strings.Repeat("x", 4<<20), "header"))
	o.wantError(t, "the header is too large")
}

func TestPythonTellsWhatItWrote(t *testing.T) {
	h, _ := runPython(t)
	var got backends.Digest
	_, err := backends.Run(t.Context(), h, message("", "wrote"), backends.Hooks{Wrote: func(d backends.Digest) { got = d }})
	d := backends.NewDigester()
	io.WriteString(d, "A: b\r\nC: d\r\n\r\nbody")
	if want := d.Digest(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestLateDeliveriesOfPython(t *testing.T) {
	h, log := runPython(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := deliver(ctx, h, message(long, "late", "reads", "undecided", "done", "bug"))
	if o.err != nil {
		t.Fatal(o.err)
	}
	o.wantUndecided(t, 2)
	if !slices.Equal(o.started, []int{0, 1, 3, 4}) || o.status(t, 3) != backends.Delivered {
		t.Errorf("got the started recipients %v and %v", o.started, o.statuses)
	}
	if got, want := o.status(t, 1).Text, fmt.Sprintf("%d %x", len(long), hash([]byte(long))); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	record := log.wait(t, 1, "log", "thread")[0]
	if !strings.Contains(fmt.Sprint(record["stack"]), "ZeroDivisionError") {
		t.Errorf("got the record %v, want the stack", record)
	}
	cancel()
	if got := o.status(t, 4); got != backends.TryLater {
		t.Errorf("got %v, want %v", got, backends.TryLater)
	}
}

// Transactions that wait keep nobody from anything, and keep the statuses
// that they have.
func TestManyTransactionsInPython(t *testing.T) {
	h, _ := runPython(t)
	const n = 200
	var wg sync.WaitGroup
	begun := make(chan struct{}, n)
	for range n {
		wg.Go(func() {
			_, err := backends.Run(t.Context(), h, message("hello", "waits", "two"),
				backends.Hooks{Status: func(int, backends.Status) { begun <- struct{}{} }})
			if err != backends.Delivered {
				t.Errorf("got the error %v, want %v", err, backends.Delivered)
			}
		})
	}
	for range n {
		<-begun
	}
	if err := h.running[0].check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := h.Ask(t.Context(), about(backends.AboutHELO, "")); err != nil {
		t.Error(err)
	}
	deliver(t.Context(), h, message("hello", "opens"))
	wg.Wait()
}

func TestMessageThatEndsTooEarlyInPython(t *testing.T) {
	h, log := runPython(t)
	tx := message(long, "reads")
	tx.Body = io.MultiReader(strings.NewReader(long[:100_000]), strings.NewReader(""))
	deliver(t.Context(), h, tx).wantError(t, "read the message")
	if err := h.running[0].check(t.Context()); err != nil || gone(log.pid(t, 1)) {
		t.Error("the plugin has ended")
	}
}

func TestDeadlineInPython(t *testing.T) {
	h, _ := runPython(t)
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Minute)
	defer cancel()
	if got := backends.StatusOf(deliver(ctx, h, message("", "deadline")).err).Text; got != "{7}" {
		t.Errorf("the plugin has %s minutes, want 7", got)
	}
	if got := backends.StatusOf(deliver(t.Context(), h, message("", "deadline")).err).Text; got != "set()" {
		t.Errorf("the plugin has %s minutes, want none", got)
	}
	a, err := h.Ask(ctx, about(backends.AboutConnection, "deadline"))
	if s := answered(a, err); s.Text != "7" {
		t.Errorf("the question has %v, want 7", s)
	}
}

// answered is the Status of an answer, be it an error.
func answered(a backends.Answer, err error) backends.Status {
	if err != nil {
		return backends.StatusOf(err)
	}
	return a.Opinion.Status
}

func TestQuestionsToPython(t *testing.T) {
	h, log := runPython(t)
	key := []byte(strings.Repeat("k", 32))
	for topic, want := range map[backends.Topic]backends.Answer{
		backends.AboutConnection: {Opinion: backends.Opinion{Status: said("connection S1")}},
		backends.AboutHELO:       {Opinion: backends.Opinion{Status: said("helo h?lo")}},
		backends.AboutSender:     {Opinion: backends.Opinion{Status: said("sender from@example.org")}},
		backends.AboutRecipient: {Opinion: backends.Opinion{
			Status: said("two NEVER from from@example.org"), For: time.Minute, Key: "@example.org"}},
		backends.AboutAUTH:  {User: "PLAIN id us\xebr s3cret\xff"},
		backends.AboutSCRAM: {SCRAM: backends.SCRAMVerifier{User: "utext", Salt: []byte("text"), Iterations: 4096, StoredKey: key, ServerKey: key}},
		backends.AboutVRFY:  {Opinion: backends.Opinion{Status: said("user text")}},
		backends.AboutEXPN:  {Members: []string{"text", "gr\xfc\xdfe"}},
	} {
		got, err := h.Ask(t.Context(), about(topic, "h\xe9lo"))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: got %+v, %v; want %+v", topic, got, err, want)
		}
	}
	for does, want := range map[string]backends.Status{
		"refuses":    backends.NoSuchUser,
		"fails":      backends.TryLater,
		"no opinion": {},
	} {
		if s := answered(h.Ask(t.Context(), about(backends.AboutConnection, does))); s != want {
			t.Errorf("%s: got %v, want %v", does, s, want)
		}
	}
	if a, err := h.Ask(t.Context(), about(backends.AboutEXPN, "no opinion")); err != nil || !a.IsZero() {
		t.Errorf("got %+v, %v; want no opinion", a, err)
	}
	if _, err := h.Ask(t.Context(), about(backends.AboutEXPN, "letters")); err == nil || !strings.Contains(err.Error(), "TypeError: expand returned str, which is no answer") {
		t.Errorf("got the error %v", err)
	}
	// Credentials are not shown by accident.
	if _, err := h.Ask(t.Context(), about(backends.AboutAUTH, "fails")); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got the error %v", err)
	}
	if record := log.wait(t, 1, "log", "check_connection")[0]; record["session"] != "S1" || record["tx"] != nil {
		t.Errorf("got the record %v", record)
	}
}

func TestAnnouncementOfPython(t *testing.T) {
	h, _ := runPython(t)
	want := backends.Capabilities{DSN: true, Size: 1000, EightBitMIME: true, SMTPUTF8: true}
	if got := h.Capabilities(); got != want || h.MayEdit() != backends.EditAll || !h.IsEffectFree() {
		t.Errorf("got %+v, %v, %t; want %+v, all and true", got, h.MayEdit(), h.IsEffectFree(), want)
	}
	if got := h.Needs(); !slices.Equal(got, []string{"writes /var/mail", "?"}) {
		t.Errorf("got the needs %q", got)
	}
	if got := h.DivertsTo(); !slices.Equal(got, []string{"quarantine", "audit"}) {
		t.Errorf("got the routes %q", got)
	}
	deliver(t.Context(), h, message("", "opens"))
	waitFor(t, h, backends.Capabilities{EightBitMIME: true, SMTPUTF8: true, BinaryMIME: true, Relays: true})
}

func TestSettingsReachPython(t *testing.T) {
	file := filepath.Join(t.TempDir(), "closed")
	c := python(t, newGatewayLog())
	c.Settings = map[string]any{
		"count": int64(1)<<53 + 1,
		"path":  "/var/mail",
		"wait":  "1h1.5s",
		"rules": []map[string]any{{"to": "a"}, {"to": "b", "weight": 2.5}},
		"names": map[string]any{"a b": true},
		"note":  file,
	}
	h := runCommand(t, c, defaultTimes)
	got := backends.StatusOf(deliver(t.Context(), h, message("", "settings are")).err).Text
	want := "Settings(path=PosixPath('/var/mail'), wait=datetime.timedelta(seconds=3601, microseconds=500000), count=9007199254740993, " +
		"rules=[Rule(to='a', weight=1), Rule(to='b', weight=2.5)], names={'a b': True}, note='" + file + "')"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := closeHost(t, t.Context(), h); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(file); string(text) != "closed" {
		t.Error("the backend was not closed")
	}
}

func TestFaultsOfSettingsOfPython(t *testing.T) {
	checkLeaks(t)
	for _, test := range []struct {
		settings map[string]any
		want     []string
	}{
		{map[string]any{"count": true, "wait": 3, "path": []any{}, "cuont": 1}, []string{
			`path: want a string, found a list`, `wait: want a duration such as "30s", "5m" or "1h30m", found the number 3`,
			`count: want an integer, found true`, `cuont: unknown key; did you mean count?`,
		}},
		{map[string]any{"rules": []map[string]any{{"weight": "x"}, {"to": "b", "a b": 5}}, "names": map[string]any{"a b": 1}}, []string{
			`rules[0].to: is missing`, `rules[0].weight: want a number, found the string "x"`, `rules[1]."a b": unknown key`,
			`names."a b": want true or false, found the number 1`,
		}},
		{map[string]any{"count": -1}, []string{"count: is negative"}},
	} {
		c := python(t, newGatewayLog())
		c.Settings = test.settings
		_, err := startHost(t, t.Context(), c, defaultTimes)
		faults, ok := errors.AsType[SettingsError](err)
		if !ok {
			t.Fatalf("got the error %v, want a SettingsError", err)
		}
		var got []string
		for _, f := range faults.Faults {
			got = append(got, f.Key+": "+f.Text)
		}
		slices.Sort(got)
		slices.Sort(test.want)
		if !slices.Equal(got, test.want) {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}

func TestPythonBackendThatCannotBeMade(t *testing.T) {
	checkLeaks(t)
	for _, test := range []struct {
		settings map[string]any
		want     string
	}{
		{map[string]any{"note": "fail"}, "backend python: OSError: no such directory"},
		{map[string]any{"note": "exit"}, "backend python: SystemExit: giving up"},
		{map[string]any{"names": map[string]any{"needs": true}}, "backend python: TypeError: needs: want a list of strings, found 'text'"},
		{map[string]any{"names": map[string]any{"diverts_to": true}}, "backend python: TypeError: diverts_to: want a list of strings, found 'text'"},
		{map[string]any{"note": "nothing"}, "backend python: TypeError: None is no backend: it has no method deliver"},
	} {
		c := python(t, newGatewayLog())
		c.Settings = test.settings
		if _, err := startHost(t, t.Context(), c, defaultTimes); err == nil || err.Error() != test.want {
			t.Errorf("got the error %v, want %s", err, test.want)
		}
	}
}

func TestLogOfPython(t *testing.T) {
	h, log := runPython(t)
	tx := message("hello", "logs")
	tx.Session = backends.Session{ID: "S1", XForward: &xforward.Attrs{Ident: "4F3A2C"}}
	deliver(t.Context(), h, tx)
	for _, test := range []struct {
		text string
		want map[string]any
	}{
		{"stored", map[string]any{"level": "INFO", "session": "S1", "tx": "T1", "ident": "4F3A2C", "path": "/var/mail", "plugin.event": "forged"}},
		{"5 octets", map[string]any{"level": "DEBUG", "tx": "T1"}},
		{"on fire", map[string]any{"level": "ERROR", "tx": "T1"}},
		{"from a thread", map[string]any{"level": "INFO", "tx": "T1"}},
		{"to stdout", map[string]any{"level": "INFO"}},
		{"to stderr", map[string]any{"level": "WARN"}},
	} {
		got := log.wait(t, 1, "log", test.text)[0]
		for key, want := range test.want {
			if !reflect.DeepEqual(got[key], want) {
				t.Errorf("%s: got %s=%v, want %v", test.text, key, got[key], want)
			}
		}
	}
}

func TestStatusSurvivesCrashOfPython(t *testing.T) {
	h, log := runPython(t)
	for n := range 3 {
		log.wait(t, n+1, "started", "") // Python takes longer than a transaction waits
		o := deliver(t.Context(), h, message("hello", "dies", "two"))
		o.wantError(t, "has ended")
		if o.statuses[0] != backends.Delivered {
			t.Errorf("got %v", o.statuses)
		}
	}
	log.wait(t, 4, "started", "")
}

func TestSignalsDoNotEndPython(t *testing.T) {
	h, log := runPython(t)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM} {
		syscall.Kill(log.pid(t, 1), signal)
	}
	if err := deliver(t.Context(), h, message("", "refuses")).err; err != backends.NoSuchUser || gone(log.pid(t, 1)) {
		t.Errorf("got the error %v", err)
	}
}

func TestLifelineOfPython(t *testing.T) {
	h, log := runPython(t)
	h.running[0].process.lifeline.Close()
	if how := log.wait(t, 1, "exited", "")[0]["how"]; how != "exit status 1" {
		t.Errorf("the plugin ended with %v", how)
	}
	log.wait(t, 2, "started", "")
}

func TestPythonStartedByHand(t *testing.T) {
	c := python(t, newGatewayLog())
	p := program(t, c)
	p.Env = []string{"PYTHONPATH=python", "PYTHONDONTWRITEBYTECODE=1"}
	out, err := p.CombinedOutput()
	if code := p.ProcessState.ExitCode(); code != 64 || !strings.Contains(string(out), `contract.py"`) {
		t.Errorf("got %v and\n%s", err, out)
	}
}

// startPythonByHand starts testdata/contract.py by hand at a socket.
func startPythonByHand(t *testing.T, socket string) *byHand {
	t.Helper()
	p := &byHand{program(t, python(t, newGatewayLog())), &signalled{waits: make(chan struct{})}}
	p.Env = []string{"MAILGW_ATTACH=" + socket, "PYTHONPATH=python", "PYTHONDONTWRITEBYTECODE=1"}
	p.Stderr = p.stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	within(t, "the plugin", func() { <-p.stderr.waits })
	return p
}

// attachPython is a gateway that attaches, with a backend that writes to the file
// closed when it is closed.
func attachPython(t *testing.T, socket string, count int, closed string) *Host {
	t.Helper()
	attach, _ := attachment(socket)
	attach.Settings = map[string]any{"count": count, "note": closed}
	h, err := startHost(t, t.Context(), attach, defaultTimes)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// wantCount wants the backend with those settings.
func wantCount(t *testing.T, h *Host, count int) {
	t.Helper()
	if got := backends.StatusOf(deliver(t.Context(), h, message("", "settings are")).err).Text; !strings.Contains(got, fmt.Sprintf("count=%d", count)) {
		t.Errorf("got %s, want count=%d", got, count)
	}
}

func isClosed(closed string) func() bool {
	return func() bool {
		text, _ := os.ReadFile(closed)
		return string(text) == "closed"
	}
}

// A debugger can be attached to a plugin in Python, too. Each gateway has a backend
// of its own, as if it had a process of its own.
func TestPythonStartedByHandIsAttached(t *testing.T) {
	socket, first, second := socketPath(t), filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	p := startPythonByHand(t, socket)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("got a socket of mode %v, %v", info.Mode(), err)
	}
	one, two := attachPython(t, socket, 1, first), attachPython(t, socket, 2, second)
	wantCount(t, one, 1)
	wantCount(t, two, 2)
	wantConfigured(t, two)

	// A gateway that is refused harms nobody, nor does one that goes.
	refused, _ := attachment(socket)
	refused.Settings = map[string]any{"note": "fail"}
	if _, err := startHost(t, t.Context(), refused, defaultTimes); err == nil {
		t.Error("a bad configuration was taken")
	}
	if err := closeHost(t, t.Context(), one); err != nil {
		t.Error(err)
	}
	eventually(t, "the first backend is closed", isClosed(first))
	wantCount(t, two, 2)
	if isClosed(second)() {
		t.Error("the backend that works was closed")
	}

	third := filepath.Join(t.TempDir(), "third")
	wantCount(t, attachPython(t, socket, 3, third), 3)
	if err := p.end(syscall.SIGINT); err != nil {
		t.Errorf("the plugin ended with %v: %s", err, p.stderr.text.String())
	}
	if !isClosed(second)() || !isClosed(third)() {
		t.Error("not all backends were closed")
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// It waits for its backend, but not if it is told twice.
func TestPythonStartedByHandIsInterrupted(t *testing.T) {
	socket := socketPath(t)
	p := startPythonByHand(t, socket)
	c, _ := attachment(socket)
	h := runCommand(t, c, defaultTimes)
	t.Cleanup(func() { p.end(syscall.SIGKILL) }) // before runCommand looks for children
	decided := make(chan bool)
	go func() {
		tx := message("hello", "waits")
		backends.Run(t.Context(), h, tx, backends.Hooks{Status: func(int, backends.Status) { close(decided) }})
	}()
	within(t, "the transaction", func() { <-decided })
	p.Process.Signal(syscall.SIGINT)
	eventually(t, "the socket is gone", func() bool {
		_, err := os.Stat(socket)
		return os.IsNotExist(err)
	})
	if err := p.end(syscall.SIGINT); err == nil || err.Error() != "signal: interrupt" {
		t.Errorf("got %v", err)
	}
}

func TestPythonIsConfiguredOnce(t *testing.T) {
	h, _ := runPython(t)
	wantConfigured(t, h)
}

// wantConfigured wants a second Configure refused.
func wantConfigured(t *testing.T, h *Host) {
	t.Helper()
	if _, err := h.running[0].plugin.Configure(t.Context(), h.request); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second Configure: %v", err)
	}
}

func TestPythonStartedByHandTakesNobodysSocket(t *testing.T) {
	socket := socketPath(t)
	startByHand(t, "answers", socket)
	second := program(t, python(t, newGatewayLog()))
	second.Env = []string{"MAILGW_ATTACH=" + socket, "PYTHONPATH=python", "PYTHONDONTWRITEBYTECODE=1"}
	output, _ := second.CombinedOutput()
	if code := second.ProcessState.ExitCode(); code != 71 || !strings.Contains(string(output), "Address already in use: a plugin that was started before listens there") {
		t.Errorf("exit code %d: %s", code, output)
	}
}

// Its terminal shows the attributes, too.
func TestLogOfPythonStartedByHand(t *testing.T) {
	socket := socketPath(t)
	p := startPythonByHand(t, socket)
	c, _ := attachment(socket)
	tx := message("hello", "logs")
	tx.Session = backends.Session{ID: "S1"}
	deliver(t.Context(), runCommand(t, c, defaultTimes), tx)
	if err := p.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		" INFO stored session=S1 tx=T1 path=/var/mail event=forged\n",
		" CRITICAL on fire session=S1 tx=T1\n",
	} {
		if got := p.stderr.text.String(); !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
