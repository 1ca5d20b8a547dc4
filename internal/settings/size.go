package settings

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A Size is a number of octets. As text it is a number, or a number and one
// of the units KiB, MiB and GiB.
type Size int64

var sizeUnits = []struct {
	name   string
	octets Size
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func (s *Size) UnmarshalText(text []byte) error {
	number, unit := strings.TrimSpace(string(text)), Size(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(n), u.octets
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || Size(n) > (1<<62)/unit {
		return fmt.Errorf("%q is not a size such as 4096, 256KiB or 50MiB%s", text, nearbySize(string(text)))
	}
	*s = Size(n) * unit
	return nil
}

var otherUnit = regexp.MustCompile(`^\s*([0-9]+)\s*([KMGkmg])([Ii]?[Bb])?\s*$`)

// nearbySize returns what a text that is no size probably means.
func nearbySize(text string) string {
	match := otherUnit.FindStringSubmatch(text)
	if match == nil {
		return ""
	}
	return "; did you mean " + match[1] + strings.ToUpper(match[2]) + "iB?"
}

// String returns s in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s > 0 && s%u.octets == 0 {
			return fmt.Sprintf("%d%s", s/u.octets, u.name)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
