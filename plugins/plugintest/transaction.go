package plugintest

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

const text = "From: <sender@example.net>\r\nSubject: test\r\n\r\nHello.\r\n"

// The IDs of transactions: of those that end before the plugin is done with them
// it begins with overID, in backendtest too.
const (
	goodID = "test"
	overID = "context-over"
)

// A transaction is one that an instance is given, octet for octet.
type transaction struct {
	stream     grpc.BidiStreamingClient[pb.ToPlugin, pb.ToGateway]
	cancel     context.CancelFunc
	recipients int
}

// open sends a transaction and the first half of its message.
func (t *tester) open(ctx context.Context, p *instance, change ...func(*pb.ToPlugin)) (*transaction, error) {
	ctx, cancel := context.WithTimeout(ctx, t.Patience)
	stream, err := p.plugin.Deliver(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	first := &pb.ToPlugin{
		Transaction: &pb.Transaction{
			Id:      goodID,
			Session: &pb.Session{Id: "test", Listener: "test", Protocol: "LMTP", Peer: &pb.Peer{Addr: "192.0.2.1:25252"}, Local: "192.0.2.2:24", Helo: []byte("client.example.net")},
			Sender:  []byte("sender@example.net"),
			Params:  [][]byte{[]byte("BODY=8BITMIME"), []byte("SMTPUTF8")},
			Size:    int64(len(text)),
		},
		Chunk: []byte(text[:len(text)/2]),
	}
	for _, address := range t.Recipients {
		first.Transaction.Recipients = append(first.Transaction.Recipients, &pb.Recipient{Address: []byte(address)})
	}
	for _, c := range change {
		c(first)
	}
	if err := stream.Send(first); err != nil {
		cancel()
		return nil, err
	}
	return &transaction{stream, cancel, len(t.Recipients)}, nil
}

// finish sends the rest of the message, and wants it to be taken.
func (tx *transaction) finish() error {
	defer tx.cancel()
	// An error of sending is received, too.
	if tx.stream.Send(&pb.ToPlugin{Chunk: []byte(text[len(text)/2:]), Last: true}) == nil {
		tx.stream.CloseSend()
	}
	said, err := tx.hear()
	if err != nil {
		return err
	}
	if text := said.returned.GetFailure(); text != "" {
		return fmt.Errorf("it returned the failure %q", text)
	}
	for i, s := range said.all() {
		if s != nil && s.GetCode()/100 != 2 {
			return fmt.Errorf("recipient %d: %d %s", i, s.GetCode(), s.GetText())
		}
	}
	return nil
}

// breakOff ends the message before its end, which only Last is. Where the gateway
// breaks off it cancels the call, and hears no more: so this is the way to learn
// whether a plugin tells a part of a message from the whole.
func (tx *transaction) breakOff(ignoresMessage bool) error {
	defer tx.cancel()
	tx.stream.CloseSend()
	said, err := tx.hear()
	if _, broken := errors.AsType[brokenPromise](err); broken || status.Code(err) == codes.DeadlineExceeded {
		return err
	}
	for i, s := range said.all() {
		switch class := s.GetCode() / 100; {
		case class == 2 && !ignoresMessage:
			return fmt.Errorf("recipient %d: %d %s, although the rest of the message cannot be had", i, s.GetCode(), s.GetText())
		case class == 5:
			return fmt.Errorf("recipient %d: %d %s, for a trouble that is not the message's", i, s.GetCode(), s.GetText())
		}
	}
	if said.returned.GetEdits().GetMessage() && !ignoresMessage {
		return errors.New("a new message in the place of one that could not be read")
	}
	return nil
}

// deliver makes a whole transaction.
func (t *tester) deliver(ctx context.Context, p *instance, change ...func(*pb.ToPlugin)) error {
	tx, err := t.open(ctx, p, change...)
	if err == nil {
		err = tx.finish()
	}
	if err != nil {
		return fmt.Errorf("a transaction: %w", err)
	}
	return nil
}
