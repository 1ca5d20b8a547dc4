package settings

import (
	"strconv"
	"strings"
)

// Join returns the path of a key in the table at path, "" being the top. A
// key that is no bare key of TOML is quoted.
func Join(path, key string) string {
	if !isBare(key) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func isBare(key string) bool {
	for i := range len(key) {
		if !isBareByte(key[i]) {
			return false
		}
	}
	return key != ""
}

func isBareByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// parent returns the path of the table or list that holds the key at path.
func parent(path string) string {
	end, quoted := 0, false
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case (c == '.' || c == '[') && !quoted:
			end = i
		}
	}
	return path[:end]
}

// DidYouMean returns "; did you mean X?" if one of the known words looks like
// word, else "". It is to be appended to a fault.
func DidYouMean(word string, known []string) string {
	best, nearest := "", 3
	if len(word) < 4 {
		nearest = 2
	}
	for _, k := range known {
		if d := distance(normal(word), normal(k)); d < nearest {
			best, nearest = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

func normal(word string) string {
	return strings.ReplaceAll(strings.ToLower(word), "-", "_")
}

// distance returns how many octets must be added, removed or changed to make
// b of a (the Levenshtein distance).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
