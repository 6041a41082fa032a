package freshness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// provenStates remembers, per database, a moment at which this node's state was at least what the leader had: the leader was asked then, and what
// it answered was reached here. Nothing weaker proves it: raft's heartbeats tell that there is a leader and not what it has committed, and go on
// while this node's log stands still.
type provenStates struct {
	mu sync.Mutex
	at map[string]time.Time
}

// maxProven bounds the names that are remembered.
const maxProven = 4096

func (p *provenStates) note(db string, asked time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil || len(p.at) >= maxProven {
		p.at = map[string]time.Time{}
	}
	if asked.After(p.at[db]) {
		p.at[db] = asked
	}
}

// age is how old a database's state may be; known is false if nothing was proven yet.
func (p *provenStates) age(db string) (age time.Duration, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, known := p.at[db]
	return time.Since(at), known
}

// proofPatience bounds how long a read with bounded staleness waits for the leader's word.
const proofPatience = 200 * time.Millisecond

// Prove proves that this node's state of a database is at most d old. It asks the leader only when what it asked before no longer proves it.
func (g *Gauge) Prove(ctx context.Context, db string, d time.Duration) error {
	if g.cfg.Leadership.Term() != 0 {
		return nil
	}
	if age, known := g.proven.age(db); known && age <= d {
		return nil
	}
	asked := time.Now()
	short, cancel := context.WithTimeout(ctx, proofPatience)
	defer cancel()
	reached, err := g.askAndReach(short, db)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case g.closed():
		return g.cfg.Errors.Closed
	case err == nil && reached:
		g.proven.note(db, asked)
	}
	age, known := g.proven.age(db)
	switch {
	case known && age <= d:
		return nil
	case err != nil:
		err = fmt.Errorf("the leader was asked and gave no answer: %w", err)
	default:
		err = errors.New("what the leader had when it was asked has not arrived here yet")
	}
	if !known {
		return fmt.Errorf("%w: nothing is known of the age of this node's state, asked for was at most %v: %w", g.cfg.Errors.Stale, d, err)
	}
	return fmt.Errorf("%w: this node's state may be %v old, asked for was at most %v: %w", g.cfg.Errors.Stale, age.Round(time.Millisecond), d, err)
}

// askAndReach asks the leader once how far it is and waits a moment to get there.
func (g *Gauge) askAndReach(ctx context.Context, db string) (bool, error) {
	leader, local, ok := g.cfg.Leadership.Leader()
	var at position
	var err error
	switch {
	case !ok:
		err = g.cfg.Errors.NoLeader
	case local:
		at, err = g.markHere(ctx, db, false)
	default:
		at, err = g.askers.ask(ctx, markKey{leader, db, false})
	}
	if err != nil {
		return false, err
	}
	behind, err := g.reach(ctx, db, at)
	return behind == "", err
}
