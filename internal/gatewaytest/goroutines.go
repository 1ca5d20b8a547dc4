package gatewaytest

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// Goroutines ends the gateway by SIGQUIT, so that the Go runtime tells of its
// goroutines, and returns their stacks by the function that started them.
// Those that wait for nothing are not among them, as they may be about to
// end, nor are those of the runtime.
func (g *Gateway) Goroutines() map[string][]string {
	g.t.Helper()
	g.cmd.Process.Signal(syscall.SIGQUIT)
	kill := time.AfterFunc(Patience, func() { g.cmd.Process.Kill() })
	defer kill.Stop()
	if err := g.cmd.Wait(); err == nil || g.cmd.ProcessState.ExitCode() != 2 {
		g.t.Errorf("mailgw serve: %v, want the end by SIGQUIT", err)
	}
	Eventually(g.t, "the plugins have ended as their gateway has", func() bool { return len(g.Running()) == 0 })

	log, err := os.ReadFile(g.Log)
	if err != nil {
		g.t.Fatal(err)
	}
	g.checkRaces()
	started := map[string][]string{}
	blocks := strings.Split(string(log), "\n\n")
	for _, block := range blocks {
		header, stack, _ := strings.Cut(block, "\n")
		_, state, _ := strings.Cut(header, "[")
		_, by, ok := strings.Cut(stack, "\ncreated by ")
		by, _, _ = strings.Cut(by, " in goroutine ")
		if ok && !strings.HasPrefix(state, "run") && !strings.HasPrefix(by, "runtime.") {
			started[by] = append(started[by], block)
		}
	}
	if started["main.untilSignal"] == nil {
		g.t.Error("the gateway tells nothing of its goroutines")
	}
	return started
}
