package engine

import (
	"context"
	"sync"
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
