package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// postfixMain and postfixMaster are for a Postfix that passes mail on to a
// filter before the queue, and that has no queue.
const (
	postfixMain = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
meta_directory = %[1]s
daemon_directory = %[2]s
command_directory = %[3]s
mail_owner = %[4]s
maillog_file = %[1]s/maillog
maillog_file_prefixes = %[1]s
import_environment = MAIL_CONFIG LANG=C TZ LD_LIBRARY_PATH=%[5]s

myhostname = postfix.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_peername_lookup = no
alias_maps =
alias_database =
message_size_limit = 104857600
smtpd_relay_restrictions = permit_mynetworks, reject
`
	postfixMaster = `%[1]s    inet       n  -  n  -     -  smtpd -o smtpd_proxy_filter=%[2]s
rewrite    unix       -  -  n  -     -  trivial-rewrite
proxymap   unix       -  -  n  -     -  proxymap
anvil      unix       -  -  n  -     1  anvil
postlog    unix-dgram n  -  n  -     1  postlogd
`
)

func startPostfix(all programs, dir string) (*server, error) {
	if os.Geteuid() != 0 {
		return nil, errNotRoot
	}
	smtp, err := freePort("smtp")
	if err != nil {
		return nil, err
	}
	sink, err := freePort("smtp")
	if err != nil {
		return nil, err
	}
	s, err := newServer(all, dir, sink)
	if err != nil {
		return nil, err
	}
	if err := configurePostfix(all, dir, smtp, sink); err != nil {
		s.stop()
		return nil, err
	}
	// Postfix does not end with its parent. The shell ends it, at SIGTERM or
	// when it finds the end of its standard input.
	cmd := all.postfix.Command(context.Background(), "/bin/sh", "-c", `trap : TERM; "$@" & read _; kill $!; wait $!`,
		"sh", all.postfix.Daemons+"/master", "-c", dir, "-s")
	s.logs = []string{filepath.Join(dir, "maillog")}
	return s, s.launch(dir, cmd, smtp)
}

func configurePostfix(all programs, dir string, smtp, sink target) error {
	// Where Postfix is only unpacked it has no user, and bears any other one.
	owner, err := user.Lookup("postfix")
	if err != nil {
		owner, err = user.Lookup("mail")
	}
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		return err
	}
	for _, d := range []struct {
		name string
		uid  int
	}{{"queue", 0}, {"queue/pid", 0}, {"queue/public", uid}, {"queue/private", uid}, {"queue/incoming", uid}, {"data", uid}} {
		path := filepath.Join(dir, d.name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := os.Chown(path, d.uid, -1); err != nil {
			return err
		}
	}
	p := all.postfix
	main := fmt.Appendf(nil, postfixMain, dir, p.Daemons, p.Commands, owner.Username, p.Libraries)
	if err := os.WriteFile(filepath.Join(dir, "main.cf"), main, 0o644); err != nil {
		return err
	}
	master := fmt.Appendf(nil, postfixMaster, smtp.address, sink.address)
	return os.WriteFile(filepath.Join(dir, "master.cf"), master, 0o644)
}
