package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestHazard04SessionsDeferredForeignKeyIsFoundAtCommit(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)")
		s, err := g.dbs[0].Begin(t.Context(), SessionOptions{Modes: Modes{ForeignKeys: true}})
		if err != nil {
			t.Fatal(err)
		}
		x := &tx{t, s}
		x.must("INSERT INTO c VALUES(7)")
		if r := x.commit(); !isCode(r.Err, sqlite.Constraint) || r.Over {
			t.Fatalf("commit of a violation: %+v", r)
		}
		x.must("INSERT INTO p VALUES(7)")
		x.mustCommit()
		if got := fmt.Sprint(g.query(0, "SELECT p FROM c")); got != "[[7]]" {
			t.Errorf("got %s", got)
		}
	})
}

// A PRAGMA acts as it is compiled. If there is no room for it in the entry, nothing may
// have been done under it.
func TestHazard04DeferForeignKeysThatHasNoRoomEndsTheSession(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p)")
	s, err := g.dbs[0].Begin(t.Context(), SessionOptions{Modes: Modes{ForeignKeys: true}})
	if err != nil {
		t.Fatal(err)
	}
	x := &tx{t, s}
	x.must("INSERT INTO p VALUES(1)")
	var big *TooLargeError
	if r := x.run("PRAGMA defer_foreign_keys=ON -- " + strings.Repeat("x", maxSessionBytes)); !errors.As(r.Err, &big) || !r.Over {
		t.Errorf("over %v", r.Over)
	}
	y := g.beginTx()
	y.must("INSERT INTO p VALUES(2)")
	y.mustCommit()
	if got := fmt.Sprint(g.query(0, "SELECT id FROM p")); got != "[[2]]" {
		t.Errorf("got %s", got)
	}
	if g.halts[1] != nil {
		t.Error(g.halts[1])
	}
}

func TestHazard05StatementThatEndsTheTransactionEndsTheSession(t *testing.T) {
	for _, end := range endsTheTransaction {
		bothWays(t, 2, func(t *testing.T, g *group) {
			g.must(endingTable)
			x := g.beginTx()
			x.must("INSERT INTO t VALUES(1)")
			if r := x.run(end); !isCode(r.Err, sqlite.Constraint) || !r.Over {
				t.Errorf("%s: got %+v", end, r)
			}
			var over *AbortedError
			if r := x.run("INSERT INTO t VALUES(2)"); !errors.As(r.Err, &over) || over.Reason != AbortStatement {
				t.Errorf("%s: got %v", end, r.Err)
			}
			if r := x.commit(); !errors.As(r.Err, &over) {
				t.Errorf("%s: got %v", end, r.Err)
			}
			if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[]" {
				t.Errorf("%s: got %s", end, got)
			}
			g.must("INSERT INTO t VALUES(3)")
		})
	}
}

// endsTheTransaction are statements that do so on endingTable where it holds the row 1.
var endsTheTransaction = []string{"INSERT OR ROLLBACK INTO t VALUES(1)", "INSERT INTO t VALUES(-1)", "INSERT INTO t VALUES(7); UPDATE t SET a = -1 WHERE a = 7"}

const endingTable = "CREATE TABLE t(a UNIQUE);" +
	"CREATE TRIGGER ti AFTER INSERT ON t WHEN new.a < 0 BEGIN SELECT RAISE(ROLLBACK, 'negative'); END;" +
	"CREATE TRIGGER tu BEFORE UPDATE ON t WHEN new.a < 0 BEGIN SELECT RAISE(ROLLBACK, 'negative'); END"

// Each of them is an error of its own unit alone, whatever has finished in its epoch.
func TestHazard05UnitThatEndsTheTransactionFailsAlone(t *testing.T) {
	g := newGroup(t, 2)
	g.must(endingTable + "; INSERT INTO t VALUES(1)")
	var wg sync.WaitGroup
	for i := range 40 {
		sql := fmt.Sprintf("INSERT INTO t VALUES(%d)", 100+i)
		if i%4 == 3 {
			sql = endsTheTransaction[i/4%len(endsTheTransaction)]
		}
		wg.Go(func() {
			if _, err := g.exec(sql); isCode(err, sqlite.Constraint) != (i%4 == 3) || i%4 != 3 && err != nil {
				t.Errorf("%s: %v", sql, err)
			}
		})
	}
	wg.Wait()
	if got := fmt.Sprint(g.query(0, "SELECT count(*), min(a) FROM t")); got != "[[31 1]]" {
		t.Errorf("got %s", got)
	}
}

