package nowait

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// What does not go at once is left to the caller, and nothing is lost or sent twice.
func TestOnlyWhatGoesAtOnce(t *testing.T) {
	for _, test := range []struct {
		name  string
		write func(fd uintptr, p []byte) (n int, rest []byte, err error)
	}{
		{"Write", func(fd uintptr, p []byte) (int, []byte, error) {
			n, err := Write(fd, p)
			return n, p[n:], err
		}},
		{"Writev", func(fd uintptr, p []byte) (int, []byte, error) {
			parts := [2][]byte{p[:len(p)/3], p[len(p)/3:]}
			n, err := Writev(fd, &parts)
			return n, bytes.Join(parts[:], nil), err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			from, to := uintptr(pair[0]), uintptr(pair[1])
			defer unix.Close(pair[1])
			buf := make([]byte, 32<<10)
			if n, err := Read(to, buf); n != 0 || err != unix.EAGAIN {
				t.Errorf("nothing to read: got %d and %v", n, err)
			}
			want := bytes.Repeat([]byte("0123456789"), 200<<10)
			var got []byte
			for left := want; len(left) > 0; {
				n, rest, err := test.write(from, left)
				switch {
				case err == unix.EAGAIN && n == 0 && len(rest) == len(left):
					n, err := Read(to, buf)
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, buf[:n]...)
				case err != nil || n != len(left)-len(rest):
					t.Fatalf("%d of %d were written, %d left, and %v", n, len(left), len(rest), err)
				}
				left = rest
			}
			unix.Close(pair[0])
			for n := -1; n != 0; got = append(got, buf[:n]...) {
				if n, err = Read(to, buf); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got %d octets, want %d, or others", len(got), len(want))
			}
			if _, err := Write(to, want[:1]); err != unix.EPIPE {
				t.Errorf("nobody reads: got %v", err)
			}
		})
	}
}
