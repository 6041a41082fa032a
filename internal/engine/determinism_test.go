package engine

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// The cleanup of a group compares every replica, row by row and with the internal
// table, so these tests only have to provoke a difference.

// batch submits units in one go, so that they share an epoch.
func (g *group) batch(units ...wire.Unit) []error {
	g.t.Helper()
	var wg sync.WaitGroup
	us := make([]*Unit, len(units))
	for i := range units {
		wg.Add(1)
		us[i] = &Unit{Req: units[i], Done: func(*Unit) { wg.Done() }}
	}
	g.dbs[0].Submit(us...)
	wg.Wait()
	errs := make([]error, len(us))
	for i := range us {
		errs[i] = us[i].Err
	}
	return errs
}

func withForeignKeys(sql string) wire.Unit {
	u := unit(sql)
	u.ForeignKeys = true
	return u
}

func TestHazard04DeferForeignKeysEndsWithItsUnit(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p); CREATE TABLE u(a UNIQUE); INSERT INTO u VALUES(1)")
	for _, before := range []string{"PRAGMA defer_foreign_keys=ON; INSERT INTO u VALUES(1)", "PRAGMA defer_foreign_keys=ON; INSERT INTO c VALUES(5); INSERT OR IGNORE INTO p VALUES(5)"} {
		errs := g.batch(withForeignKeys("INSERT INTO u VALUES(NULL)"), withForeignKeys(before), withForeignKeys("INSERT INTO c VALUES(77); INSERT INTO p VALUES(77)"))
		var se *sqlite.Error
		if !errors.As(errs[2], &se) || se.Extended != sqlite.ConstraintForeignKey {
			t.Errorf("after %q a violation was put off: %v", before, errs)
		}
	}
}

// planned are tables whose join is planned by statistics, so that the rowids given to
// its result tell how it was planned.
const planned = `CREATE TABLE a(x, y); CREATE INDEX ax ON a(x); CREATE TABLE b(x, y); CREATE INDEX bx ON b(x); CREATE TABLE r(id INTEGER PRIMARY KEY, x, y);
CREATE TABLE u(a UNIQUE); INSERT INTO u VALUES(1); ANALYZE;
INSERT INTO a WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<20) SELECT i%3, i FROM c;
INSERT INTO b WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<3) SELECT i, i FROM c`

const join = "INSERT INTO r(x, y) SELECT a.y, b.y FROM a, b"

func TestHazard06UndoneAnalyzeChangesNoPlan(t *testing.T) {
	g := newGroup(t, 2)
	g.must(planned)
	if _, err := g.exec("ANALYZE; INSERT INTO u VALUES(1)"); err == nil {
		t.Fatal("no error")
	}
	g.must(join)
	g.mu.Lock()
	g.intercept = func(_ []byte, done func(error)) bool { g.intercept = nil; done(errNotProposed); return true }
	g.mu.Unlock()
	if _, err := g.exec("ANALYZE"); !errors.Is(err, ErrNotLeading) {
		t.Fatalf("got %v", err)
	}
	g.must(join)
}

func TestHazard06PlansDoNotDependOnRestarts(t *testing.T) {
	g := newGroup(t, 2)
	g.must(planned + "; ANALYZE; DROP INDEX bx")
	if err := g.dbs[1].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.restart(1)
	g.must(join)
}

func TestHazard06UndoneSettingsOfAVirtualTableAreForgotten(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE VIRTUAL TABLE ft USING fts5(a, b); CREATE TABLE u(a UNIQUE); INSERT INTO u VALUES(1); CREATE TABLE r(id INTEGER PRIMARY KEY, x)")
	g.must("INSERT INTO ft VALUES('x', 'y y y y'), ('y y', 'x x x')")
	if _, err := g.exec("INSERT INTO ft(ft, rank) VALUES('rank', 'bm25(100.0, 0.0)'); INSERT INTO u VALUES(1)"); err == nil {
		t.Fatal("no error")
	}
	g.must("INSERT INTO r(x) SELECT rowid FROM ft('x') ORDER BY rank")
}

// Entries that a follower replays in one transaction leave what they left one by one.
func TestHazard06BatchedReplayEqualsSingleReplay(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE VIRTUAL TABLE ft USING fts5(a); CREATE TABLE seen(a, b, c)")
	hold := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.dbs[1].Do(t.Context(), func() { <-hold }) })
	for i := range 8 {
		g.must("INSERT INTO ft VALUES(?)", wire.Text(string(rune('a'+i))))
	}
	g.must("INSERT INTO seen SELECT 'shadow', count(*), sum(length(block)) FROM ft_data")
	close(hold)
	wg.Wait()
}

func TestHazard11CountsDoNotDependOnConnectedVirtualTables(t *testing.T) {
	for replica := range 2 {
		g := newGroup(t, 2)
		g.must("CREATE VIRTUAL TABLE rt USING rtree(id, x0, x1); CREATE TABLE t(a)")
		g.must("INSERT INTO rt VALUES(1, 0, 1)")
		if err := g.dbs[replica].Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.restart(replica)
		g.dbs[0].Lead(1)
		if r := g.must("INSERT INTO t VALUES(1); SELECT count(*) FROM rt"); r.Result.RowsAffected != 1 {
			t.Errorf("an INSERT of one row, with a query after it, affected %d", r.Result.RowsAffected)
		}
	}
}