// A write that was stopped ends SQLite's transaction; the session goes on all the same.
func TestHazard05StoppedStatementLeavesTheSessionOpen(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a)")
		x := g.beginTx()
		x.must("INSERT INTO t VALUES(1)")
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		r := x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: endlessInsert}})
		if !errors.Is(r.Err, ErrCanceled) || !errors.Is(r.Err, context.DeadlineExceeded) || r.Over {
			t.Fatalf("got %+v", r)
		}
		r = x.s.Run(t.Context(), Statement{Statement: wire.Statement{SQL: endlessInsert}, Timeout: 30 * time.Millisecond})
		if !errors.Is(r.Err, ErrTimeout) || r.Over {
			t.Fatalf("got %+v", r)
		}
		x.must("INSERT INTO t VALUES(2)")
		x.mustCommit()
		if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[1] [2]]" {
			t.Errorf("got %s", got)
		}
	})
}

const endlessInsert = "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"

// Failed statements, statistics and full-text indexes leave a session and its replicas alike.
func TestHazard06SessionsLeaveNoTrace(t *testing.T) {
	bothWays(t, 3, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b DEFAULT(random())); CREATE VIRTUAL TABLE f USING fts5(x)")
		for i := range 20 {
			x := g.beginTx()
			for j := range 5 {
				x.must("INSERT INTO t(a) VALUES(?)", wire.Int(int64(i*10+j)))
				last := x.must("INSERT INTO f VALUES(?)", wire.Text(fmt.Sprint("word", i, " ", j))).State.LastInsertID
				if r := x.run("INSERT INTO t(a) VALUES(?)", wire.Int(int64(i*10+j))); r.Err == nil {
					t.Fatal("inserted twice")
				}
				if n := x.number("SELECT last_insert_rowid()"); n != last {
					t.Fatalf("last_insert_rowid() is %d", n)
				}
				if n := x.number("SELECT count(*) FROM f WHERE f MATCH 'word" + fmt.Sprint(i) + "'"); n != int64(j+1) {
					t.Fatalf("%d matches", n)
				}
				x.must("INSERT INTO f(f, rank) VALUES('rank', 'bm25(10.0)')")
			}
			if i%4 == 3 {
				x.must("ANALYZE")
			}
			if i%3 == 2 {
				x.s.Rollback(t.Context())
				g.must("INSERT INTO t(a) VALUES(?1), (?1 + 1), (?1 + 2), (?1 + 3), (?1 + 4)", wire.Int(int64(i*10)))
				continue
			}
			x.mustCommit()
		}
	})
}

func TestHazard07ForeignKeysOfSessionsCutTheEpoch(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p)")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			on := i%2 == 0
			s, err := g.dbs[0].Begin(t.Context(), SessionOptions{Modes: Modes{ForeignKeys: on}})
			if err != nil {
				t.Error(err)
				return
			}
			x := &tx{t, s}
			if r := x.run("INSERT INTO c VALUES(?)", wire.Int(int64(i))); on != (r.Err != nil) {
				t.Errorf("foreign_keys %v: %v", on, r.Err)
			}
			if r := x.commit(); r.Err != nil {
				t.Error(r.Err)
			}
		})
	}
	wg.Wait()
	if got := fmt.Sprint(g.query(0, "SELECT count(*) FROM c")); got != "[[10]]" {
		t.Errorf("got %s", got)
	}
}

// What a session answers from memory survives that its work is undone.
func TestHazard08ResultsOfASessionAreWhole(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a)")
		x := g.beginTx()
		x.must("INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5000) SELECT x FROM c")
		r := x.must("SELECT a FROM t ORDER BY a")
		g.dbs[0].signal()
		x.must("DELETE FROM t WHERE a % 2 = 0 RETURNING a")
		if r.Rows.N != 5000 {
			t.Errorf("%d rows", r.Rows.N)
		}
		x.mustCommit()
	})
}

// An error, a rollback and a commit that changed nothing are told when what they rest on
// is decided.
func TestHazard09SessionsAreToldWhatIsDecided(t *testing.T) {
	for _, end := range []string{"error", "rollback", "commit"} {
		t.Run(end, func(t *testing.T) {
			g := newGroup(t, 2)
			g.must("CREATE TABLE t(a UNIQUE)")
			release, proposed := make(chan struct{}), make(chan struct{}, 10)
			g.mu.Lock()
			g.intercept = func(data []byte, done func(error)) bool {
				proposed <- struct{}{}
				go func() {
					<-release
					g.mu.Lock()
					defer g.mu.Unlock()
					g.intercept = nil
					done(errNotProposed) // it is lost
				}()
				return true
			}
			g.mu.Unlock()
			// A session that commits, and one that works on top of it in the same epoch.
			first, told := make(chan StepResult, 1), make(chan StepResult, 1)
			y, x := g.beginTx(), g.beginTx()
			x.must("INSERT INTO t VALUES(1)")
			go func() {
				defer y.s.Abort()
				if end == "error" {
					told <- y.run("INSERT INTO t VALUES(1)")
					return
				}
				if r := y.run("SELECT * FROM t"); r.Err != nil || r.Rows == nil || r.Rows.N != 1 {
					t.Errorf("it does not stand on the other's work: %+v", r)
				}
				if end == "rollback" {
					told <- y.s.Rollback(t.Context())
				} else {
					told <- y.commit()
				}
			}()
			for waits := 0; waits == 0; {
				d := g.dbs[0]
				d.mu.Lock()
				waits = len(d.returning)
				d.mu.Unlock()
			}
			go func() { first <- x.commit() }()
			<-proposed
			select {
			case r := <-told:
				t.Errorf("told before it was decided: %+v", r)
			case <-time.After(50 * time.Millisecond):
			}
			close(release)
			var over *AbortedError
			if r := <-first; !errors.As(r.Err, &over) {
				t.Errorf("the lost commit: %v", r.Err)
			}
			select {
			case r := <-told:
				if isCode(r.Err, sqlite.Constraint) {
					t.Errorf("an error that rests on what never happened: %v", r.Err)
				}
			case <-time.After(5 * time.Second):
				t.Error("nothing was told")
			}
		})
	}
}

