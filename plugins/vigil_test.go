package plugins

import (
	"runtime"
	"testing"
	"time"
)

// Somebody stays awake where there is nothing else to do and the plugin is quick, and
// else nearly never.
func TestVigil(t *testing.T) {
	for _, test := range []struct {
		name        string
		processors  int
		others      func(i int) int
		slow        bool
		least, most int // of 1,000 transactions
	}{
		{"alone", 2, func(int) int { return 0 }, false, 1000 - aloneFor, 1000 - aloneFor + 1},
		{"alone, with a slow plugin", 2, func(int) int { return 0 }, true, vainFor, 1000 / restFor * (vainFor + 2)},
		{"with one processor", 1, func(int) int { return 0 }, false, 0, 0},
		{"with others", 2, func(i int) int { return min(i%aloneFor, 1) }, false, 0, 0},
		{"with others at first", 2, func(i int) int { return max(500-i, 0) }, false, 500 - aloneFor, 500 - aloneFor + 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(test.processors))
			var v vigil
			awake := 0
			for i := range 1000 {
				if v.next(test.others(i)) {
					awake++
					v.was(test.slow)
				}
			}
			if awake < test.least || awake > test.most {
				t.Errorf("awake for %d of 1,000, want %d to %d", awake, test.least, test.most)
			}
		})
	}
}

// Who stays awake hears the answer, soon or late.
func TestAwakeHearsTheAnswer(t *testing.T) {
	for _, late := range []bool{false, true} {
		near, far := quietPair(t)
		c := laneConn{quietSocket: near, awake: true}
		answer := func() { far.Write([]byte("answer")) }
		sent := answer
		if late {
			sent = func() { time.AfterFunc(10*awakeFor, answer) }
		}
		if n, err := c.exchange([]byte("question"), nil, sent); n != len("question") || err != nil {
			t.Fatalf("late %t: wrote %d, %v", late, n, err)
		}
		if string(c.in) != "answer" || c.slow && !late {
			t.Errorf("late %t: read %q, slow %t", late, c.in, c.slow)
		}
		c.release()
	}
}
