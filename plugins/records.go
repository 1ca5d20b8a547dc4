package plugins

import (
	"context"
	"log/slog"
	"slices"

	"github.com/mailgw/mailgw/backends"
)

// idsKey is the key of ids in the ctx of Deliver and of a question.
type idsKey struct{}

// ids name what a record is about as the gateway's own records do.
type ids struct {
	session, tx string
	ident       string // the client's name for the transaction
}

func idsOf(s *backends.Session, tx string) ids {
	of := ids{session: s.ID, tx: tx}
	if s.XForward != nil {
		of.ident = s.XForward.Ident
	}
	return of
}

func (i ids) attrs() []slog.Attr {
	all := []slog.Attr{slog.String("session", i.session), slog.String("tx", i.tx), slog.String("ident", i.ident)}
	return slices.DeleteFunc(all, func(a slog.Attr) bool { return a.Value.String() == "" })
}

// idHandler is a slog.Handler that adds the ids that are in ctx, outside of all
// groups.
type idHandler struct {
	root slog.Handler
	then []func(slog.Handler) slog.Handler // WithAttrs and WithGroup, in order
}

func (h idHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.root.Enabled(ctx, level)
}

func (h idHandler) Handle(ctx context.Context, r slog.Record) error {
	handler := h.root
	if of, ok := ctx.Value(idsKey{}).(ids); ok {
		handler = handler.WithAttrs(of.attrs())
	}
	for _, then := range h.then {
		handler = then(handler)
	}
	return handler.Handle(ctx, r)
}

func (h idHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h idHandler) WithGroup(name string) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h idHandler) with(f func(slog.Handler) slog.Handler) slog.Handler {
	return idHandler{h.root, append(slices.Clip(h.then), f)}
}
