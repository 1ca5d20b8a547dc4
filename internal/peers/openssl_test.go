package peers

import (
	"bytes"
	"encoding/base64"
	"os/exec"
	"strings"
	"testing"
)

// A transaction is typed into openssl s_client. It verifies the gateway's
// certificate, and shows one of its own where it is to send XFORWARD.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := peer(t, "openssl")
	c := startComplete(t)
	certificate := " -cert " + c.clientCert + " -key " + c.clientCert
	tests := map[string]opensslSession{
		"starttls-12": {
			flags:    "-connect " + c.Address("smtp") + " -starttls smtp -tls1_2",
			xforward: 550,
			told:     "UTF8SMTPS TLS 1.2",
		},
		"starttls-13": {
			flags:    "-connect " + c.Address("smtp") + " -starttls smtp -tls1_3" + certificate,
			auth:     "EXTERNAL =",
			xforward: 250,
			told:     "UTF8SMTPSA TLS 1.3 of client.peers.example as client.peers.example by EXTERNAL for 192.0.2.1",
		},
		"implicit-12": {
			flags:    "-connect " + c.Address("smtps") + " -tls1_2" + certificate,
			xforward: 250,
			told:     "UTF8SMTPS TLS 1.2 of client.peers.example for 192.0.2.1",
		},
		"implicit-13": {
			flags:    "-connect " + c.Address("smtps") + " -tls1_3",
			auth:     "PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+loginName+"\x00"+password)),
			xforward: 550,
			told:     "UTF8SMTPSA TLS 1.3 as login@peers.example by PLAIN",
		},
		"lmtp": {
			flags: "-unix " + c.Address("lmtp") + " -starttls lmtp -tls1_3" + certificate, lmtp: true,
			xforward: 250,
			told:     "UTF8LMTPS TLS 1.3 of client.peers.example for 192.0.2.1",
		},
	}
	// Without -quiet some of these letters are commands of s_client.
	message := lines("Q: \u00e9", "R: 1", "", "Q", "R", "K", "B", ".", "eight bits: \xff", "")
	for user, test := range tests {
		t.Run(user, func(t *testing.T) {
			args := strings.Fields("s_client -quiet -CAfile " + c.ca.path() + " -verify_return_error" +
				" -servername " + gatewayName + " -verify_hostname " + gatewayName + " " + test.flags)
			cmd := exec.CommandContext(t.Context(), openssl, args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			session, err := typeInto(cmd)
			if err != nil {
				t.Fatal(err)
			}
			session.lmtp = test.lmtp
			err = test.send(session, message, "sénder-"+user+"@peers.example> SMTPUTF8 RET=FULL", user+"@peers.example> NOTIFY=NEVER")
			session.Close()
			if err != nil {
				cmd.Process.Kill() // it waits for the server to hang up
			}
			if ended := cmd.Wait(); err != nil || ended != nil {
				t.Fatalf("openssl %s: %v, %v\n%s", strings.Join(args, " "), err, ended, stderr.String())
			}
			if got := c.Mail(user); len(got) != 1 || got[0] != string(message) {
				t.Errorf("%s has %q, want %q", user, got, message)
			}
			want := test.told + ": MAIL <sénder-" + user + "@peers.example> SMTPUTF8 RET=FULL, RCPT <" + user + "@peers.example> NOTIFY=NEVER"
			if got := c.told(t, "sénder-"+user+"@peers.example"); got != want {
				t.Errorf("the backend was told\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// An opensslSession is a session with s_client.
type opensslSession struct {
	flags    string
	lmtp     bool
	auth     string // with its initial response; none if it is empty
	xforward int    // the code of the answer to it
	told     string
}

// send types all of a session that comes after the handshake.
func (s opensslSession) send(session *client, message []byte, from, to string) error {
	greet := session.greet
	if strings.Contains(s.flags, "-starttls") {
		greet = session.hello // s_client has read the greeting
	}
	if err := greet(); err != nil {
		return err
	}
	if s.auth != "" {
		if err := session.say(235, "AUTH "+s.auth); err != nil {
			return err
		}
	}
	if err := session.say(s.xforward, "XFORWARD ADDR=192.0.2.1"); err != nil {
		return err
	}
	if err := session.send(message, from, to); err != nil {
		return err
	}
	return session.quit()
}
