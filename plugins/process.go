package plugins

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
)

// A process is the process of one plugin, in a process group of its own. It
// is a runner.Runner of go-plugin, which calls Start and then reads Stdout and
// Stderr to their ends before it calls Wait.
//
// The process does not outlive the gateway: its lifeline is at its end of file
// then, and the kernel kills it when the thread that called Start ends.
type process struct {
	cmd            *exec.Cmd
	command        Command
	sockets        string    // directory of its socket
	output         io.Writer // gets what comes on stdout besides the handshake
	stdout, stderr *os.File
	lifeline       *os.File
	report         *os.File // of the launcher; nil without one
	shook          atomic.Bool

	exited chan struct{} // closed when it has ended
	err    error         // how it ended; once exited is closed
	reason error         // why the launcher has not started the program; once exited is closed

	mu     sync.Mutex
	pid    int  // zero unless it was started
	killed bool // it is not to be started any more
	reaped bool // its number may be another process's

	address string // of its socket, as the handshake tells it
}

// newProcess prepares a process of the program c. Its environment is that of
// c and what go-plugin adds, and nothing else.
func newProcess(c Command, added []string, sockets string, output io.Writer) *process {
	p := &process{cmd: newCommand(c), command: c, sockets: sockets, output: output, exited: make(chan struct{})}
	p.cmd.Env = []string{} // nil would be the environment of the gateway
	for key, value := range c.Env {
		p.cmd.Env = append(p.cmd.Env, key+"="+value)
	}
	p.cmd.Env = append(p.cmd.Env, added...)
	p.cmd.Env = append(p.cmd.Env, fmt.Sprintf("%s=%d", lifelineEnv, lifelineFD), plugin.EnvUnixSocketDir+"="+sockets)
	// A group of its own keeps the keys of a terminal away from it, and lets
	// us end what it has started.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: c.Sandbox.User}
	return p
}

// Start is to be called on a thread that lives as long as the process shall, and
// that has nothing else to do: see shedPrivileges.
func (p *process) Start(context.Context) (err error) {
	var opened []*os.File
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		if r, w, err = os.Pipe(); err == nil {
			opened = append(opened, r, w)
		}
		return r, w
	}
	stdoutR, stdoutW := pipe()
	stderrR, stderrW := pipe()
	lifelineR, lifelineW := pipe()
	var reportW *os.File
	if p.command.launched() {
		p.report, reportW = pipe()
	}
	if err == nil {
		p.cmd.Stdout, p.cmd.Stderr, p.cmd.ExtraFiles = stdoutW, stderrW, []*os.File{lifelineR} // lifelineFD
		if p.report != nil {
			p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, nil, reportW) // verifiedFD, reportFD
		}
		err = p.run()
	}
	if err != nil {
		for _, f := range opened {
			f.Close()
		}
		return err
	}
	stdoutW.Close()
	stderrW.Close()
	lifelineR.Close()
	reportW.Close()
	p.stdout, p.stderr, p.lifeline = stdoutR, stderrR, lifelineW
	go p.await()
	return nil
}

func (p *process) run() error {
	if p.command.Checksum != nil {
		program, err := verified(p.command.Path, p.command.Checksum)
		if err != nil {
			return err
		}
		defer program.Close()
		p.cmd.ExtraFiles[verifiedFD-lifelineFD] = program
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return context.Canceled
	}
	closeInherited()
	if err := p.command.Sandbox.shedPrivileges(); err != nil {
		return err
	}
	return p.startChild()
}

// closeInherited keeps programs from descriptors that this process has inherited
// itself: of a shell, or of a service manager. Its own ones are closed in them.
func closeInherited() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// await waits for the end of the process, and ends what it leaves behind.
func (p *process) await() {
	// As long as it is a zombie, the number of its group stays its own.
	for unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	p.mu.Lock()
	p.killAll()
	p.err = p.cmd.Wait()
	p.reaped = true
	p.mu.Unlock()
	p.forgetChild()
	p.endStrays()
	p.lifeline.Close()
	// Somebody who left the group may hold the other ends for ever.
	end := time.Now().Add(time.Second)
	p.stdout.SetReadDeadline(end)
	p.stderr.SetReadDeadline(end)
	if p.report != nil {
		p.report.SetReadDeadline(end)
		p.reason = readReport(p.report)
		p.report.Close()
	}
	close(p.exited)
}

// kill kills the process and all that is in its group.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.killed
	p.killed = true
	if p.pid == 0 || p.reaped {
		return
	}
	p.killAll()
	if first {
		go p.untrace()
	}
}

// untrace ends what keeps the end of the process from us by tracing it.
func (p *process) untrace() {
	for {
		select {
		case <-p.exited:
			return
		case <-time.After(10 * time.Millisecond):
			p.killStrays(map[int]bool{})
		}
	}
}

// killAll kills the process, which may have gone over to another group, and the
// group. The caller holds p.mu.
func (p *process) killAll() {
	syscall.Kill(p.pid, syscall.SIGKILL)
	syscall.Kill(-p.pid, syscall.SIGKILL)
}

// how says how the process ended: "exit status 1", "signal: killed".
func (p *process) how() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// Wait is called when Stdout and Stderr have been read.
func (p *process) Wait(context.Context) error {
	<-p.exited
	p.stdout.Close()
	p.stderr.Close()
	return p.err
}

func (p *process) Kill(context.Context) error {
	p.kill()
	return nil
}

func (p *process) Stdout() io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{&handshakeReader{r: bufio.NewReaderSize(p.stdout, maxLine), rest: p.output, found: &p.shook}, p.stdout}
}

// shookHands reports whether the program has written a handshake.
func (p *process) shookHands() bool { return p.shook.Load() }

func (p *process) Stderr() io.ReadCloser           { return p.stderr }
func (p *process) Name() string                    { return p.cmd.Path }
func (p *process) Diagnose(context.Context) string { return "" }

// ID is empty if the process was not started: go-plugin has nothing to kill
// then.
func (p *process) ID() string {
	if p.pid == 0 {
		return ""
	}
	return strconv.Itoa(p.pid)
}

// PluginToHost lets go-plugin connect to unix sockets only.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" {
		return "", "", fmt.Errorf("the plugin listens on %q, not on a unix socket", network)
	}
	p.address = address
	return network, address, nil
}

func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// handshakeLine is how the line with go-plugin's handshake begins.
var handshakeLine = regexp.MustCompile(`^\d+\|\d+\|`)

// A handshakeReader reads the handshake and nothing else. What comes before it,
// from a library that greets, say, and after it goes to rest.
type handshakeReader struct {
	r     *bufio.Reader
	rest  io.Writer
	found *atomic.Bool
	seen  int // octets before the handshake
}

// mostBefore is how much a program may write before its handshake.
const mostBefore = 1 << 20

func (h *handshakeReader) Read(p []byte) (int, error) {
	inLine := false
	for {
		part, err := h.r.ReadSlice('\n')
		if !inLine && !h.found.Load() && handshakeLine.Match(part) && len(part) <= len(p) {
			h.found.Store(true)
			return copy(p, part), err
		}
		h.rest.Write(part)
		if h.seen += len(part); h.seen > mostBefore && !h.found.Load() {
			return 0, errors.New("too much before the handshake")
		}
		if inLine = err == bufio.ErrBufferFull; err != nil && !inLine {
			return 0, err
		}
	}
}
