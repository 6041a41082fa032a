package handlers

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

var errClosed = errors.New("closed")

type node struct {
	*Set
	term  atomic.Uint64
	ended context.Context // of the term
	end   context.CancelFunc
	done  chan struct{}
}

func with(t *testing.T, f func(*testing.T, *node)) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{done: make(chan struct{})}
		n.term.Store(3)
		n.ended, n.end = context.WithCancel(t.Context())
		group := lifecycle.NewGroup()
		n.Set = New(Config{NodeID: func() string { return "a" }, Term: n.term.Load, Group: group, Done: n.done, Closed: errClosed,
			Logger: slog.New(slog.DiscardHandler),
			During: func(ctx context.Context, term uint64) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				if term != 3 {
					t.Errorf("term %d", term)
				}
				stop := context.AfterFunc(n.ended, cancel)
				return ctx, func() { stop(); cancel() }
			}})
		for name, h := range map[string]Handler{
			"echo":  func(_ context.Context, b []byte) ([]byte, error) { return b, nil },
			"fails": func(context.Context, []byte) ([]byte, error) { return nil, errors.New("no such page") },
			"panic": func(context.Context, []byte) ([]byte, error) { panic("at the disco") },
			"waits": func(ctx context.Context, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
			"deaf":  func(context.Context, []byte) ([]byte, error) { <-n.done; return nil, nil },
		} {
			if err := n.Register(name, h); err != nil {
				t.Fatal(err)
			}
		}
		f(t, n)
		n.end()
		select {
		case <-n.done:
		default:
			close(n.done)
		}
		group.Stop()
	})
}

// both calls a handler as a caller here and as one on another node do.
func (n *node) both(ctx context.Context, name, body string) map[string]func() ([]byte, error) {
	return map[string]func() ([]byte, error){
		"here":  func() ([]byte, error) { return n.Here(ctx, name, []byte(body)) },
		"there": func() ([]byte, error) { return n.Serve(ctx, Encode(name, []byte(body))) },
	}
}

func TestCallsEndAlikeHereAndThere(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		for where, call := range n.both(t.Context(), "echo", "x") {
			if out, err := call(); string(out) != "x" || err != nil {
				t.Errorf("%s: %q, %v", where, out, err)
			}
		}
		for name, want := range map[string]wire.Error{
			"fails": {Code: wire.ErrApp, Msg: "no such page"}, "panic": {Code: wire.ErrPanic, Msg: "at the disco"},
			"other": {Code: wire.ErrNoHandler, Msg: `the leader, node "a", has no handler "other": register it on every node`},
		} {
			for where, call := range n.both(t.Context(), name, "") {
				_, err := call()
				var w *wire.Error
				if !errors.As(err, &w) || *w != want || Undelivered(err) || Unknown(err) {
					t.Errorf("%s, %s: %v", name, where, err)
				}
			}
		}
		n.term.Store(0)
		for where, call := range n.both(t.Context(), "echo", "x") {
			if _, err := call(); !Undelivered(err) || Unknown(err) {
				t.Errorf("%s, not leading: %v", where, err)
			}
		}
	})
}

func TestHandlerEndsWithLeadership(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		time.AfterFunc(time.Second, n.end)
		for where, call := range n.both(t.Context(), "waits", "") {
			if _, err := call(); !Unknown(err) || Undelivered(err) {
				t.Errorf("%s: %v", where, err)
			}
		}
	})
}

// A handler that does not listen keeps nobody who has no time, and no node from closing.
func TestCallerDoesNotWaitForADeafHandler(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Here(ctx, "deaf", nil); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, rpc.ErrInterrupted) || !Unknown(err) {
			t.Error(err)
		}
		if Ended(ctx) == nil || Ended(t.Context()) != nil {
			t.Error("whether a context has ended is told wrongly")
		}
		time.AfterFunc(time.Second, func() { close(n.done) })
		if _, err := n.Here(t.Context(), "waits", nil); !errors.Is(err, errClosed) || !Unknown(err) {
			t.Error(err)
		}
		n.end()
		n.cfg.Group.Stop()
		if _, err := n.Here(t.Context(), "echo", nil); err != errClosed {
			t.Error(err)
		}
	})
}

func TestNamesOfHandlers(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		for _, name := range []string{"", "echo", strings.Repeat("x", MaxName+1)} {
			if err := n.Register(name, n.m["echo"]); err == nil {
				t.Errorf("%q is taken", name)
			}
		}
		if _, err := n.Serve(t.Context(), []byte{0xc1}); err == nil {
			t.Error("garbage is taken")
		}
	})
}
