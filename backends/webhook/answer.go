package webhook

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// An answer is what the hook says of a message.
type answer struct {
	verdicts      []verdict // one for each recipient
	removeHeaders []string
	addHeaders    []string
}

// A verdict is what the hook says of a recipient: one of Code, Divert and
// Continue.
type verdict struct {
	Code     int    `json:"code"`
	Enhanced string `json:"enhanced"`
	Text     string `json:"text"`
	Divert   string `json:"divert"`
	Continue bool   `json:"continue"`
}

// parseAnswer reads an answer about so many recipients. Whatever may be read in
// two ways is an error.
func parseAnswer(text []byte, recipients int) (*answer, error) {
	var said struct {
		Recipients []struct {
			Index *int `json:"index"`
			verdict
		} `json:"recipients"`
		Default       *verdict `json:"default"`
		RemoveHeaders []string `json:"remove_headers"`
		AddHeaders    []string `json:"add_headers"`
	}
	if err := decode(text, &said); err != nil {
		return nil, err
	}
	a := &answer{removeHeaders: said.RemoveHeaders, addHeaders: said.AddHeaders}
	otherwise := verdict{Continue: true}
	if said.Default != nil {
		otherwise = *said.Default
		if err := otherwise.check(); err != nil {
			return nil, fmt.Errorf("default: %w", err)
		}
	}
	a.verdicts = slices.Repeat([]verdict{otherwise}, recipients)
	listed := make([]bool, recipients)
	for i, r := range said.Recipients {
		switch err := r.verdict.check(); {
		case r.Index == nil:
			return nil, fmt.Errorf("recipients[%d] has no index", i)
		case *r.Index < 0 || *r.Index >= recipients:
			return nil, fmt.Errorf("recipients[%d]: there is no recipient %d", i, *r.Index)
		case listed[*r.Index]:
			return nil, fmt.Errorf("recipients[%d]: recipient %d comes twice", i, *r.Index)
		case err != nil:
			return nil, fmt.Errorf("recipients[%d]: %w", i, err)
		}
		listed[*r.Index] = true
		a.verdicts[*r.Index] = r.verdict
	}
	return a, nil
}

// decode decodes one object of JSON, strictly.
func decode(text []byte, into any) error {
	if !bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{")) {
		return fmt.Errorf("want a JSON object, found %.40q", text)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON object")
	}
	return checkKeys(json.NewDecoder(bytes.NewReader(text)))
}

// checkKeys refuses an object that has a key twice, of which encoding/json takes
// the last, and keys in upper case, which are the same to it. What is read has
// been decoded before, so that it is sound and no deeper than what it was
// decoded into.
func checkKeys(d *json.Decoder) error {
	token, _ := d.Token()
	begin, isNested := token.(json.Delim)
	if !isNested {
		return nil
	}
	keys := map[string]bool{}
	for d.More() {
		if begin == '{' {
			token, _ := d.Token()
			key := token.(string)
			if strings.Trim(key, "abcdefghijklmnopqrstuvwxyz_") != "" {
				return fmt.Errorf("unknown key %.40q", key)
			}
			if keys[key] {
				return fmt.Errorf("the key %q comes twice", key)
			}
			keys[key] = true
		}
		if err := checkKeys(d); err != nil {
			return err
		}
	}
	d.Token()
	return nil
}

// check returns why v is no verdict.
func (v *verdict) check() error {
	said := 0
	for _, is := range []bool{v.Code != 0, v.Divert != "", v.Continue} {
		if is {
			said++
		}
	}
	switch s := v.status(); {
	case said != 1:
		return errors.New("want one of code, divert and continue")
	case v.Code == 0 && (v.Enhanced != "" || v.Text != ""):
		return errors.New("enhanced and text go with a code")
	case v.Code != 0 && s.Code != v.Code:
		return fmt.Errorf("code %d is no answer to a message", v.Code)
	case v.Code != 0 && v.Enhanced != "" && s.Enhanced != v.Enhanced:
		return fmt.Errorf("enhanced %.20q does not go with code %d", v.Enhanced, v.Code)
	}
	return nil
}

// status returns the answer for the client.
func (v *verdict) status() backends.Status {
	text := map[int]string{2: "delivered", 4: "try again later", 5: "refused"}[v.Code/100]
	return backends.NewStatus(v.Code, v.Enhanced, cmp.Or(v.Text, text)).Sanitized()
}

// delivers reports whether a recipient gets 2yz.
func (a *answer) delivers() bool {
	return slices.ContainsFunc(a.verdicts, func(v verdict) bool { return v.Code/100 == 2 })
}

// edit makes the edits for the recipients that go on.
func (a *answer) edit(tx *backends.DataContext, m *message) error {
	if len(a.removeHeaders) > 0 {
		if err := removeFields(tx, m.Reader(), a.removeHeaders); err != nil {
			return err
		}
	}
	for _, field := range a.addHeaders {
		if err := tx.AddField(0, field); err != nil {
			return err
		}
	}
	for i, v := range a.verdicts {
		if v.Divert == "" {
			continue
		}
		if err := tx.Divert(i, v.Divert); err != nil {
			return err
		}
	}
	return nil
}

// removeFields removes the header fields of these names.
func removeFields(tx *backends.DataContext, r io.Reader, names []string) error {
	fields, err := backends.ReadHeader(bufio.NewReader(r))
	if err != nil {
		return err
	}
	for at, field := range fields {
		name, _, _ := bytes.Cut(field, []byte(":"))
		is := func(n string) bool { return strings.EqualFold(n, strings.TrimRight(string(name), " \t")) }
		if !slices.ContainsFunc(names, is) {
			continue
		}
		if err := tx.RemoveField(at); err != nil {
			return err
		}
	}
	return nil
}

// decide gives the recipients that have a code their statuses.
func (a *answer) decide(tx *backends.DataContext) {
	for i, v := range a.verdicts {
		if v.Code != 0 {
			tx.SetStatus(i, v.status())
		}
	}
}
