package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// A Command says how to start a plugin.
type Command struct {
	// Name is the backend's name in the log.
	Name string

	// Path and Args are the program, as for exec.Command.
	Path string
	Args []string

	// Attach is the socket of a plugin that was started by hand. It is used
	// instead of a program of our own, and never killed.
	Attach string

	// Checksum is the SHA-256 of the program. What runs is a copy in memory that
	// has it, and that nobody can change. nil takes any program.
	Checksum []byte

	// Env is the environment of the program. It inherits none.
	Env map[string]string

	Sandbox Sandbox

	// Instances is how many processes of it run, of which each transaction and
	// each question takes the one with the least to do. Zero is one.
	Instances int

	// Transactions is how many are under way at most, the deliveries after
	// Deliver returned among them; more wait, as long as their deadline lets
	// them. Zero is no limit.
	Transactions int

	// ReplaceMemory, in octets that are resident, and ReplaceOpenFiles are how
	// much a process may have before another one takes its place. Zero is no
	// limit.
	ReplaceMemory, ReplaceOpenFiles uint64

	// Directory is where the directory of its sockets is made. "" is
	// os.TempDir().
	Directory string

	// Settings are decoded in the plugin.
	Settings map[string]any

	// Log gets records with the message "backend" and an attribute event: a
	// state of one of its instances, failure of a delivery after Deliver
	// returned, and log for what the plugin writes, which is the attribute
	// text. nil is slog.Default().
	Log *slog.Logger
}

// A SettingsError says what is wrong with the settings of a plugin.
type SettingsError struct{ Faults []settings.Fault }

func (e SettingsError) Error() string {
	var all []string
	for _, f := range e.Faults {
		all = append(all, f.Key+": "+f.Text)
	}
	return "settings: " + strings.Join(all, "; ")
}

// A KeyError is an error of a Command.
type KeyError struct {
	Key string // of the backend, in gateway.toml
	Err error
}

func (e KeyError) Error() string { return e.Key + ": " + e.Err.Error() }
func (e KeyError) Unwrap() error { return e.Err }

// A Host is a backend in another process, which it keeps alive.
type Host struct {
	command      Command
	request      *pb.ConfigureRequest
	sockets      *socketDirectory
	capabilities capabilities
	answers      map[backends.Topic]bool
	mayEdit      backends.EditKinds
	effectFree   bool
	needs        []string
	divertsTo    []string
	times        times

	ctx         context.Context // of the supervisors
	cancel      context.CancelFunc
	supervisors sync.WaitGroup
	ended       chan struct{} // closed when the supervisors have ended
	replacing   atomic.Bool   // a process is being started in the place of one that leaks
	announced   sync.Once     // answers, mayEdit, effectFree and needs are known

	mu      sync.Mutex
	running []*running    // of each instance; nil while there is none
	states  []state       // of each instance
	changed chan struct{} // closed when running or closing changes
	closing bool
	calls   sync.WaitGroup // transactions and questions under way

	places chan struct{} // has an element for each transaction under way; nil if there is no limit
}

// times are what tests shorten.
type times struct {
	handshake    time.Duration // of a plugin that starts
	configure    time.Duration // until it has taken its settings
	checkEvery   time.Duration // between health checks
	checkTimeout time.Duration // of a health check
	patience     time.Duration // of a transaction or question while no plugin runs
	stable       time.Duration // after which a plugin has not failed at its start
}

var defaultTimes = times{
	handshake:    10 * time.Second,
	configure:    configureTimeout,
	checkEvery:   5 * time.Second,
	checkTimeout: 10 * time.Second,
	patience:     2 * time.Second,
	stable:       10 * time.Second,
}

// Start starts a plugin and configures it. Its error is or wraps a
// SettingsError if the plugin has found fault with c.Settings, and a KeyError if
// something else of c is at fault. Once it has
// started, the plugin is kept alive until Close.
func Start(ctx context.Context, c Command) (*Host, error) {
	return start(ctx, c, defaultTimes)
}

func start(ctx context.Context, c Command, t times) (*Host, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Log = c.Log.With("backend", c.Name)
	return startLogged(ctx, c, t)
}

// startLogged starts a plugin whose log is complete.
func startLogged(ctx context.Context, c Command, t times) (*Host, error) {
	h := &Host{
		command: c, times: t, changed: make(chan struct{}), ended: make(chan struct{}),
		running: make([]*running, max(1, c.Instances)), states: make([]state, max(1, c.Instances)),
	}
	if c.Transactions > 0 {
		h.places = make(chan struct{}, c.Transactions)
	}
	err := h.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", c.Name, err)
	}
	return h, nil
}

