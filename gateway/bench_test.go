package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// What does a message cost from the socket to the answer, without the border
// to a plugin?
func BenchmarkLMTP(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			all := map[string]backends.Backend{"read": backends.Func(func(_ context.Context, tx *backends.DataContext) error {
				_, err := io.Copy(io.Discard, tx.Body)
				tx.SetAll(backends.Delivered)
				return err
			})}
			s := testServer(b, all, "protocol = 'lmtp'\naddress = 'unix:"+filepath.Join(b.TempDir(), "socket")+"'\n[listener.routes]\n'*' = ['read']\n")
			c := dialServer(b, s)
			c.hear(b)
			c.ask(b, "LHLO x")
			w := bufio.NewWriterSize(c, 64<<10)
			message := strings.Repeat(strings.Repeat("x", 62)+"\r\n", size/64)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				w.WriteString("MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n")
				w.WriteString(message)
				w.WriteString(".\r\n")
				w.Flush()
				for range 4 {
					c.hear(b)
				}
			}
		})
	}
}
