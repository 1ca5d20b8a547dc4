// Bench measures what the gateway costs: messages a second and CPU time per
// message, over LMTP on a unix socket and through one plugin (discard),
// beside Postfix's smtp-sink, which throws messages away at once. Both serve
// the same client, Postfix's smtp-source, in turns, so that a machine whose
// speed drifts favours neither.
//
// It wants the path of a mailgw binary and Postfix's smtp-source and smtp-sink.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailgw/mailgw/internal/peers"
)

// A load is what the client sends in one round.
type load struct {
	name     string
	size     int // octets of a message
	messages int
}

var loads = []load{
	{"4 KiB", 4 << 10, 20_000},
	{"1 MiB", 1 << 20, 400},
}

const sessions = 20

func main() {
	mailgw := flag.String("mailgw", "bin/mailgw", "the `program` to measure")
	rounds := flag.Int("rounds", 5, "how often each load is sent to each server")
	flag.Parse()
	if err := run(*mailgw, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(mailgw string, rounds int) error {
	postfix, err := peers.FindPostfix(".")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mailgw-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	gateway, err := startGateway(dir, mailgw)
	if err != nil {
		return err
	}
	defer gateway.stop()
	sink, err := startSink(dir, postfix)
	if err != nil {
		return err
	}
	defer sink.stop()

	fmt.Printf("LMTP on a unix socket, %d sessions, connections kept; median of %d rounds (least to most)\n\n", sessions, rounds)
	fmt.Printf("%-8s %-10s %-28s %-28s\n", "message", "server", "messages/s", "CPU us/message")
	for _, l := range loads {
		if err := compare(postfix, l, rounds, gateway, sink); err != nil {
			return err
		}
	}
	return nil
}

// compare sends l to both servers in turns, once without counting, and
// prints a row for each and their ratio.
func compare(postfix peers.Postfix, l load, rounds int, gateway, sink *server) error {
	var rates, cpus [2][]float64
	for round := range rounds + 1 {
		for i, s := range []*server{gateway, sink} {
			rate, cpu, err := s.measure(postfix, l)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", s.name, l.name, err)
			}
			if round > 0 {
				rates[i] = append(rates[i], rate)
				cpus[i] = append(cpus[i], cpu)
			}
		}
	}
	row := func(name string, rates []float64, format string, cpus []float64, cpuFormat string) {
		fmt.Printf("%-8s %-10s %-28s %-28s\n", l.name, name, spread(format, rates), spread(cpuFormat, cpus))
	}
	row(gateway.name, rates[0], "%.0f", cpus[0], "%.1f")
	row(sink.name, rates[1], "%.0f", cpus[1], "%.1f")
	row("ratio", ratios(rates), "%.2f", ratios(cpus), "%.2f")
	fmt.Println()
	return nil
}

// ratios returns the ratio of the first server to the second, round by round.
func ratios(values [2][]float64) []float64 {
	r := make([]float64, len(values[0]))
	for i := range r {
		r[i] = values[0][i] / values[1][i]
	}
	return r
}

func spread(format string, values []float64) string {
	values = slices.Sorted(slices.Values(values))
	f := func(v float64) string { return fmt.Sprintf(format, v) }
	return fmt.Sprintf("%s (%s to %s)", f(values[len(values)/2]), f(values[0]), f(values[len(values)-1]))
}

// A server is a process that takes mail.
type server struct {
	name   string
	socket string
	cmd    *exec.Cmd
	log    *os.File
}

func startGateway(dir, mailgw string) (*server, error) {
	config := filepath.Join(dir, "gateway.toml")
	text := `hostname = "localhost"
spool.directory = "` + dir + `"
[[listener]]
name = "lmtp"
address = "unix:gateway.sock"
protocol = "lmtp"
[listener.routes]
"*" = ["discard"]
[backend.discard]
plugin = "discard"
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(mailgw)
	if err != nil {
		return nil, err
	}
	return start(dir, "mailgw", "gateway.sock", exec.Command(path, "serve", "--config", config))
}

func startSink(dir string, postfix peers.Postfix) (*server, error) {
	args := []string{"-L", "unix:sink.sock", "1000"}
	if os.Getuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...) // it insists
	}
	return start(dir, "smtp-sink", "sink.sock", postfix.Command(context.Background(), "smtp-sink", args...))
}

func start(dir, name, socket string, cmd *exec.Cmd) (*server, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	s := &server{name: name, socket: filepath.Join(dir, socket), cmd: cmd, log: log}
	s.cmd.Dir = dir
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := s.wait(); err != nil {
		s.stop()
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%s: %w\n%s", name, err, text)
	}
	return s, nil
}

// wait returns once the server answers.
func (s *server) wait() error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *server) stop() {
	s.cmd.Process.Signal(os.Interrupt)
	kill := time.AfterFunc(20*time.Second, func() { s.cmd.Process.Kill() })
	defer kill.Stop()
	s.cmd.Wait()
	s.log.Close()
}

// measure sends l once. cpu is what the server and its plugins spent, in
// microseconds for each message.
func (s *server) measure(postfix peers.Postfix, l load) (rate, cpu float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	before, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return 0, 0, err
	}
	client := postfix.Command(ctx, "smtp-source", "-L", "-d",
		"-s", strconv.Itoa(sessions), "-m", strconv.Itoa(l.messages), "-l", strconv.Itoa(l.size), "unix:"+s.socket)
	began := time.Now()
	out, err := client.CombinedOutput()
	took := time.Since(began)
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		return 0, 0, fmt.Errorf("smtp-source: %v: %s", err, out)
	}
	after, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return 0, 0, err
	}
	n := float64(l.messages)
	return n / took.Seconds(), float64((after - before).Microseconds()) / n, nil
}

// cpuTime returns the CPU time of a process and its children so far.
func cpuTime(pid int) (time.Duration, error) {
	const tick = time.Second / 100 // USER_HZ
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest) // from field 3 on, see proc(5)
	var total time.Duration
	for _, i := range []int{14, 15} { // utime, stime
		ticks, err := strconv.ParseInt(fields[i-3], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ticks) * tick
	}
	// Each thread lists the children that it started.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for child := range strings.FieldsSeq(string(children)) {
			id, err := strconv.Atoi(child)
			if err != nil {
				return 0, err
			}
			t, err := cpuTime(id)
			if err != nil {
				return 0, err
			}
			total += t
		}
	}
	return total, nil
}
