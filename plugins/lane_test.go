package plugins

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// What goes over the lane goes over gRPC, too.
func TestWithoutLane(t *testing.T) {
	allOverGRPC = true
	defer func() { allOverGRPC = false }()
	for name, test := range map[string]func(*testing.T){
		"status for each recipient":   TestStatusForEachRecipient,
		"error of the backend":        TestErrorOfBackend,
		"replaced message":            TestReplacedMessage,
		"message that is not stored":  TestReplacedMessageThatCannotBeStored,
		"edits":                       TestEdits,
		"large edits":                 TestEditsThatAreTooLarge,
		"message arrives exactly":     TestMessageArrivesExactly,
		"large envelope":              TestLargeEnvelopeArrives,
		"at the same time":            TestTransactionsAtTheSameTime,
		"unreadable message":          TestMessageThatCannotBeRead,
		"deadline":                    TestDeadlineCrossesTheBorder,
		"end at the deadline":         TestDeadlineEndsDeliver,
		"plugin's own deadline":       TestDeadlineEndsInThePluginFirst,
		"status by others":            TestStatusSetByAnotherGoroutine,
		"second status":               TestSecondStatusIsLogged,
		"late deliveries":             TestLateDeliveries,
		"late delivery and crash":     TestLateDeliveryAndCrash,
		"message after last status":   TestNobodyReadsTheMessageAfterTheLastStatus,
		"log":                         TestLogOfPlugin,
		"crash":                       TestStatusSurvivesCrash,
		"exit":                        TestStatusJustBeforeExitCounts,
		"deaths":                      TestTransactionsWhilePluginDies,
		"lost socket":                 TestPluginThatLosesItsSocket,
		"nothing is sent twice":       TestNothingIsSentTwice,
		"stopped plugin":              TestStoppedPluginIsKilled,
		"most transactions":           TestMostTransactionsUnderWay,
		"close":                       TestCloseWaitsForTransactions,
		"close that aborts":           TestCloseAbortsWhatIsLeft,
		"unread message":              TestUnreadMessageIsCheap,
		"memory":                      TestMemoryOfManyTransactionsIsBounded,
		"plugin that is not read":     TestPluginThatIsNotReadMustWait,
		"answers that do not count":   TestAnswersThatDoNotCount,
		"plugin that breaks protocol": TestPluginThatBreaksTheProtocol,
	} {
		t.Run(name, test)
	}
}

// rawLane makes the lane of the plugin that is called raw, as one in another
// language would, and returns the feature that announces it.
func rawLane() []string {
	if laneless {
		return nil
	}
	l, err := net.Listen("unix", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "raw.lane"))
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				panic(err)
			}
			go serveRawLane(conn)
		}
	}()
	return []string{"lane.v1=raw.lane"}
}

func serveRawLane(conn net.Conn) {
	defer conn.Close()
	conn.Write(rawFrame(4, make([]byte, 4), nil, nil))
	for {
		s := &rawLaneStream{conn: conn}
		if err := s.begin(); err != nil {
			return
		}
		if err := (raw{}).Deliver(s); err != nil || !s.ended {
			return
		}
	}
}

// A rawLaneStream is a connection of the lane with one transaction, all of which
// comes at once.
type rawLaneStream struct {
	grpc.BidiStreamingServer[pb.ToPlugin, pb.ToGateway]
	conn    net.Conn
	message *pb.ToPlugin
	number  []byte
	ended   bool
}

func (s *rawLaneStream) begin() error {
	header := make([]byte, 16)
	if _, err := io.ReadFull(s.conn, header); err != nil {
		return err
	}
	octets := make([]byte, binary.BigEndian.Uint32(header[8:]))
	if _, err := io.ReadFull(s.conn, octets); err != nil {
		return err
	}
	s.number = header[4:8]
	s.message = &pb.ToPlugin{Transaction: &pb.Transaction{}, Last: true}
	if err := protobuf.Unmarshal(octets, s.message.Transaction); err != nil {
		return err
	}
	s.message.Chunk = make([]byte, s.message.Transaction.Size)
	_, err := io.ReadFull(s.conn, s.message.Chunk)
	return err
}

