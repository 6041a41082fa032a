package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// What a session does to schema and statistics, and what it takes back of that, is the same
// in the memory of a leader that had to read them anew meanwhile and of those that replay.
func TestHazard06StatisticsWithinASessionAreThoseOfTheFile(t *testing.T) {
	for name, change := range map[string][]string{
		"dropped":    {"DROP TABLE sqlite_stat1"},
		"taken back": {"SAVEPOINT s", "UPDATE p SET b = id", "ANALYZE", "ROLLBACK TO s"},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, 2, func(t *testing.T, g *group) {
				// With these statistics the rows of b = 1 are found by a scan, without them, or
				// with those of another b, by the index, in another order.
				g.must("CREATE TABLE p(id INTEGER PRIMARY KEY, a, b, c); CREATE INDEX pa ON p(a); CREATE INDEX pbc ON p(b, c); CREATE TABLE o(id INTEGER PRIMARY KEY, x);" +
					"INSERT INTO p(a, b, c) WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 400) SELECT i / 2, 1, -i FROM s; ANALYZE")
				x := g.beginTx()
				for _, sql := range change {
					x.must(sql)
				}
				if r := x.run("CREATE UNIQUE INDEX no ON p(id / 300)"); !isCode(r.Err, sqlite.Constraint) {
					t.Fatalf("got %v", r.Err)
				}
				x.must("INSERT INTO o(x) SELECT id FROM p WHERE b = 1")
				x.mustCommit()
			})
		})
	}
}

// What was compiled to be repeated, without being judged, is judged where it comes anew.
func TestSavepointOfASessionIsStillRefusedElsewhere(t *testing.T) {
	bothWays(t, 1, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a)")
		x := g.beginTx()
		x.must("SAVEPOINT a")
		x.must("INSERT INTO t VALUES(1)")
		x.must("RELEASE a")
		x.must("INSERT INTO t VALUES(2)")
		x.mustCommit()
		var refused *RefusedError
		for _, sql := range []string{"SAVEPOINT a", "RELEASE a"} {
			if _, err := g.exec(sql); !errors.As(err, &refused) {
				t.Errorf("%s as a write of its own: %v", sql, err)
			}
		}
	})
}

// An entry that changes nothing may come while a session is repeated whose statement its
// client has stopped. The client is told of that alone, and the session goes on.
func TestEntryThatComesWhileASessionIsRepeatedLeavesItOpen(t *testing.T) {
	var g *group
	calls, stale := 0, 0
	lib := NewLibrary([]Function{{sqlite.Function{Name: "comes", Func: func([]any) (any, error) {
		if calls++; calls == stale {
			g.mu.Lock()
			g.commitLocked(foreignEntry(wire.Mark{Term: 1, Index: 1}, wire.RequestID{}))
			g.mu.Unlock()
		}
		return int64(1), nil
	}}, "1"}}, nil, func(Kind, string, string) []string { return nil })
	g = newGroup(t, 1, func(c *Config) { c.Library = lib })
	g.must("CREATE TABLE t(a)")
	g.must("INSERT INTO t VALUES(0)")
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(comes())")
	x.must("INSERT INTO t VALUES(2)")
	if err := g.dbs[0].Do(t.Context(), func() { stale = calls + 2 }); err != nil { // the session is repeated after this, too
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if r := x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: endlessInsert}}); !errors.Is(r.Err, ErrCanceled) || r.Over {
		t.Errorf("got %+v", r)
	}
	if calls != stale {
		t.Errorf("it was repeated %d times", calls-1)
	}
	x.must("INSERT INTO t VALUES(3)")
	x.mustCommit()
	if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[0] [1] [2] [3]]" {
		t.Errorf("got %s", got)
	}
}

// Neither an entry nor the writes that wait do so until a session was repeated that has to
// end.
func TestRepetitionOfASessionIsInterrupted(t *testing.T) {
	const rows = 50000
	for reason, what := range map[AbortReason]func(*group, *Session){
		AbortLeader: func(g *group, _ *Session) {
			g.mu.Lock()
			g.commitLocked(foreignEntry(g.log[len(g.log)-1].mark, wire.RequestID{}))
			g.mu.Unlock()
		},
		AbortGone: func(_ *group, s *Session) { s.Abort() },
	} {
		var g *group
		var x *tx
		calls, counted := 0, 0
		lib := NewLibrary([]Function{
			{sqlite.Function{Name: "first", Func: func([]any) (any, error) {
				if calls++; calls == 2 {
					what(g, x.s)
				}
				return int64(1), nil
			}}, "1"},
			{sqlite.Function{Name: "counts", Args: 1, Func: func([]any) (any, error) { counted++; return int64(1), nil }}, "1"},
		}, nil, func(Kind, string, string) []string { return nil })
		g = newGroup(t, 1, func(c *Config) { c.Library = lib })
		g.must("CREATE TABLE t(a)")
		x = g.beginTx()
		x.must(fmt.Sprint("INSERT INTO t SELECT count(counts(x)) FROM (WITH RECURSIVE c(x) AS (SELECT first() UNION ALL SELECT x + 1 FROM c WHERE x < ", rows, ") SELECT x FROM c)"))
		if err := g.dbs[0].Do(t.Context(), func() {}); err != nil {
			t.Fatal(err)
		}
		var over *AbortedError
		if r := x.run("INSERT INTO t VALUES(1)"); !errors.As(r.Err, &over) || over.Reason != reason {
			t.Errorf("%v: got %+v", reason, r)
		}
		if calls != 2 || counted < rows || counted > rows+rows/2 {
			t.Errorf("%v: it ran %d times, %d rows were looked at", reason, calls, counted)
		}
		g.must("INSERT INTO t VALUES(2)")
		if got := fmt.Sprint(g.query(0, "SELECT a FROM t WHERE a <> 4")); got != "[[2]]" {
			t.Errorf("%v: got %s", reason, got)
		}
	}
}
