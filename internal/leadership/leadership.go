// Package leadership knows who leads, for whoever asks or waits, and is this node's own part in it: it opens the databases for writing when raft has
// this node lead and everything before that is applied, closes them when that is over, and hands leadership on.
package leadership

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/lifecycle"
)

// Raft is what raft says, and does when it is asked.
type Raft interface {
	LeadingTerm() uint64 // term in which it holds this node for the leader, 0 if it does not
	Leader() string      // ID, "" while none is known
	Voters() []string    // IDs
	// Barrier waits until everything before it was handed to the databases.
	Barrier(ctx context.Context) error
	// Transfer hands leadership to the voter id, or to the one that is most caught up if id is "".
	Transfer(ctx context.Context, id string) error
}

// Databases are opened for writing in a term, and closed.
type Databases interface {
	Lead(term uint64)
	StepDown()
	Drain(ctx context.Context) error // until everything delivered is applied
}

// Config is what an Office needs of its node.
type Config struct {
	NodeID    string
	Raft      Raft
	Databases Databases
	// Ready tells what keeps this node from leading, though it has applied everything. Begun is called when the databases are open for writing;
	// leadership begins when it has returned nil.
	Ready func() error
	Begun func(ctx context.Context) error
	// Halted reports whether this node cannot go on. It can win an election, its log being whole, and must not keep what it won.
	Halted func() bool
	// Won and Lost are told of this node's terms.
	Won, Lost func(term uint64)

	Wait   time.Duration // how long a leader is waited for, negative: not at all
	Group  *lifecycle.Group
	Done   <-chan struct{} // closed when the node closes
	Logger *slog.Logger
	// Closed and NoLeader are the errors of those who wait.
	Closed, NoLeader error
}

// Office is leadership as this node sees it and holds it. Its methods may be called from several goroutines at once.
type Office struct {
	cfg       Config
	term      atomic.Uint64 // in which this node leads and takes writes, 0 none
	stalled   atomic.Bool   // the log's disk hangs
	resigning atomic.Bool   // it hands leadership on, and leads no more until that has failed
	gaveUp    time.Time     // when leadership was last handed on because of a halt; Run's
	poke      chan struct{} // one slot; wakes Run

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when the leader, or term, changes; guarded by mu
	tenure  tenure        // the latest that was asked for; guarded by mu
}

// New returns an office that nobody holds.
func New(cfg Config) *Office {
	return &Office{cfg: cfg, poke: make(chan struct{}, 1), changed: make(chan struct{})}
}

const (
	// tick is how often leadership is looked at even if raft says nothing.
	tick = 100 * time.Millisecond
	// giveUpPause is how often a node that cannot lead tries to hand on what it won.
	giveUpPause = time.Second
	// barrierTimeout bounds how long a node that has won waits until it can lead, and how long one that cannot waits for a successor.
	barrierTimeout = 10 * time.Second
)

// Run follows raft until ctx ends. What raft says may swallow a loss between two wins, so the term is looked at too (H13).
func (o *Office) Run(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		o.follow(ctx)
		select {
		case <-ctx.Done():
			return
		case <-o.poke:
			o.Changed()
		case <-t.C:
		}
	}
}

// RaftChanged is called when raft has something to say.
func (o *Office) RaftChanged() {
	select {
	case o.poke <- struct{}{}:
	default:
	}
}

func (o *Office) follow(ctx context.Context) {
	term := o.leadingTerm()
	if have := o.term.Load(); have != 0 && have != term {
		o.lose()
	}
	if term == 0 || o.term.Load() == term || o.resigning.Load() {
		return
	}
	if o.cfg.Halted() {
		if time.Since(o.gaveUp) > giveUpPause && o.successors() {
			o.gaveUp = time.Now()
			o.GiveUp()
		}
		return
	}
	if err := o.take(ctx, term); err != nil {
		o.cfg.Logger.Warn("leadership was won but cannot be used yet", "term", term, "err", err)
		return
	}
	o.term.Store(term)
	o.Changed()
	o.cfg.Logger.Info("leading", "term", term)
	o.cfg.Won(term)
}

// take waits until everything before this term is applied, and opens the databases for writing.
func (o *Office) take(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	if err := o.cfg.Raft.Barrier(ctx); err != nil {
		return err
	}
	if err := o.cfg.Databases.Drain(ctx); err != nil {
		return err
	}
	if o.leadingTerm() != term {
		return fmt.Errorf("the term is over")
	}
	if err := o.cfg.Ready(); err != nil {
		return err
	}
	o.cfg.Databases.Lead(term)
	if err := o.cfg.Begun(ctx); err != nil {
		o.cfg.Databases.StepDown() // nobody would, when the term ends
		return err
	}
	return nil
}

// lose closes the databases for writing.
func (o *Office) lose() {
	term := o.term.Swap(0)
	o.cfg.Databases.StepDown()
	o.Changed()
	if term != 0 {
		o.cfg.Lost(term)
	}
}

// leadingTerm is the term in which raft holds this node for the leader, and may be believed.
func (o *Office) leadingTerm() uint64 {
	if term := o.cfg.Raft.LeadingTerm(); !o.stalled.Load() {
		return term
	}
	return 0
}

// Stall tells that the log's disk hangs, or no longer does. While it hangs, raft's main goroutine hangs with it and cannot find that its lease has
// run out: until then this node must not take itself for the leader.
func (o *Office) Stall(hangs bool) { o.stalled.Store(hangs) }

// Resign hands leadership to the voter id, or to the one that is most caught up if id is "". New writes wait for the next leader; those under way
// are decided first. If nobody takes over, this node goes on leading.
func (o *Office) Resign(ctx context.Context, id string) error {
	o.resigning.Store(true)
	defer func() {
		o.resigning.Store(false)
		o.Changed()
	}()
	o.lose()
	_ = o.cfg.Databases.Drain(ctx) // what is not decided by then is looked up by its request ID
	if o.leadingTerm() == 0 {
		return nil
	}
	return o.cfg.Raft.Transfer(ctx, id)
}

// GiveUp has a node that cannot go on resign. It does not wait.
func (o *Office) GiveUp() {
	o.cfg.Group.Go("give up leadership", func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
		defer cancel()
		o.resignOrSay(ctx)
	})
}

// HandOver ends this node's leadership in good order, before it closes.
func (o *Office) HandOver(ctx context.Context) {
	if o.term.Load() != 0 && o.successors() {
		o.resignOrSay(ctx)
	}
}

func (o *Office) resignOrSay(ctx context.Context) {
	if err := o.Resign(ctx, ""); err != nil {
		o.cfg.Logger.Warn("leadership could not be handed over", "err", err)
	}
}

// successors reports whether anybody else could lead.
func (o *Office) successors() bool {
	return slices.ContainsFunc(o.cfg.Raft.Voters(), func(id string) bool { return id != o.cfg.NodeID })
}