func (s *rawLaneStream) Recv() (*pb.ToPlugin, error) { return s.message, nil }

func (s *rawLaneStream) Send(m *pb.ToGateway) error {
	m, kind := protobuf.Clone(m).(*pb.ToGateway), 3
	if m.Returned != nil {
		kind, s.ended = 4, true
	}
	chunk := m.Chunk
	m.Chunk = nil
	octets, err := protobuf.Marshal(m)
	if err != nil {
		return err
	}
	_, err = s.conn.Write(rawFrame(kind, s.number, octets, chunk))
	return err
}

// Context returns a ctx that ends when the gateway closes the connection.
func (s *rawLaneStream) Context() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		s.conn.Read(make([]byte, 1))
	}()
	return ctx
}

func rawFrame(kind int, number, message, chunk []byte) []byte {
	f := append([]byte{byte(kind), 0, 0, 0}, number...)
	f = binary.BigEndian.AppendUint32(f, uint32(len(message)))
	f = binary.BigEndian.AppendUint32(f, uint32(len(chunk)))
	return append(append(f, message...), chunk...)
}

// A fakeLane is a plugin of which there is nothing but a connection of the lane, in
// the process of the test.
type fakeLane struct {
	net.Conn
	host *Host
}

func newFakeLane(t testing.TB) *fakeLane {
	t.Helper()
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		defer l.Close()
		if conn, err := l.Accept(); err == nil {
			conn.Write(rawFrame(4, make([]byte, 4), nil, nil))
			accepted <- conn
		}
	}()
	r := &running{suspect: make(chan struct{}, 1)}
	r.lane = newLane(slog.New(slog.DiscardHandler), path, uint32(os.Geteuid()), os.Getpid())
	h := &Host{command: Command{Log: slog.New(slog.DiscardHandler)}, running: []*running{r}, changed: make(chan struct{}), times: defaultTimes}
	link := r.lane.take(t.Context())
	if link == nil {
		t.Fatal("there is no connection")
	}
	r.lane.put(link)
	f := &fakeLane{<-accepted, h}
	t.Cleanup(func() { f.Close(); r.lane.close() })
	return f
}

// answerFrame is a frame of the first transaction.
func answerFrame(kind int, m *pb.ToGateway) []byte {
	octets, err := protobuf.Marshal(m)
	if err != nil {
		panic(err)
	}
	return rawFrame(kind, []byte{0, 0, 0, 1}, octets, nil)
}

