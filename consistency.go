package colmena

import (
	"context"
	"fmt"
	"time"
)

// ConsistencyLevel says how fresh a read is, and what it needs to be answered. It is
// also a DBOption: the default of the handle's reads.
type ConsistencyLevel int

const (
	// None reads this node's own state. Available: always, without a leader and
	// without a connection to any other node. Fresh: whatever this node has applied,
	// and at least its own acknowledged writes, for which it waits a bounded time.
	None ConsistencyLevel = iota + 1
	// Weak, the default, reads what the leader had applied when it was asked.
	// Available: while a leader can be reached; else ErrNoLeader after
	// Config.LeaderWait. Fresh: every write acknowledged before the read began,
	// except that a leader deposed without knowing it may answer for up to its lease.
	Weak
	// Strong is linearizable (Raft dissertation §6.4). Available: while a leader can
	// be reached that reaches a majority; else ErrNoLeader after Config.LeaderWait.
	// Fresh: every write acknowledged before the read began, by whichever leader.
	Strong
)

// String returns the level's name.
func (l ConsistencyLevel) String() string {
	switch l {
	case None:
		return "None"
	case Weak:
		return "Weak"
	case Strong:
		return "Strong"
	}
	return "unset"
}

func (l ConsistencyLevel) applyDB(o *dbOptions) { o.level = l }

// NonDeterministic says what happens to a write whose own text calls random(),
// datetime('now'), CURRENT_TIMESTAMP or the like. Calls in DEFAULTs, triggers and
// views always get a value that is the same on every node.
type NonDeterministic int

const (
	// Reject, the default, refuses it with a *NonDeterministicError.
	Reject NonDeterministic = iota + 1
	// Pin runs it with one time and one seed on every node.
	Pin
)

type (
	levelKey    struct{}
	staleKey    struct{}
	minIndexKey struct{}
	pinKey      struct{}
)

// WithConsistency sets the level of reads under the context, in the place of what it or the
// handle says of level or staleness. A level that does not exist gives a *RefusedError.
func WithConsistency(ctx context.Context, level ConsistencyLevel) context.Context {
	if level != 0 && ctx.Value(staleKey{}) != nil {
		ctx = context.WithValue(ctx, staleKey{}, time.Duration(0))
	}
	return context.WithValue(ctx, levelKey{}, level)
}

// WithMaxStaleness makes reads under the context local, like None, but only while
// this node can prove that its state is at most d old; else they give ErrStale. The
// proof is what the leader said when it was last asked, by any read of the database
// above None; it is asked again when that is older than d. 0 sets no bound, and a negative
// one gives a *RefusedError.
func WithMaxStaleness(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, staleKey{}, d)
}

// WithMinIndex makes reads under the context wait until this node has applied the
// entry at index, as CopyTo or a hook reported it, whatever the level: until the context
// ends or, if it has no deadline, at most Config.LeaderWait. Then they give ErrNotCaughtUp.
func WithMinIndex(ctx context.Context, index uint64) context.Context {
	return context.WithValue(ctx, minIndexKey{}, index)
}

// WithNonDeterministic overrides Config.NonDeterministic for writes under the context.
func WithNonDeterministic(ctx context.Context, n NonDeterministic) context.Context {
	return context.WithValue(ctx, pinKey{}, n)
}

// readMode is what a read asks for, after the context, the handle and the node's
// configuration have been consulted, in this order.
type readMode struct {
	level    ConsistencyLevel
	stale    time.Duration // 0: no bound
	minIndex uint64
}

func (n *Node) readMode(ctx context.Context, handle *dbOptions) (readMode, error) {
	m := readMode{level: n.cfg.Consistency, stale: handle.maxStaleness}
	if handle.level != 0 {
		m.level = handle.level
	}
	if l, ok := ctx.Value(levelKey{}).(ConsistencyLevel); ok && l != 0 {
		if l < 0 || l > Strong {
			return m, &RefusedError{What: fmt.Sprintf("consistency level %d", l), Advice: "it is None, Weak or Strong"}
		}
		m.level, m.stale = l, 0
	}
	if d, ok := ctx.Value(staleKey{}).(time.Duration); ok {
		if d < 0 {
			return m, &RefusedError{What: fmt.Sprintf("a staleness of at most %v", d), Advice: "a state is never newer than now"}
		}
		m.stale = d
	}
	if m.stale > 0 {
		m.level = None
	}
	m.minIndex, _ = ctx.Value(minIndexKey{}).(uint64)
	return m, nil
}

// pins reports whether writes under ctx have their own calls of the clock and of
// random() pinned rather than refused.
func (n *Node) pins(ctx context.Context) bool {
	mode := n.cfg.NonDeterministic
	if v, ok := ctx.Value(pinKey{}).(NonDeterministic); ok && v != 0 {
		mode = v
	}
	return mode == Pin
}
