package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// scenario measures the servers of s in turns, prints a table, and keeps the
// results.
func (b *bench) scenario(s *scenario) (err error) {
	b.results[s] = map[string][]sample{}
	c := course{bench: b, scenario: s, running: map[string]*server{}}
	if c.dir, err = newDirectory(b.dir, ""); err != nil {
		return err
	}
	defer c.end()
	// Before the first round that counts all have to be at work.
	if !s.fresh {
		if err := c.round(b.duration/4, nil); err != nil {
			return err
		}
	}
	for range b.rounds {
		if err := c.round(b.duration, b.results[s]); err != nil {
			return err
		}
	}
	s.print(b.out, b.results[s], b.absent)
	return nil
}

// newDirectory makes a directory that others can enter: some servers become
// other users.
func newDirectory(parent, name string) (string, error) {
	dir, err := os.MkdirTemp(parent, name)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// A course is a scenario while it is measured.
type course struct {
	*bench
	*scenario
	dir     string
	running map[string]*server
}

func (c *course) end() {
	for _, s := range c.running {
		s.stop()
	}
	os.RemoveAll(c.dir)
}

// round gives each server its turn, and adds what it did to results, if that is
// wanted.
func (c *course) round(during time.Duration, results map[string][]sample) error {
	for _, name := range c.servers {
		s, err := c.server(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if s == nil {
			continue
		}
		if err := s.emptyLogs(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		done := func() error { return nil }
		if results != nil && len(results[name]) == 0 {
			done = c.profile(s, name)
		}
		got, err := c.measure(s, c.load, during)
		if err := errors.Join(err, done()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if results != nil {
			results[name] = append(results[name], got)
		}
		if c.fresh {
			s.stop()
			delete(c.running, name)
		}
	}
	return nil
}

// server returns a server, which it starts if it does not run. It is nil if it
// is not wanted, or missing.
func (c *course) server(name string) (*server, error) {
	s := c.running[name]
	if s != nil || c.absent[name] != nil || len(c.only) > 0 && !slices.Contains(c.only, name) {
		return s, nil
	}
	dir, err := newDirectory(c.dir, "")
	if err != nil {
		return nil, err
	}
	s, err = kinds[name](c.programs, dir)
	if errors.Is(err, errMissing) && os.Getenv("CI") != "true" {
		c.absent[name] = err
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c.running[name] = s
	return s, nil
}

// profile begins to take profiles of a server, if they are wanted and it gives
// any.
func (c *course) profile(s *server, name string) (done func() error) {
	if c.profiles == "" || s.profiles == "" {
		return func() error { return nil }
	}
	file := strings.NewReplacer(", ", "_", " ", "-").Replace(c.title + ", " + name)
	return s.profile(c.duration, filepath.Join(c.profiles, file))
}
