package plugins

import (
	"bytes"
	"context"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// Serve is all that the main function of a plugin does. It never returns.
//
// The settings of the backend in gateway.toml are decoded over defaults, a
// struct whose fields have tags such as `toml:"key"`; use struct{}{} if there
// are none. A key that the struct does not have is a fault that the operator
// is told, with its place. Then open makes the backend. If that is an
// io.Closer, it is closed before the plugin exits, once no transaction is left,
// and has two seconds for it.
//
// Serve makes a default logger for slog, whose records go to the gateway's
// log. Those logged with the ctx of Deliver, as slog.InfoContext does, have
// the attributes session and tx, the IDs of the session and the transaction, and
// ident, if the client has told its own name for it; those logged with the ctx of
// a question have no tx. What the plugin writes to stdout and stderr is logged, too.
//
// The plugin is asked the questions whose interfaces the backend implements.
//
// A panic in Deliver or in a question is an error of it alone. SIGTERM, SIGINT
// and SIGHUP are ignored, because the gateway decides when a plugin ends.
//
// The working directory is that of gateway.toml, or of the backend's sandbox. The environment is empty but
// for what the backend's env in gateway.toml gives, and some variables of the
// protocol.
func Serve[S any](defaults S, open func(S) (backends.Backend, error)) {
	if reflect.TypeFor[S]().Kind() != reflect.Struct {
		panic("plugins: Serve: the defaults are not a struct")
	}
	if name := untagged(reflect.TypeFor[S]()); name != "" {
		panic("plugins: Serve: field " + name + " of the settings has no toml tag")
	}
	serve(func(values map[string]any) (backends.Backend, []settings.Fault, error) {
		s := defaults
		if faults := settings.Decode(values, &s); faults != nil {
			return nil, faults, nil
		}
		b, err := open(s)
		if faults, ok := settingFaults(err); ok {
			return nil, faults, nil
		}
		return b, nil, err
	})
}

// untagged returns the name of an exported field of t, or of a struct in it,
// that no setting can reach because it has no tag.
func untagged(t reflect.Type) string {
	switch {
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return ""
	case t.Kind() == reflect.Slice || t.Kind() == reflect.Map || t.Kind() == reflect.Pointer:
		return untagged(t.Elem())
	case t.Kind() != reflect.Struct:
		return ""
	}
	for i := range t.NumField() {
		f := t.Field(i)
		switch tag := f.Tag.Get("toml"); {
		case !f.IsExported() || tag == "-":
		case tag == "":
			return f.Name
		default:
			if name := untagged(f.Type); name != "" {
				return f.Name + "." + name
			}
		}
	}
	return ""
}

// settingFaults returns the faults of which err consists: SettingErrors,
// joined or not. It reports false if there is something else in it.
func settingFaults(err error) (faults []settings.Fault, ok bool) {
	switch e := err.(type) {
	case backends.SettingError:
		return []settings.Fault{{Key: e.Key, Text: e.Err.Error()}}, true
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			f, ok := settingFaults(part)
			if !ok {
				return nil, false
			}
			faults = append(faults, f...)
		}
		return faults, true
	}
	return nil, false
}

// An opener makes a backend of its settings, or says what is wrong.
type opener func(values map[string]any) (backends.Backend, []settings.Fault, error)

func serve(open opener) {
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		path := os.Getenv(attachEnv)
		if path == "" {
			fmt.Fprint(os.Stderr, manual(os.Args))
			os.Exit(64) // EX_USAGE
		}
		if err := serveAttached(open, path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", attachEnv, err)
			os.Exit(71) // EX_OSERR
		}
		os.Exit(0)
	}
	// A signal that is caught, unlike one that is ignored, is not ignored by
	// the programs that the plugin starts.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	followLifeline()
	s := &server{open: open, level: &slog.LevelVar{}, stdout: os.Stdout, stderr: os.Stderr}
	// What the package log writes is of one level, before this and after it.
	slog.SetLogLoggerLevel(slog.LevelWarn)
	handler := slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: s.level, ReplaceAttr: readable})
	slog.SetDefault(slog.New(idHandler{root: handler}))
	if !laneless {
		if err := listenLane(s); err != nil {
			slog.Warn("lane", "error", err)
		} else {
			s.features = []string{laneFeature + laneName}
		}
	}
	defer runtime.KeepAlive(ballast())
	trouble := &strings.Builder{}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins: plugin.PluginSet{pluginName: service{
			register: func(r *grpc.Server) { pb.RegisterPluginServer(r, s) },
		}},
		GRPCServer: newServer,
		Logger:     hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: trouble, DisableTime: true}),
	})
	if !s.close() {
		fmt.Fprintf(s.stderr, "the plugin was not configured: %s\n", strings.TrimSpace(trouble.String()))
		os.Exit(1)
	}
	os.Exit(0)
}

// ballast lets the heap grow by as much before garbage is collected, and as much
// again. The heap of most plugins is so small that a few hundred transactions would
// fill it up. Nobody touches it, so that it takes no memory; a heap that is large by
// itself hardly notices.
func ballast() []byte { return make([]byte, 8<<20) }

