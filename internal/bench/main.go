// Bench measures what mailgw costs beside its peers: messages a second, CPU
// time of each message, latency and memory.
//
// All servers get the same load of the same client, which shares the cores with
// them, in turns, so that a machine whose speed drifts favours none. A reply that
// is not the expected one ends it.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	b := &bench{out: os.Stdout, results: results{}, absent: map[string]error{}}
	var only string
	flag.StringVar(&b.root, "root", ".", "the `directory` of mailgw's sources")
	flag.StringVar(&b.mailgw, "mailgw", "", "the mailgw to measure, a `path`; by default it is built from the sources")
	flag.StringVar(&only, "goals", "", "the `numbers` of the goals to measure, 1,2 say; by default all")
	flag.Func("servers", "the `names` of the servers to measure, with commas between them; by default all", func(list string) (err error) {
		b.only, err = parseServers(list)
		return err
	})
	flag.IntVar(&b.rounds, "rounds", 5, "the `number` of rounds of a scenario; each server is measured once in each")
	flag.DurationVar(&b.duration, "duration", time.Second, "the `time` for which a server is measured in a round")
	flag.StringVar(&b.profiles, "profiles", "", "the `directory` to write CPU profiles of mailgw and its plugins to, which is made if it is missing; taking them costs time, too")
	flag.Parse()
	numbers, err := parseGoals(only)
	if b.rounds < 1 {
		err = errors.New("-rounds: want 1 or more")
	}
	if err == nil {
		err = b.run(numbers)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parseServers returns the servers of a list as kinds has them. Upper and lower
// case are the same.
func parseServers(list string) (servers []string, err error) {
	known := slices.Sorted(maps.Keys(kinds))
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, strings.TrimSpace(name)) })
		if i < 0 {
			return nil, fmt.Errorf("no server %q: want %q", name, known)
		}
		servers = append(servers, known[i])
	}
	return servers, nil
}

func parseGoals(list string) (numbers []int, err error) {
	for number := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.Atoi(number)
		if _, exists := goals[n]; err != nil || !exists {
			return nil, fmt.Errorf("no goal %q: want 1 to %d", number, len(goals))
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// A bench measures.
type bench struct {
	root, mailgw string
	only         []string // servers; all if there are none
	rounds       int
	duration     time.Duration
	profiles     string // directory, if profiles are wanted
	out          io.Writer

	dir      string
	programs programs
	results  results
	absent   map[string]error // servers that could not be started
}

// run measures for the goals with these numbers, or all.
func (b *bench) run(numbers []int) (err error) {
	if b.profiles != "" {
		if err := os.MkdirAll(b.profiles, 0o777); err != nil {
			return err
		}
	}
	// On a disk, where /tmp may be in memory.
	if b.dir, err = newDirectory("/var/tmp", "mailgw-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	b.removeAtSignal()
	if b.programs, err = findPrograms(b.root, b.dir, b.mailgw); err != nil {
		return err
	}
	if err := openMany(); err != nil {
		return err
	}
	b.introduce()
	if len(numbers) == 0 {
		numbers = slices.Collect(maps.Keys(goals))
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	for _, number := range numbers {
		for _, s := range goals[number].scenarios {
			if b.results[s] != nil {
				continue // of an earlier goal
			}
			if err := b.scenario(s); err != nil {
				return fmt.Errorf("%s: %w", s.title, err)
			}
		}
	}
	printVerdicts(b.out, numbers, b.results)
	return nil
}

// removeAtSignal has the directory go, too, if a signal ends the program. The
// servers end by themselves then.
func (b *bench) removeAtSignal() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		os.RemoveAll(b.dir)
		os.Exit(1)
	}()
}

// openMany lets this process and those that it starts have as many files and
// sockets as the system allows. Go does the former, but not the latter.
func openMany() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

// introduce says on what machine, and how, is measured.
func (b *bench) introduce() {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	processor, _ := os.ReadFile("/proc/cpuinfo")
	_, model, _ := strings.Cut(string(processor), "model name\t: ")
	model, _, _ = strings.Cut(model, "\n")
	rounds := "1 round"
	if b.rounds != 1 {
		rounds = fmt.Sprintf("%d rounds", b.rounds)
	}
	fmt.Fprintf(b.out, "%d cores of %s, Linux %s, %s; %s of %v.\n%s",
		runtime.NumCPU(), cmp.Or(model, runtime.GOARCH), strings.TrimSpace(string(kernel)), runtime.Version(), rounds, b.duration, legend)
}

const legend = `Where nothing else is said: LMTP on a unix socket (Postfix: SMTP over TCP), 20 sessions on
connections that are kept, one recipient. Median (least-most) of the rounds. CPU is that of
the server and of what is behind it, plugins or an smtp-sink, for each message. A column with
an x has mailgw's figure divided by that of the row.
`
