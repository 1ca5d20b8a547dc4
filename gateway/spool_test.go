package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
)

func randomBytes(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size)})
	r.Read(b)
	return b
}

// Every size around the borders of chunks and threshold comes back as it
// went in, read whole and in odd pieces.
func TestSpoolKeepsEveryByte(t *testing.T) {
	for _, threshold := range []settings.Size{0, chunkSize, 3 * chunkSize} {
		for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize - 1, 3 * chunkSize, 3*chunkSize + 1, 200_001} {
			want := randomBytes(size)
			s := newSpool(SpoolConfig{Directory: t.TempDir(), Memory: 1 << 20, Threshold: threshold})
			m, err := s.store(iotest.HalfReader(bytes.NewReader(want)), 0)
			if err != nil {
				t.Fatal(err)
			}
			if inFile := m.file != nil; inFile != (settings.Size(size) >= threshold) {
				t.Errorf("threshold %d, size %d: in a file: %v", threshold, size, inFile)
			}
			if err := iotest.TestReader(io.NewSectionReader(m, 0, m.Size()), want); err != nil {
				t.Errorf("threshold %d, size %d: %v", threshold, size, err)
			}
			m.Close()
			if free := s.free.Load(); free != 1<<20 {
				t.Errorf("threshold %d, size %d: %d octets of the budget are lost", threshold, size, 1<<20-free)
			}
		}
	}
}

// The temporary file has no name, so nothing is left of it whatever happens.
func TestSpoolFileHasNoName(t *testing.T) {
	dir := t.TempDir()
	s := newSpool(SpoolConfig{Directory: dir})
	m, err := s.store(bytes.NewReader(randomBytes(100_000)), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if entries, err := os.ReadDir(dir); len(entries) > 0 || err != nil {
		t.Errorf("the directory has %v, %v", entries, err)
	}
}

func TestSpoolLimitIsExact(t *testing.T) {
	for _, threshold := range []settings.Size{0, 1 << 20} {
		s := newSpool(SpoolConfig{Directory: t.TempDir(), Memory: 1 << 20, Threshold: threshold})
		for size, want := range map[int]error{99_999: nil, 100_000: nil, 100_001: errTooLarge, 300_000: errTooLarge} {
			m, err := s.store(bytes.NewReader(randomBytes(size)), 100_000)
			if err != want {
				t.Errorf("size %d: got %v, want %v", size, err, want)
			}
			if m != nil {
				m.Close()
			}
		}
		if free := s.free.Load(); free != 1<<20 {
			t.Errorf("%d octets of the budget are lost", 1<<20-free)
		}
	}
}

// Many messages at once never hold more memory than the budget.
func TestSpoolBudgetHoldsUnderAnyNumber(t *testing.T) {
	const memory = 16 * chunkSize
	s := newSpool(SpoolConfig{Directory: t.TempDir(), Memory: memory, Threshold: 1 << 20})
	var mu sync.Mutex
	var messages []*message
	inMemory := func() (octets int) {
		for _, m := range messages {
			octets += len(m.chunks) * chunkSize
		}
		return octets
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			want := randomBytes(chunkSize * (1 + i%5))
			m, err := s.store(bytes.NewReader(want), 0)
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
			if !bytes.Equal(got, want) || err != nil {
				t.Errorf("message %d: %d octets, %v", i, len(got), err)
			}
			mu.Lock()
			defer mu.Unlock()
			messages = append(messages, m)
			// A quarter is for envelopes.
			if n := inMemory(); n > memory*3/4 {
				t.Errorf("%d octets in memory, the budget is %d", n, memory)
			}
		})
	}
	wg.Wait()
	for _, m := range messages {
		m.Close()
	}
	if free := s.free.Load(); free != memory {
		t.Errorf("%d of %d octets are free at the end", free, memory)
	}
}

// A trouble of the reader is the reader's, one of the disk is ours, and full
// is a different word from broken.
func TestSpoolErrors(t *testing.T) {
	gone := errors.New("client went away")
	s := newSpool(SpoolConfig{Directory: t.TempDir() + "/missing", Memory: 1 << 20, Threshold: chunkSize})
	for _, test := range []struct {
		name  string
		r     io.Reader
		want  error
		spool bool
	}{
		{"reader fails in memory", io.MultiReader(bytes.NewReader(randomBytes(10)), iotest.ErrReader(gone)), gone, false},
		{"no directory", bytes.NewReader(randomBytes(2 * chunkSize)), os.ErrNotExist, true},
	} {
		_, err := s.store(test.r, 0)
		if !errors.Is(err, test.want) || errors.As(err, new(spoolError)) != test.spool {
			t.Errorf("%s: got %v", test.name, err)
		}
	}
	for _, test := range []struct {
		err  error
		want backends.Status
	}{
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, backends.StorageFull},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, backends.StorageFull},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.EIO}, backends.TryLater},
	} {
		if got := (spoolError{fmt.Errorf("wrapped: %w", test.err)}).status(); got != test.want {
			t.Errorf("%v: got %v, want %v", test.err, got, test.want)
		}
	}
}
