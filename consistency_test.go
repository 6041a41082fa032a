package colmena_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// What a context was last told of freshness holds: a read that is to be linearizable is not
// answered by a node that is alone.
func TestLastWordOnFreshnessHolds(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.LeaderWait = 300 * time.Millisecond })
	exec(t, c.Node(c.Leader()), "CREATE TABLE t(a)")
	c.WaitConverged()
	alone := c.Follower()
	for i := range 3 {
		if i != alone {
			c.Stop(i)
		}
	}
	// It may have taken leadership over before it was alone, and answer until its lease ends.
	c.Until("nobody to lead", func() bool { _, led := c.Node(alone).Leader(); return !led })
	stale := colmena.WithMaxStaleness(limit(t), time.Hour)
	handle, err := c.Node(alone).OpenDB("", colmena.MaxStaleness(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	for name, read := range map[string]func(context.Context) error{
		"node": func(ctx context.Context) error {
			return c.Node(alone).DB().QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(new(int))
		},
		"handle": func(ctx context.Context) error {
			return handle.QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(new(int))
		},
	} {
		for _, level := range []colmena.ConsistencyLevel{colmena.Weak, colmena.Strong} {
			if err := read(colmena.WithConsistency(stale, level)); !errors.Is(err, colmena.ErrNoLeader) {
				t.Errorf("%s: %v after a staleness: %v", name, level, err)
			}
		}
		if err := read(colmena.WithConsistency(stale, colmena.None)); err != nil {
			t.Errorf("%s: None: %v", name, err)
		}
	}
	for i := range 3 {
		if i != alone {
			c.Start(i)
		}
	}
}

// What does not exist is refused, not taken for something else.
func TestContextsThatSayNothingSensible(t *testing.T) {
	db := testcluster.New(t, 1).Node(0).DB()
	mustExec(t, db, "CREATE TABLE t(a)")
	for name, ctx := range map[string]context.Context{
		"level 9":   colmena.WithConsistency(t.Context(), 9),
		"level -1":  colmena.WithConsistency(t.Context(), -1),
		"staleness": colmena.WithMaxStaleness(t.Context(), -time.Second),
	} {
		var refused *colmena.RefusedError
		if err := db.QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(new(int)); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var refused *colmena.RefusedError
	if _, err := db.BeginTx(colmena.WithTxMode(t.Context(), 7), nil); !errors.As(err, &refused) {
		t.Errorf("a transaction of mode 7: %v", err)
	}
}
