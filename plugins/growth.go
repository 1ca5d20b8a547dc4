package plugins

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A plugin that leaks grows until another process takes its place. That one
// starts, and takes its settings, before anything changes; then what comes goes to
// it, and the old one ends what it has.

// A growth is how much a process has of what it may leak.
type growth struct{ memory, openFiles uint64 }

// growth returns an error if the process has ended.
func (p *process) growth() (g growth, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return g, os.ErrProcessDone
	}
	directory := "/proc/" + strconv.Itoa(p.pid)
	statm, err := os.ReadFile(directory + "/statm")
	if err != nil {
		return g, err
	}
	fields := strings.Fields(string(statm)) // proc_pid_statm(5): size, resident, ...
	if len(fields) < 2 {
		return g, fmt.Errorf("%s/statm is %q", directory, statm)
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return g, err
	}
	// Only who may trace a process may list its files.
	files, err := os.Stat(directory + "/fd")
	if err != nil {
		return g, err
	}
	return growth{pages * uint64(os.Getpagesize()), uint64(files.Size())}, nil
}

// excess returns the key of what a process has too much of, or "".
func (c *Command) excess(g growth) (key string) {
	switch {
	case c.ReplaceMemory > 0 && g.memory > c.ReplaceMemory:
		return "replace_memory"
	case c.ReplaceOpenFiles > 0 && g.openFiles > c.ReplaceOpenFiles:
		return "replace_open_files"
	}
	return ""
}

// fits returns an error if a process that has just started would have to be
// replaced already, again and again.
func (c *Command) fits(r *running) error {
	if c.ReplaceMemory == 0 && c.ReplaceOpenFiles == 0 || r.process == nil {
		return nil
	}
	g, err := r.process.growth()
	if err != nil {
		return err
	}
	if c.ReplaceOpenFiles > 0 && g.openFiles == 0 {
		return KeyError{"replace_open_files", errors.New("the kernel does not tell how many files are open; Linux 6.2 does")}
	}
	if key := c.excess(g); key != "" {
		return KeyError{key, fmt.Errorf("the plugin has %dMiB of memory and %d files open when it has just started", g.memory>>20, g.openFiles)}
	}
	return nil
}

// replaceLeaking has another process started if this one has too much. Of several
// instances one is replaced at a time.
func (s *supervisor) replaceLeaking(r *running) {
	if r.process == nil || s.next != nil || s.replaced {
		return
	}
	g, err := r.process.growth()
	if err != nil {
		return // it has ended
	}
	key := s.h.command.excess(g)
	if key == "" || !s.h.replacing.CompareAndSwap(false, true) {
		return
	}
	delay := s.again.next(time.Since(r.began), time.Now())
	s.enter(leaking, r.id(), "memory", g.memory, "open_files", g.openFiles, "reason", key, "delay", delay)
	next := &supervisor{h: s.h, instance: s.instance, again: s.again, began: make(chan error, 1)}
	s.next = next.began
	s.h.supervisors.Go(func() {
		if s.h.sleep(delay) {
			onThread(func() { next.run(s.h.ctx) })
		} else {
			next.began <- s.h.ctx.Err()
		}
	})
}

// settle takes what has come of the start of the next process. r may have ended.
func (s *supervisor) settle(r *running, err error) {
	s.next = nil
	s.h.replacing.Store(false)
	switch {
	case err == nil:
		s.replaced = true
		r.draining.Store(true)
		r.wakeIfIdle()
	case s.h.ctx.Err() == nil:
		s.enter(exited, "error", err)
	}
}
