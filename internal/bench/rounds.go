package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// scenario measures the servers of s in turns, prints a table, and keeps the
// results.
func (b *bench) scenario(s *scenario) error {
	b.results[s] = map[string][]sample{}
	running := map[string]*server{}
	defer func() {
		for _, server := range running {
			server.stop()
		}
	}()
	// Before the first round that counts all have to be at work.
	first := 0
	if !s.fresh {
		first = -1
	}
	for round := first; round < b.rounds; round++ {
		for _, name := range s.servers {
			if err := b.turn(s, name, running, round >= 0); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	s.print(b.out, b.results[s], b.absent)
	return nil
}

// turn is one server's turn in a round.
func (b *bench) turn(s *scenario, name string, running map[string]*server, counts bool) error {
	if b.absent[name] != nil || len(b.servers) > 0 && !slices.Contains(b.servers, name) {
		return nil
	}
	server := running[name]
	if server == nil {
		var err error
		if server, err = b.start(name); errors.Is(err, errMissing) && os.Getenv("CI") != "true" {
			b.absent[name] = err
			return nil
		} else if err != nil {
			return err
		}
		running[name] = server
	}
	during := b.duration
	if !counts {
		during /= 4
	}
	got, err := s.measure(server, s.load, during)
	if err != nil {
		return err
	}
	if counts {
		b.results[s][name] = append(b.results[s][name], got)
	}
	if s.fresh {
		delete(running, name)
		server.stop()
	}
	return nil
}

// start starts a server in a new directory, where others can go.
func (b *bench) start(name string) (*server, error) {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
	dir, err := os.MkdirTemp(b.dir, "")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	return kinds[i].start(b.programs, dir)
}
