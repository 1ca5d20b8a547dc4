package plugins

import "github.com/mailgw/mailgw/plugins/internal/probe"

// Probe tells package plugintest, and nobody else, of a process that runs now. It
// is not for a plugin that was started by hand.
func (h *Host) Probe(p *probe.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.running {
		*p = probe.Process{PID: r.process.pid, Conn: r.conn, Lifeline: r.process.lifeline, Exited: r.ended, How: r.process.how}
	}
}
