package peers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/plugins"
)

// Trouble is a filter that refuses mail for gone, marks the rest, and behaves as
// the file moodFile in the directory of gateway.toml says.
type trouble struct{}

const (
	moodFile  = "mood"
	markField = "X-Trouble: marked"
)

// moods are how the filter can misbehave, in one of three transactions. None of
// them says that anything was delivered.
var moods = map[string]func(ctx context.Context, tx *backends.DataContext) error{
	"crash": func(context.Context, *backends.DataContext) error {
		os.Exit(9)
		return nil
	},
	"panic": func(context.Context, *backends.DataContext) error { panic("in a bad mood") },
	"error": func(context.Context, *backends.DataContext) error { return errors.New("in a bad mood") },
	"hang": func(ctx context.Context, _ *backends.DataContext) error {
		<-ctx.Done()
		return ctx.Err()
	},
	"late": func(ctx context.Context, tx *backends.DataContext) error {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
		return filterWell(tx)
	},
	"late status": func(ctx context.Context, tx *backends.DataContext) error {
		for i := range tx.Envelope.Recipients {
			tx.StartDelivery(ctx, i)
		}
		time.AfterFunc(100*time.Millisecond, func() { tx.SetAll(backends.TryLater) })
		return nil
	},
	"twice": func(_ context.Context, tx *backends.DataContext) error {
		tx.SetStatus(len(tx.Envelope.Recipients), backends.Delivered)
		for i, r := range tx.Envelope.Recipients {
			if isGone(r.Address) {
				tx.SetStatus(i, backends.NoSuchUser)
				tx.SetStatus(i, backends.Delivered)
			}
		}
		return filterWell(tx)
	},
	"nonsense": func(_ context.Context, tx *backends.DataContext) error {
		fmt.Fprintf(os.Stdout, "\x00\xff{\"@message\":5}\r%s\n", strings.Repeat("x", 100_000))
		fmt.Fprintln(os.Stderr, `{"level":"INFO","msg":5}`)
		for i := range tx.Envelope.Recipients {
			tx.SetStatus(i, backends.NewStatus(354, "9.9.9", "go\r\nahead"))
		}
		return nil
	},
	"hoard": func(ctx context.Context, tx *backends.DataContext) error {
		hoard := make([]byte, 32<<20)
		for i := range hoard {
			hoard[i] = byte(i)
		}
		time.Sleep(time.Duration(hoard[50]) * time.Millisecond)
		return filterWell(tx)
	},
	"bad edit": func(_ context.Context, tx *backends.DataContext) error {
		return errors.Join(filterWell(tx), tx.RemoveField(1000))
	},
}

func (trouble) Deliver(ctx context.Context, tx *backends.DataContext) error {
	mood, _ := os.ReadFile(moodFile)
	if misbehave, ok := moods[string(mood)]; ok && rand.IntN(3) == 0 {
		return misbehave(ctx, tx)
	}
	return filterWell(tx)
}

// filterWell is how the filter behaves if it is well.
func filterWell(tx *backends.DataContext) error {
	for i, r := range tx.Envelope.Recipients {
		if isGone(r.Address) {
			tx.SetStatus(i, backends.NoSuchUser)
		}
	}
	return tx.AddField(0, markField)
}

func isGone(address string) bool { return strings.HasPrefix(address, "gone@") }

func serveTrouble() {
	plugins.Serve(struct{}{}, func(struct{}) (backends.Backend, error) { return trouble{}, nil })
}
