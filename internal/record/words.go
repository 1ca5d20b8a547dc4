package record

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// isPlain reports whether s can be read as it is, in one line.
func isPlain(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// word returns s in a form that a blank ends.
func word(s string) string {
	if s == "" || s[0] == '"' || strings.Contains(s, " ") || !isPlain(s) {
		return strconv.Quote(s)
	}
	return s
}

// text returns s in a form that the end of the line ends.
func text(s string) string {
	if strings.HasPrefix(s, `"`) || strings.TrimSpace(s) != s || !isPlain(s) {
		return strconv.Quote(s)
	}
	return s
}

var errQuotes = errors.New("the quotes are not those of Go")

// cutWord parts a line into its first word and the rest. There are no more words
// if both are empty.
func cutWord(line string) (first, rest string, err error) {
	line = strings.TrimLeft(line, " ")
	if !strings.HasPrefix(line, `"`) {
		first, rest, _ = strings.Cut(line, " ")
		return first, rest, nil
	}
	quoted, err := strconv.QuotedPrefix(line)
	if err != nil {
		return "", "", errQuotes
	}
	if rest = line[len(quoted):]; rest != "" && rest[0] != ' ' {
		return "", "", errQuotes
	}
	first, err = strconv.Unquote(quoted)
	return first, rest, err
}

// cutWords parts a line into all its words.
func cutWords(line string) (words []string, err error) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		var first string
		if first, line, err = cutWord(line); err != nil {
			return nil, err
		}
		words = append(words, first)
	}
	return words, nil
}

// readText reads what text has made.
func readText(line string) (string, error) {
	line = strings.TrimSpace(line)
	if !strings.HasPrefix(line, `"`) {
		return line, nil
	}
	s, err := strconv.Unquote(line)
	if err != nil {
		return "", errQuotes
	}
	return s, nil
}

// An attribute is a value that stands in a line as NAME=VALUE, unless it is
// zero.
type attribute struct {
	name  string
	value any // a pointer
}

// format returns the value, "" if it is zero.
func (a attribute) format() string {
	switch v := a.value.(type) {
	case *string:
		return *v
	case *netip.AddrPort:
		if *v == (netip.AddrPort{}) {
			return ""
		}
		return v.String()
	case *uint32:
		if *v != 0 {
			return strconv.FormatUint(uint64(*v), 10)
		}
	case *int32:
		if *v != 0 {
			return strconv.FormatInt(int64(*v), 10)
		}
	case *bool:
		if *v {
			return "yes"
		}
	}
	return ""
}

// parse sets the value.
func (a attribute) parse(s string) (err error) {
	switch v := a.value.(type) {
	case *string:
		*v = s
	case *netip.AddrPort:
		*v, err = netip.ParseAddrPort(s)
	case *uint32:
		var n uint64
		n, err = strconv.ParseUint(s, 10, 32)
		*v = uint32(n)
	case *int32:
		var n int64
		n, err = strconv.ParseInt(s, 10, 32)
		*v = int32(n)
	case *bool:
		if *v = s == "yes"; !*v {
			err = errors.New("want yes")
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	return nil
}

// writeAttributes returns a line with those that are not zero.
func writeAttributes(keyword string, attributes []attribute) string {
	line := keyword
	for _, a := range attributes {
		if value := a.format(); value != "" {
			line += " " + word(a.name+"="+value)
		}
	}
	return line
}

// readAttributes sets those that a line has.
func readAttributes(line string, attributes []attribute) error {
	words, err := cutWords(line)
	if err != nil {
		return err
	}
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		found := false
		for _, a := range attributes {
			if a.name == name {
				found = true
				if err := a.parse(value); err != nil {
					return err
				}
			}
		}
		if !found {
			return fmt.Errorf("%.40q is not known", name)
		}
	}
	return nil
}
