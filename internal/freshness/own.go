package freshness

import (
	"context"
	"fmt"
)

// holds reports whether a read here shows a database's writes up to index.
func (g *Gauge) holds(db string, index uint64) bool {
	if d := g.cfg.Databases.Get(db); d != nil {
		return d.Mark().Index >= index
	}
	return g.cfg.Consensus.Applied() >= index && !g.missing() // it was dropped
}

// missing reports whether entries were delivered that reached no database.
func (g *Gauge) missing() bool { return g.cfg.Databases.Missing != nil && g.cfg.Databases.Missing() }

// Acknowledged notes that this node tells a caller that a write is done, which is the entry at index.
func (g *Gauge) Acknowledged(db string, index uint64) { g.own.Note(db, index) }

// Forget forgets a database that nobody will read again under its name.
func (g *Gauge) Forget(db string) { g.own.Forget(db) }

// AwaitOwnWrites waits until this node has applied what it acknowledged itself (H24).
func (g *Gauge) AwaitOwnWrites(ctx context.Context, db string) error {
	index := g.own.Get(db)
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
