package plugins

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// oracle is a backend that can be asked everything. It tells what it was
// asked, or does what the HELO says.
type oracle struct{ backends.Func }

func serveAsked() {
	Serve(struct{}{}, func(struct{}) (backends.Backend, error) { return oracle{testBackends["discard"]}, nil })
}

func (oracle) does(ctx context.Context, s *backends.Session) error {
	switch s.HELO {
	case "fails":
		return errors.New("directory on fire at /secret")
	case "refuses":
		return fmt.Errorf("wrapped: %w", backends.BadCredentials)
	case "panics":
		panic("a bug")
	case "hangs":
		slog.InfoContext(ctx, "asked")
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func said(format string, args ...any) backends.Status {
	return backends.NewStatus(250, "2.0.0", fmt.Sprintf(format, args...))
}

func (o oracle) CheckConnection(ctx context.Context, s *backends.Session) (backends.Status, error) {
	if s.HELO == "deadline" {
		deadline, _ := ctx.Deadline()
		return said("%v", time.Until(deadline).Round(time.Minute)), nil
	}
	return said("connection %s", s.ID), o.does(ctx, s)
}

func (o oracle) CheckHELO(ctx context.Context, s *backends.Session) (backends.Status, error) {
	return said("helo %s", s.HELO), o.does(ctx, s)
}

func (o oracle) CheckSender(ctx context.Context, s *backends.Session, e *backends.Envelope) (backends.Status, error) {
	return said("sender %s", e.Sender), o.does(ctx, s)
}

func (o oracle) CheckRecipient(ctx context.Context, s *backends.Session, e *backends.Envelope, to backends.Recipient) (backends.Opinion, error) {
	opinion := backends.Opinion{Status: said("recipient %v from %s", to, e.Sender), For: time.Minute, Key: "@example.org"}
	if s.HELO == "no opinion" {
		opinion = backends.Opinion{For: time.Hour}
	}
	return opinion, o.does(ctx, s)
}

func (o oracle) Authenticate(ctx context.Context, s *backends.Session, c backends.Credentials) (string, error) {
	switch s.HELO {
	case "no opinion":
		return "", nil
	case "talks":
		return strings.Repeat("x", maxText+1), nil
	}
	return strings.Join([]string{c.Mechanism, c.Identity, c.User, c.Password}, " "), o.does(ctx, s)
}

func (o oracle) SCRAMVerifier(ctx context.Context, s *backends.Session, user string) (backends.SCRAMVerifier, error) {
	key := []byte(strings.Repeat("k", 32))
	return backends.SCRAMVerifier{User: "u" + user, Salt: []byte(user), Iterations: 4096, StoredKey: key, ServerKey: key}, o.does(ctx, s)
}

// Verify takes text for a pipe, and reads it before it answers.
func (o oracle) Verify(ctx context.Context, s *backends.Session, text string) (backends.Status, error) {
	slog.InfoContext(ctx, "asked")
	octets, err := os.ReadFile(text)
	return said("user %s", octets), err
}

func (o oracle) Expand(ctx context.Context, s *backends.Session, list string) ([]string, error) {
	switch s.HELO {
	case "no opinion":
		return nil, nil
	case "has members":
		return make([]string, 5000), nil
	case "talks":
		return []string{strings.Repeat("x", maxMessage)}, nil
	case "has none":
		return []string{}, nil
	}
	return []string{list, "gr\xfc\xdfe"}, o.does(ctx, s)
}

// about is a question in a session with that HELO.
func about(t backends.Topic, helo string) backends.Question {
	return backends.Question{
		About:       t,
		Session:     &backends.Session{ID: "S1", HELO: helo},
		Envelope:    &backends.Envelope{Sender: "from@example.org"},
		Recipient:   backends.Recipient{Address: "two", Params: backends.Params{"NOTIFY=NEVER"}},
		Credentials: backends.Credentials{Mechanism: "PLAIN", Identity: "id", User: "us\xebr", Password: "s3cret\xff"},
		Text:        "text",
	}
}

func TestEveryTopicCrossesTheBorder(t *testing.T) {
	h, _ := run(t, "asked")
	key := []byte(strings.Repeat("k", 32))
	for topic, want := range map[backends.Topic]backends.Answer{
		backends.AboutConnection: {Opinion: backends.Opinion{Status: said("connection S1")}},
		backends.AboutHELO:       {Opinion: backends.Opinion{Status: said("helo h\xe9lo")}},
		backends.AboutSender:     {Opinion: backends.Opinion{Status: said("sender from@example.org")}},
		backends.AboutRecipient: {Opinion: backends.Opinion{
			Status: said("recipient {two [NOTIFY=NEVER]} from from@example.org"), For: time.Minute, Key: "@example.org"}},
		backends.AboutAUTH:  {User: "PLAIN id us\xebr s3cret\xff"},
		backends.AboutSCRAM: {SCRAM: backends.SCRAMVerifier{User: "utext", Salt: []byte("text"), Iterations: 4096, StoredKey: key, ServerKey: key}},
		backends.AboutVRFY:  {Opinion: backends.Opinion{Status: said("user ann")}},
		backends.AboutEXPN:  {Members: []string{"text", "gr\xfc\xdfe"}},
	} {
		q := about(topic, "h\xe9lo")
		switch topic {
		case backends.AboutHELO: // a Status is UTF-8
			want.Opinion.Status = said("helo h?lo")
		case backends.AboutVRFY:
			q.Text = filepath.Join(t.TempDir(), "user")
			if err := os.WriteFile(q.Text, []byte("ann"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := backends.Ask(t.Context(), h, q); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("topic %d: got %+v, %v, want %+v", topic, got, err, want)
		}
	}
}

func TestNoOpinion(t *testing.T) {
	h, _ := run(t, "asked")
	for topic, want := range map[backends.Topic]backends.Answer{
		backends.AboutRecipient: {Opinion: backends.Opinion{For: time.Hour}},
		backends.AboutAUTH:      {},
		backends.AboutEXPN:      {},
	} {
		a, err := h.Ask(t.Context(), about(topic, "no opinion"))
		if err != nil || !a.IsZero() || !reflect.DeepEqual(a, want) {
			t.Errorf("topic %d: got %+v, %v, want %+v, which is no opinion", topic, a, err, want)
		}
	}
	if a, err := h.Ask(t.Context(), about(backends.AboutEXPN, "has none")); err != nil || a.IsZero() || len(a.Members) > 0 {
		t.Errorf("got %+v, %v, want no members", a, err)
	}
}

func TestErrorOfQuestion(t *testing.T) {
	h, log := run(t, "asked")
	for _, test := range []struct {
		does, text string
		want       backends.Status
	}{
		{"fails", "directory on fire at /secret", backends.TryLater},
		{"panics", "panic: a bug", backends.TryLater},
		{"refuses", backends.BadCredentials.Error(), backends.BadCredentials},
	} {
		for topic := backends.AboutConnection; topic <= backends.AboutEXPN; topic++ {
			if topic == backends.AboutVRFY {
				continue // it does something else
			}
			a, err := h.Ask(t.Context(), about(topic, test.does))
			if err == nil || err.Error() != test.text || backends.StatusOf(err) != test.want || !a.IsZero() {
				t.Errorf("%s, topic %d: got %+v and the error %v, want %q, which means %v", test.does, topic, a, err, test.text, test.want)
			}
			if _, ok := err.(backends.Status); ok != (test.does == "refuses") {
				t.Errorf("%s, topic %d: got an error of type %T", test.does, topic, err)
			}
		}
	}
	record := log.wait(t, 7, "log", "panic")[6]
	if record["session"] != "S1" || record["tx"] != nil || !strings.Contains(fmt.Sprint(record["stack"]), "ask_test.go") {
		t.Errorf("got the record %v, want the stack", record)
	}
	if gone(log.pid(t, 1)) {
		t.Error("the plugin has ended")
	}
}

func TestCredentialsAreNotLogged(t *testing.T) {
	h, log := run(t, "asked")
	for _, does := range []string{"", "fails", "panics", "refuses", "talks"} {
		_, err := h.Ask(t.Context(), about(backends.AboutAUTH, does))
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got the error %v", does, err)
		}
	}
	log.wait(t, 1, "log", "panic")
	if err := closeHost(t, t.Context(), h); err != nil {
		t.Fatal(err)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if all := fmt.Sprint(log.records); strings.Contains(all, "s3cret") {
		t.Errorf("the log is %s", all)
	}
}

func TestAnnouncement(t *testing.T) {
	for name, first := range map[string]backends.Topic{
		"asked":   backends.AboutConnection, // all interfaces
		"raw":     backends.AboutEXPN,       // and topics that are unknown
		"answers": 1000,                     // none
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := run(t, name)
			for topic := backends.Topic(0); topic <= 100; topic++ {
				if got, want := backends.Answers(h, topic), topic >= first && topic <= backends.AboutEXPN; got != want {
					t.Errorf("topic %d: got %t, want %t", topic, got, want)
				}
			}
		})
	}
}

func TestQuestionThatWasNotAnnounced(t *testing.T) {
	h, _ := run(t, "answers")
	_, err := h.Ask(t.Context(), about(backends.AboutSender, ""))
	if err == nil || !strings.Contains(err.Error(), "the plugin cannot be asked about SENDER") {
		t.Errorf("got the error %v", err)
	}
}

// Between the end of a process and its restart, its connection is closed.
func TestClosedConnection(t *testing.T) {
	for name, call := range map[string]func(*Host) error{
		"question": func(h *Host) error {
			_, err := h.Ask(t.Context(), about(backends.AboutSender, ""))
			return err
		},
		"transaction": func(h *Host) error { return deliver(t.Context(), h, message("hello", "one")).err },
	} {
		t.Run(name, func(t *testing.T) {
			h, log := run(t, "asked")
			h.running[0].conn.Close()
			if err := call(h); err != nil {
				t.Errorf("got the error %v, want the answer of the next plugin", err)
			}
			log.pid(t, 2)
		})
	}
}

func TestDeadlineOfQuestion(t *testing.T) {
	h, _ := run(t, "asked")
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Minute)
	defer cancel()
	if a, err := h.Ask(ctx, about(backends.AboutConnection, "deadline")); err != nil || a.Opinion.Status.Text != "7m0s" {
		t.Errorf("got %+v, %v, want 7m0s", a, err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := h.Ask(ctx, about(backends.AboutSender, "hangs"))
	// The plugin's own word on its deadline may come first.
	if backends.StatusOf(err) != backends.TimedOut {
		t.Errorf("got the error %v, want one of the deadline", err)
	}
}

type asked struct {
	answer backends.Answer
	err    error
}

// ask asks in a goroutine of its own.
func ask(t *testing.T, h *Host, q backends.Question) <-chan asked {
	answered := make(chan asked, 1)
	go func() {
		a, err := h.Ask(t.Context(), q)
		answered <- asked{a, err}
	}()
	return answered
}

// A question that kills plugins kills two of them, and no more.
func TestKilledTwiceDuringQuestion(t *testing.T) {
	h, log := run(t, "asked")
	answered := ask(t, h, about(backends.AboutSender, "hangs"))
	for n := range 2 {
		log.wait(t, n+1, "log", "asked")
		syscall.Kill(log.pid(t, n+1), syscall.SIGKILL)
	}
	got := <-answered
	if want := fmt.Sprintf("plugin with pid %d", log.pid(t, 2)); got.err == nil || !strings.Contains(got.err.Error(), want) {
		t.Errorf("got the error %v, want one with %q", got.err, want)
	}
	if backends.StatusOf(got.err) != backends.TryLater {
		t.Errorf("got the error %v, which means %v", got.err, backends.StatusOf(got.err))
	}
	if a, err := h.Ask(t.Context(), about(backends.AboutSender, "")); err != nil || a.IsZero() {
		t.Errorf("the next question: got %+v, %v", a, err)
	}
	if log.pid(t, 3); len(log.wait(t, 2, "log", "asked")) != 2 {
		t.Error("it was asked again")
	}
}

// pipe is a named pipe, which a question about a user reads.
func pipe(t *testing.T) (question backends.Question) {
	question = about(backends.AboutVRFY, "")
	question.Text = filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(question.Text, 0o600); err != nil {
		t.Fatal(err)
	}
	return question
}

func TestKilledOnceDuringQuestion(t *testing.T) {
	h, log := run(t, "asked")
	q := pipe(t)
	answered := ask(t, h, q)
	log.wait(t, 1, "log", "asked")
	pid := log.pid(t, 1)
	syscall.Kill(pid, syscall.SIGKILL)
	log.wait(t, 2, "log", "asked")
	if err := os.WriteFile(q.Text, []byte("ann"), 0); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.err != nil || got.answer.Opinion.Status != said("user ann") {
		t.Errorf("got %+v, want the answer of the second plugin", got)
	}
}

func TestQuestionWaitsForPlugin(t *testing.T) {
	h, log := run(t, "asked")
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	log.wait(t, 1, "exited", "")
	if a, err := h.Ask(t.Context(), about(backends.AboutSender, "")); err != nil || a.IsZero() {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestQuestionWithoutPlugin(t *testing.T) {
	times := defaultTimes
	times.patience = 100 * time.Millisecond
	h, log, file := runFragile(t, times)
	if err := os.WriteFile(file+".down", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(log.pid(t, 1), syscall.SIGKILL)
	log.wait(t, 2, "exited", "")
	if _, err := h.Ask(t.Context(), about(backends.AboutSender, "")); !errors.Is(err, errNotRunning) {
		t.Errorf("got the error %v, want %v", err, errNotRunning)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := h.Ask(ctx, about(backends.AboutSender, "")); backends.StatusOf(err) != backends.TimedOut {
		t.Errorf("got the error %v, want the one of the context", err)
	}
}

func TestCloseWaitsForQuestions(t *testing.T) {
	h, log := run(t, "asked")
	q := pipe(t)
	answered := ask(t, h, q)
	log.wait(t, 1, "log", "asked")
	closed := make(chan error)
	go func() { closed <- h.Close(context.Background()) }()
	eventually(t, "there are no new questions", func() bool {
		_, err := h.Ask(t.Context(), about(backends.AboutSender, ""))
		return err == errStopped
	})
	if err := os.WriteFile(q.Text, []byte("ann"), 0); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.err != nil || got.answer.Opinion.Status != said("user ann") {
		t.Errorf("got %+v, want the answer", got)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestCloseAbortsQuestions(t *testing.T) {
	h, log := run(t, "asked")
	answered := ask(t, h, about(backends.AboutSender, "hangs"))
	log.wait(t, 1, "log", "asked")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := h.Close(ctx); backends.StatusOf(err) != backends.TimedOut {
		t.Errorf("got the error %v, want the one of the context", err)
	}
	if got := <-answered; got.err == nil || !strings.Contains(got.err.Error(), "plugin with pid") {
		t.Errorf("got %+v, want an error", got)
	}
}

func TestAnswersThatAreTooLarge(t *testing.T) {
	h, log := run(t, "asked")
	for _, test := range []struct {
		about      backends.Topic
		does, want string
	}{
		{backends.AboutEXPN, "has members", "a message of 5001 parts, which is more than 4096"},
		{backends.AboutEXPN, "talks", "larger than max"},
		{backends.AboutAUTH, "talks", "protocol: a user of 8193 octets"},
	} {
		a, err := h.Ask(t.Context(), about(test.about, test.does))
		if err == nil || !strings.Contains(err.Error(), test.want) || backends.StatusOf(err) != backends.TryLater || !a.IsZero() {
			t.Errorf("%s: got %+v and the error %v, want %q", test.does, a, err, test.want)
		}
	}
	if gone(log.pid(t, 1)) {
		t.Error("the plugin has ended")
	}
}

// Ask gives the answer of rawOpinions that has the name of the HELO.
func (raw) Ask(ctx context.Context, q *pb.Question) (*pb.Answer, error) {
	return rawOpinions[string(q.Session.Helo)].answer, nil
}

func TestPluginThatBreaksTheProtocolOfQuestions(t *testing.T) {
	h, log := run(t, "raw")
	for name, test := range rawOpinions {
		a, err := h.Ask(t.Context(), about(test.about, name))
		switch {
		case test.err == "" && (err != nil || a.IsZero() != (test.answer.Result == nil)):
			t.Errorf("%s: got %+v and the error %v", name, a, err)
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err) || backends.StatusOf(err) != backends.TryLater || !a.IsZero()):
			t.Errorf("%s: got %+v and the error %v, want %q", name, a, err, test.err)
		}
	}
	if gone(log.pid(t, 1)) {
		t.Error("the plugin has ended")
	}
}
