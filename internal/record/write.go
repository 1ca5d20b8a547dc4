package record

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
)

const (
	firstLine = "MAILGW RECORD 1"
	lastLine  = "END"
)

// fieldOps are the words for what a backends.FieldEdit does.
var fieldOps = map[backends.FieldOp]string{
	backends.AddField:     "add",
	backends.ReplaceField: "replace",
	backends.RemoveField:  "remove",
}

// Write writes r in the form that Read reads.
func Write(w io.Writer, r *Record) error {
	b := bufio.NewWriter(w)
	lines := []string{
		firstLine,
		"ID " + text(r.ID),
		"TIME " + r.Time.UTC().Format(time.RFC3339Nano),
		"BACKEND " + text(r.Backend),
	}
	if r.Redacted {
		lines = append(lines, "REDACTED")
	}
	lines = append(lines, sessionLines(&r.Session)...)
	lines = append(lines, "MAIL "+path("FROM", r.Envelope.Sender, r.Envelope.Params))
	for _, to := range r.Envelope.Recipients {
		lines = append(lines, "RCPT "+path("TO", to.Address, to.Params))
	}
	lines = append(lines, answerLines(&r.Said)...)
	lines = append(lines, editLines(&r.Edits)...)
	for _, line := range lines {
		fmt.Fprintln(b, line)
	}
	if m := r.Edits.Message; m != nil {
		replacement, err := contents(m)
		if err != nil {
			return err
		}
		fmt.Fprintln(b, "EDIT message")
		writeMessage(b, replacement)
	}
	fmt.Fprintln(b, "MESSAGE")
	writeMessage(b, r.Message)
	fmt.Fprintln(b, lastLine)
	return b.Flush()
}

func sessionLines(s *backends.Session) []string {
	lines := []string{
		writeAttributes("SESSION", sessionAttributes(s)),
		writeAttributes("PEER", peerAttributes(&s.Peer)),
	}
	if s.Client != nil {
		lines = append(lines, writeAttributes("CLIENT", clientAttributes(s.Client)))
		for _, t := range s.Client.TLVs {
			lines = append(lines, fmt.Sprintf("TLV %d %s", t.Type, strconv.Quote(string(t.Value))))
		}
	}
	if s.TLS != nil {
		lines = append(lines, writeAttributes("TLS", tlsAttributes(s.TLS)))
	}
	if s.XForward != nil {
		lines = append(lines, writeAttributes("XFORWARD", xforwardAttributes(s.XForward)))
	}
	return lines
}

// path returns "FROM:<address> PARAM PARAM".
func path(prefix, address string, params backends.Params) string {
	words := []string{word(prefix + ":<" + address + ">")}
	for _, p := range params {
		words = append(words, word(p))
	}
	return strings.Join(words, " ")
}

func answerLines(s *Said) (lines []string) {
	for i, a := range s.Answers {
		switch {
		case a.Next:
			lines = append(lines, fmt.Sprintf("ANSWER %d next", i))
		case a.Failure != "":
			lines = append(lines, fmt.Sprintf("ANSWER %d failure %s", i, text(a.Failure)))
		case !a.Status.IsZero():
			lines = append(lines, fmt.Sprintf("ANSWER %d %s", i, status(a.Status)))
		}
	}
	if !s.Response.IsZero() {
		lines = append(lines, "RESPONSE "+status(s.Response))
	}
	return lines
}

func status(s backends.Status) string {
	return strings.TrimRight(fmt.Sprintf("%d %s %s", s.Code, word(s.Enhanced), text(s.Text)), " ")
}

// editLines returns the edits but for the message.
func editLines(e *backends.Edits) (lines []string) {
	for _, f := range e.Fields {
		line := fmt.Sprintf("EDIT %s %d", fieldOps[f.Op], f.At)
		if f.Op != backends.RemoveField {
			line += " " + text(f.Field)
		}
		lines = append(lines, line)
	}
	if e.Sender != nil {
		lines = append(lines, "EDIT sender "+word("<"+*e.Sender+">"))
	}
	if e.SenderParams != nil {
		line := "EDIT params"
		for _, p := range e.SenderParams {
			line += " " + word(p)
		}
		lines = append(lines, line)
	}
	for _, i := range slices.Sorted(maps.Keys(e.Redirects)) {
		line := fmt.Sprintf("EDIT redirect %d", i)
		for _, address := range e.Redirects[i] {
			line += " " + word("<"+address+">")
		}
		lines = append(lines, line)
	}
	for _, to := range e.Added {
		lines = append(lines, "EDIT recipient "+path("TO", to.Address, to.Params))
	}
	for _, i := range slices.Sorted(maps.Keys(e.Diversions)) {
		lines = append(lines, fmt.Sprintf("EDIT divert %d %s", i, word(e.Diversions[i])))
	}
	return lines
}

func writeMessage(b *bufio.Writer, message []byte) {
	for line := range bytes.Lines(message) {
		fmt.Fprintln(b, messageLine(string(line)))
	}
}

// messageLine returns a line of a message, with its end, in a form that editors
// and programs that compare files leave as it is.
func messageLine(line string) string {
	plain, ok := strings.CutSuffix(line, "\r\n")
	if ok && !strings.HasSuffix(plain, " ") && !strings.HasSuffix(plain, "\t") && isPlain(strings.ReplaceAll(plain, "\t", "")) {
		return "|" + plain
	}
	return strconv.Quote(line)
}
