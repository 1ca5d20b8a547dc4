package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
)

// dovecotConfig is for Dovecot as an LMTP proxy for all recipients.
const dovecotConfig = `base_dir = %[1]s/run
state_dir = %[1]s/run
log_path = %[1]s/dovecot.log
protocols = lmtp
ssl = no
lmtp_proxy = yes
passdb {
  driver = static
  args = nopassword=y proxy=y protocol=lmtp host=127.0.0.1 port=%[2]s
}
service lmtp {
  unix_listener %[1]s/lmtp.sock {
    mode = 0600
  }
}
`

func startDovecot(all programs, dir string) (*server, error) {
	program, err := exec.LookPath("/usr/sbin/dovecot")
	if err == nil {
		_, err = os.Stat("/usr/lib/dovecot/lmtp")
	}
	switch {
	case err != nil:
		return nil, missing(fmt.Errorf("%w: internal/peers/install installs Dovecot", err))
	case os.Geteuid() != 0:
		return nil, errNotRoot
	}
	// Its proxy knows no backends on unix sockets.
	sink, err := freePort("lmtp")
	if err != nil {
		return nil, err
	}
	s, err := newServer(all, dir, sink)
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(sink.address)
	config := filepath.Join(dir, "dovecot.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, dovecotConfig, dir, port), 0o644); err != nil {
		s.stop()
		return nil, err
	}
	s.logs = []string{filepath.Join(dir, "dovecot.log")}
	return s, s.launch(dir, exec.Command(program, "-F", "-c", config), lmtpAt(dir, "lmtp.sock"))
}
