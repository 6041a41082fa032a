package freshness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

var (
	errClosed      = errors.New("closed")
	errNoLeader    = errors.New("no leader")
	errStale       = errors.New("stale")
	errNotCaughtUp = errors.New("not caught up")
	errUnreachable = errors.New("unreachable")
	errGone        = errors.New("gone")
)

var (
	_ Stream   = (*rpc.Stream)(nil)
	_ Database = (*engine.DB)(nil)
)

// end is one end of a stream in memory.
type end struct {
	in, out chan []byte
	gone    chan struct{} // shared by both ends
	close   func()
}

func link() (a, b *end) {
	x, y, gone := make(chan []byte, 8), make(chan []byte, 8), make(chan struct{})
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

func (e *end) RecvInto([]byte) ([]byte, error) {
	select {
	case <-e.gone:
		return nil, errGone
	case b := <-e.in:
		return b, nil
	}
}

func (e *end) Close() error { e.close(); return nil }

// change is a channel that is closed and replaced at every change.
type change struct {
	mu sync.Mutex
	ch chan struct{}
}

func (c *change) watch() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch == nil {
		c.ch = make(chan struct{})
	}
	return c.ch
}

func (c *change) tell() {
	c.watch()
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.ch)
	c.ch = nil
}

// database is one whose mark the test moves.
type database struct {
	incarnation uint64
	changed     change

	mu        sync.Mutex
	mark      wire.Mark
	delivered uint64 // Settle and Drain wait for it
	closed    bool
}

func (d *database) Mark() wire.Mark {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mark
}

func (d *database) Incarnation() uint64 { return d.incarnation }

func (d *database) apply(index uint64) {
	d.mu.Lock()
	d.mark.Index = index
	d.mu.Unlock()
	d.changed.tell()
}

func (d *database) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.changed.tell()
}

