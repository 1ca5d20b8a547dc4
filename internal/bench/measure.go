package main

import (
	"slices"
	"time"
)

// A sample is what a server did in one round.
type sample struct {
	rate          float64 // messages a second
	front, behind float64 // CPU time of the server and of what is behind it, microseconds a message
	p50, p99      float64 // from MAIL to the last answer, in microseconds
	memory        float64 // octets
}

// A measurement is a way to get a sample of a server.
type measurement func(s *server, l load, during time.Duration) (sample, error)

// throughput sends l to a server, with all sessions at work.
func throughput(s *server, l load, during time.Duration) (sample, error) {
	to := s.target(l.protocol)
	l.protocol = to.protocol
	var used []usage
	r, err := l.run(to, during, func() error {
		u, err := s.usage()
		used = append(used, u)
		return err
	})
	if err != nil {
		return sample{}, err
	}
	n := float64(r.messages)
	return sample{
		rate:   n / r.took.Seconds(),
		front:  microseconds(used[1].front-used[0].front) / n,
		behind: microseconds(used[1].behind-used[0].behind) / n,
		p50:    microseconds(r.p50),
		p99:    microseconds(r.p99),
	}, nil
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// peak has each session send one message, and returns the most memory that the
// server and what is behind it have had meanwhile. That is the sum of what each
// process had, at whatever moment.
func peak(s *server, l load, _ time.Duration) (sample, error) {
	front, behind := s.processes()
	if err := forgetPeak(slices.Concat(front, behind)); err != nil {
		return sample{}, err
	}
	to := s.target(l.protocol)
	l.protocol = to.protocol
	if _, err := l.run(to, 0, func() error { return nil }); err != nil {
		return sample{}, err
	}
	front, behind = s.processes() // those of Postfix come when they are wanted
	total, err := memory(slices.Concat(front, behind), "status", "VmHWM")
	return sample{memory: float64(total)}, err
}

// idle returns what a session costs that has said hello and then nothing.
func idle(s *server, l load, _ time.Duration) (sample, error) {
	pss := func() (int64, error) {
		front, behind := s.processes()
		return memory(slices.Concat(front, behind), "smaps_rollup", "Pss")
	}
	before, err := pss()
	if err != nil {
		return sample{}, err
	}
	to := s.target(l.protocol)
	for range l.sessions {
		c, err := to.open()
		if err != nil {
			return sample{}, err
		}
		defer c.conn.Close()
	}
	after, err := pss()
	return sample{memory: float64(after-before) / float64(l.sessions)}, err
}
