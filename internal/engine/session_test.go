package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// tx drives a session in a test.
type tx struct {
	t *testing.T
	s *Session
}

func (g *group) beginTx() *tx {
	g.t.Helper()
	s, err := g.dbs[0].Begin(g.t.Context(), SessionOptions{Label: "the test"})
	if err != nil {
		g.t.Fatal(err)
	}
	return &tx{g.t, s}
}

func (x *tx) run(sql string, args ...wire.Value) StepResult {
	return x.s.Run(x.t.Context(), Statement{Statement: wire.Statement{SQL: sql, Args: makeArgs(args...)}, WantRows: true})
}

func (x *tx) must(sql string, args ...wire.Value) StepResult {
	x.t.Helper()
	r := x.run(sql, args...)
	if r.Err != nil {
		x.t.Fatalf("%s: %v", sql, r.Err)
	}
	return r
}

// number is the one value of a query.
func (x *tx) number(sql string) int64 {
	x.t.Helper()
	r := x.must(sql)
	if r.Rows == nil || r.Rows.N != 1 {
		x.t.Fatalf("%s: rows %v", sql, r.Rows)
	}
	v, _, err := wire.ReadValue(r.Rows.Data)
	if err != nil {
		x.t.Fatal(err)
	}
	return v.Int64()
}

func (x *tx) commit() StepResult { return x.s.Commit(x.t.Context(), wire.RequestID{}, 0) }

func (x *tx) mustCommit() {
	x.t.Helper()
	if r := x.commit(); r.Err != nil || !r.Over {
		x.t.Fatalf("commit: %+v", r)
	}
}

// bothWays runs a test with sessions as they come, and with a cut between any two
// statements, so that all of a session's work is undone and repeated each time.
func bothWays(t *testing.T, replicas int, f func(*testing.T, *group)) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut %v", cut), func(t *testing.T) {
			g := newGroup(t, replicas)
			g.dbs[0].cutEach.Store(cut)
			f(t, g)
		})
	}
}

func TestSessionReadsItsOwnWrites(t *testing.T) {
	bothWays(t, 3, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE)")
		x := g.beginTx()
		if r := x.must("INSERT INTO t(a) VALUES(?)", wire.Text("one")); r.State != (wire.PreState{LastInsertID: 1, Changes: 1}) {
			t.Errorf("state %v", r.State)
		}
		if n := x.number("SELECT count(*) FROM t"); n != 1 {
			t.Errorf("%d rows", n)
		}
		if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[]" {
			t.Errorf("others see %s", got)
		}
		r := x.run("INSERT INTO t(a) VALUES('two'), ('one')")
		if !isCode(r.Err, sqlite.Constraint) || r.Over {
			t.Errorf("got %+v", r)
		}
		if r := x.must("UPDATE t SET a = a || '!'"); r.State.Changes != 1 {
			t.Errorf("changes %v", r.State)
		}
		if n := x.number("SELECT changes() * 100 + last_insert_rowid()"); n != 102 {
			t.Errorf("counters %d", n) // last_insert_rowid() is that of a row that was undone, as in SQLite
		}
		x.must("CREATE TABLE u AS SELECT a FROM t")
		if r := x.s.Run(t.Context(), Statement{Statement: wire.Statement{SQL: "INSERT INTO t(a) VALUES(random()) RETURNING id"}, Pin: true, WantRows: true}); r.Rows == nil || r.Rows.N != 1 {
			t.Errorf("rows %v", r.Rows)
		}
		x.mustCommit()
		if got := fmt.Sprint(g.query(0, "SELECT count(*), max(a = 'one!') FROM t")); got != "[[2 1]]" {
			t.Errorf("after the commit: %s", got)
		}
		if r := x.run("SELECT 1"); r.Err == nil || !r.Over {
			t.Errorf("after its end: %+v", r)
		}
	})
}

func TestSessionRollbackLeavesNothing(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a)")
		x := g.beginTx()
		x.must("INSERT INTO t VALUES(1)")
		x.must("CREATE TABLE u(a)")
		if r := x.s.Rollback(t.Context()); r.Err != nil || !r.Over {
			t.Errorf("rollback: %+v", r)
		}
		x = g.beginTx()
		x.must("INSERT INTO t VALUES(2)")
		x.s.Abort()
		g.must("INSERT INTO t VALUES(3)")
		if got := fmt.Sprint(g.query(0, "SELECT a FROM t"), g.query(0, "SELECT name FROM sqlite_schema WHERE name = 'u'")); got != "[[3]] []" {
			t.Errorf("got %s", got)
		}
	})
}

