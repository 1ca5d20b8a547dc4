package plugins

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailgw/mailgw/backends"
)

// What does the border cost, in CPU time of gateway and plugin together? The
// plugin reads the message and answers for each recipient, over the lane and over
// gRPC.
func BenchmarkDeliver(b *testing.B) {
	for _, size := range []struct {
		name          string
		n, recipients int
	}{{"4KiB", 4 << 10, 1}, {"50recipients", 4 << 10, 50}, {"64KiB", 64 << 10, 1}, {"1MiB", 1 << 20, 1}, {"25MiB", 25 << 20, 1}} {
		text := strings.Repeat("x", size.n)
		to := slices.Repeat([]string{"ann@example.org"}, size.recipients)
		b.Run(size.name+"/lane", func(b *testing.B) { benchmarkDeliver(b, text, to, func(*Command) {}) })
		b.Run(size.name+"/gRPC", func(b *testing.B) { benchmarkDeliver(b, text, to, overGRPC) })
	}
}

func benchmarkDeliver(b *testing.B, text string, to []string, change func(*Command)) {
	log := newGatewayLog()
	c := command(b, "drain", log)
	change(&c)
	h := runCommand(b, c, defaultTimes)
	pid := log.pid(b, 1)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	b.SetParallelism(10) // times GOMAXPROCS transactions at the same time
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	before := cpuTime(b) + cpuTimeOf(b, pid)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			tx := message(text, to...)
			undecided, err := backends.Run(ctx, h, tx, backends.Hooks{})
			if err != nil || len(undecided) > 0 {
				b.Fatal(err)
			}
		}
	})
	b.StopTimer()
	used := cpuTime(b) + cpuTimeOf(b, pid) - before
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/op")
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

// What does a transaction of the lane cost in the plugin's own process? The gateway
// is no more than a socket here, and allocates nothing.
func BenchmarkLaneServe(b *testing.B) {
	for _, recipients := range []int{1, 50} {
		b.Run(strconv.Itoa(recipients)+"recipients", func(b *testing.B) {
			gateway, plugin := socketPair(b)
			serveLane(b, testBackends["drain"], gateway, plugin)
			body := strings.Repeat("x", 4<<10)
			tx := message(body, slices.Repeat([]string{"ann@example.org"}, recipients)...)
			frame := append(appendTransaction(make([]byte, laneHeader), tx), body...)
			length := uint32(len(frame) - laneHeader - len(body))
			answer := make([]byte, smallBuffer)
			b.ReportAllocs()
			for number := uint32(1); b.Loop(); number++ {
				laneFrame{laneTransaction, number, length, 60_000}.appendTo(frame[:0])
				if _, err := gateway.Write(frame); err != nil {
					b.Fatal(err)
				}
				for end := []byte(nil); !bytes.HasSuffix(end, nothing); {
					n, err := gateway.Read(answer)
					if err != nil {
						b.Fatal(err)
					}
					end = answer[:n]
				}
			}
		})
	}
}
