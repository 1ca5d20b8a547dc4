package settings

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Lines tells the line of every key, table and list element in a TOML text,
// by its path. Lines are counted from 1.
type Lines map[string]int

// Of returns the line of the key at path or, if it is not in the text, of the
// nearest table around it. It returns 1 if there is none.
func (l Lines) Of(path string) int {
	for path != "" {
		if line, ok := l[path]; ok {
			return line
		}
		path = parent(path)
	}
	return 1
}

// FindLines walks over a TOML text. It relies on the text being valid, and
// checks nothing.
func FindLines(text string) Lines {
	w := walker{text: strings.TrimPrefix(text, "\ufeff"), line: 1, lines: Lines{}, elements: map[string]int{}}
	table := ""
	for w.skipBlank(); !w.atEnd(); w.skipBlank() {
		if w.skip("[[") {
			table = w.header(true)
		} else if w.skip("[") {
			table = w.header(false)
		} else {
			w.keyValue(table)
		}
	}
	return w.lines
}

type walker struct {
	text     string
	pos      int
	line     int
	lines    Lines
	elements map[string]int // number of [[headers]] so far, by path
}

func (w *walker) atEnd() bool { return w.pos >= len(w.text) }

// next returns the octet at hand, 0 at the end.
func (w *walker) next() byte {
	if w.atEnd() {
		return 0
	}
	return w.text[w.pos]
}

// advance moves n octets on, and counts the lines.
func (w *walker) advance(n int) {
	n = min(n, len(w.text)-w.pos)
	w.line += strings.Count(w.text[w.pos:w.pos+n], "\n")
	w.pos += n
}

func (w *walker) skip(prefix string) bool {
	if !strings.HasPrefix(w.text[w.pos:], prefix) {
		return false
	}
	w.advance(len(prefix))
	return true
}

// skipBlank skips white space, line ends and comments.
func (w *walker) skipBlank() {
	for !w.atEnd() {
		switch w.next() {
		case ' ', '\t', '\r', '\n':
			w.advance(1)
		case '#':
			w.skipUntil("\n")
		default:
			return
		}
	}
}

// skipUntil skips everything before the first octet of stop.
func (w *walker) skipUntil(stop string) {
	n := strings.IndexAny(w.text[w.pos:], stop)
	if n < 0 {
		n = len(w.text) - w.pos
	}
	w.advance(n)
}

// header reads the rest of [table] or [[list]], and returns the path of the
// table that it begins.
func (w *walker) header(list bool) string {
	path := ""
	for last := false; !last; {
		path = Join(path, w.key())
		last = !w.skip(".")
		w.first(path)
		if last && list {
			w.elements[path]++
		}
		if n := w.elements[path]; n > 0 {
			path = fmt.Sprintf("%s[%d]", path, n-1)
		}
	}
	w.lines[path] = w.line
	w.skipUntil("]")
	w.advance(len("]"))
	if list {
		w.skip("]")
	}
	return path
}

// first takes the line at hand for a path that has none yet.
func (w *walker) first(path string) {
	if _, ok := w.lines[path]; !ok {
		w.lines[path] = w.line
	}
}

// keyValue reads one key, dotted perhaps, and its value.
func (w *walker) keyValue(path string) {
	for last := false; !last; {
		path = Join(path, w.key())
		last = !w.skip(".")
		w.first(path)
	}
	w.skipUntil("=")
	w.advance(len("="))
	w.skipBlank()
	w.value(path)
}

// key reads one part of a key, with the blanks around it.
func (w *walker) key() string {
	w.skipBlank()
	defer w.skipBlank()
	start := w.pos
	switch w.next() {
	case '"':
		w.skipString()
		return unquote(w.text[start+1 : max(start+1, w.pos-1)])
	case '\'':
		w.skipString()
		return w.text[start+1 : max(start+1, w.pos-1)]
	}
	w.skipUntil(".=] \t\r\n#")
	return w.text[start:w.pos]
}

// unquote returns what the inside of a basic string means.
func unquote(s string) string {
	var b []byte
	for s != "" {
		if rest, ok := strings.CutPrefix(s, `\e`); ok {
			b, s = append(b, '\x1b'), rest
			continue
		}
		r, _, rest, err := strconv.UnquoteChar(s, '"')
		if err != nil {
			return string(b) + s
		}
		b, s = utf8.AppendRune(b, r), rest
	}
	return string(b)
}

func (w *walker) value(path string) {
	switch w.next() {
	case '"', '\'':
		w.skipString()
	case '[':
		w.list(path)
	case '{':
		w.inlineTable(path)
	default:
		w.skipUntil(",]}#\n")
	}
}

func (w *walker) list(path string) {
	w.advance(len("["))
	for i := 0; ; i++ {
		w.skipBlank()
		if w.skip("]") || w.atEnd() {
			return
		}
		element := fmt.Sprintf("%s[%d]", path, i)
		w.lines[element] = w.line
		w.value(element)
		w.skipBlank()
		if !w.skip(",") {
			w.skip("]")
			return
		}
	}
}

func (w *walker) inlineTable(path string) {
	w.advance(len("{"))
	for {
		w.skipBlank()
		if w.skip("}") || w.atEnd() {
			return
		}
		w.keyValue(path)
		w.skipBlank()
		if !w.skip(",") {
			w.skip("}")
			return
		}
	}
}

// skipString skips a string of any of the four kinds.
func (w *walker) skipString() {
	quote := w.text[w.pos : w.pos+1]
	triple := strings.Repeat(quote, 3)
	if !w.skip(triple) {
		w.skip(quote)
		w.skipPast(quote, quote == `"`)
		return
	}
	w.skipPast(triple, quote == `"`)
	// Up to two quotes may stand before the three that end the string.
	for range 2 {
		w.skip(quote)
	}
}

// skipPast skips everything up to and with end.
func (w *walker) skipPast(end string, escapes bool) {
	for !w.atEnd() && !w.skip(end) {
		if escapes && w.next() == '\\' {
			w.advance(1)
		}
		w.advance(1)
	}
}
