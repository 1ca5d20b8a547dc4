package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing/iotest"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// told is closed when the recipient that waits is to get its status.
var told = make(chan struct{})

// testBackends are the backends that run behind Serve in the tests.
var testBackends = map[string]backends.Func{
	// Each recipient gets the status that its address names.
	"answers": func(_ context.Context, tx *backends.DataContext) error {
		for i, r := range tx.Envelope.Recipients {
			switch r.Address {
			case "delivered":
				tx.SetStatus(i, backends.Delivered)
			case "nobody":
				tx.SetStatus(i, backends.NoSuchUser)
			case "latin1":
				tx.SetStatus(i, backends.NewStatus(450, "4.2.0", "na\xefve"))
			}
		}
		return nil
	},

	// The first recipient is answered, and the plugin waits for its end.
	"hangs": func(ctx context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.Delivered)
		<-ctx.Done()
		return ctx.Err()
	},

	"silent": func(ctx context.Context, _ *backends.DataContext) error {
		<-ctx.Done()
		return ctx.Err()
	},

	"waits for its end": func(ctx context.Context, _ *backends.DataContext) error {
		slog.Info("waits")
		<-ctx.Done()
		slog.Info(ctx.Err().Error())
		return ctx.Err()
	},

	// It computes, without a call of the system, until nobody waits any more.
	"computes": func(ctx context.Context, tx *backends.DataContext) error {
		for tx.Envelope.Recipients[0].Address == "long" && ctx.Err() == nil {
		}
		tx.SetAll(backends.Delivered)
		return nil
	},

	// The status tells what has come over the border.
	"echo": func(_ context.Context, tx *backends.DataContext) error {
		body, err := io.ReadAll(tx.Body)
		if err != nil {
			return err
		}
		tx.SetStatus(0, backends.NewStatus(250, "2.0.0", fmt.Sprintf("%d %x", len(body), hash(body))))
		return nil
	},

	"drain": func(_ context.Context, tx *backends.DataContext) error {
		if _, err := io.Copy(io.Discard, tx.Body); err != nil {
			return err
		}
		tx.SetAll(backends.Delivered)
		return nil
	},

	// It never reads the message.
	"discard": func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.Delivered)
		return nil
	},

	"edits": func(_ context.Context, tx *backends.DataContext) error {
		return errors.Join(
			tx.SetSender("new@example.org"),
			tx.SetSenderParams(backends.Params{"RET=HDRS", "ENVID=new"}),
			tx.AddField(0, "X-First: one"),
			tx.ReplaceField(2, "Subject: gr\xfc\xdfe,\r\n folded"),
			tx.RemoveField(3),
			tx.Redirect(1, "a@example.org", "b@example.org"),
			tx.AddRecipient(backends.Recipient{Address: "archive@example.org", Params: backends.Params{"NOTIFY=NEVER"}}),
			tx.Divert(0, "quarantine"))
	},

	"large edits": func(_ context.Context, tx *backends.DataContext) error {
		if tx.Envelope.Recipients[0].Address == "parts" {
			for i := range 5000 {
				if err := tx.RemoveField(i); err != nil {
					return err
				}
			}
			return nil
		}
		return tx.AddField(0, "X: "+strings.Repeat("y\r\n ", maxMessage/4)+"y")
	},

	// They are more than a socket holds.
	"many edits": func(_ context.Context, tx *backends.DataContext) error {
		for range 50 {
			if err := tx.AddField(0, "X:"+strings.Repeat("\r\n "+strings.Repeat("y", 900), 5)); err != nil {
				return err
			}
		}
		return nil
	},

	"replaces": replaceMessage,
	"pours":    pour,

	// It closes its sockets and lives on.
	"deaf": func(_ context.Context, tx *backends.DataContext) error {
		tx.SetAll(backends.Delivered)
		if tx.Envelope.Recipients[0].Address != "closes" {
			return nil
		}
		for fd := range 200 {
			if to, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd)); strings.HasPrefix(to, "socket:") {
				syscall.Shutdown(fd, syscall.SHUT_RDWR)
			}
		}
		select {}
	},

	"set, then exit": func(_ context.Context, tx *backends.DataContext) error {
		if tx.Envelope.Recipients[0].Address == "late" {
			tx.StartDelivery(context.Background(), 0)
			go func() {
				tx.SetStatus(0, backends.Delivered)
				os.Exit(3)
			}()
			return nil
		}
		tx.SetStatus(0, backends.Delivered)
		os.Exit(3)
		return nil
	},

	"fails":  func(context.Context, *backends.DataContext) error { return errors.New("disk on fire at /secret") },
	"panics": func(context.Context, *backends.DataContext) error { panic("a bug") },
	"refuses": func(context.Context, *backends.DataContext) error {
		return fmt.Errorf("wrapped: %w", backends.NoSuchUser)
	},

	// Recipients are delivered beyond the return, as they say.
	"late": func(_ context.Context, tx *backends.DataContext) error {
		tx.SetSMTPResponse(backends.NewStatus(250, "2.0.0", "taken"))
		for i, r := range tx.Envelope.Recipients {
			if r.Address == "undecided" {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			tx.StartDelivery(ctx, i)
			go func() {
				defer cancel()
				switch r.Address {
				case "reads":
					n, err := io.Copy(io.Discard, tx.Body)
					tx.SetStatus(i, backends.NewStatus(250, "2.0.0", fmt.Sprint(n, err)))
				case "crash":
					io.Copy(io.Discard, tx.Body)
					os.Exit(3)
				case "done":
					tx.SetStatus(i, backends.Delivered)
				case "waits":
					go io.Copy(io.Discard, tx.Body) // nobody waits for it
					<-told
					tx.SetStatus(i, backends.Delivered)
					slog.Info("told") // once the status is in the socket
				case "tells":
					close(told)
					tx.SetStatus(i, backends.Delivered)
				case "panic":
					panic("a bug elsewhere")
				case "never":
					<-ctx.Done()
				}
			}()
		}
		return nil
	},

	// It goes on when there is nothing to be told any more.
	"talks on": func(_ context.Context, tx *backends.DataContext) error {
		tx.StartDelivery(context.Background(), 0)
		go func() {
			tx.SetStatus(0, backends.Delivered)
			for range 3 {
				tx.SetSMTPResponse(backends.Delivered)
			}
		}()
		return nil
	},

	// It reads when nobody wants to know any more.
	"reads on": func(_ context.Context, tx *backends.DataContext) error {
		tx.StartDelivery(context.Background(), 0)
		began := make(chan struct{})
		go func() {
			io.CopyN(io.Discard, tx.Body, laneFirst)
			close(began)
			io.Copy(io.Discard, tx.Body)
		}()
		go func() {
			<-began
			tx.SetStatus(0, backends.Delivered)
		}()
		return nil
	},

	// It tells that it reads, octet by octet, and has no end in mind.
	"reads for ever": func(_ context.Context, tx *backends.DataContext) error {
		tx.StartDelivery(context.Background(), 0)
		go func() {
			for n, octet := 0, make([]byte, 1); ; n++ {
				if _, err := tx.Body.Read(octet); err != nil {
					return
				}
				if n == 100 {
					tx.SetSMTPResponse(backends.Delivered)
				}
			}
		}()
		return nil
	},

	"logs": func(ctx context.Context, tx *backends.DataContext) error {
		slog.InfoContext(ctx, "stored", "path", "/var/mail", "event", "forged")
		slog.Default().WithGroup("g").DebugContext(ctx, "grouped", "k", 1)
		fmt.Fprintln(os.Stdout, "to stdout")
		fmt.Fprintln(os.Stderr, "to stderr\x1b[31m")
		tx.SetAll(backends.Delivered)
		return nil
	},

	// Other goroutines set the statuses, and are not waited for.
	"races": func(ctx context.Context, tx *backends.DataContext) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		for i := range tx.Envelope.Recipients {
			go tx.SetStatus(i, backends.Delivered)
		}
		for i := range tx.Envelope.Recipients {
			for tx.Status(i).IsZero() && ctx.Err() == nil {
				runtime.Gosched()
			}
		}
		return nil
	},

	"twice": func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.Delivered)
		tx.SetStatus(0, backends.NoSuchUser)
		return nil
	},

	// The status is the deadline.
	"deadline": func(ctx context.Context, tx *backends.DataContext) error {
		deadline, _ := ctx.Deadline()
		tx.SetStatus(0, backends.NewStatus(250, "2.0.0", fmt.Sprint(time.Until(deadline).Round(time.Minute))))
		return nil
	},

	"garbage": func(_ context.Context, tx *backends.DataContext) error {
		writeGarbage(os.Stdout, "stdout")
		writeGarbage(os.Stderr, "stderr")
		tx.SetAll(backends.Delivered)
		return nil
	},

	// It starts a process that does not end, and tells its pid.
	"parent": func(_ context.Context, tx *backends.DataContext) error {
		child := exec.Command("/bin/sleep", "600")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if tx.Envelope.Recipients[0].Address == "hides" {
			child.Env, child.SysProcAttr = []string{}, &syscall.SysProcAttr{Setsid: true}
		}
		if err := child.Start(); err != nil {
			return err
		}
		tx.SetStatus(0, backends.NewStatus(250, "2.0.0", strconv.Itoa(child.Process.Pid)))
		if len(tx.Envelope.Recipients) > 1 {
			os.Exit(3)
		}
		return nil
	},

	"inside": act,
	"leaks":  leak,

	"environment": func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(0, backends.NewStatus(250, "2.0.0", strings.Join(os.Environ(), "\n")))
		return nil
	},
}

// replaceMessage does what the first recipient says.
func replaceMessage(_ context.Context, tx *backends.DataContext) error {
	broken := io.MultiReader(strings.NewReader(long), iotest.ErrReader(io.ErrUnexpectedEOF))
	switch tx.Envelope.Recipients[0].Address {
	case "while reading":
		return tx.ReplaceMessage(io.MultiReader(strings.NewReader("new "), tx.Body))
	case "empty":
		return tx.ReplaceMessage(strings.NewReader(""))
	case "twice":
		return errors.Join(tx.ReplaceMessage(strings.NewReader(long)), tx.ReplaceMessage(strings.NewReader("second")))
	case "broken":
		tx.ReplaceMessage(broken)
	case "broken, then whole":
		tx.ReplaceMessage(broken)
		return tx.ReplaceMessage(strings.NewReader("second"))
	case "whole, then broken":
		tx.ReplaceMessage(strings.NewReader("first"))
		tx.ReplaceMessage(broken)
	case "broken, then an error":
		return tx.ReplaceMessage(broken)
	}
	return nil
}
