// Package freshness proves how fresh this node's databases are. It asks the leader how far it has applied a database, and waits until this node
// has applied as much; on the leader it answers such questions, with its term confirmed by a majority where that is asked for. Questions are
// shared: all reads that begin while one is out go into the next.
package freshness

import (
	"context"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/ownwrites"
	"github.com/mentasystems/colmena/internal/wire"
)

const (
	// LocalPatience is how long a read waits for this node to reach the leader's mark before the leader runs it.
	LocalPatience = 20 * time.Millisecond
	// OwnWritesPatience is how long a read of this node's own state waits for the writes that this node acknowledged.
	OwnWritesPatience = 2 * time.Second
)

// Database is one of this node's databases: an *engine.DB. Once closed it gives engine.ErrClosed.
type Database interface {
	Mark() wire.Mark
	Incarnation() uint64
	WaitMark(ctx context.Context, index uint64) error // until it is applied up to index
	Drain(ctx context.Context) error                  // until everything delivered is applied
	Settle(ctx context.Context) error                 // the same, and not for writes that run
}

// Databases is the set of this node's databases, which follows the system database.
type Databases struct {
	Get     func(name string) Database // nil, and no nil pointer, if there is none
	System  func() uint64              // last entry applied to the system database
	Follows func(index uint64) bool    // whether the set is what the system database says at an entry
	Watch   func() <-chan struct{}     // closed at the next change
	Halted  func() error               // why this replica has stopped
	Missing func() bool                // entries were delivered that reached no database; nil: never
}

// Leadership is what this node knows of who leads.
type Leadership struct {
	Term   func() uint64                      // in which this node leads and takes writes, 0 if it does not
	Leader func() (id string, local, ok bool) // ok is false while there is none
	Watch  func() <-chan struct{}             // closed at the next change
	Await  func(ctx context.Context, deadline time.Time) (id string, local bool, err error)
	Pause  func(ctx context.Context, watch <-chan struct{}, deadline time.Time) error
	// Elsewhere reports whether an error of a node that was asked says that it does not lead, or cannot be reached. Lost makes the caller's error
	// of one that ended the search for a leader.
	Elsewhere func(err error) bool
	Lost      func(ctx context.Context, err error) error
}

// Consensus is what raft and its log say here.
type Consensus struct {
	Term       func() uint64
	Committed  func() uint64                 // index
	Applied    func() uint64                 // last index handed to the databases
	NoCommands func(first, last uint64) bool // no entry there is a command
	Voters     func() []string               // IDs
}

// Stream is what questions travel on: an rpc.Stream.
type Stream interface {
	Send(b []byte) error
	RecvInto(buf []byte) ([]byte, error)
	Close() error
}

// Errors are the ones that callers look for.
type Errors struct {
	Closed, NoLeader, Stale, NotCaughtUp error
	ToWire                               func(error) *wire.Error // the form in which any error travels
}

// Config is what a Gauge needs of its node.
type Config struct {
	NodeID string
	Alone  bool // there is no other node, and no network
	Group  *lifecycle.Group
	Done   <-chan struct{} // closed when the node closes

	Databases  Databases
	Leadership Leadership
	Consensus  Consensus
	Errors     Errors

	// OpenMarks and OpenTerms open streams to ServeMarks and ServeTerms of a node. They end with ctx.
	OpenMarks, OpenTerms func(ctx context.Context, node string) (Stream, error)

	LeaderWait  time.Duration // how long a leader is looked for
	RoundWithin time.Duration // a majority confirms a term within it, or does not
}

// Gauge proves how fresh the databases are. Its methods may be called from several goroutines at once.
type Gauge struct {
	cfg       Config
	delivery  delivery
	askers    askers
	confirmer confirmer
	proven    provenStates
	own       *ownwrites.Marks
}

// New returns a gauge that knows of nothing yet.
func New(cfg Config) *Gauge {
	g := &Gauge{cfg: cfg}
	g.own = ownwrites.New(0, g.holds)
	g.delivery.cfg, g.askers.cfg, g.confirmer.cfg = &g.cfg, &g.cfg, &g.cfg
	return g
}

// Reach waits until this node has applied what the leader has, or, if that takes too long, names the leader; it is this node's own ID when
// it leads by now, or nobody does: then ask again. With confirm the leader's term is confirmed first, so that the state here covers every
// write acknowledged before, by whichever leader.
func (g *Gauge) Reach(ctx context.Context, db string, confirm bool) (leader string, err error) {
	asked := time.Now()
	at, err := g.leaderMark(ctx, db, confirm)
	if err != nil {
		return "", err
	}
	leader, err = g.reach(ctx, db, at)
	if err == nil && leader == "" {
		g.proven.note(db, asked)
	}
	return leader, err
}

// reach waits a moment until this node stands where the leader stood, or names the leader.
func (g *Gauge) reach(ctx context.Context, db string, at position) (leader string, err error) {
	watch := g.cfg.Databases.Watch()
	d := g.cfg.Databases.Get(db)
	if at.reached(d) {
		return "", nil
	}
	short, cancel := context.WithTimeout(ctx, LocalPatience)
	defer cancel()
	if !at.same(d) {
		select {
		case <-watch:
			d = g.cfg.Databases.Get(db)
		case <-short.Done():
		}
	}
	if at.reached(d) || at.same(d) && d.WaitMark(short, at.Index) == nil {
		return "", nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	id, local, ok := g.cfg.Leadership.Leader()
	if !ok || local {
		return g.cfg.NodeID, nil // ask again
	}
	return id, nil
}

// CatchUp waits until this node has applied to a database what the leader had when asked.
func (g *Gauge) CatchUp(ctx context.Context, name string, d Database) error {
	asked := time.Now()
	m, err := g.leaderMark(ctx, name, false)
	if err == nil {
		err = d.WaitMark(ctx, m.Index)
	}
	if err == nil && m.reached(d) {
		g.proven.note(name, asked)
	}
	return err
}

// AwaitIndex waits until this node has applied everything up to index to a database.
func (g *Gauge) AwaitIndex(ctx context.Context, db string, index uint64) error {
	for {
		d := g.cfg.Databases.Get(db)
		if d != nil && d.Mark().Index >= index {
			return nil
		}
		if g.cfg.Consensus.Applied() >= index {
			switch {
			case d != nil:
				return d.Drain(ctx)
			case !g.missing():
				return nil
			}
		}
		wait, cancel := context.WithTimeout(ctx, LocalPatience)
		if d != nil {
			_ = d.WaitMark(wait, index)
		} else {
			<-wait.Done()
		}
		cancel()
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: entry %d is not here yet: %w", g.cfg.Errors.NotCaughtUp, index, err)
		}
		select {
		case <-g.cfg.Done:
			return g.cfg.Errors.Closed
		default:
		}
	}
}

// AwaitSet waits until the set of databases follows the entry at index of the system database: a drop is acknowledged a moment before the
// database is gone here.
func (g *Gauge) AwaitSet(ctx context.Context, index uint64) error {
	for {
		watch := g.cfg.Databases.Watch()
		if g.cfg.Databases.Follows(index) {
			return nil
		}
		if err := g.cfg.Databases.Halted(); err != nil {
			return err
		}
		select {
		case <-watch:
		case <-time.After(LocalPatience):
		case <-g.cfg.Done:
			return g.cfg.Errors.Closed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// AwaitSystem is AwaitSet for what this node has applied of the system database.
func (g *Gauge) AwaitSystem(ctx context.Context) error {
	return g.AwaitSet(ctx, g.cfg.Databases.System())
}
