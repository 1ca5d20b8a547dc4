package plugins

import "time"

// wakeMonitor has the monitor of Go's scheduler wake up each second, as it does for
// every timer: the calls of package nowait do not wake it. Without that, backends
// that compute without a pause on all processors could keep everything else from its
// turn for a minute.
func wakeMonitor() {
	for range time.Tick(time.Second) {
	}
}
