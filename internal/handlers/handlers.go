// Package handlers runs the application's handlers on the leader, for callers on this node and on others. A handler's context ends when leadership
// does, its panic becomes an error, and a caller waits no longer than his own context says, whatever the handler does.
package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Handler takes a request and returns a response, both encoded.
type Handler func(ctx context.Context, request []byte) (response []byte, err error)

// Config is what a Set needs of its node.
type Config struct {
	// NodeID is the node's ID, for errors; it is asked for when there is one.
	NodeID func() string
	Term   func() uint64 // in which this node leads, 0 if it does not
	// During returns a context that ends with ctx, and when this node leads no more in a term.
	During func(ctx context.Context, term uint64) (context.Context, context.CancelFunc)
	Group  *lifecycle.Group
	// Done is closed when this node closes, and Closed is then the error of what waits.
	Done   <-chan struct{}
	Closed error
	Logger *slog.Logger
}

// Set holds the handlers of a node. Its methods may be called from several goroutines at once.
type Set struct {
	cfg Config

	mu sync.RWMutex
	m  map[string]Handler // guarded by mu
}

// New returns a set without handlers.
func New(cfg Config) *Set { return &Set{cfg: cfg, m: map[string]Handler{}} }

// MaxName is the most bytes of a handler's name.
const MaxName = 256

// Register adds a handler.
func (s *Set) Register(name string, h Handler) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("colmena: handler name %q: a name has 1 to %d bytes", name, MaxName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[name] != nil {
		return fmt.Errorf("colmena: a handler %q is registered already", name)
	}
	s.m[name] = h
	return nil
}

// request travels as msgpack.
type request struct {
	Name string
	Body []byte
}

// Encode makes what Serve takes.
func Encode(name string, body []byte) []byte { return rpc.EncodeControl(&request{name, body}) }

// Serve runs a handler for a caller on another node.
func (s *Set) Serve(ctx context.Context, b []byte) ([]byte, error) {
	var r request
	if err := rpc.DecodeControl(b, &r); err != nil {
		return nil, fmt.Errorf("forwarded request: %w", err)
	}
	return s.run(ctx, r.Name, r.Body)
}

// Here runs a handler for a caller on this node. When the caller's context ends first, or the node closes, the error is rpc.ErrInterrupted.
func (s *Set) Here(ctx context.Context, name string, body []byte) ([]byte, error) {
	type outcome struct {
		out []byte
		err error
	}
	done := make(chan outcome, 1)
	if !s.cfg.Group.Go("handler "+name, func(context.Context) {
		out, err := s.run(ctx, name, body)
		done <- outcome{out, err}
	}) {
		return nil, s.cfg.Closed
	}
	select {
	case o := <-done:
		return o.out, o.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", rpc.ErrInterrupted, ctx.Err())
	case <-s.cfg.Done:
		return nil, fmt.Errorf("%w: %w", rpc.ErrInterrupted, s.cfg.Closed)
	}
}

// run runs a handler on this node, under a context that ends with leadership.
func (s *Set) run(ctx context.Context, name string, body []byte) (out []byte, err error) {
	term := s.cfg.Term()
	if term == 0 {
		return nil, &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"}
	}
	s.mu.RLock()
	h := s.m[name]
	s.mu.RUnlock()
	if h == nil {
		return nil, &wire.Error{Code: wire.ErrNoHandler, Msg: fmt.Sprintf("the leader, node %q, has no handler %q: register it on every node", s.cfg.NodeID(), name)}
	}
	ctx, cancel := s.cfg.During(ctx, term)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Logger.Error("a handler panicked", "handler", name, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			out, err = nil, &wire.Error{Code: wire.ErrPanic, Msg: fmt.Sprint(r)}
		}
	}()
	out, err = h(ctx, body)
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil, &wire.Error{Code: wire.ErrOutcomeUnknown, Msg: "the handler was stopped by its context: " + err.Error()}
	}
	return nil, &wire.Error{Code: wire.ErrApp, Msg: err.Error()}
}

// Undelivered reports whether a call that failed so reached no leader, and goes to the next one.
func Undelivered(err error) bool {
	return errors.Is(err, rpc.ErrNotDelivered) || isCode(err, wire.ErrNotLeader)
}

// Unknown reports whether the handler of a call that failed so may have run, or may still.
func Unknown(err error) bool {
	return errors.Is(err, rpc.ErrInterrupted) || isCode(err, wire.ErrOutcomeUnknown)
}

func isCode(err error, code wire.ErrorCode) bool {
	var w *wire.Error
	return errors.As(err, &w) && w.Code == code
}

// endGrace is by how much a deadline that travelled may be noticed on the other node before it is here.
const endGrace = 20 * time.Millisecond

// Ended is why the context of a call has ended, nil if it has not.
func Ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if by, ok := ctx.Deadline(); ok && time.Until(by) < endGrace {
		return context.DeadlineExceeded
	}
	return nil
}
