package exec

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/backends"
)

const (
	maxStdout = 64 << 10
	maxStderr = 4 << 10

	// outputDelay is how long a process may hold the output of a program that
	// has ended. It has left the process group, or it would be dead.
	outputDelay = time.Second
)

// A process is one run of the program.
type process struct {
	cmd            *osexec.Cmd
	stdin          io.WriteCloser
	message        io.Reader
	lf             bool // lines of the message end in LF
	stdout, stderr output
	state          *os.ProcessState // after wait
	held           bool             // somebody else may have printed more
}

// start starts the program for a transaction. wait is to be called then.
func (b *backend) start(tx *backends.DataContext) (*process, error) {
	p := &process{message: tx.Body, lf: b.LineEnds == "lf", stdout: output{most: maxStdout}, stderr: output{most: maxStderr, last: true}}
	p.cmd = osexec.Command(b.Command[0], b.Command[1:]...)
	p.cmd.Env = b.environment(tx)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.WaitDelay = outputDelay
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true,
		// It does not outlive us by much. The signal comes when the thread ends
		// that started it, which is when the whole process does.
		Pdeathsig: syscall.SIGKILL,
	}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return p, p.cmd.Start()
}

// wait lets the program have the message, and waits until it ends. If ctx ends
// before, or the message cannot be read, it is killed, which is an error. In the
// end nothing is left of its process group, and nobody reads the message any
// more.
func (p *process) wait(ctx context.Context) error {
	fed, unreadable := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(fed)
		if err := p.feed(); err != nil {
			unreadable <- err
		}
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.awaitEnd()
	}()

	var broken error
	select {
	case <-ended:
		broken = ctx.Err() // nobody believes the answer any more
	case <-ctx.Done():
		broken = ctx.Err()
	case broken = <-unreadable:
	}
	// Until it is waited for, its number is not given to another one.
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	p.cmd.Process.Kill() // it may have left its group
	<-ended
	p.stdin.Close() // not before, or it would see an end of the message
	<-fed
	err := p.cmd.Wait()
	p.state = p.cmd.ProcessState
	if _, ok := err.(*osexec.ExitError); ok {
		err = nil // the state tells
	} else if err == osexec.ErrWaitDelay {
		p.held, err = true, nil
	}
	return cmp.Or(broken, err)
}

// awaitEnd waits for the end of the program, and leaves it to Wait to tell of
// it.
func (p *process) awaitEnd() {
	for {
		if err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

// feed writes the message to the program, until it wants no more of it. It
// closes its standard input at the end of the message, and only then.
func (p *process) feed() error {
	w := p.stdin
	if p.lf {
		w = &lineFeeds{w: w}
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := p.message.Read(buf)
		if _, err := w.Write(buf[:n]); err != nil {
			return nil
		}
		if err == io.EOF {
			w.Close()
			return nil
		}
		if err != nil {
			return fmt.Errorf("read message: %w", err)
		}
	}
}

// lineFeeds writes LF for each CRLF.
type lineFeeds struct {
	w  io.WriteCloser
	cr bool // held back until it is known what follows
}

func (l *lineFeeds) Write(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	text := p
	if l.cr {
		text = append([]byte{'\r'}, p...)
	}
	text, l.cr = bytes.CutSuffix(text, []byte{'\r'})
	_, err = l.w.Write(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
	return len(p), err
}

func (l *lineFeeds) Close() error {
	if l.cr {
		l.w.Write([]byte{'\r'})
	}
	return l.w.Close()
}

// An output keeps the first octets of what a program prints, or the last ones.
type output struct {
	most int
	last bool
	kept []byte
	size int // of all
}

func (o *output) Write(p []byte) (n int, err error) {
	o.size += len(p)
	o.kept = append(o.kept, p...)
	if more := len(o.kept) - o.most; more > 0 && o.last {
		o.kept = slices.Delete(o.kept, 0, more)
	} else if more > 0 {
		o.kept = o.kept[:o.most]
	}
	return len(p), nil
}

// cut reports whether something was not kept.
func (o *output) cut() bool { return o.size > len(o.kept) }

func (o *output) String() string { return string(o.kept) }
