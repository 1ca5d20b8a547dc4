package gateway

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/record"
)

// A verdict is what comes of a transaction by what a backend says.
type verdict struct {
	answers []string // of each recipient
	goesOn  bool     // somebody does, to the next backend or by another route
	edits   string   // for all who go on; empty if there are none

	// The message before and after its edits, if it has some. Nothing of a
	// message is kept, so that verdicts may wait for each other.
	edited        bool
	before, after parts
}

// parts tell whether two messages are the same.
type parts struct{ header, body [sha256.Size]byte }

// differs returns what of the message is not the same after the edits of two
// backends that got the same one.
func (v *verdict) differs(other *verdict) (names []string) {
	one, two := v.after, other.after
	switch {
	case !v.edited && !other.edited:
		return nil
	case !v.edited:
		one = other.before
	case !other.edited:
		two = v.before
	}
	if one.header != two.header {
		names = append(names, "header")
	}
	if one.body != two.body {
		names = append(names, "body")
	}
	return names
}

// verdict returns what would come of m in the place of the message of b, by what a
// backend says of it. An edit that cannot be made is a failure, as it is in next.
func (d *delivery) verdict(by *namedBackend, b *branch, m backends.Message, s record.Said) *verdict {
	before := *b
	before.message = m
	var next []int
	for i, a := range s.Answers {
		if a.Next {
			next = append(next, i)
		}
	}
	branches, err := d.plan(by, &before, s.Edits, next)
	v := &verdict{}
	for i, a := range s.Answers {
		text := a.String()
		switch {
		case a.Next && err != nil:
			text = record.Answer{Failure: err.Error()}.String()
		case a.Next:
			text = onward(i, &s.Edits)
		}
		v.answers = append(v.answers, text)
	}
	if err == nil && branches != nil {
		v.goesOn = true
		v.noteEdits(&before, branches[0], &s.Edits)
	}
	return v
}

// onward says where recipient i goes on.
func onward(i int, e *backends.Edits) string {
	text := "next backend"
	if route, ok := e.Diversions[i]; ok {
		text = "named route " + route
	}
	if to, ok := e.Redirects[i]; ok {
		text += ", redirected to " + strings.Join(to, " ")
	}
	return text
}

// noteEdits notes what the edits have made of b.
func (v *verdict) noteEdits(b, on *branch, e *backends.Edits) {
	var words []string
	if on.sender != b.sender || !slices.Equal(on.params.OfSender(), b.params.OfSender()) {
		words = append(words, withParams("sender <"+on.sender+">", on.params.OfSender()))
	}
	for _, to := range e.Added {
		words = append(words, withParams("recipient <"+to.Address+">", to.Params))
	}
	if e.Kinds()&(backends.EditHeader|backends.EditMessage) != 0 {
		words = append(words, v.noteMessage(b.message, on.message)...)
	}
	v.edits = strings.Join(words, ", ")
}

func withParams(path string, params backends.Params) string {
	return strings.Join(append([]string{path}, params...), " ")
}

// noteMessage notes what has become of a message, and says it in the words of
// status lines.
func (v *verdict) noteMessage(before, after backends.Message) (words []string) {
	then, err := digestOf(before)
	now, unreadable := digestOf(after)
	if err := errors.Join(err, unreadable); err != nil {
		return []string{"a message that cannot be read: " + err.Error()}
	}
	v.edited, v.before, v.after = true, partsOf(then), partsOf(now)
	added, removed, body := now.Since(then)
	if added > 0 || removed > 0 {
		words = append(words, fmt.Sprintf("header +%d-%d", added, removed))
	}
	if body {
		words = append(words, "body changed")
	}
	return words
}

func digestOf(m backends.Message) (backends.Digest, error) {
	if f, ok := m.(forgotten); ok {
		return f.digest, nil
	}
	d := backends.NewDigester()
	_, err := io.Copy(d, io.NewSectionReader(m, 0, m.Size()))
	return d.Digest(), err
}

func partsOf(d backends.Digest) parts {
	h := sha256.New()
	binary.Write(h, binary.BigEndian, d.Fields)
	p := parts{body: d.Body}
	h.Sum(p.header[:0])
	return p
}

// A forgotten message is one of which only the digest is kept.
type forgotten struct {
	size   int64
	digest backends.Digest
}

func (f forgotten) Size() int64 { return f.size }

func (f forgotten) ReadAt([]byte, int64) (int, error) {
	return 0, errors.New("the message was not kept")
}

// forget takes a message that a shadow puts in the place of its copy, as replace
// would take it, and keeps nothing of it.
func (d *delivery) forget(r io.Reader) (backends.Message, error) {
	if !d.binary {
		r = &wholeLines{r: r}
	}
	if d.maxSize > 0 {
		r = io.LimitReader(r, d.maxSize+1)
	}
	digester := backends.NewDigester()
	size, err := io.Copy(digester, r)
	if err == nil && d.maxSize > 0 && size > d.maxSize {
		err = errTooLarge
	}
	return forgotten{size, digester.Digest()}, err
}
