package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A process is a program that was started, and is to be stopped.
type process struct {
	cmd      *exec.Cmd
	lifeline io.Closer // the end of its standard input ends it, too
	log      *os.File
	ended    chan struct{} // closed when it has
}

// launch starts a program in a directory, and waits until it takes mail at all
// targets. What it prints goes to a file there.
func launch(dir string, cmd *exec.Cmd, targets ...target) (p *process, err error) {
	p = &process{cmd: cmd, ended: make(chan struct{})}
	if p.log, err = os.CreateTemp(dir, filepath.Base(cmd.Path)+"-*.log"); err != nil {
		return nil, err
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if p.lifeline, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		p.log.Close()
		return nil, err
	}
	go func() {
		cmd.Wait()
		close(p.ended)
	}()
	for _, t := range targets {
		if err := p.await(t); err != nil {
			p.stop()
			text, _ := os.ReadFile(p.log.Name())
			return nil, fmt.Errorf("%s: %w\n%s", cmd, err, text)
		}
	}
	return p, nil
}

// await returns once somebody takes mail at t.
func (p *process) await(t target) error {
	patience := time.After(20 * time.Second)
	for {
		s, err := t.open()
		if err == nil {
			return s.quit()
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-p.ended:
			return errors.Join(err, errors.New(p.cmd.ProcessState.String()))
		case <-patience:
			return err
		}
	}
}

func (p *process) stop() {
	p.lifeline.Close()
	p.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	<-p.ended
	p.log.Close()
}
