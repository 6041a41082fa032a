// Package outbox carries a node's writes to the leader, and answers them there. Writes to one node travel on one stream. Those that wait while a
// frame is being sent go into the next one, so frames form by themselves, as epochs do on the leader. Every unit has a tag of its own and is
// answered when it is decided: a slow one holds up no other's answer.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Stream is what frames travel on: an rpc.Stream. One goroutine sends while another receives.
type Stream interface {
	Send(b []byte) error
	Recv() ([]byte, error)
	Close() error
}

// Config is what an Outbox needs of its node.
type Config struct {
	// Open opens a stream to a node, which ends with ctx. Its error says whether the node may have heard of it; nothing was sent on it.
	Open func(ctx context.Context, node string) (Stream, error)
	// Group runs the outbox's goroutines and ends them.
	Group *lifecycle.Group
	// Deposed reports whether another node than this one is known to lead, and Watch returns a channel that is closed when that may have changed.
	Deposed func(node string) bool
	Watch   func() <-chan struct{}
	// Done is closed when this node closes, and Closed is then the error of what waits.
	Done   <-chan struct{}
	Closed error
}

// Outbox holds a sender per node that leads or has led. Its methods may be called from several goroutines at once.
type Outbox struct {
	cfg Config

	mu  sync.Mutex
	all map[string]*sender // guarded by mu
}

// New returns an outbox without streams.
func New(cfg Config) *Outbox { return &Outbox{cfg: cfg, all: map[string]*sender{}} }

// answerGrace is how long the answer of a node that no longer leads is waited for: one that handed leadership over in good order has sent it
// before.
const answerGrace = 20 * time.Millisecond

// Send hands a unit to the node that leads and waits. When ctx ends first, or another node is found to lead, the unit may have been sent or not:
// sent tells. A leader that hangs answers nothing and closes nothing, so waiting for it alone would take until its connection is given up. An
// error of the way there is rpc.ErrNotDelivered or rpc.ErrInterrupted; that of the unit itself is in the result.
func (b *Outbox) Send(ctx context.Context, node, db string, u wire.Unit) (res wire.UnitResult, sent bool, err error) {
	s := b.sender(node)
	o, err := s.enqueue(db, u)
	if err != nil {
		return res, false, err
	}
	var late <-chan time.Time
	for {
		watch := b.cfg.Watch()
		if late == nil && b.cfg.Deposed(node) {
			if s.withdraw(o) {
				return res, false, fmt.Errorf("%w: node %q leads no more", rpc.ErrNotDelivered, node)
			}
			late = time.After(answerGrace)
		}
		select {
		case r := <-o.done:
			return r.result, !errors.Is(r.err, rpc.ErrNotDelivered), r.err
		case <-late:
			// It stays in s.out: its answer, if one comes, makes room for a frame.
			return res, true, fmt.Errorf("%w: node %q leads no more and has not answered", rpc.ErrInterrupted, node)
		case <-watch:
		case <-ctx.Done():
			return s.cancel(ctx, o)
		case <-b.cfg.Done:
			return res, !s.withdraw(o), b.cfg.Closed
		}
	}
}

func (b *Outbox) sender(node string) *sender {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.all[node]; s != nil {
		return s
	}
	s := newSender(&b.cfg, node)
	b.all[node] = s
	b.cfg.Group.Go("writes to "+node, s.run)
	return s
}

// outgoing is a unit on its way to the leader.
type outgoing struct {
	db    string
	unit  wire.Unit
	tag   uint64
	frame uint64
	done  chan outcome // one slot
}

// outcome is a result, or an error of the way there.
type outcome struct {
	result wire.UnitResult
	err    error // rpc.ErrNotDelivered, rpc.ErrInterrupted
}

// cancel withdraws a unit whose caller is gone. One that was sent is stopped on the leader, so that it holds up nobody; a short wait tells whether
// it was.
func (s *sender) cancel(ctx context.Context, o *outgoing) (res wire.UnitResult, sent bool, err error) {
	if s.withdraw(o) {
		return res, false, ctx.Err()
	}
	s.recall(o)
	timer := time.NewTimer(engine.CancelGrace)
	defer timer.Stop()
	select {
	case r := <-o.done:
		if e := r.result.Err; e != nil && e.Code == wire.ErrCanceled {
			return res, false, fmt.Errorf("%w (%w)", ctx.Err(), engine.ErrCanceled)
		}
		return r.result, !errors.Is(r.err, rpc.ErrNotDelivered), r.err
	case <-timer.C:
		return res, true, ctx.Err()
	}
}