// readable makes a duration a string, as people write it.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// manual tells somebody who has started the plugin by hand what to do. args
// are the command line.
func manual(args []string) string {
	program, err := os.Executable()
	if err != nil {
		program = args[0]
	}
	// The plugins that ship with the gateway are named by their names.
	if len(args) == 3 && args[1] == "plugin" {
		program = args[2]
	}
	return fmt.Sprintf(`This is a plugin of mailgw, which starts it. Name it in gateway.toml:

    [backend.NAME]
    plugin = %q

and name the backend in a route of a listener. For a debugger, start it yourself with
%s=PATH in its environment, and name the socket: plugin = "unix:PATH".
`, program, attachEnv)
}

// followLifeline ends the plugin when the gateway has ended without stopping
// it.
func followLifeline() {
	fd, err := strconv.Atoi(os.Getenv(lifelineEnv))
	if err != nil {
		return
	}
	syscall.CloseOnExec(fd)
	syscall.SetNonblock(fd, true) // a Read that waits needs no thread then
	lifeline := os.NewFile(uintptr(fd), "lifeline")
	go func() {
		io.Copy(io.Discard, lifeline)
		os.Exit(1)
	}()
}

func newServer(options []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(options, serverOptions()...)...)
}

func serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(newSameUser()),
		grpc.ForceServerCodecV2(newCodec(0)),
		grpc.MaxRecvMsgSize(maxTransaction),
		grpc.WriteBufferSize(0), // so that a buffer that is freed was written
		grpc.StaticStreamWindowSize(4 * maxChunk),
		grpc.StaticConnWindowSize(64 * maxChunk),
	}
}

// A server is the plugin's end of the border.
type server struct {
	pb.UnimplementedPluginServer
	open           opener
	level          *slog.LevelVar
	features       []string
	stdout, stderr *os.File // as they were before go-plugin; nil if it has left them alone

	mu         sync.Mutex
	configured bool
	closing    bool
	backend    backends.Backend // nil if Configure was not called or failed
	calls      sync.WaitGroup
}

func (s *server) Configure(_ context.Context, request *pb.ConfigureRequest) (answer *pb.ConfigureResponse, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.configured {
		return nil, status.Error(codes.FailedPrecondition, "the plugin is configured already")
	}
	s.configured = true
	if s.stdout != nil {
		// Out of go-plugin's pipes the last words before an exit would be lost.
		os.Stdout, os.Stderr = s.stdout, s.stderr
	}
	if err := s.level.UnmarshalText([]byte(request.GetLogLevel())); err != nil {
		slog.Warn("log level", "error", err)
	}
	defer func() {
		if r := recover(); r != nil {
			slog.Error("panic", "error", fmt.Sprint(r), "stack", brief(debug.Stack()))
			answer, err = &pb.ConfigureResponse{Error: toUTF8(fmt.Sprintf("panic: %v", r))}, nil
		}
	}()
	return s.configure(request.GetSettingsJson()), nil
}

func (s *server) configure(text string) *pb.ConfigureResponse {
	var values map[string]any
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&values); err != nil {
		return &pb.ConfigureResponse{Error: "settings: " + toUTF8(err.Error())}
	}
	backend, faults, err := s.open(values)
	answer := &pb.ConfigureResponse{MaxChunk: maxChunk, Features: s.features}
	for _, f := range faults {
		answer.Faults = append(answer.Faults, &pb.Fault{Key: toUTF8(f.Key), Text: toUTF8(f.Text)})
	}
	switch {
	case faults != nil:
		return answer
	case err != nil:
		answer.Error = toUTF8(err.Error())
		return answer
	case backend == nil:
		answer.Error = "there is no backend"
		return answer
	}
	s.backend = backend
	answer.Answers = announcement(backend)
	answer.Capabilities = capabilitiesToWire(backends.CapabilitiesOf(backend))
	answer.MayEdit = mayEditToWire(backends.EditsOf(backend))
	_, answer.Watch = backend.(backends.Changing)
	answer.EffectFree = backends.IsEffectFree(backend)
	answer.Needs = toldToWire(backends.NeedsOf(backend))
	answer.DivertsTo = toldToWire(backends.DiversionsOf(backend))
	return answer
}

// enter returns the backend for one transaction or question, which ends with
// s.calls.Done.
func (s *server) enter() (backends.Backend, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend == nil || s.closing {
		return nil, status.Error(codes.FailedPrecondition, "the plugin is not configured, or exits")
	}
	s.calls.Add(1)
	return s.backend, nil
}

// close waits for the transactions and closes the backend. The gateway has
// drained them, or has cancelled what is left. It reports whether Configure was
// ever called.
func (s *server) close() bool {
	s.mu.Lock()
	s.closing = true
	configured := s.configured
	s.mu.Unlock()
	s.calls.Wait()
	if closer, ok := s.backend.(io.Closer); ok {
		if err := closer.Close(); err != nil {
			slog.Error("close", "error", err)
		}
	}
	return configured
}

// brief is the stack of a panic, cut so that it fits into a line of the log.
func brief(stack []byte) string {
	const longest = maxLine / 2
	// What comes first is the recovery itself.
	stack = stack[bytes.Index(stack, []byte("\npanic("))+1:]
	return string(stack[:min(len(stack), longest)])
}
