package record

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

// maxText is how many octets of a file Read takes.
const maxText = 128 << 20

// Read reads a record, up to its last line. name is that of the file, for errors,
// which have the line, too.
func Read(in *bufio.Reader, name string) (*Record, error) {
	r := &reader{in: in, room: maxText, record: &Record{}, seen: map[string]bool{}}
	if err := r.read(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, r.line, err)
	}
	return r.record, nil
}

type reader struct {
	in      *bufio.Reader
	room    int // octets that may come
	line    int // that is read, counting from 1
	record  *Record
	seen    map[string]bool // keywords
	message *[]byte         // that lines belong to

	replacement []byte
}

// keywords begin the lines. Those that may come several times are many; the
// rest of the line is what reads it.
var keywords = map[string]struct {
	many bool
	read func(*reader, string) error
}{
	"ID":       {read: func(r *reader, line string) error { return setText(&r.record.ID, line) }},
	"TIME":     {read: (*reader).time},
	"BACKEND":  {read: func(r *reader, line string) error { return setText(&r.record.Backend, line) }},
	"REDACTED": {read: (*reader).redacted},
	"SESSION":  {read: func(r *reader, line string) error { return readAttributes(line, sessionAttributes(&r.record.Session)) }},
	"PEER": {read: func(r *reader, line string) error {
		return readAttributes(line, peerAttributes(&r.record.Session.Peer))
	}},
	"CLIENT":   {read: (*reader).client},
	"TLV":      {read: (*reader).tlv, many: true},
	"TLS":      {read: (*reader).tls},
	"XFORWARD": {read: (*reader).xforward},
	"MAIL":     {read: (*reader).mail},
	"RCPT":     {read: (*reader).rcpt, many: true},
	"ANSWER":   {read: (*reader).answer, many: true},
	"RESPONSE": {read: (*reader).response},
	"EDIT":     {read: (*reader).edit, many: true},
	"MESSAGE":  {read: (*reader).begin},
}

func (r *reader) read() error {
	line, err := r.next()
	if err == nil && line != firstLine {
		err = fmt.Errorf("this is no record: want %q", firstLine)
	}
	for err == nil {
		if line, err = r.next(); err != nil {
			break
		}
		if line == lastLine {
			return r.end()
		}
		err = r.take(line)
	}
	return err
}

// next returns a line without its end, which may be that of another system.
func (r *reader) next() (string, error) {
	r.line++
	var line []byte
	for {
		part, err := r.in.ReadSlice('\n')
		if r.room -= len(part); r.room < 0 {
			return "", fmt.Errorf("the record has more than %d octets", maxText)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return strings.TrimSuffix(string(line[:len(line)-1]), "\r"), nil
		case err == io.EOF && string(line) == lastLine:
			return lastLine, nil
		case err == io.EOF:
			return "", fmt.Errorf("the record ends without %s", lastLine)
		case err != bufio.ErrBufferFull:
			return "", err
		}
	}
}

