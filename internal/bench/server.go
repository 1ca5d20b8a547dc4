package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// A server is one of those that are measured.
type server struct {
	targets map[string]target // where it takes mail, by protocol
	front   []*process        // the server itself
	behind  []*process        // what it passes mail on to

	// What the server has started itself is behind it, too: plugins.
	plugins bool

	logs []string // files, besides what the processes print

	// Where sockets are that give profiles, if there are any: NAME.pprof.
	profiles string
}

// kinds start the servers, each in a directory of its own. An error that is
// errMissing says that its programs are not there. Those that pass mail on pass it
// to an smtp-sink.
var kinds = map[string]func(all programs, dir string) (*server, error){
	mailgw:        startMailgw,
	mailgwWithTwo: startMailgwWithTwo,
	sink:          startSmtpSink,
	goSMTP:        startGoSMTP,
	goSMTPGateway: startGoSMTPGateway,
	postfix:       startPostfix,
	dovecot:       startDovecot,
}

var (
	errMissing = errors.New("missing")
	errNotRoot = missing(errors.New("it runs as root only"))
)

func missing(err error) error { return fmt.Errorf("%w: %w", errMissing, err) }

// launch starts a process of the server itself.
func (s *server) launch(dir string, cmd *exec.Cmd, targets ...target) error {
	p, err := launch(dir, cmd, targets...)
	if err != nil {
		s.stop()
		return err
	}
	s.front = append(s.front, p)
	for _, t := range targets {
		s.targets[t.protocol] = t
	}
	return nil
}

// newServer returns a server of which nothing runs yet, with an smtp-sink
// behind it at each of the targets.
func newServer(all programs, dir string, behind ...target) (*server, error) {
	s := &server{targets: map[string]target{}}
	for _, t := range behind {
		p, err := launchSink(all, dir, t)
		if err != nil {
			s.stop()
			return nil, err
		}
		s.behind = append(s.behind, p)
	}
	return s, nil
}

// emptyLogs has all logs begin anew, as those who keep logs do from time to time:
// the memory for what a benchmark writes to them would be new to the machine, whose
// price is no server's.
func (s *server) emptyLogs() error {
	var errs []error
	for _, p := range slices.Concat(s.front, s.behind) {
		_, err := p.log.Seek(0, io.SeekStart) // it is the position of the process, too
		errs = append(errs, err, p.log.Truncate(0))
	}
	for _, path := range s.logs { // which are appended to
		if err := os.Truncate(path, 0); !errors.Is(err, fs.ErrNotExist) { // it may not have begun
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *server) stop() {
	for _, p := range slices.Concat(s.front, s.behind) {
		p.stop()
	}
}

// target returns where the server takes mail by a protocol or, if it does not
// speak that, by the one that it speaks.
func (s *server) target(protocol string) target {
	if t, ok := s.targets[protocol]; ok {
		return t
	}
	for _, t := range s.targets {
		return t
	}
	panic("a server without a target")
}

// processes returns those of the server, and those behind it.
func (s *server) processes() (front, behind []int) {
	for _, p := range s.front {
		pid := p.cmd.Process.Pid
		if s.plugins {
			front, behind = append(front, pid), append(behind, descendants(pid)...)
		} else {
			front = append(front, tree(pid)...)
		}
	}
	for _, p := range s.behind {
		behind = append(behind, tree(p.cmd.Process.Pid)...)
	}
	return front, behind
}

// A usage is the CPU time of a server, and of what is behind it.
type usage struct{ front, behind time.Duration }

func (s *server) usage() (u usage, err error) {
	front, behind := s.processes()
	if u.front, err = cpuTime(front); err != nil {
		return u, err
	}
	u.behind, err = cpuTime(behind)
	return u, err
}

// lmtpAt is a socket in a directory.
func lmtpAt(dir, name string) target {
	return target{"lmtp", "unix", filepath.Join(dir, name)}
}

// freePort is a port that nobody listens on now.
func freePort(protocol string) (target, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return target{}, err
	}
	defer l.Close()
	return target{protocol, "tcp", l.Addr().String()}, nil
}