// What is wrong with a frame ends the transaction, which keeps the statuses from
// before.
func TestPluginThatBreaksTheLane(t *testing.T) {
	first, status := []byte{0, 0, 0, 1}, answerFrame(3, &pb.ToGateway{Statuses: status250(0)})
	more := rawFrame(2, first, nil, nil)
	for name, test := range map[string]struct {
		octets []byte
		err    string
	}{
		"kind 0":             {rawFrame(0, first, nil, nil), "unknown frame 00000000"},
		"kind 5":             {rawFrame(5, first, nil, nil), "unknown frame 05000000"},
		"reserved octet":     {append([]byte{3, 0, 1, 0}, rawFrame(3, first, nil, nil)[4:]...), "unknown frame 03000100"},
		"transaction":        {rawFrame(1, first, nil, nil), "frame of kind 1 for transaction 1"},
		"earlier number":     {rawFrame(3, []byte{0, 0, 0, 0}, nil, nil), "frame of kind 3 for transaction 0"},
		"later number":       {rawFrame(4, []byte{0, 0, 0, 2}, nil, nil), "frame of kind 4 for transaction 2"},
		"more, twice":        {slices.Concat(more, more), "frame of kind 2"},
		"more, with octets":  {rawFrame(2, first, []byte("x"), nil), "is to be empty"},
		"long message":       {append(rawFrame(3, first, nil, nil)[:8], 0, 4, 0, 1, 0, 0, 0, 0), "262145 octets, larger than max"},
		"long chunk":         {append(rawFrame(3, first, nil, nil)[:8], 0, 0, 0, 1, 0, 4, 0, 0), "262145 octets, larger than max"},
		"no protobuf":        {rawFrame(3, first, []byte("\xff"), nil), "protocol: proto"},
		"chunk in a message": {answerFrame(3, &pb.ToGateway{First: true, Chunk: []byte("x")}), "a chunk within a message"},
		"end too early":      {answerFrame(4, &pb.ToGateway{}), "without an answer"},
		"half a header":      {rawFrame(3, first, nil, nil)[:7], "has closed its socket"},
		"half a message":     {append(rawFrame(3, first, nil, nil)[:8], 0, 0, 0, 9, 0, 0, 0, 0, 'x'), "has closed its socket"},
		"half a chunk":       {append(rawFrame(3, first, nil, nil)[:8], 0, 0, 0, 0, 0, 0, 0, 9, 'x'), "has closed its socket"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeLane(t)
			go func() {
				f.Read(make([]byte, 1)) // of the transaction
				f.Write(append(status, test.octets...))
				f.Conn.(*net.UnixConn).CloseWrite()
				io.Copy(io.Discard, f)
			}()
			o := deliver(t.Context(), f.host, message(long, "one", "two"))
			if o.wantError(t, test.err); o.statuses[0].Code != 250 {
				t.Errorf("got the statuses %v", o.statuses)
			}
			o.wantUndecided(t, 1)
			if l := f.host.running[0].lane; len(l.open) > 0 {
				t.Error("the connection is kept")
			}
		})
	}
}

// A frame that is not asked for keeps a connection from being used again.
func TestFrameAfterTheEnd(t *testing.T) {
	f := newFakeLane(t)
	end := answerFrame(4, &pb.ToGateway{Returned: noEdits})
	go func() {
		f.Read(make([]byte, smallBuffer)) // the transaction
		f.Write(slices.Concat(end, answerFrame(3, &pb.ToGateway{Statuses: status250(0)})))
	}()
	if o := deliver(t.Context(), f.host, message("", "one")); o.err != nil || len(o.statuses) > 0 {
		t.Errorf("got %v and the error %v", o.statuses, o.err)
	}
	if l := f.host.running[0].lane; len(l.open) > 0 {
		t.Error("the connection is kept")
	}
}

func TestLaneIsKept(t *testing.T) {
	h, _ := run(t, "drain")
	for range 5 {
		deliver(t.Context(), h, message(long, "one"))
	}
	l := h.running[0].lane
	if len(l.open) != 1 || len(l.idle) != 1 || l.idle[0].number != 5 || l.idle[0].buffer != nil {
		t.Errorf("got %d connections, of which %d are idle", len(l.open), len(l.idle))
	}
	l.closeIdle(time.Now().Add(time.Second))
	if len(l.open) > 0 || len(l.idle) > 0 {
		t.Error("there are idle connections")
	}
	if o := deliver(t.Context(), h, message("", "one")); o.err != nil || len(l.open) != 1 {
		t.Errorf("got %d connections and the error %v", len(l.open), o.err)
	}
}

// The connection is used again although nobody has read the message.
func TestUnreadMessageKeepsTheLane(t *testing.T) {
	h, _ := run(t, "discard")
	for range 5 {
		deliver(t.Context(), h, message(long, "one"))
	}
	if l := h.running[0].lane; len(l.idle) != 1 || l.idle[0].number != 5 {
		t.Errorf("got %d idle connections", len(l.idle))
	}
}

