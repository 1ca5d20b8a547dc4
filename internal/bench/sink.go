package main

import (
	"context"
	"os"
)

func startSmtpSink(all programs, dir string) (*server, error) {
	smtp, err := freePort("smtp")
	if err != nil {
		return nil, err
	}
	s, err := newServer(all, dir)
	if err != nil {
		return nil, err
	}
	for _, t := range []target{lmtpAt(dir, "lmtp.sock"), smtp} {
		p, err := launchSink(all, dir, t)
		if err != nil {
			s.stop()
			return nil, err
		}
		s.front, s.targets[t.protocol] = append(s.front, p), t
	}
	return s, nil
}

func launchSink(all programs, dir string, at target) (*process, error) {
	if all.postfixError != nil {
		return nil, all.postfixError
	}
	args := []string{"-m", "20000"}
	if at.protocol == "lmtp" {
		args = append(args, "-L")
	}
	if os.Getuid() == 0 {
		args = append(args, "-u", "nobody") // it insists
	}
	address := at.address
	if at.network == "unix" {
		address = "unix:" + address
	}
	return launch(dir, all.postfix.Command(context.Background(), "smtp-sink", append(args, address, "4096")...), at)
}