func TestWritesCannotReadWhatDiffersBetweenReplicas(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a, b)")
	for _, q := range []string{
		"SELECT 1, file FROM pragma_database_list", "SELECT 1, data_version FROM pragma_data_version", "SELECT 1, count(*) FROM pragma_function_list",
		"SELECT 1, sum(unused) FROM dbstat", "SELECT 1, count(*) FROM sqlite_dbpage", "SELECT 1, idx FROM sqlite_colmena", "SELECT 1, * FROM pragma_defer_foreign_keys",
		"SELECT 1, name FROM pragma_module_list", "SELECT 1, rootpage FROM sqlite_schema",
	} {
		var refused *RefusedError
		if _, err := g.exec("INSERT INTO t " + q); !errors.As(err, &refused) {
			t.Errorf("%s: got %v", q, err)
		}
	}
	for _, q := range []string{"SELECT name, rootpage FROM sqlite_schema", "WITH s AS (SELECT * FROM sqlite_master) SELECT * FROM s"} {
		var refused *RefusedError
		if _, err := g.exec("CREATE TABLE u AS " + q); !errors.As(err, &refused) {
			t.Errorf("CREATE TABLE AS %s: got %v", q, err)
		}
	}
	g.must("CREATE TABLE v AS SELECT name, sql FROM sqlite_schema")
	g.must("INSERT INTO t SELECT name, type FROM pragma_table_info('t')")
	g.must("INSERT INTO t SELECT name, sql FROM sqlite_schema WHERE name = 't'")
}

// A statement that was admitted once is judged again when the schema around it has
// changed: a trigger must not reach what the statement itself may not.
func TestTriggersCannotReachTheInternalTable(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	scripts := []string{"INSERT INTO t VALUES(1)", "SELECT 1; INSERT INTO t VALUES(1)"}
	for _, s := range scripts {
		g.must(s)
	}
	for _, body := range []string{"DELETE FROM sqlite_colmena", "UPDATE sqlite_colmena SET idx = 0", "INSERT INTO t SELECT idx FROM sqlite_colmena", "INSERT INTO t VALUES(total_changes())"} {
		g.must("CREATE TRIGGER tr AFTER INSERT ON t BEGIN " + body + "; END")
		for _, s := range scripts {
			if _, err := g.exec(s); err == nil {
				t.Errorf("%q with a trigger that does %q: no error", s, body)
			}
		}
		g.must("DROP TRIGGER tr")
	}
}

// So is what only the facts of all of it tell: where pages are, and changes of statistics
// that SQLite would take up when a replica is started again.
func TestStatementsAreJudgedAgainWhenTriggersAndViewsChange(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a); CREATE INDEX ta ON t(a); CREATE TABLE u(a); INSERT INTO t VALUES(0); ANALYZE; CREATE VIEW v AS SELECT 1")
		refused := func(sql, why string) {
			t.Helper()
			var r *RefusedError
			for range 2 {
				if _, err := g.exec(sql); !errors.As(err, &r) {
					t.Errorf("%q with %s: got %v", sql, why, err)
				}
			}
			x := g.beginTx()
			if res := x.run(sql); !errors.As(res.Err, &r) || res.Over {
				t.Errorf("%q in a transaction with %s: got %+v", sql, why, res)
			}
			x.mustCommit()
		}
		const insert, fromView, asView = "INSERT INTO t VALUES(1)", "INSERT INTO u SELECT * FROM v", "CREATE TABLE IF NOT EXISTS w AS SELECT * FROM v"
		g.must(insert)
		g.must(fromView)
		g.must(asView)
		g.must("DROP TABLE w; DROP VIEW v; CREATE VIEW v AS SELECT rootpage FROM sqlite_schema")
		refused(fromView, "another view")
		refused(asView, "another view")
		for _, body := range []string{"INSERT INTO u SELECT rootpage FROM sqlite_schema", "UPDATE sqlite_stat1 SET stat = '1000 500'", "DELETE FROM sqlite_stat1"} {
			g.must("CREATE TRIGGER tr AFTER INSERT ON t BEGIN " + body + "; END")
			refused(insert, body)
			g.must("DROP TRIGGER tr")
		}
		g.must(insert)
		if got := fmt.Sprint(g.query(0, "SELECT count(*), (SELECT count(*) FROM u), (SELECT stat FROM sqlite_stat1 WHERE idx = 'ta') FROM t")); got != "[[3 1 1 1]]" {
			t.Errorf("got %s", got)
		}
	})
}

func TestReplicatedTimeIsThatOfTheEntries(t *testing.T) {
	g := newGroup(t, 2)
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	g.clock = func() time.Time { now = now.Add(time.Second); return now }
	g.must("CREATE TABLE t(a UNIQUE)")
	g.must("INSERT INTO t VALUES(1)")
	for range 3 {
		if _, err := g.exec("INSERT INTO t VALUES(1)"); err == nil {
			t.Fatal("no error")
		}
	}
}
