package rspamd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// An answer is what rspamd says of a message, as far as it concerns us.
type answer struct {
	Action        string  `json:"action"`
	Score         float64 `json:"score"`
	RequiredScore float64 `json:"required_score"`

	// Subject is the new subject, for the action "rewrite subject".
	Subject string `json:"subject"`

	Messages struct {
		SMTP string `json:"smtp_message"` // for the client
	} `json:"messages"`

	// Signatures are values of DKIM-Signature fields.
	Signatures many[string] `json:"dkim-signature"`

	Milter struct {
		// Remove has the places of fields by their names, counted from 1, or
		// from the end if they are negative. Zero stands for all.
		Remove object[many[int]]      `json:"remove_headers"`
		Add    object[many[addition]] `json:"add_headers"`

		ChangeFrom       *string      `json:"change_from"`
		AddRecipients    many[string] `json:"add_rcpt"`
		DeleteRecipients many[string] `json:"del_rcpt"`

		// SpamHeader has the fields that the action "add header" adds.
		SpamHeader spamHeader `json:"spam_header"`

		// Reject is another action in the place of "reject": "discard" or
		// "quarantine".
		Reject string `json:"reject"`

		// NoAction says that the action is only noted in a field.
		NoAction bool `json:"no_action"`
	} `json:"milter"`
}

// An addition is the value of a field to add, and its place: 0 and 1 are at the
// top, -1 at the end. It comes as an object or as the value alone.
type addition struct {
	value string
	order int
}

// maxAction is more than anybody calls an action.
const maxAction = 200

// parseAnswer reads an answer. What it returns can be followed; its addresses
// are not checked.
func parseAnswer(text []byte) (*answer, error) {
	a := &answer{}
	if err := json.Unmarshal(text, a); err != nil {
		return nil, fmt.Errorf("its answer makes no sense: %w", err)
	}
	switch {
	case a.Action == "":
		return nil, errors.New("its answer has no action")
	case len(a.Action) > maxAction:
		return nil, fmt.Errorf("its answer has the action %.100q, of %d octets", a.Action, len(a.Action))
	}
	for name := range a.Milter.Add {
		if !isFieldName(name) {
			return nil, fmt.Errorf("its answer adds a header field %.100q", name)
		}
	}
	for name := range a.Milter.SpamHeader {
		if !isFieldName(name) {
			return nil, fmt.Errorf("its answer has the spam header %.100q", name)
		}
	}
	return a, nil
}

// many are values that come in a list, or one alone.
type many[T any] []T

func (m *many[T]) UnmarshalJSON(text []byte) error {
	if text[0] == '[' || string(text) == "null" {
		return json.Unmarshal(text, (*[]T)(m))
	}
	var one T
	if err := json.Unmarshal(text, &one); err != nil {
		return err
	}
	*m = many[T]{one}
	return nil
}

// An object may come as an empty list: in Lua an empty table is both.
type object[T any] map[string]T

func (o *object[T]) UnmarshalJSON(text []byte) error {
	if bytes.Equal(text, []byte("[]")) {
		return nil
	}
	return json.Unmarshal(text, (*map[string]T)(o))
}

func (a *addition) UnmarshalJSON(text []byte) error {
	a.order = -1
	if text[0] == '"' {
		return json.Unmarshal(text, &a.value)
	}
	var parts struct {
		Value        *string
		Order, Index *int
	}
	err := json.Unmarshal(text, &parts)
	switch {
	case err != nil:
		return err
	case parts.Value == nil:
		return errors.New("a header field without a value")
	case parts.Order != nil:
		a.order = *parts.Order
	case parts.Index != nil:
		a.order = *parts.Index
	}
	a.value = *parts.Value
	return nil
}

// A spamHeader has values of fields by their names. It comes as an object, or
// as the value of spamField alone.
type spamHeader map[string]string

func (h *spamHeader) UnmarshalJSON(text []byte) error {
	if text[0] != '"' {
		return json.Unmarshal(text, (*object[string])(h))
	}
	var value string
	err := json.Unmarshal(text, &value)
	*h = spamHeader{spamField: value}
	return err
}