func TestSessionSavepoints(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a UNIQUE)")
		x := g.beginTx()
		x.must("INSERT INTO t VALUES(1)")
		x.must("SAVEPOINT a")
		x.must("INSERT INTO t VALUES(2)")
		x.must("SAVEPOINT b; INSERT INTO t VALUES(3); RELEASE b")
		if r := x.run("INSERT INTO t VALUES(1)"); !isCode(r.Err, sqlite.Constraint) {
			t.Errorf("got %v", r.Err)
		}
		x.must("ROLLBACK TO a")
		x.must("INSERT INTO t VALUES(4)")
		x.must("RELEASE a")
		if r := x.run("RELEASE a"); r.Err == nil || r.Over {
			t.Errorf("released twice: %+v", r)
		}
		var refused *RefusedError
		for _, sql := range []string{"RELEASE colmena_unit", "SAVEPOINT Colmena_Statement", "ROLLBACK TO colmena_unit", "COMMIT", "BEGIN", "ROLLBACK"} {
			if r := x.run(sql); !errors.As(r.Err, &refused) {
				t.Errorf("%s: %v", sql, r.Err)
			}
		}
		x.mustCommit()
		if got := fmt.Sprint(g.query(0, "SELECT a FROM t ORDER BY a")); got != "[[1] [4]]" {
			t.Errorf("got %s", got)
		}
	})
}

// Statements of a string that ran before one that fails stay, as in SQLite.
func TestSessionScriptStopsAtItsFirstError(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a UNIQUE)")
		x := g.beginTx()
		if r := x.run("INSERT INTO t VALUES(1); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)"); !isCode(r.Err, sqlite.Constraint) {
			t.Errorf("got %v", r.Err)
		}
		x.mustCommit()
		if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[1]]" {
			t.Errorf("got %s", got)
		}
	})
}

func TestSessionsWaitInOrderAndAreNamed(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	d := g.dbs[0]
	if err := d.Do(t.Context(), func() { d.cfg.MaxWait = 60 * time.Millisecond }); err != nil {
		t.Fatal(err)
	}
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	var over *AbortedError
	if _, err := g.exec("INSERT INTO t VALUES(2)"); !errors.As(err, &over) || over.Reason != AbortWait || !strings.Contains(over.Holder, "the test") || !strings.Contains(over.Holder, "INSERT INTO t VALUES(1)") {
		t.Errorf("a write that waits: %v", err)
	}
	if _, err := d.Begin(t.Context(), SessionOptions{}); !errors.As(err, &over) || over.Reason != AbortWait || !strings.Contains(over.Holder, "the test") {
		t.Errorf("a transaction that waits: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := d.Begin(ctx, SessionOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a transaction whose context ends: %v", err)
	}
	x.mustCommit()
	g.must("INSERT INTO t VALUES(3)")
}