// take takes one line.
func (r *reader) take(line string) error {
	switch {
	case line == "":
		return nil
	case line[0] == '|':
		return r.append(line[1:] + "\r\n")
	case line[0] == '"':
		part, err := strconv.Unquote(line)
		if err != nil {
			return errQuotes
		}
		return r.append(part)
	}
	r.message = nil
	name, rest, _ := strings.Cut(line, " ")
	k, ok := keywords[name]
	if !ok {
		return fmt.Errorf("a line cannot begin with %.40q", name)
	}
	if r.seen[name] && !k.many {
		return fmt.Errorf("there is a second %s", name)
	}
	r.seen[name] = true
	if err := k.read(r, rest); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (r *reader) append(part string) error {
	if r.message == nil {
		return errors.New("a line of a message, but no MESSAGE before it")
	}
	*r.message = append(*r.message, part...)
	return nil
}

// end checks what can only be checked at the end.
func (r *reader) end() error {
	for _, name := range []string{"MAIL", "MESSAGE"} {
		if !r.seen[name] {
			return fmt.Errorf("there is no %s", name)
		}
	}
	unanswered := len(r.record.Envelope.Recipients) - len(r.record.Answers)
	r.record.Answers = append(r.record.Answers, make([]Answer, unanswered)...)
	if r.replacement != nil {
		r.record.Edits.Message = bytes.NewReader(r.replacement)
	}
	return nil
}

func setText(into *string, line string) (err error) {
	*into, err = readText(line)
	return err
}

func (r *reader) time(line string) (err error) {
	r.record.Time, err = time.Parse(time.RFC3339Nano, line)
	r.record.Time = r.record.Time.UTC()
	return err
}

func (r *reader) redacted(string) error {
	r.record.Redacted = true
	return nil
}

func (r *reader) client(line string) error {
	client := &backends.Client{}
	if old := r.record.Session.Client; old != nil {
		client = old // its TLVs came first
	}
	r.record.Session.Client = client
	return readAttributes(line, clientAttributes(client))
}

func (r *reader) tlv(line string) error {
	number, rest, err := cutWord(line)
	if err != nil {
		return err
	}
	kind, err := strconv.ParseUint(number, 10, 8)
	if err != nil {
		return err
	}
	value, err := readText(rest)
	if err != nil {
		return err
	}
	if r.record.Session.Client == nil {
		r.record.Session.Client = &backends.Client{}
	}
	tlvs := &r.record.Session.Client.TLVs
	*tlvs = append(*tlvs, backends.TLV{Type: byte(kind), Value: []byte(value)})
	return nil
}

func (r *reader) tls(line string) error {
	r.record.Session.TLS = &backends.TLS{}
	return readAttributes(line, tlsAttributes(r.record.Session.TLS))
}

func (r *reader) xforward(line string) error {
	r.record.Session.XForward = &xforward.Attrs{}
	return readAttributes(line, xforwardAttributes(r.record.Session.XForward))
}

func (r *reader) mail(line string) (err error) {
	r.record.Envelope.Sender, r.record.Envelope.Params, err = readPath("FROM:", line)
	return err
}

func (r *reader) rcpt(line string) error {
	address, params, err := readPath("TO:", line)
	r.record.Envelope.Recipients = append(r.record.Envelope.Recipients, backends.Recipient{Address: address, Params: params})
	return err
}

// readPath reads what path has made.
func readPath(prefix, line string) (address string, params backends.Params, err error) {
	words, err := cutWords(line)
	if err != nil {
		return "", nil, err
	}
	if len(words) == 0 || !strings.HasPrefix(words[0], prefix) {
		return "", nil, fmt.Errorf("want %s<address>", prefix)
	}
	if len(words) > 1 {
		params = words[1:]
	}
	address, err = inBrackets(words[0][len(prefix):])
	return address, params, err
}

func inBrackets(word string) (string, error) {
	if len(word) < 2 || word[0] != '<' || word[len(word)-1] != '>' {
		return "", fmt.Errorf("%.400q is not of the form <address>", word)
	}
	return word[1 : len(word)-1], nil
}

// cutNumber parts a line into the number that it begins with, which is below
// limit, and the rest.
func cutNumber(line string, limit int) (n int, rest string, err error) {
	first, rest, err := cutWord(line)
	if err != nil {
		return 0, "", err
	}
	if n, err = strconv.Atoi(first); err != nil || n < 0 || n >= limit {
		return 0, "", fmt.Errorf("want a number below %d, found %.40q", limit, first)
	}
	return n, rest, nil
}

// cutRecipient parts a line into the number of a recipient, of those whose RCPT
// stands before it, and the rest.
func (r *reader) cutRecipient(line string) (i int, rest string, err error) {
	return cutNumber(line, len(r.record.Envelope.Recipients))
}

func (r *reader) answer(line string) error {
	i, rest, err := r.cutRecipient(line)
	if err != nil {
		return err
	}
	for len(r.record.Answers) <= i {
		r.record.Answers = append(r.record.Answers, Answer{})
	}
	a := &r.record.Answers[i]
	if *a != (Answer{}) {
		return fmt.Errorf("recipient %d has one", i)
	}
	switch kind, more, _ := strings.Cut(strings.TrimSpace(rest), " "); kind {
	case "next":
		a.Next = true
	case "failure":
		if a.Failure, err = readText(more); a.Failure == "" && err == nil {
			err = errors.New("a failure without a text")
		}
	default:
		a.Status, err = readStatus(rest)
	}
	return err
}

func (r *reader) response(line string) (err error) {
	r.record.Response, err = readStatus(line)
	return err
}

func readStatus(line string) (backends.Status, error) {
	code, rest, err := cutNumber(line, 1000)
	if err != nil {
		return backends.Status{}, err
	}
	enhanced, rest, err := cutWord(rest)
	if err != nil {
		return backends.Status{}, err
	}
	text, err := readText(rest)
	return backends.NewStatus(code, enhanced, text), err
}

func (r *reader) begin(string) error {
	r.message = &r.record.Message
	return nil
}

// edit reads one edit.
func (r *reader) edit(line string) error {
	kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	e := &r.record.Edits
	switch kind {
	case "add", "replace", "remove":
		return r.editField(kind, rest)
	case "sender":
		words, err := cutWords(rest)
		if err != nil || len(words) != 1 {
			return errors.Join(err, errors.New("want sender <address>"))
		}
		sender, err := inBrackets(words[0])
		e.Sender = &sender
		return err
	case "params":
		words, err := cutWords(rest)
		e.SenderParams = append(backends.Params{}, words...)
		return err
	case "recipient":
		address, params, err := readPath("TO:", rest)
		e.Added = append(e.Added, backends.Recipient{Address: address, Params: params})
		return err
	case "redirect":
		return r.editRecipient(rest, func(i int, words []string) error {
			return redirect(e, i, words)
		})
	case "divert":
		return r.editRecipient(rest, func(i int, words []string) error {
			if e.Diversions == nil {
				e.Diversions = map[int]string{}
			}
			e.Diversions[i] = words[0]
			return nil
		})
	case "message":
		if r.replacement != nil {
			return errors.New("there is a second message")
		}
		r.replacement = []byte{}
		r.message = &r.replacement
		return nil
	}
	return fmt.Errorf("%.40q is not known", kind)
}

func (r *reader) editField(kind, line string) error {
	at, rest, err := cutNumber(line, math.MaxInt32)
	if err != nil {
		return err
	}
	field, err := readText(rest)
	if err != nil {
		return err
	}
	for op, name := range fieldOps {
		if name == kind {
			r.record.Edits.Fields = append(r.record.Edits.Fields, backends.FieldEdit{Op: op, At: at, Field: field})
		}
	}
	return nil
}

// editRecipient reads an edit of a recipient, of whom more is said.
func (r *reader) editRecipient(line string, edit func(i int, words []string) error) error {
	i, rest, err := r.cutRecipient(line)
	if err != nil {
		return err
	}
	words, err := cutWords(rest)
	if err == nil && len(words) == 0 {
		err = errors.New("want more than a number")
	}
	if err != nil {
		return err
	}
	return edit(i, words)
}

func redirect(e *backends.Edits, i int, words []string) error {
	if e.Redirects == nil {
		e.Redirects = map[int][]string{}
	}
	for _, w := range words {
		address, err := inBrackets(w)
		if err != nil {
			return err
		}
		e.Redirects[i] = append(e.Redirects[i], address)
	}
	return nil
}