func (h *Host) start(ctx context.Context) error {
	values := h.command.Settings
	if values == nil {
		values = map[string]any{}
	}
	if faults := unsendable("", values); faults != nil {
		return SettingsError{faults}
	}
	text, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	h.request = &pb.ConfigureRequest{
		SettingsJson:   string(text),
		GatewayVersion: version(),
		LogLevel:       leastLevel(h.command.Log).String(),
	}
	if h.sockets, err = h.command.socketDirectory(); err != nil {
		return err
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	for i := range h.running {
		s := &supervisor{h: h, instance: i, again: &backoff{stableAfter: h.times.stable}, began: make(chan error, 1)}
		h.supervisors.Go(func() { onThread(func() { s.run(ctx) }) })
		// One after the other: what they find fault with is told once.
		if err = <-s.began; err != nil {
			h.cancel()
			break
		}
	}
	go func() {
		h.supervisors.Wait()
		if err := h.sockets.remove(); err != nil {
			h.command.Log.Warn("backend", "event", "stopped", "error", err)
		}
		h.cancel()
		close(h.ended)
	}()
	if err != nil {
		<-h.ended
	}
	return err
}

// socketDirectory makes the directory of the sockets, and settles who may reach
// it.
func (c *Command) socketDirectory() (*socketDirectory, error) {
	if c.Attach != "" {
		return &socketDirectory{}, nil // the plugin has its own
	}
	if err := c.Sandbox.settle(c.Log); err != nil {
		return nil, err
	}
	d, err := newSocketDirectory(c.Directory, c.Name)
	if err != nil || c.Sandbox.User == nil {
		return d, err
	}
	if err := d.open(); err != nil {
		d.remove()
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	return d, nil
}

// unsendable finds the numbers that TOML has and JSON has not.
func unsendable(path string, value any) (faults []settings.Fault) {
	switch v := reflect.ValueOf(value); v.Kind() {
	case reflect.Map:
		for _, key := range v.MapKeys() {
			faults = append(faults, unsendable(settings.Join(path, key.String()), v.MapIndex(key).Interface())...)
		}
	case reflect.Slice:
		for i := range v.Len() {
			faults = append(faults, unsendable(fmt.Sprintf("%s[%d]", path, i), v.Index(i).Interface())...)
		}
	case reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			faults = []settings.Fault{{Key: path, Text: fmt.Sprintf("want a finite number, found %v", f)}}
		}
	}
	return faults
}

// version is that of the gateway's module, or "(devel)".
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return ""
}

// Isolated starts the plugin once more, for one caller alone.
func (h *Host) Isolated(ctx context.Context) (b backends.Backend, end func(), err error) {
	if err := h.enter(); err != nil {
		return nil, nil, err
	}
	one := h.command
	one.Instances, one.ReplaceMemory, one.ReplaceOpenFiles = 1, 0, 0
	one.Log = one.Log.With("isolated", true)
	alone, err := startLogged(ctx, one, h.times)
	if err != nil {
		h.calls.Done()
		return nil, nil, err
	}
	return alone, func() {
		alone.Close(h.ctx)
		h.calls.Done()
	}, nil
}

// Close stops the plugin for good. It waits for the transactions and questions
// under way until ctx ends; those left then fail, and Close returns an error. It returns
// when nothing of the plugin is left, which takes some seconds at most.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	h.closing = true
	h.announce()
	h.mu.Unlock()

	drained := make(chan struct{})
	go func() {
		h.calls.Wait()
		close(drained)
	}()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = fmt.Errorf("backend %s: transactions were under way: %w", h.command.Name, context.Cause(ctx))
	}
	h.cancel()
	<-h.ended
	<-drained
	return err
}

// announce wakes those that wait in plugin. The caller holds h.mu.
func (h *Host) announce() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// set has transactions and questions go to a process.
func (h *Host) set(instance int, r *running) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[instance] = r
	h.announce()
}

// unset keeps them from a process, whose place another one may have taken.
func (h *Host) unset(instance int, r *running) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running[instance] == r {
		h.running[instance] = nil
		h.announce()
	}
}

// enter notes a transaction or question under way, which ends with h.calls.Done. Once
// Close was called there are no new ones.
func (h *Host) enter() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return errStopped
	}
	h.calls.Add(1)
	return nil
}

// take waits until there is a place for one more transaction, which ends with
// leave.
func (h *Host) take(ctx context.Context) error {
	if h.places == nil {
		return nil
	}
	began := time.Now()
	select {
	case h.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("all %d transactions are under way: %w", cap(h.places), endOf(ctx, began))
	case <-h.ctx.Done():
		return errStopped
	}
}

func (h *Host) leave() {
	if h.places != nil {
		<-h.places
	}
}

var (
	errStopped    = errors.New("the plugin is being stopped")
	errNotRunning = errors.New("the plugin does not run")
)

// plugin returns the instance with the least to do of those that run, but for the
// one that failed the caller, or waits for one until ctx ends. The caller says
// when it is done with it.
func (h *Host) plugin(ctx context.Context, failed *running) (*running, error) {
	for {
		h.mu.Lock()
		changed, closing, state := h.changed, h.closing, h.states[0]
		h.mu.Unlock()
		if idlest := h.idlest(failed); idlest != nil {
			return idlest, nil
		}
		if closing {
			return nil, errStopped
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err := context.Cause(ctx); err != errNotRunning {
				return nil, err
			}
			return nil, fmt.Errorf("%w: it is %s", errNotRunning, state)
		}
	}
}

// idlest returns such an instance, or nil if none runs.
func (h *Host) idlest(failed *running) *running {
	h.mu.Lock()
	defer h.mu.Unlock()
	var idlest *running
	for _, r := range h.running {
		if r != nil && r != failed && (idlest == nil || r.busy.Load() < idlest.busy.Load()) {
			idlest = r
		}
	}
	if idlest != nil {
		idlest.busy.Add(1)
	}
	return idlest
}
