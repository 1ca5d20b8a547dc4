package peers

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

const proxiedListener = `
[[listener]]
name = "proxied"
address = "tcp:127.0.0.1:0"
protocol = "smtp"
proxy = ["127.0.0.1"]
`

// swaks speaks for another client, as a proxy does.
func TestSwaksAsProxy(t *testing.T) {
	t.Parallel()
	swaks := peer(t, "swaks")
	c := &complete{Gateway: gatewaytest.Start(t, gatewaytest.AsTested,
		gatewaytest.SMTP, "xclient = [\"127.0.0.1\"]\n", gatewaytest.ToInbox, proxiedListener, gatewaytest.ToInbox, witnessInbox(t))}
	for name, test := range map[string]struct{ args, told string }{
		"xclient": {
			"--server " + c.Address("smtp") + " --xclient-addr 192.0.2.1 --xclient-port 1024 --xclient-name client.example --xclient-login ann",
			"ESMTPA as ann by XCLIENT from 192.0.2.1:1024 by XCLIENT, client.example",
		},
		"proxy-1": {
			"--server " + c.Address("proxied") + " --proxy-family TCP6 --proxy-source 2001:db8::1 --proxy-source-port 1024 --proxy-dest 2001:db8::2 --proxy-dest-port 25",
			"ESMTP from [2001:db8::1]:1024 by PROXY",
		},
		"proxy-2": {
			"--server " + c.Address("proxied") + " --proxy-version 2 --proxy-family AF_INET --proxy-source 192.0.2.1 --proxy-source-port 1024 --proxy-dest 192.0.2.2 --proxy-dest-port 25",
			"ESMTP from 192.0.2.1:1024 by PROXY",
		},
	} {
		sender := name + "@peers.example"
		args := append(strings.Fields(test.args), "--to", "ann@peers.example", "--from", sender, "--ehlo", "swaks.peers.example")
		if transcript, err := exec.Command(swaks, args...).CombinedOutput(); err != nil {
			t.Errorf("swaks %q: %v\n%s", args, err, transcript)
			continue
		}
		if got, _, _ := strings.Cut(c.told(t, sender), ": "); got != test.told {
			t.Errorf("swaks %q: the backend was told %q, want %q", args, got, test.told)
		}
	}
}