// Beyond what the plugin has descriptors for, transactions go over gRPC.
func TestTransactionsBeyondTheLane(t *testing.T) {
	c := command(t, "hangs", newGatewayLog())
	c.Sandbox.OpenFiles = 64
	h := runCommand(t, c, defaultTimes)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer within(t, "Deliver", wg.Wait)
	defer cancel()
	for range 40 {
		tx := message("hello", "one", "two")
		wg.Go(func() { h.Deliver(ctx, tx) })
		eventually(t, "the first recipient has its status", func() bool { return !tx.Status(0).IsZero() })
	}
	l := h.running[0].lane
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) != 5 {
		t.Errorf("there are %d connections, want 5", len(l.open))
	}
}

// A plugin learns of the end of a transaction, whatever lies in its socket.
func TestCancelReachesPlugin(t *testing.T) {
	h, log := run(t, "waits for its end")
	for n, text := range []string{"", long} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan *outcome)
		go func() { done <- deliver(ctx, h, message(text, "one")) }()
		log.wait(t, n+1, "log", "waits")
		cancel()
		if o := <-done; !errors.Is(o.err, context.Canceled) {
			t.Errorf("got the error %v", o.err)
		}
		log.wait(t, n+1, "log", "canceled")
	}
	h.Close(t.Context())
	for _, r := range log.records {
		if r["text"] == "lane" {
			t.Errorf("the plugin tells of a connection that was closed: %v", r)
		}
	}
}

// The lane works where the plugin is another user's.
func TestLaneOfAnotherUser(t *testing.T) {
	needRoot(t)
	c, _ := sandboxed(t, Sandbox{User: stranger})
	h := runCommand(t, c, defaultTimes)
	if h.running[0].lane == nil {
		t.Error("there is no lane")
	}
}

func TestLaneOfAnotherProcess(t *testing.T) {
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, other := range []struct {
		uid, pid int
		err      string
	}{{os.Geteuid(), os.Getpid() + 1, "want"}} {
		link := &laneLink{lane: newLane(slog.New(slog.DiscardHandler), path, uint32(other.uid), other.pid)}
		if err := link.connect(t.Context()); err == nil || !strings.Contains(err.Error(), other.err) {
			t.Errorf("got the error %v", err)
		}
	}
}

// The plugin takes connections of its parent alone.
func TestPluginRefusesLaneOfAnotherProcess(t *testing.T) {
	h, _ := run(t, "drain")
	c := command(t, "stranger", newGatewayLog())
	c.Args = append(c.Args, h.running[0].lane.path)
	out, err := program(t, c).Output()
	if err != nil || string(out) != "0 EOF" {
		t.Errorf("got %q, %v", out, err)
	}
}

// lookAtLane tells what somebody gets who connects to the lane.
func lookAtLane() {
	conn, err := net.Dial("unix", os.Args[3])
	if err != nil {
		panic(err)
	}
	n, err := conn.Read(make([]byte, laneHeader))
	fmt.Print(n, " ", err)
}

func TestFeatureOfLane(t *testing.T) {
	for feature, want := range map[string]string{
		"lane.v1=x": "/d/x", "lane.v1=": "", "lane.v1=.": "", "lane.v1=..": "", "lane.v1=../x": "", "lane.v2=x": "", "lane": "",
	} {
		if got := laneSocket("/d", []string{"later", feature}); got != want {
			t.Errorf("%s: got %q, want %q", feature, got, want)
		}
	}
}

func FuzzLaneFrame(f *testing.F) {
	f.Add(rawFrame(4, []byte{0, 0, 0, 9}, []byte("x"), []byte("yy"))[:laneHeader])
	f.Fuzz(func(t *testing.T, octets []byte) {
		if len(octets) != laneHeader {
			return
		}
		frame, err := parseLaneFrame(octets, maxMessage)
		if err != nil {
			return
		}
		if again := frame.appendTo(nil); !bytes.Equal(again, octets) {
			t.Errorf("got %x, want %x", again, octets)
		}
		if frame.kind != laneTransaction && frame.length+frame.extra > maxMessage || frame.length > maxMessage {
			t.Errorf("%+v is too large", frame)
		}
	})
}

