package plugins

import (
	"context"
	"log/slog"
	"slices"
)

// txKey is the key of the transaction's ID in the ctx of Deliver.
type txKey struct{}

// txHandler is a slog.Handler that adds the ID of the transaction, if ctx has
// one, outside of all groups.
type txHandler struct {
	root slog.Handler
	then []func(slog.Handler) slog.Handler // WithAttrs and WithGroup, in order
}

func (h txHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.root.Enabled(ctx, level)
}

func (h txHandler) Handle(ctx context.Context, r slog.Record) error {
	handler := h.root
	if id, ok := ctx.Value(txKey{}).(string); ok {
		handler = handler.WithAttrs([]slog.Attr{slog.String("tx", id)})
	}
	for _, then := range h.then {
		handler = then(handler)
	}
	return handler.Handle(ctx, r)
}

func (h txHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

func (h txHandler) WithGroup(name string) slog.Handler {
	return h.with(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h txHandler) with(f func(slog.Handler) slog.Handler) slog.Handler {
	return txHandler{h.root, append(slices.Clip(h.then), f)}
}
