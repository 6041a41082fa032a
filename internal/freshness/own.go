package freshness

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// ownWrites remembers how far this node's own acknowledged writes go, per database: a read of its own state waits for them (H24).
type ownWrites struct{ m sync.Map }

func (o *ownWrites) note(db string, index uint64) {
	v, ok := o.m.Load(db)
	if !ok {
		v, _ = o.m.LoadOrStore(db, new(atomic.Uint64))
	}
	at := v.(*atomic.Uint64)
	for {
		have := at.Load()
		if have >= index || at.CompareAndSwap(have, index) {
			return
		}
	}
}

func (o *ownWrites) get(db string) uint64 {
	if v, ok := o.m.Load(db); ok {
		return v.(*atomic.Uint64).Load()
	}
	return 0
}

// Acknowledged notes that this node tells a caller that a write is done, which is the entry at index.
func (g *Gauge) Acknowledged(db string, index uint64) { g.own.note(db, index) }

// Forget forgets a database that nobody will read again under its name.
func (g *Gauge) Forget(db string) { g.own.m.Delete(db) }

// AwaitOwnWrites waits until this node has applied what it acknowledged itself (H24).
func (g *Gauge) AwaitOwnWrites(ctx context.Context, db string) error {
	index := g.own.get(db)
	if index == 0 {
		return nil
	}
	d := g.cfg.Databases.Get(db)
	if d != nil && d.Mark().Index >= index {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, OwnWritesPatience)
	defer cancel()
	if err := g.AwaitIndex(short, db, index); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: this node has not yet received its own acknowledged write, entry %d, and cannot reach the leader; WithMaxStaleness or a later try may do", g.cfg.Errors.NotCaughtUp, index)
	}
	return nil
}
