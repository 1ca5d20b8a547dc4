package relay

import (
	"testing"

	"github.com/mailgw/mailgw/internal/smtp"
)

// What recipients get needs no more changes: the gateway logs each that it has to
// make.
func TestReplyStatusIsSane(t *testing.T) {
	for code := 200; code < 600; code++ {
		s := replyStatus(smtp.Reply{Code: code, Text: "so it is"})
		switch sane := s.Sanitized(); {
		case code >= 300 && code < 400: // nobody takes it for an answer
		case s.Code != sane.Code:
			t.Errorf("%d becomes %d, and then %d", code, s.Code, sane.Code)
		case s.Code/100 != code/100 && !ofSession[code]:
			t.Errorf("%d becomes %d", code, s.Code)
		}
	}
}
