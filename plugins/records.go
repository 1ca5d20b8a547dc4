package plugins

import (
	"context"
	"log/slog"
	"slices"
)

// idKey is the key of a slog.Attr in the ctx of Deliver, which names the
// transaction, and of a question, which names the session.
type idKey struct{}

// idHandler is a slog.Handler that adds the ID that is in ctx, if there is
// one, outside of all groups.
type idHandler struct {
	root slog.Handler
	then []func(slog.Handler) slog.Handler // WithAttrs and WithGroup, in order
}

func (h idHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.root.Enabled(ctx, level)
}

func (h idHandler) Handle(ctx context.Context, r slog.Record) error {
	handler := h.root
	if id, ok := ctx.Value(idKey{}).(slog.Attr); ok {
		handler = handler.WithAttrs([]slog.Attr{id})
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
