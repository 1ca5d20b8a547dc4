package gateway

import (
	"cmp"
	"os"
	"slices"
)

// A job is calls of a backend that one goroutine makes, one after the other.
type job struct {
	delivery *delivery
	backend  *namedBackend
	branch   *branch
	adds     bool               // they may add recipients
	waiting  chan []destination // parts of the branch; nil if it is called for all at once
}

// maxParts is how many parts of a branch a backend has at once. Each costs
// what a plugin may have of a message before it reads.
const maxParts = 8

// run begins to call the next backends of all, several times if one wants few
// recipients at once. It returns without waiting, and leaves one job to the caller.
func (d *delivery) run(all ...*branch) (mine *job) {
	for _, b := range all {
		j, n := d.job(b)
		for range n {
			if mine != nil {
				go mine.begin()
			}
			mine = j
		}
	}
	return mine
}

// job returns the job of the next backend of b, which n goroutines are to do.
func (d *delivery) job(b *branch) (j *job, n int) {
	backend := d.backends[b.route.backends[b.stage]]
	most := cmp.Or(backend.RecipientsPerTransaction, len(b.to))
	parts := (len(b.to) + most - 1) / most
	d.hold(backend.name, b)
	j = &job{delivery: d, backend: backend, branch: b, adds: d.mayAdd(b)}
	d.busy.Add(int32(parts))
	if j.adds {
		d.adding(parts)
	}
	if parts > 1 {
		j.waiting = make(chan []destination, parts)
		for part := range slices.Chunk(b.to, most) {
			j.waiting <- part
		}
		close(j.waiting)
	}
	return j, min(parts, maxParts)
}

// begin does the job in a new goroutine.
func (j *job) begin() {
	growStack()
	j.do()
}

// do does the job, and then what it is left of what follows. A nil job is done.
func (j *job) do() {
	for j != nil {
		if j.waiting == nil {
			j = j.delivery.call(j.backend, j.branch, j.adds)
			continue
		}
		to, ok := <-j.waiting
		if !ok {
			return
		}
		part := *j.branch
		part.to = to
		if next := j.delivery.call(j.backend, &part, j.adds); next != nil {
			go next.begin()
		}
	}
}

// growStack gives a goroutine the stack that a call of a backend takes. To grow it
// costs little here, and several microseconds when it is deep in the call.
//
//go:noinline
func growStack() byte {
	var room [12 << 10]byte
	return room[len(os.Args)%len(room)]
}
