package gateway

import (
	"fmt"

	"github.com/mailgw/mailgw/internal/smtp"
)

// patterns are patterns, each with a value. The most exact pattern that
// matches an address decides, wherever it stands.
type patterns[T any] map[smtp.Pattern]entry[T]

type entry[T any] struct {
	value T
	text  string // the pattern as it is written
	place string // where it is written
}

var everything, _ = smtp.ParsePattern("*")

// add adds a pattern. It is an error if another one has the same meaning;
// place tells the reader of that error where a pattern is.
func (p patterns[T]) add(text, place string, value T) error {
	key, err := smtp.ParsePattern(text)
	if err != nil {
		return err
	}
	if other, ok := p[key]; ok {
		return fmt.Errorf("means the same as %s in %s", other.text, other.place)
	}
	p[key] = entry[T]{value, text, place}
	return nil
}

// lookup returns the value of the pattern that decides an address, or the
// zero T if none matches. The null sender is the empty address.
func (p patterns[T]) lookup(address string) (none T) {
	switch len(p) {
	case 0:
		return none
	case 1: // most often that one
		if e, ok := p[everything]; ok {
			return e.value
		}
	}
	for _, key := range smtp.PatternsOf(address) {
		if e, ok := p[key]; ok {
			return e.value
		}
	}
	return none
}
