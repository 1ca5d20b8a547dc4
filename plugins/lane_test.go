package plugins

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	protobuf "google.golang.org/protobuf/proto"

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