// Finished units do not wait for a session whose client thinks, nor for its statement.
func TestHazard10SessionDoesNotHoldFinishedOnes(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	for _, long := range []bool{false, true} {
		hold, held := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.dbs[0].Do(t.Context(), func() { close(held); <-hold }) })
		<-held
		unit := make(chan time.Duration, 1)
		wg.Go(func() {
			began := time.Now()
			if _, err := g.exec("INSERT INTO t VALUES(1)"); err != nil {
				t.Error(err)
			}
			unit <- time.Since(began)
		})
		var x *tx
		began := make(chan struct{})
		wg.Go(func() { x = g.beginTx(); close(began) })
		for n := 0; n == 0; { // both wait
			d := g.dbs[0]
			d.mu.Lock()
			n = len(d.units) * len(d.sessions)
			d.mu.Unlock()
		}
		close(hold)
		<-began
		if long {
			ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
			if r := x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: endlessInsert}}); !errors.Is(r.Err, ErrCanceled) {
				t.Errorf("got %+v", r)
			}
			cancel()
		}
		if took := <-unit; took > 300*time.Millisecond {
			t.Errorf("the finished write waited for %v", took)
		}
		x.must("INSERT INTO t VALUES(2)")
		x.mustCommit()
		wg.Wait()
	}
}

// A commit that was lost from sight is found by its request ID, or is known never to be.
func TestHazard15ResolvedCommits(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	id := wire.RequestID{Origin: 5, Seq: 1}
	r := x.s.Commit(t.Context(), id, 1)
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	res, err := g.execUnit(wire.Unit{ID: id, Lowest: 1, Resolve: true})
	if err != nil || !res.Duplicate || res.Mark != r.Mark {
		t.Errorf("of a commit: %+v, %v", res, err)
	}
	lost := wire.RequestID{Origin: 5, Seq: 2}
	for range 2 { // asked again, it is the same
		if _, err := g.execUnit(wire.Unit{ID: lost, Lowest: 1, Resolve: true}); !errors.Is(err, ErrNotFound) {
			t.Errorf("of a commit that never was: %v", err)
		}
	}
	// Whatever still brings the lost commit finds its ID taken.
	x = g.beginTx()
	x.must("INSERT INTO t VALUES(3)")
	if r := x.s.Commit(t.Context(), lost, 1); !errors.Is(r.Err, ErrExpired) || r.Over {
		t.Errorf("a commit that was given up: %+v", r)
	}
	x.s.Abort()
	g.restart(1)
	g.restart(0)
	g.dbs[0].Lead(g.term)
	if _, err := g.execUnit(wire.Unit{ID: lost, Lowest: 1, Resolve: true}); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a restart: %v", err)
	}
	if res, err := g.execUnit(wire.Unit{ID: id, Lowest: 1, Resolve: true}); err != nil || !res.Duplicate {
		t.Errorf("of a commit, after a restart: %+v, %v", res, err)
	}
	x = g.beginTx()
	x.must("INSERT INTO t VALUES(2)")
	if r := x.s.Commit(t.Context(), id, 1); !errors.Is(r.Err, ErrExpired) || r.Over {
		t.Errorf("a commit under a used ID: %+v", r)
	}
	x.mustCommit()
}

func TestHazard11DDLInASessionLeavesTheCountAsItIs(t *testing.T) {
	bothWays(t, 2, func(t *testing.T, g *group) {
		g.must("CREATE TABLE t(a)")
		x := g.beginTx()
		for _, c := range []struct {
			sql  string
			want int64
		}{{"INSERT INTO t VALUES(1), (2), (3)", 3}, {"CREATE INDEX i ON t(a)", 3}, {"UPDATE t SET a = a WHERE a > 1", 2}, {"ANALYZE", 2}, {"DROP INDEX i", 2}, {"DELETE FROM t", 3}} {
			if r := x.must(c.sql); r.State.Changes != c.want {
				t.Errorf("%s: the connection counts %d, want %d", c.sql, r.State.Changes, c.want)
			}
		}
		x.mustCommit()
	})
}