func (d *database) WaitMark(ctx context.Context, index uint64) error {
	for {
		watch := d.changed.watch()
		d.mu.Lock()
		reached, closed := d.mark.Index >= index, d.closed
		d.mu.Unlock()
		switch {
		case closed:
			return engine.ErrClosed
		case reached:
			return nil
		}
		select {
		case <-watch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *database) Settle(ctx context.Context) error {
	d.mu.Lock()
	index := d.delivered
	d.mu.Unlock()
	return d.WaitMark(ctx, index)
}

func (d *database) Drain(ctx context.Context) error { return d.Settle(ctx) }

// node is one of a cluster in memory, in a bubble where time passes only while all wait.
type node struct {
	*Gauge
	id    string
	all   map[string]*node
	group *lifecycle.Group
	done  chan struct{}
	set   change
	state change

	mu        sync.Mutex // guards what follows
	dbs       map[string]*database
	follows   uint64 // the set follows the system database up to here
	system    uint64
	term      uint64
	leading   uint64
	leader    string
	committed uint64
	applied   uint64
	commands  bool // what is committed and not applied holds commands
	halted    error
	cut       bool // nobody reaches it
	opened    int  // streams to it
	marks     int  // questions for marks it was asked
	terms     int
	holdTerms chan struct{} // answers wait until it is closed
}

func (n *node) locked(f func()) {
	n.mu.Lock()
	f()
	n.mu.Unlock()
	n.set.tell()
	n.state.tell()
}

func get[T any](n *node, f func() T) T {
	n.mu.Lock()
	defer n.mu.Unlock()
	return f()
}

func (n *node) db(name string) *database { return get(n, func() *database { return n.dbs[name] }) }

// cluster runs f with nodes "1" to "n", which are in term 5; "1" leads.
func cluster(t *testing.T, size int, f func(t *testing.T, nodes []*node)) {
	synctest.Test(t, func(t *testing.T) {
		all := map[string]*node{}
		var nodes []*node
		for i := range size {
			n := &node{id: fmt.Sprint(i + 1), all: all, group: lifecycle.NewGroup(), done: make(chan struct{}), term: 5, leader: "1",
				dbs: map[string]*database{"db": {incarnation: 7, mark: wire.Mark{Term: 5, Index: 10}}}}
			n.committed, n.applied = 10, 10
			n.Gauge = New(n.config(size == 1))
			all[n.id], nodes = n, append(nodes, n)
		}
		nodes[0].leading = 5
		f(t, nodes)
		for _, n := range nodes {
			n.group.Stop()
		}
	})
}

func (n *node) config(alone bool) Config {
	return Config{
		NodeID: n.id, Alone: alone, Group: n.group, Done: n.done, LeaderWait: time.Second, RoundWithin: 500 * time.Millisecond,
		Databases: Databases{
			Get: func(name string) Database {
				if d := n.db(name); d != nil {
					return d
				}
				return nil
			},
			System:  func() uint64 { return get(n, func() uint64 { return n.system }) },
			Follows: func(index uint64) bool { return get(n, func() bool { return n.follows >= index }) },
			Watch:   n.set.watch,
			Halted:  func() error { return get(n, func() error { return n.halted }) },
		},
		Leadership: Leadership{
			Term:   func() uint64 { return get(n, func() uint64 { return n.leading }) },
			Leader: n.whoLeads, Watch: n.state.watch, Await: n.await, Pause: n.pause,
			Elsewhere: func(err error) bool {
				var w *wire.Error
				return errors.As(err, &w) && w.Code == wire.ErrNotLeader || errors.Is(err, errNoLeader) || errors.Is(err, errUnreachable)
			},
			Lost: func(_ context.Context, err error) error { return fmt.Errorf("lost: %w", err) },
		},
		Consensus: Consensus{
			Term:       func() uint64 { return get(n, func() uint64 { return n.term }) },
			Committed:  func() uint64 { return get(n, func() uint64 { return n.committed }) },
			Applied:    func() uint64 { return get(n, func() uint64 { return n.applied }) },
			NoCommands: func(_, _ uint64) bool { return get(n, func() bool { return !n.commands }) },
			Voters: func() (ids []string) {
				for i := range len(n.all) {
					ids = append(ids, fmt.Sprint(i+1))
				}
				return ids
			},
		},
		Errors: Errors{Closed: errClosed, NoLeader: errNoLeader, Stale: errStale, NotCaughtUp: errNotCaughtUp,
			ToWire: func(err error) *wire.Error { return &wire.Error{Code: wire.ErrInternal, Msg: err.Error()} }},
		OpenMarks: func(ctx context.Context, id string) (Stream, error) {
			return n.open(ctx, id, func(to *node, st Stream) error { return to.ServeMarks(ctx, st) })
		},
		OpenTerms: func(ctx context.Context, id string) (Stream, error) {
			return n.open(ctx, id, func(to *node, st Stream) error { return to.ServeTerms(st) })
		},
	}
}

func (n *node) whoLeads() (string, bool, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.leading != 0:
		return n.id, true, true
	case n.leader == "" || n.leader == n.id:
		return "", false, false
	}
	return n.leader, false, true
}

func (n *node) await(ctx context.Context, deadline time.Time) (string, bool, error) {
	for {
		watch := n.state.watch()
		if id, local, ok := n.whoLeads(); ok {
			return id, local, nil
		}
		if err := n.pause(ctx, watch, deadline); err != nil {
			return "", false, err
		}
	}
}

func (n *node) pause(ctx context.Context, watch <-chan struct{}, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return errNoLeader
	}
	select {
	case <-watch:
	case <-time.After(min(left, 100*time.Millisecond)):
	case <-n.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// open serves a stream on another node, unless either is cut off.
func (n *node) open(ctx context.Context, id string, serve func(*node, Stream) error) (Stream, error) {
	to := n.all[id]
	if get(n, func() bool { return n.cut }) || get(to, func() bool { return to.cut }) {
		return nil, errUnreachable
	}
	to.mu.Lock()
	to.opened++
	to.mu.Unlock()
	here, there := link()
	context.AfterFunc(ctx, here.close)
	n.group.Go("serve", func(context.Context) { _ = serve(to, &counted{there, to}) })
	return here, nil
}

// counted counts the questions a node is asked, and holds answers up.
type counted struct {
	*end
	n *node
}

func (c *counted) RecvInto(buf []byte) ([]byte, error) {
	b, err := c.end.RecvInto(buf)
	if err != nil {
		return nil, err
	}
	c.n.mu.Lock()
	if c.n.cut {
		c.n.mu.Unlock()
		c.close()
		return nil, errGone
	}
	hold := c.n.holdTerms
	var mark wire.MarkRequest
	if mark.Decode(b) == nil {
		c.n.marks++
		hold = nil
	} else {
		c.n.terms++
	}
	c.n.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-c.gone:
		}
	}
	return b, nil
}

// started runs f in the bubble and returns when all wait.
func started(f func() error) chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	synctest.Wait()
	return done
}

// waits reports whether what was started has not ended.
func waits(done chan error) bool {
	synctest.Wait()
	return len(done) == 0
}
