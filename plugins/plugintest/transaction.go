package plugintest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

const text = "From: <sender@example.net>\r\nSubject: test\r\n\r\nHello.\r\n"

// A transaction is one that an instance is given, octet for octet.
type transaction struct {
	stream grpc.BidiStreamingClient[pb.ToPlugin, pb.ToGateway]
	cancel context.CancelFunc
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
			Id:      "test",
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
	return &transaction{stream, cancel}, nil
}

// finish sends the rest of the message and reads the answers.
func (tx *transaction) finish() error {
	defer tx.cancel()
	// An error of sending is received, too.
	if tx.stream.Send(&pb.ToPlugin{Chunk: []byte(text[len(text)/2:]), Last: true}) == nil {
		tx.stream.CloseSend()
	}
	var returned *pb.Returned
	for {
		answer, err := tx.stream.Recv()
		switch {
		case err == io.EOF && returned == nil:
			return errors.New("the call has ended without returned")
		case err == io.EOF && returned.GetFailure() != "":
			return fmt.Errorf("it returned the failure %q", returned.GetFailure())
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		for _, s := range answer.Statuses {
			if code := s.GetStatus().GetCode(); code/100 != 2 {
				return fmt.Errorf("recipient %d: %d %s", s.Recipient, code, s.GetStatus().GetText())
			}
		}
		if answer.Returned != nil {
			returned = answer.Returned
		}
	}
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
