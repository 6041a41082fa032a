// Package reading runs queries as fresh as they ask to be: on this node's files when these are fresh enough, and on the leader when that takes too
// long. While no row is here nothing is lost: when the leader cannot answer, it is found out anew who can.
package reading

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// Level says how fresh a read is. The numbers travel.
type Level int

const (
	Local  Level = 1 // this node's state, with its own acknowledged writes
	Weak   Level = 2 // what the leader had applied when asked
	Strong Level = 3 // linearizable
)

// Mode is what a read asks for.
type Mode struct {
	Level    Level
	Stale    time.Duration // if not 0, this node's state where that is proved to be at most so old
	MinIndex uint64        // the entry up to which it is applied, whatever the level
}

// Databases are this node's.
type Databases interface {
	Get(name string) *engine.DB // nil if there is none
	Watch() <-chan struct{}     // closed at the next change
}

// Freshness proves how fresh the databases are: a gauge of package freshness.
type Freshness interface {
	AwaitIndex(ctx context.Context, db string, index uint64) error
	Prove(ctx context.Context, db string, within time.Duration) error
	AwaitOwnWrites(ctx context.Context, db string) error
	AwaitSystem(ctx context.Context) error
	// Reach waits until the database stands where it stood on the leader, or names the leader if that takes too long.
	Reach(ctx context.Context, db string, confirm bool) (leader string, err error)
}

// Leaders tells who leads: an office of package leadership.
type Leaders interface {
	Leading() bool
	Deadline() time.Time
	Watch() <-chan struct{}
	Pause(ctx context.Context, watch <-chan struct{}, deadline time.Time) error
}

// Config is what a Reads needs of its node.
type Config struct {
	NodeID    string
	Databases Databases
	Empty     *engine.Empty // what is read of a database before its first write
	Fresh     Freshness
	Leaders   Leaders
	// Ask has another node run a query. nil where there is none.
	Ask func(ctx context.Context, node string, req *wire.QueryRequest) (values.RowSource, error)
	// MayPass reports whether a database stopped for a reason that may pass; then what it holds may be read.
	MayPass  func(error) bool
	Halted   func() error  // why this replica has stopped, nil while it goes on
	Patience time.Duration // how long a change is waited for before it is looked again
	Done     <-chan struct{}
	// Closed, NoLeader and ErrHalted are errors that callers look for. User makes theirs of an error of the engine, Error of any that a read met, TooLarge of a
	// *wire.LimitError.
	Closed, NoLeader, ErrHalted error
	User, Error, TooLarge       func(error) error
}

// Reads runs a node's queries. Its methods may be called from several goroutines at once.
type Reads struct{ cfg Config }

// New returns what runs queries.
func New(cfg Config) *Reads { return &Reads{cfg: cfg} }

// Query runs a statement string that only reads, here or on the leader.
func (r *Reads) Query(ctx context.Context, db string, m Mode, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	leader, err := r.freshen(ctx, db, m)
	if err != nil {
		return nil, err
	}
	if leader != "" {
		return r.There(ctx, leader, db, m, sql, args, pre)
	}
	return r.here(ctx, db, sql, args, pre)
}

// There has a node, the leader it is thought, run a query, which streams its rows.
func (r *Reads) There(ctx context.Context, leader, db string, m Mode, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	by := r.cfg.Leaders.Deadline()
	req := wire.QueryRequest{DB: db, Level: uint8(m.Level), Statement: wire.Statement{SQL: sql, Args: args}, Pre: pre, HasPre: true}
	if err := req.Check(); err != nil {
		return nil, r.cfg.TooLarge(err)
	}
	for {
		if leader != r.cfg.NodeID && r.cfg.Ask != nil { // otherwise this node has become the leader
			watch := r.cfg.Leaders.Watch()
			rows, err := r.cfg.Ask(ctx, leader, &req)
			if err == nil {
				return rows, nil
			}
			if !askAgain(err) {
				return nil, r.cfg.Error(err)
			}
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case r.closed():
				return nil, r.cfg.Closed
			}
			if errors.Is(r.cfg.Leaders.Pause(ctx, watch, by), r.cfg.NoLeader) {
				return nil, fmt.Errorf("%w: node %q, asked last, did not run the query: %v", r.cfg.NoLeader, leader, err)
			}
		}
		var err error
		if leader, err = r.freshen(ctx, db, m); err != nil {
			return nil, err
		}
		if leader == "" {
			return r.here(ctx, db, sql, args, pre)
		}
	}
}

// askAgain reports whether a query that failed so may be answered by another node, or by the same one later: it was not run, or its answer was
// lost. err says nothing of this node.
func askAgain(err error) bool {
	if errors.Is(err, rpc.ErrNotDelivered) || errors.Is(err, rpc.ErrInterrupted) {
		return true
	}
	var w *wire.Error
	return errors.As(err, &w) && OfTheNode(w)
}

// OfTheNode reports whether an error tells of the state of the node that sent it, and not of what was asked of it. A query is canceled over there
// when that node closes: when the caller is gone, nobody waits for the answer.
func OfTheNode(w *wire.Error) bool {
	switch w.Code {
	case wire.ErrNotLeader, wire.ErrClosed, wire.ErrHalted, wire.ErrCanceled, wire.ErrBusy:
		return true
	}
	return false
}

// Freshen waits until this node may answer as a mode asks, for what can only run on this node.
func (r *Reads) Freshen(ctx context.Context, db string, m Mode) error {
	for {
		leader, err := r.freshen(ctx, db, m)
		if err != nil || leader == "" {
			return err
		}
		if d := r.cfg.Databases.Get(db); d != nil && d.Err() != nil {
			return r.cfg.User(d.Err()) // it will not catch up by waiting
		}
		if err := r.cfg.Leaders.Pause(ctx, r.cfg.Databases.Watch(), time.Now().Add(r.cfg.Patience)); err != nil && !errors.Is(err, r.cfg.NoLeader) {
			return err
		}
	}
}

// freshen waits until this node may answer as a mode asks. If it lags too far behind the leader it returns the leader instead.
func (r *Reads) freshen(ctx context.Context, db string, m Mode) (leader string, err error) {
	if m.MinIndex > 0 {
		if err := r.awaitIndex(ctx, db, m.MinIndex); err != nil {
			return "", err
		}
	}
	switch {
	case m.Stale > 0:
		return "", r.cfg.Fresh.Prove(ctx, db, m.Stale)
	case m.Level == Local:
		return "", r.cfg.Fresh.AwaitOwnWrites(ctx, db)
	case m.Level == Weak && r.cfg.Leaders.Leading():
		return "", r.cfg.Fresh.AwaitSystem(ctx)
	}
	leader, err = r.cfg.Fresh.Reach(ctx, db, m.Level == Strong)
	return leader, r.cfg.Error(err)
}

// awaitIndex waits for an entry. One that is not of this cluster's log never comes.
func (r *Reads) awaitIndex(ctx context.Context, db string, index uint64) error {
	if _, ok := ctx.Deadline(); !ok {
		short, cancel := context.WithDeadline(ctx, r.cfg.Leaders.Deadline())
		defer cancel()
		ctx = short
	}
	return r.cfg.Fresh.AwaitIndex(ctx, db, index)
}

func (r *Reads) closed() bool {
	select {
	case <-r.cfg.Done:
		return true
	default:
		return false
	}
}
