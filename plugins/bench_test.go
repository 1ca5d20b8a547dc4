package plugins

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// What does the border cost, in CPU time of gateway and plugin together? The
// plugin reads the message and answers for one recipient.
func BenchmarkDeliver(b *testing.B) {
	for _, size := range []struct {
		name string
		n    int
	}{{"4KiB", 4 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		b.Run(size.name, func(b *testing.B) {
			h, log := run(b, "drain")
			pid := log.pid(b, 1)
			text := strings.Repeat("x", size.n)
			b.SetBytes(int64(size.n))
			b.ReportAllocs()
			b.SetParallelism(10) // times GOMAXPROCS transactions at the same time
			before := cpuTime(b) + cpuTimeOf(b, pid)
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					tx := message(text, "one")
					undecided, err := backends.Run(b.Context(), h, tx, backends.Hooks{})
					if err != nil || len(undecided) > 0 {
						b.Fatal(err)
					}
				}
			})
			b.StopTimer()
			used := cpuTime(b) + cpuTimeOf(b, pid) - before
			b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func cpuTimeOf(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	// The fields utime and stime, counted from the end of the name.
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	var sum time.Duration
	for _, ticks := range fields[11:13] {
		n, err := strconv.Atoi(ticks)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}
