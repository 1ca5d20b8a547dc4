package smtp

import "strings"

// paramOf has the parameters that are known: the command that they are of, and
// what their value has to be, if that does not depend on more than them.
var paramOf = map[string]struct {
	command string
	check   func(value string, utf8 bool) error
}{
	"SIZE":       {"MAIL", nil},
	"BODY":       {"MAIL", nil},
	"SMTPUTF8":   {"MAIL", nil},
	"REQUIRETLS": {"MAIL", nil},
	"PRDR":       {"MAIL", nil},
	"AUTH":       {"MAIL", func(v string, _ bool) error { return CheckAuth(v) }},
	"RET":        {"MAIL", func(v string, _ bool) error { return CheckRet(v) }},
	"ENVID":      {"MAIL", func(v string, _ bool) error { return CheckEnvID(v) }},
	"NOTIFY":     {"RCPT", func(v string, _ bool) error { return CheckNotify(v) }},
	"ORCPT":      {"RCPT", CheckORcpt},
}

// CheckParamsOf checks the parameters of a command, MAIL or RCPT, that no client
// has sent: their syntax, the values of those that are known, and that they are of
// that command. Those that are not known are for the next hop to judge.
func CheckParamsOf(command string, params []string, utf8Allowed bool) error {
	if err := CheckParams(params); err != nil {
		return err
	}
	for _, p := range params {
		keyword, value, _ := strings.Cut(p, "=")
		known, ok := paramOf[upper(keyword)]
		switch {
		case !utf8Allowed && !IsASCII(p):
			return ErrNeedsUTF8
		case ok && known.command != command:
			return paramErrorf("parameter %.40s is none of %s", keyword, command)
		case known.check != nil:
			if err := known.check(value, utf8Allowed); err != nil {
				return err
			}
		}
	}
	return nil
}
