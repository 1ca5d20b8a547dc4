package plugins

import "github.com/mailgw/mailgw/plugins/internal/probe"

// Probe tells package plugintest, and nobody else, of the process that runs now. It
// is for a plugin of one instance that was not started by hand.
func (h *Host) Probe(p *probe.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.running[0]; r != nil {
		*p = probe.Process{PID: r.process.pid, Conn: r.conn, Lifeline: r.process.lifeline, Exited: r.ended, How: r.process.how}
	}
}