func TestSessionLimits(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	d := g.dbs[0]
	for reason, set := range map[AbortReason]func(){
		AbortIdle: func() { d.cfg.MaxSessionIdle, d.cfg.MaxSessionTime = 30*time.Millisecond, -1 },
		AbortTime: func() { d.cfg.MaxSessionIdle, d.cfg.MaxSessionTime = -1, 30*time.Millisecond },
	} {
		if err := d.Do(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		x := g.beginTx()
		x.must("INSERT INTO t VALUES(1)")
		g.must("INSERT INTO t VALUES(2)") // it waits until the session is over
		var over *AbortedError
		if r := x.commit(); !errors.As(r.Err, &over) || over.Reason != reason {
			t.Errorf("%v: got %v", reason, r.Err)
		}
	}
	if got := fmt.Sprint(g.query(0, "SELECT count(*) FROM t WHERE a = 1")); got != "[[0]]" {
		t.Errorf("got %s", got)
	}
}

func TestSessionEndsWithLeadership(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	var over *AbortedError
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	g.dbs[0].StepDown()
	if r := x.run("INSERT INTO t VALUES(2)"); !errors.As(r.Err, &over) || over.Reason != AbortLeader {
		t.Errorf("got %v", r.Err)
	}
	if _, err := g.dbs[0].Begin(t.Context(), SessionOptions{}); !errors.Is(err, ErrNotLeading) {
		t.Errorf("got %v", err)
	}
	g.mu.Lock()
	g.term++
	g.mu.Unlock()
	g.dbs[0].Lead(g.term)
	x = g.beginTx()
	x.must("INSERT INTO t VALUES(3)")
	// An entry of another leader: nothing of what is open stands.
	g.mu.Lock()
	g.commitLocked(foreignEntry(g.dbs[0].Mark(), wire.RequestID{}))
	g.mu.Unlock()
	if r := x.commit(); !errors.As(r.Err, &over) || over.Reason != AbortLeader {
		t.Errorf("got %v", r.Err)
	}
}

func TestCopiesAndSnapshotsDoNotWaitForASession(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	pin, err := g.dbs[0].Pin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	if err := g.dbs[0].Drain(ctx); err != nil {
		t.Fatal(err)
	}
	x.must("INSERT INTO t VALUES(2)")
	x.mustCommit()
}

// Many sessions and units at once, with failures, rollbacks and clients that go away: the
// replicas stay equal, and what was acknowledged is there.
func TestSessionsAndUnitsAtOnce(t *testing.T) {
	bothWays(t, 3, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, w, n, UNIQUE(w, n)); CREATE TABLE c(w PRIMARY KEY, n)")
		const workers, rounds = 8, 15
		var wg sync.WaitGroup
		want := make([]int, workers)
		for w := range workers {
			g.must("INSERT INTO c VALUES(?, 0)", wire.Int(int64(w)))
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 1))
				for i := range rounds {
					if rnd.IntN(3) == 0 {
						g.must("UPDATE c SET n = n + 1 WHERE w = ?", wire.Int(int64(w)))
						want[w]++
						continue
					}
					x := g.beginTx()
					n := x.number(fmt.Sprintf("SELECT n FROM c WHERE w = %d", w))
					x.must("INSERT INTO t(w, n) VALUES(?, ?)", wire.Int(int64(w)), wire.Int(int64(i)))
					if r := x.run("INSERT INTO t(w, n) VALUES(?, ?)", wire.Int(int64(w)), wire.Int(int64(i))); r.Err == nil {
						t.Error("inserted twice")
					}
					x.must("UPDATE c SET n = ? WHERE w = ?", wire.Int(n+1), wire.Int(int64(w)))
					switch rnd.IntN(4) {
					case 0:
						x.s.Rollback(t.Context())
					case 1:
						x.s.Abort()
					default:
						x.mustCommit()
						want[w]++
					}
				}
			})
		}
		wg.Wait()
		for w, n := range want {
			if got := fmt.Sprint(g.query(0, "SELECT n FROM c WHERE w = ?", wire.Int(int64(w)))); got != fmt.Sprintf("[[%d]]", n) {
				t.Errorf("worker %d: %s, want %d", w, got, n)
			}
		}
	})
}

func TestRecursiveTriggersTravelWithTheWrite(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a); CREATE TRIGGER r AFTER INSERT ON t WHEN new.a < 5 BEGIN INSERT INTO t VALUES(new.a + 1); END")
	for _, on := range []bool{false, true, false} {
		u := unit("INSERT INTO t VALUES(1)")
		u.RecursiveTriggers = on
		if _, err := g.execUnit(u); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(g.query(0, "SELECT count(*) FROM t")); got != "[[9]]" {
		t.Errorf("got %s rows", got)
	}
}

// A transaction that has asked for nothing yet has seen nothing, so it holds up nobody.
func TestSessionThatHasSeenNothingHoldsNobodyUp(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a)")
		d := g.dbs[0]
		if err := d.Do(t.Context(), func() { d.cfg.MaxWait = 2 * time.Second }); err != nil {
			t.Fatal(err)
		}
		early := g.beginTx()
		g.must("INSERT INTO t VALUES(1)")
		late := g.beginTx()
		late.must("INSERT INTO t VALUES(2)")
		gone := make(chan error, 1)
		go func() { // it waits for late, which holds the writer now
			r := early.run("INSERT INTO t SELECT max(a) + 1 FROM t")
			gone <- r.Err
		}()
		late.must("INSERT INTO t VALUES(3)")
		late.mustCommit()
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		early.mustCommit()
		if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[1] [2] [3] [4]]" {
			t.Errorf("got %s", got)
		}
		shelved := func() *tx {
			x := g.beginTx()
			g.must("UPDATE t SET a = a")
			return x
		}
		x := shelved()
		x.mustCommit()
		x = shelved()
		if r := x.s.Rollback(t.Context()); r.Err != nil || !r.Over {
			t.Errorf("rollback: %+v", r)
		}
		var over *AbortedError
		x = shelved()
		x.s.Abort()
		if r := x.run("SELECT 1"); !errors.As(r.Err, &over) || over.Reason != AbortGone {
			t.Errorf("after its client went: %+v", r)
		}
		x = shelved()
		d.StepDown()
		if r := x.run("SELECT 1"); !errors.As(r.Err, &over) || over.Reason != AbortLeader {
			t.Errorf("after leadership ended: %+v", r)
		}
		d.mu.Lock()
		left := len(d.shelf) + len(d.returning) + len(d.sessions)
		d.mu.Unlock()
		if left != 0 {
			t.Errorf("%d transactions are kept", left)
		}
	})
}
