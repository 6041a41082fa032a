package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// loaded has units wait for the writer at every moment, until the test ends.
func loaded(t *testing.T, g *group, u func() wire.Unit) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				var one sync.WaitGroup
				one.Add(40)
				for range 40 {
					g.dbs[0].Submit(&Unit{Req: u(), Done: func(*Unit) { one.Done() }})
				}
				one.Wait()
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// A transaction takes its turn among writes, though each epoch has more of them than it
// holds, or they hold for another mode.
func TestSessionsHaveTheirTurnAmongUnits(t *testing.T) {
	for _, modes := range []bool{false, true} {
		g := newGroup(t, 1)
		g.must("CREATE TABLE t(a)")
		loaded(t, g, func() wire.Unit {
			return unit("INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 40) SELECT i FROM s; DELETE FROM t")
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		for range 3 {
			s, err := g.dbs[0].Begin(ctx, SessionOptions{Modes: Modes{ForeignKeys: modes}})
			if err != nil {
				t.Errorf("other modes %v: %v", modes, err)
				break
			}
			x := &tx{t, s}
			x.must("INSERT INTO t VALUES(1)")
			x.mustCommit()
		}
		cancel()
	}
}

// A transaction whose turn comes when its epoch must close is the first in the next one,
// though the writes of each leave it no time.
func TestSessionKeepsItsTurnWhenItsEpochCloses(t *testing.T) {
	g := newGroup(t, 1, func(c *Config) { c.BatchWindow = time.Second })
	g.must("CREATE TABLE t(a)")
	x := g.beginTx()
	var wg sync.WaitGroup
	var over atomic.Bool
	var again func()
	again = func() { // as soon as one is answered the next one waits
		g.dbs[0].Submit(&Unit{Req: unit("INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 40) SELECT i FROM s; DELETE FROM t"), Done: func(*Unit) {
			if over.Load() {
				wg.Done()
			} else {
				again()
			}
		}})
	}
	for range 200 {
		wg.Add(1)
		again()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if r := x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: "INSERT INTO t VALUES(1)"}}); r.Err != nil {
		t.Error(r.Err)
	}
	x.s.Abort()
	over.Store(true)
	wg.Wait()
}

// Nor do transactions, however many wait, keep a write out that needs an epoch of its own.
func TestUnitsHaveTheirTurnAmongSessions(t *testing.T) {
	other := unit("INSERT INTO t VALUES(-1)")
	other.ForeignKeys = true
	const oneEach = "an entry each"
	for name, u := range map[string]wire.Unit{
		"other modes": other,
		oneEach:       unit("INSERT INTO t VALUES(-1)"),
		"long":        unit("INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 20000) SELECT count(*) FROM s"),
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroup(t, 2, func(c *Config) {
				if name == oneEach {
					c.BatchMaxUnits = 1
				}
			})
			g.must("CREATE TABLE t(a)")
			const n = 30
			others, holder := g.besideAHolder(n)
			marks := make(chan wire.Mark, n)
			for _, x := range others {
				go func() {
					_ = x.run("INSERT INTO t VALUES(1)")
					marks <- x.commit().Mark
				}()
			}
			g.eventually("they do not wait", func(d *DB) bool { return len(d.returning) == n })
			done := make(chan struct{})
			late := &Unit{Req: u, Done: func(*Unit) { close(done) }}
			g.dbs[0].Submit(late)
			holder.mustCommit()
			<-done
			before := 0
			for range n {
				if m := <-marks; m.Index < late.Result.Mark.Index {
					before++
				}
			}
			if late.Err != nil || before > n/2 {
				t.Errorf("%v, and %d of %d transactions came before", late.Err, before, n)
			}
		})
	}
}
