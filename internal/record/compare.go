package record

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// A Finding is one thing that a backend has said, in a record and now.
type Finding struct {
	About   string // a recipient, "edit" or "response"
	Was, Is string // "nothing", if it was not said
	Same    bool   // what it says is the same, perhaps in other words
}

// String returns "bob@example.org  differs: was next backend, is 250 2.0.0 ok".
func (f Finding) String() string {
	switch {
	case !f.Same:
		return fmt.Sprintf("%s  differs: was %s, is %s", f.About, f.Was, f.Is)
	case f.Was != f.Is:
		return fmt.Sprintf("%s  same but for the text: was %s, is %s", f.About, f.Was, f.Is)
	}
	return fmt.Sprintf("%s  same: %s", f.About, f.Is)
}

// Compare compares what a backend says of r now with what r has: first of the
// recipients, in order, then the edits and the response, if there are any.
//
// Of an answer the codes decide, because texts have queue IDs and the like; with
// exact the text does, too, unless it is that of a failure. Edits are compared to
// the letter. Of a record that is redacted no texts are compared.
func (r *Record) Compare(now Said, exact bool) []Finding {
	if r.Redacted {
		now = now.redacted()
	}
	var all []Finding
	for i, to := range r.Envelope.Recipients {
		all = append(all, compareAnswers(printable(to.Address), r.Answers[i], now.Answers[i], exact))
	}
	all = append(all, compareEdits(&r.Edits, &now.Edits)...)
	if was, is := (Answer{Status: r.Response}), (Answer{Status: now.Response}); was != is || was != (Answer{}) {
		all = append(all, compareAnswers("response", was, is, exact))
	}
	return all
}

func compareAnswers(about string, was, is Answer, exact bool) Finding {
	f := Finding{about, printable(was.String()), printable(is.String()), was == is}
	if !exact || was.Failure != "" {
		f.Same = was.withoutText() == is.withoutText()
	}
	return f
}

// withoutText is what decides, of an answer.
func (a Answer) withoutText() Answer {
	a.Status.Text = ""
	if a.Failure != "" {
		a.Failure = redactedText
	}
	return a
}

// printable returns s as it is, or quoted if that is not for a terminal.
func printable(s string) string {
	if isPlain(s) {
		return s
	}
	return strconv.Quote(s)
}

// compareEdits compares one edit after the other, in the words of the file.
func compareEdits(was, is *backends.Edits) (all []Finding) {
	old, now := editLines(was), editLines(is)
	for i := range max(len(old), len(now)) {
		pair := [2]string{"nothing", "nothing"}
		for side, lines := range [][]string{old, now} {
			if i < len(lines) {
				pair[side] = strings.TrimPrefix(lines[i], "EDIT ")
			}
		}
		all = append(all, Finding{"edit", pair[0], pair[1], pair[0] == pair[1]})
	}
	if was.Message == nil && is.Message == nil {
		return all
	}
	return append(all, compareMessages(was.Message, is.Message))
}

// compareMessages compares two messages, each of which may be nil.
func compareMessages(was, is backends.Message) Finding {
	var described [2]string
	var lines [2][]string
	for side, m := range []backends.Message{was, is} {
		described[side] = "nothing"
		if m == nil {
			continue
		}
		b, err := contents(m)
		if err != nil {
			return Finding{"edit", "message", "a message that cannot be read: " + err.Error(), false}
		}
		described[side] = fmt.Sprintf("message of %d octets", len(b))
		for line := range bytes.Lines(b) {
			lines[side] = append(lines[side], string(line))
		}
	}
	f := Finding{"edit", described[0], described[1], was != nil && is != nil && slices.Equal(lines[0], lines[1])}
	if !f.Same && was != nil && is != nil {
		n := 0
		for n < len(lines[0]) && n < len(lines[1]) && lines[0][n] == lines[1][n] {
			n++
		}
		f.Is += fmt.Sprintf(", another one from line %d on", n+1)
	}
	return f
}