// Whatever a plugin sends, the call ends, and only its own frames decide.
func FuzzLaneToGateway(f *testing.F) {
	for _, test := range someAnswers {
		f.Add(slices.Concat(answerFrame(3, test.answer), answerFrame(4, &pb.ToGateway{Returned: noEdits})))
	}
	f.Add(rawFrame(2, []byte{0, 0, 0, 1}, nil, nil))
	f.Fuzz(func(t *testing.T, octets []byte) {
		lane := newFakeLane(t)
		go func() {
			lane.Read(make([]byte, 1)) // of the transaction
			lane.Write(octets)
			lane.Conn.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, lane)
		}()
		o := deliver(t.Context(), lane.host, message("hello", "one", "two"))
		if o.err != nil && strings.Contains(o.err.Error(), "has not returned") {
			t.Error(o.err)
		}
	})
}

// Whatever the gateway sends, the plugin goes on.
func FuzzLaneToPlugin(f *testing.F) {
	for _, tx := range someTransactions() {
		octets := appendTransaction(nil, tx)
		f.Add(append(rawFrame(1, []byte{0, 0, 0, 1}, octets[:min(len(octets), 1000)], nil), "body"...))
	}
	f.Fuzz(func(t *testing.T, octets []byte) {
		near, far := socketPair(t)
		defer near.Close()
		go func() {
			near.Write(octets)
			near.CloseWrite()
			io.Copy(io.Discard, near)
		}()
		l := &laneServer{server: &server{backend: testBackends["drain"]}}
		c := &laneServed{}
		c.laneConn, _ = newLaneConn(far)
		for l.next(c) == nil {
			c.leave()
		}
		c.leave()
		c.release()
		c.Close()
		l.server.calls.Wait()
	})
}

// serveLane serves one connection of the lane, of which far is the plugin's end, in
// the process of the test. It returns after the plugin's first frame.
func serveLane(t testing.TB, b backends.Backend, near, far *net.UnixConn) {
	t.Helper()
	h, err := newHangups()
	if err != nil {
		t.Fatal(err)
	}
	watched, served := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		h.watch()
	}()
	go func() {
		defer close(served)
		(&laneServer{server: &server{backend: b}, hangups: h}).serve(far)
	}()
	t.Cleanup(func() {
		near.Close()
		within(t, "the plugin", func() { <-served })
		h.file.Close()
		within(t, "watch", func() { <-watched })
	})
	if _, err := io.ReadFull(near, make([]byte, laneHeader)); err != nil {
		t.Fatal(err)
	}
}

func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns []*net.UnixConn
	for _, fd := range fds {
		file := os.NewFile(uintptr(fd), "")
		conn, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		conns = append(conns, conn.(*net.UnixConn))
	}
	return conns[0], conns[1]
}

func TestNothingIsSentAfterTheDeadline(t *testing.T) {
	f := newFakeLane(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if o := deliver(ctx, f.host, message("", "one")); !errors.Is(o.err, context.Canceled) {
		t.Errorf("got the error %v", o.err)
	}
	if link := f.host.running[0].lane.idle; len(link) != 1 || link[0].number != 0 {
		t.Error("the connection was used")
	}
}

// The end of connections that are at rest is nothing to be logged.
func TestConnectionsEndInSilence(t *testing.T) {
	for range 10 {
		h, log := run(t, "echo")
		var clients sync.WaitGroup
		for range 20 {
			clients.Go(func() { deliver(t.Context(), h, message(long, "one")) })
		}
		clients.Wait()
		if err := closeHost(t, t.Context(), h); err != nil {
			t.Error(err)
		}
		if n := log.count("log"); n > 0 {
			t.Fatalf("%d lines, such as %v", n, log.wait(t, 1, "log", "")[0])
		}
	}
}
