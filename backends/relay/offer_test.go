package relay

import (
	"slices"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// Parameters go on where the target announces what they belong to.
func TestParameters(t *testing.T) {
	all := backends.Params{"size=1", "BODY=8BITMIME", "SMTPUTF8", "RET=HDRS", "ENVID=a", "AUTH=ann@example.net", "REQUIRETLS", "XVERP=+-", "BY=120;R", "HOLDFOR=60", "MT-PRIORITY=3", "mine=1"}
	for _, test := range []struct {
		params   backends.Params
		keywords []string
		session  backends.Session
		want     []string
	}{
		{all, nil, backends.Session{}, nil},
		{all, []string{"SIZE", "8BITMIME", "SMTPUTF8", "DSN", "AUTH", "REQUIRETLS", "XVERP", "DELIVERBY", "FUTURERELEASE", "MT-PRIORITY", "MINE"}, backends.Session{User: "ann"},
			[]string{"BODY=8BITMIME", "SMTPUTF8", "RET=HDRS", "ENVID=a", "REQUIRETLS", "XVERP=+-", "BY=120;R", "HOLDFOR=60", "MT-PRIORITY=3", "mine=1", "SIZE=99", "AUTH=ann@example.net"}},
		{backends.Params{"BODY=BINARYMIME"}, []string{"8BITMIME"}, backends.Session{}, nil},
		{backends.Params{"body=binarymime"}, []string{"BINARYMIME"}, backends.Session{}, []string{"body=binarymime"}},
		{backends.Params{"BODY=7BIT"}, []string{"8BITMIME"}, backends.Session{}, []string{"BODY=7BIT"}},
		{nil, []string{"SIZE", "AUTH"}, backends.Session{User: "ann"}, []string{"SIZE=99"}},

		// RFC 4954, section 5: whom nobody knows has submitted nothing.
		{backends.Params{"AUTH=ann"}, []string{"AUTH"}, backends.Session{}, []string{"AUTH=<>"}},
		{backends.Params{"AUTH=ann"}, []string{"AUTH"}, backends.Session{XForward: forwardedBy("4QQ")}, []string{"AUTH=ann"}},
	} {
		o := offer{extensions: map[string]string{}}
		for _, keyword := range test.keywords {
			o.extensions[keyword] = ""
		}
		tx := &backends.DataContext{Size: 99, Session: test.session, Envelope: backends.Envelope{Params: test.params}}
		if got := o.mailParams(tx); !slices.Equal(got, test.want) {
			t.Errorf("%q, %q: got %q, want %q", test.params, test.keywords, got, test.want)
		}
	}
}

// No target announces a limit that lets through what it should not.
func FuzzOffer(f *testing.F) {
	f.Add("1000", "MAILMAX=1 RCPTMAX=100", int64(1001))
	f.Add("", "rcptmax=-1 RCPTMAX", int64(1))
	f.Add("-5", "RCPTMAX=99999999999999999999", int64(0))
	f.Fuzz(func(t *testing.T, size, limits string, message int64) {
		o := offer{extensions: map[string]string{"SIZE": size, "LIMITS": limits}}
		if o.size() < 0 || o.limit("RCPTMAX") < 0 || o.limit("MAILMAX") < 0 {
			t.Errorf("SIZE %q, LIMITS %q: %d, %d, %d", size, limits, o.size(), o.limit("RCPTMAX"), o.limit("MAILMAX"))
		}
		s := o.refuses(&backends.DataContext{Size: message})
		if tooMuch := o.size() > 0 && message > o.size(); tooMuch != (s == tooLarge) {
			t.Errorf("SIZE %q, a message of %d: %v", size, message, s)
		}
	})
}
