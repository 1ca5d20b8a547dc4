package main

import (
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
}

// launch starts a program in a directory, and waits until it takes mail at all
// targets. What it prints goes to a file there.
func launch(dir string, cmd *exec.Cmd, targets ...target) (p *process, err error) {
	p = &process{cmd: cmd}
	if p.log, err = os.CreateTemp(dir, filepath.Base(cmd.Path)+"-*.log"); err != nil {
		return nil, err
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if p.lifeline, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for _, t := range targets {
		if err := t.await(); err != nil {
			p.stop()
			text, _ := os.ReadFile(p.log.Name())
			return nil, fmt.Errorf("%s: %w\n%s", cmd, err, text)
		}
	}
	return p, nil
}

// await returns once somebody takes mail there.
func (t target) await() error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s, err := t.open()
		if err == nil {
			return s.quit()
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

func (p *process) stop() {
	p.lifeline.Close()
	p.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	p.cmd.Wait()
	p.log.Close()
}
