package exec

import (
	"regexp"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// answers are those exit statuses of sysexits.h that speak of the message or its
// recipients. The others are trouble of our own, for which pipe(8) of Postfix
// bounces mail; here nothing is bounced that nobody has refused.
var answers = map[int]backends.Status{
	65: backends.NewStatus(554, "5.6.0", "message refused for what is in it"), // EX_DATAERR
	67: backends.NoSuchUser,                                                   // EX_NOUSER
	68: backends.NewStatus(550, "5.1.2", "no such host"),                      // EX_NOHOST
	69: backends.NewStatus(554, "5.3.0", "message refused"),                   // EX_UNAVAILABLE
	75: backends.TryLater,                                                     // EX_TEMPFAIL
	77: backends.NewStatus(550, "5.7.1", "message refused"),                   // EX_NOPERM
}

// ownWords are an answer as pipe(8) of Postfix takes it from a program.
var ownWords = regexp.MustCompile(`^([45]\.\d{1,3}\.\d{1,3})[ \t]+(\S.*)`)

// answer returns what the program says to the client. The zero Status is nothing:
// it has ended well, or not in order.
func (p *process) answer() backends.Status {
	code := p.state.ExitCode()
	if code <= 0 { // below zero is a signal
		return backends.Status{}
	}
	s := answers[code]
	line, _, _ := strings.Cut(p.stdout.String(), "\n")
	words := ownWords.FindStringSubmatch(strings.TrimRight(line, "\r"))
	if words == nil {
		return s
	}
	if class := int(words[1][0] - '0'); s.Code/100 != class {
		s.Code = map[int]int{4: 451, 5: 554}[class]
	}
	s.Enhanced, s.Text = words[1], words[2]
	return s.Sanitized()
}
