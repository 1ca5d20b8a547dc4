package plugins

import (
	"runtime"
	"time"
)

// A vigil decides whether who waits for the plugin's answer stays awake. Where
// there is nothing else to do a processor sleeps as soon as it waits, and to wake it
// can take longer than a quick plugin takes to answer. Where there is, it would only
// be in the way, and so it would be with one processor.
type vigil struct {
	alone int // transactions in a row that had no others beside them
	vain  int // more of those that stayed awake in vain than of others
	rest  int // how many come before the next one that stays awake
}

const (
	// awakeFor is how long it stays awake.
	awakeFor = 50 * time.Microsecond

	// aloneFor is how many transactions in a row show that there is nothing else to
	// do, vainFor how many answers that came too late that the plugin is not quick,
	// and restFor how many then have nobody awake.
	aloneFor = 16
	vainFor  = 4
	restFor  = 200
)

// next reports whether to stay awake for the next transaction, while there are
// so many others.
func (v *vigil) next(others int) bool {
	if others > 0 {
		v.alone = 0
		return false
	}
	v.alone = min(v.alone+1, aloneFor)
	if v.rest > 0 {
		v.rest--
		return false
	}
	return v.alone == aloneFor && runtime.GOMAXPROCS(0) > 1
}

// was is called when it has stayed awake, perhaps in vain.
func (v *vigil) was(inVain bool) {
	switch {
	case !inVain:
		v.vain = max(v.vain-1, -vainFor)
	case v.vain < vainFor:
		v.vain++
	default:
		v.vain, v.rest = 0, restFor
	}
}
