package outbox

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

var (
	errClosed = errors.New("closed")
	errGone   = errors.New("gone")
)

// end is one end of a stream in memory.
type end struct {
	in, out chan []byte
	gone    chan struct{} // shared by both ends
	close   func()
}

func link() (a, b *end) {
	x, y, gone := make(chan []byte, 64), make(chan []byte, 64), make(chan struct{})
	shut := sync.OnceFunc(func() { close(gone) })
	return &end{x, y, gone, shut}, &end{y, x, gone, shut}
}

func (e *end) Send(b []byte) error {
	select {
	case <-e.gone:
		return errGone
	case e.out <- bytes.Clone(b):
		return nil
	}
}

func (e *end) Recv() ([]byte, error) {
	select {
	case <-e.gone:
		return nil, errGone
	case b := <-e.in:
		return b, nil
	}
}

func (e *end) Close() error { e.close(); return nil }

// next is the frame that was sent, and waits for it.
func (e *end) next(t *testing.T) (uint64, *wire.WriteRequest) {
	t.Helper()
	b, err := e.Recv()
	if err != nil {
		t.Fatal(err)
	}
	req := new(wire.WriteRequest)
	tag, err := readRequest(b, req)
	if err != nil {
		t.Fatal(err)
	}
	return tag, req
}

// answer sends results that tell their tags.
func (e *end) answer(tags ...uint64) {
	results := make([]wire.UnitResult, len(tags))
	for i, tag := range tags {
		results[i].Result.LastInsertID = int64(tag)
	}
	_ = e.Send(appendResponse(nil, tags, results))
}

// world is an outbox whose streams end in the test.
type world struct {
	*Outbox
	opened  chan *end // the other ends
	openErr atomic.Pointer[error]
	deposed atomic.Bool
	watch   chan struct{}
	done    chan struct{}
}

// run runs a test in a bubble, so that time passes only while all wait.
func run(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		group := lifecycle.NewGroup()
		w := &world{opened: make(chan *end, 8), watch: make(chan struct{}), done: make(chan struct{})}
		w.Outbox = New(Config{
			Open: func(context.Context, string) (Stream, error) {
				if err := w.openErr.Load(); err != nil {
					return nil, *err
				}
				here, there := link()
				w.opened <- there
				return here, nil
			},
			Group: group, Done: w.done, Closed: errClosed,
			Deposed: func(string) bool { return w.deposed.Load() },
			Watch:   func() <-chan struct{} { return w.watch },
		})
		f(t, w)
		group.Stop()
	})
}

// sending is a write in flight.
type sending struct {
	res    wire.UnitResult
	sent   bool
	err    error
	cancel context.CancelFunc
	done   chan struct{}
}

func unit(sql string) wire.Unit { return wire.Unit{Statements: []wire.Statement{{SQL: sql}}} }

// start sends a write, and returns when it waits.
func (w *world) start(t *testing.T, db, sql string) *sending {
	ctx, cancel := context.WithCancel(t.Context())
	s := &sending{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.res, s.sent, s.err = w.Send(ctx, "leader", db, unit(sql))
	}()
	synctest.Wait()
	return s
}

func (s *sending) wait() *sending { <-s.done; s.cancel(); return s }

// ended reports whether the write has returned.
func (s *sending) ended() bool {
	synctest.Wait()
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// toWire is how errors travel in these tests.
func toWire(err error) *wire.Error {
	var w *wire.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &w):
		return w
	case errors.Is(err, engine.ErrCanceled):
		return &wire.Error{Code: wire.ErrCanceled}
	}
	return &wire.Error{Code: wire.ErrInternal, Msg: err.Error()}
}

var (
	_ Stream   = (*rpc.Stream)(nil)
	_ Database = (*engine.DB)(nil)
)
