package gateway

import (
	"bufio"
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// Whatever a client says, each line gets one reply, no reply can be taken for
// two, no message is a success without a backend's word, and no transaction
// is under way in the end.
func FuzzDialog(f *testing.F) {
	paths, _ := filepath.Glob("testdata/dialogs/*.txt")
	for _, path := range paths {
		s := readScript(f, path)
		var said []byte
		for _, turn := range s.turns {
			said = append(said, turn.say...)
		}
		f.Add(strings.Contains(s.config, `"lmtp"`), said)
	}
	f.Fuzz(func(t *testing.T, lmtp bool, said []byte) {
		protocol := "smtp"
		if lmtp {
			protocol = "lmtp"
		}
		var word atomic.Bool // whether the backend gave its word
		all := map[string]backends.Backend{"word": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
			for i, r := range tx.Envelope.Recipients {
				if strings.Contains(r.Address, "ok") {
					word.Store(true)
					tx.SetStatus(i, backends.Delivered)
				}
			}
			return nil
		})}
		all["early"], all["login"], all["rcpt"] = testBackends["early"], testBackends["login"], testBackends["rcpt"]
		server := testServer(t, all, "protocol = '"+protocol+"'\nask = ['early', 'login', 'rcpt']\nauth.in_clear = true\nxforward = ['unix', '127.0.0.1']\nxclient = ['unix', '127.0.0.1']\n"+
			"unknown_parameters = 'keep'\nchunking = true\n[listener.limits]\nbad_commands = 0\n[listener.routes]\n'*' = ['word']\n"+
			"[[listener.rate]]\nby = 'recipient'\nat_once = 2\n[[listener.rate]]\nby = 'sender'\nmessages = 5\nbytes = '1KiB'\n")
		d := server.listeners[0].dialog(backends.Peer{UID: 1}, "test")
		defer func() {
			d.reset()
			if n := underway(server); n > 0 {
				t.Errorf("%d recipients have transactions under way", n)
			}
		}()
		r := bufio.NewReader(strings.NewReader(string(said)))
		for {
			line, err := smtp.ReadLine(r, 2048)
			var answer smtp.Reply
			var next action
			switch {
			case err == io.EOF:
				return
			case err != nil:
				answer, next = d.badLine(err)
			default:
				answer, next = d.command(string(line))
			}
			if next == askBackends {
				answer, next = d.answer(t.Context())
			}
			if next == hangUp {
				checkReply(t, answer)
				return
			}
			recipients := 0
			if d.tx != nil {
				recipients = len(d.tx.recipients)
			}
			word.Store(false)
			delivery, chunkAnswer, err := readAlone(t, server, d, r, next)
			if err != nil {
				return
			}
			if next == readChunk && delivery == nil {
				answer = chunkAnswer
			}
			if next != readChunk || delivery == nil {
				checkReply(t, answer)
			}
			if delivery == nil {
				continue
			}
			replies := 0
			for answer := range carry(t, delivery).told(protocol) {
				replies++
				checkReply(t, answer)
				if answer.Code < 300 && !word.Load() {
					t.Errorf("%v without a backend's word", answer)
				}
			}
			want := 1
			if lmtp {
				want = recipients
			} else if delivery.prdr && recipients > 1 {
				want = 1 + recipients + 1
			}
			if delivery.ctx != nil {
				<-delivery.ctx.Done()
			}
			if replies != want {
				t.Errorf("%d replies for %d recipients, want %d", replies, recipients, want)
			}
			if d.tx != nil || d.xforward != nil {
				t.Error("the dialog is still in the transaction")
			}
		}
	})
}

// checkReply checks that a reply is one, and not several.
func checkReply(t *testing.T, r smtp.Reply) {
	t.Helper()
	var parsed smtp.Reply
	lines := strings.Split(strings.TrimSuffix(string(r.AppendTo(nil)), "\r\n"), "\r\n")
	for i, line := range lines {
		more, err := parsed.Add(line)
		if err != nil || more != (i < len(lines)-1) || strings.ContainsAny(line, "\r\n\x00") {
			t.Errorf("line %d of %q: %v", i, r, err)
		}
	}
}
