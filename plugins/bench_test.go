package plugins

import (
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// How much does the border cost? Plugin "drain" reads the message.
func BenchmarkDeliver(b *testing.B) {
	for _, size := range []struct {
		name string
		n    int
	}{{"4KiB", 4 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		b.Run(size.name, func(b *testing.B) {
			h, _ := run(b, "drain")
			text := strings.Repeat("x", size.n)
			b.SetBytes(int64(size.n))
			b.SetParallelism(10) // times GOMAXPROCS
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					tx := message(text, "one")
					undecided, err := backends.Run(b.Context(), h, tx, backends.Hooks{})
					if err != nil || len(undecided) > 0 {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
