package peers

import (
	"bytes"
	"encoding/json"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"testing"
)

// A pythonJob is what testdata/client.py is to do.
type pythonJob struct {
	Protocol string `json:"protocol"` // LMTP, SMTP or SMTP_SSL, classes of smtplib
	Address  string `json:"address"`  // HOST:PORT or the path of a socket
	CA       string `json:"ca"`
	Name     string `json:"name"` // in the certificate

	Mechanism string `json:"mechanism"` // of AUTH, none if it is empty
	User      string `json:"user"`
	Password  string `json:"password"`

	Sender      string   `json:"sender"`
	Recipients  []string `json:"recipients"`
	MailOptions []string `json:"mail_options"`
	RcptOptions []string `json:"rcpt_options"`
	Message     string   `json:"message"`
}

// Python's smtplib sends over LMTP and SMTP, with TLS from STARTTLS and from
// the start.
func TestPython(t *testing.T) {
	t.Parallel()
	python := peer(t, "python3")
	c := startComplete(t)
	tests := []struct {
		job     pythonJob
		refused map[string]string // by recipient; "" stands for the whole message
		told    string            // empty if the backend never sees it
	}{
		{
			job: pythonJob{
				Protocol: "SMTP", Address: c.Address("smtp"), Sender: "sénder@peers.example",
				Mechanism: "PLAIN", Password: password,
				Recipients:  []string{"ann@peers.example", "jürgen@peers.example"},
				MailOptions: []string{"SMTPUTF8", "BODY=8BITMIME", "RET=HDRS", "ENVID=QQ+2B314159"},
				RcptOptions: []string{"NOTIFY=SUCCESS,FAILURE"},
			},
			told: "UTF8SMTPSA TLS 1.3 as login@peers.example by PLAIN: MAIL <sénder@peers.example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=QQ+2B314159, " +
				"RCPT <ann@peers.example> NOTIFY=SUCCESS,FAILURE, RCPT <jürgen@peers.example> NOTIFY=SUCCESS,FAILURE",
		},
		{
			job: pythonJob{
				Protocol: "SMTP_SSL", Address: c.Address("smtps"), Sender: "implicit@peers.example",
				Mechanism: "LOGIN", Password: password,
				Recipients:  []string{"ann@peers.example", "not an address", "bob@peers.example"},
				MailOptions: []string{"BODY=8BITMIME"},
				RcptOptions: []string{"NOTIFY=NEVER", "ORCPT=rfc822;ann+2Bdetail@elsewhere.example"},
			},
			refused: map[string]string{"not an address": "501 5.1.3 no domain"},
			told: "ESMTPSA TLS 1.3 as login@peers.example by LOGIN: MAIL <implicit@peers.example> BODY=8BITMIME, " +
				"RCPT <ann@peers.example> NOTIFY=NEVER ORCPT=rfc822;ann+2Bdetail@elsewhere.example, " +
				"RCPT <bob@peers.example> NOTIFY=NEVER ORCPT=rfc822;ann+2Bdetail@elsewhere.example",
		},
		{
			// smtplib reads one answer to a message in LMTP, too.
			job: pythonJob{
				Protocol: "LMTP", Address: c.Address("lmtp"), Sender: "lmtp@peers.example", Recipients: []string{"bob@peers.example"},
				Mechanism: "PLAIN", Password: password, MailOptions: []string{"SMTPUTF8"}, RcptOptions: []string{"NOTIFY=DELAY"},
			},
			told: "UTF8LMTPSA TLS 1.3 as login@peers.example by PLAIN: MAIL <lmtp@peers.example> SMTPUTF8, RCPT <bob@peers.example> NOTIFY=DELAY",
		},
		{
			job:     pythonJob{Protocol: "LMTP", Address: c.Address("lmtp"), Sender: "lmtp@peers.example", Recipients: []string{"busy@peers.example"}},
			refused: map[string]string{"": "450 4.2.1 <busy@peers.example> mailbox busy (ID)"},
		},
		{
			job:     pythonJob{Protocol: "SMTP", Address: c.Address("smtp"), Sender: "smtp@peers.example", Recipients: []string{"ann@peers.example", "gone@peers.example"}},
			refused: map[string]string{"": "550 5.1.1 no such user (ID)"},
		},
		{
			job:     pythonJob{Protocol: "SMTP", Address: c.Address("smtp"), Mechanism: "LOGIN", Password: "wrong", Recipients: []string{"ann@peers.example"}},
			refused: map[string]string{"": "535 5.7.8 authentication credentials invalid"},
		},
	}
	message := "Subject: h\u00e9\r\n\r\n.\r\n..dot\r\nlast\r\n"
	want := map[string]int{"ann": 3, "jürgen": 1, "bob": 2, "busy": 0, "gone": 0}
	for _, test := range tests {
		test.job.CA, test.job.Name, test.job.User, test.job.Message = c.ca.path(), gatewayName, loginName, message
		refused := test.job.run(t, python)
		if !maps.Equal(refused, test.refused) {
			t.Errorf("%+v: smtplib says that %q were refused, want %q", test.job, refused, test.refused)
		}
		if test.told == "" {
			continue
		}
		if got := c.told(t, test.job.Sender); got != test.told {
			t.Errorf("the backend was told\n%s\nwant\n%s", got, test.told)
		}
	}
	for user, n := range want {
		if got := c.Mail(user); !slices.Equal(got, slices.Repeat([]string{message}, n)) {
			t.Errorf("%s has %q, want %d of %q", user, got, n, message)
		}
	}
}

// run returns the recipients that were refused, with their answers, where ID
// stands for the transaction.
func (job pythonJob) run(t *testing.T, python string) (refused map[string]string) {
	t.Helper()
	input, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), python, "testdata/client.py")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("client.py: %v\n%s", err, stderr.String())
	}
	out = regexp.MustCompile(`\(\w{16}\)`).ReplaceAll(out, []byte("(ID)"))
	if err := json.Unmarshal(out, &refused); err != nil {
		t.Fatalf("client.py: %v: %q", err, out)
	}
	return refused
}
