package engine

import (
	"fmt"
	"testing"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// A statement that had nothing to do when it was compiled may have when it runs again.
func TestStatementsThatHadNothingToDoAreReplicated(t *testing.T) {
	bothWays(t, 3, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
		for _, s := range []struct {
			noop, undo, name string
			left             int
		}{
			{"CREATE TABLE IF NOT EXISTS u(a)", "DROP TABLE u", "u", 1},
			{"CREATE INDEX IF NOT EXISTS i ON t(a)", "DROP INDEX i", "i", 1},
			{"CREATE TRIGGER IF NOT EXISTS g AFTER INSERT ON t BEGIN DELETE FROM t WHERE a = 7; END", "DROP TRIGGER g", "g", 1},
			{"CREATE VIEW IF NOT EXISTS v AS SELECT 1", "DROP VIEW v", "v", 1},
			{"DROP TABLE IF EXISTS w", "CREATE TABLE w(a)", "w", 0},
		} {
			for _, outside := range []string{"", "", s.undo} {
				if outside != "" {
					g.must(outside)
				}
				x := g.beginTx()
				x.must(s.noop)
				x.must("UPDATE t SET a = a + 1")
				x.mustCommit()
			}
			for replica := range 3 {
				if err := g.dbs[replica].Drain(t.Context()); err != nil {
					t.Fatal(err)
				}
				got := fmt.Sprint(g.query(replica, "SELECT count(*) FROM sqlite_schema WHERE name = ?", wire.Text(s.name)))
				if want := fmt.Sprintf("[[%d]]", s.left); got != want {
					t.Errorf("replica %d after %s: %s, want %s", replica, s.noop, got, want)
				}
			}
		}
	})
}

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
