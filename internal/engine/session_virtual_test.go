package engine

import (
	"fmt"
	"testing"

	"github.com/mentasystems/colmena/internal/sqlite"
)

// FTS5 remembers the structure of its index, also of one that was then undone.
func TestHazard06RollbackToASavepointReachesVirtualTables(t *testing.T) {
	bothWays(t, 3, func(t *testing.T, g *group) {
		g.must("CREATE VIRTUAL TABLE ft USING fts5(a); CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1)")
		x := g.beginTx()
		x.must("INSERT INTO ft VALUES('red')")
		x.must("SAVEPOINT s")
		for range 5 {
			x.must("INSERT INTO ft VALUES('blue')")
			if r := x.run("INSERT INTO t VALUES(1)"); !isCode(r.Err, sqlite.Constraint) {
				t.Errorf("got %+v", r)
			}
			x.number("SELECT count(*) FROM ft('blue')")
		}
		x.must("ROLLBACK TO s")
		x.must("INSERT INTO ft VALUES('green')")
		x.must("SAVEPOINT w")
		if n := x.number("SELECT count(*) FROM ft('blue OR red OR green')"); n != 2 {
			t.Errorf("%d rows are found", n)
		}
		x.mustCommit()
		g.must("INSERT INTO ft(ft) VALUES('integrity-check')")
		if got := fmt.Sprint(g.query(0, "SELECT a FROM ft('red OR green OR blue') ORDER BY a")); got != "[[green] [red]]" {
			t.Errorf("found %s", got)
		}
	})
}
