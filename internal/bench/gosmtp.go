package main

import "os/exec"

// startGoSMTP starts go-smtp, which throws messages away in its own process.
func startGoSMTP(all programs, dir string) (*server, error) {
	s, err := newServer(all, dir)
	if err != nil {
		return nil, err
	}
	return s.launchGoSMTP(all, dir)
}

// startGoSMTPGateway starts go-smtp as a gateway.
func startGoSMTPGateway(all programs, dir string) (*server, error) {
	sink := lmtpAt(dir, "sink.sock")
	s, err := newServer(all, dir, sink)
	if err != nil {
		return nil, err
	}
	return s.launchGoSMTP(all, dir, "-backend", sink.address)
}

func (s *server) launchGoSMTP(all programs, dir string, args ...string) (*server, error) {
	if all.goSMTPError != nil {
		s.stop()
		return nil, all.goSMTPError
	}
	lmtp := lmtpAt(dir, "lmtp.sock")
	smtp, err := freePort("smtp")
	if err != nil {
		s.stop()
		return nil, err
	}
	args = append(args, "-lmtp", lmtp.address, "-smtp", smtp.address)
	return s, s.launch(dir, exec.Command(all.goSMTP, args...), lmtp, smtp)
}
