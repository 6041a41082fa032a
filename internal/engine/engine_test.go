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

func TestWriteIsReplicatedAndRead(t *testing.T) {
	g := newGroup(t, 3)
	g.must("CREATE TABLE kv(k INTEGER PRIMARY KEY, v TEXT)")
	r := g.must("INSERT INTO kv(v) VALUES(?), (?)", wire.Text("a"), wire.Text("b"))
	if r.Result.RowsAffected != 2 || r.Result.LastInsertID != 2 {
		t.Fatalf("got %+v", r.Result)
	}
	for i := range 3 {
		if err := g.dbs[i].WaitMark(t.Context(), r.Mark.Index); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(g.query(i, "SELECT * FROM kv")); got != "[[1 a] [2 b]]" {
			t.Errorf("replica %d has %s", i, got)
		}
	}
}

func TestRestartReplaysNothingTwice(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	for i := range 50 {
		g.must("INSERT INTO t VALUES(?)", wire.Int(int64(i)))
	}
	g.restart(1)
	if err := g.dbs[1].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := g.query(1, "SELECT count(*) FROM t")[0][0]; got != "50" {
		t.Fatalf("%s rows after the log was delivered again, want 50", got)
	}
}

func TestErrorIsTheWritersAlone(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY)")
	g.must("INSERT INTO t VALUES(0)")
	var wg sync.WaitGroup
	errs := make([]error, 21)
	for i := range errs {
		wg.Go(func() { _, errs[i] = g.dbs[0].Exec(t.Context(), unit("INSERT INTO t VALUES(?)", wire.Int(int64(i)))) })
	}
	wg.Wait()
	for i, err := range errs {
		var se *sqlite.Error
		switch {
		case i == 0 && (!errors.As(err, &se) || se.Extended != sqlite.ConstraintPrimaryKey):
			t.Errorf("the duplicate got %v", err)
		case i > 0 && err != nil:
			t.Errorf("an innocent writer got %v", err)
		}
	}
}

func TestMultiStatementStringIsAtomic(t *testing.T) {
	g := newGroup(t, 2)
	_, err := g.exec("CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1); INSERT INTO t VALUES(1); -- end")
	if err == nil || !strings.Contains(err.Error(), "UNIQUE") {
		t.Fatalf("got %v", err)
	}
	if got := g.query(0, "SELECT count(*) FROM sqlite_schema WHERE name='t'")[0][0]; got != "0" {
		t.Fatal("the failed script left its table")
	}
	g.must("CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2);\n")
}

func TestHazard01StaleEpochIsANoOp(t *testing.T) {
	g := newGroup(t, 3)
	g.must("CREATE TABLE t(a)")
	// The entry is held back, another leader's entry is committed first.
	var held []byte
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool {
		held, g.intercept = data, nil
		done(errLost)
		return true
	}
	g.mu.Unlock()
	if _, err := g.exec("INSERT INTO t VALUES('stale')"); !errors.Is(err, ErrUnknown) {
		t.Fatalf("got %v", err)
	}
	g.must("INSERT INTO t VALUES('newer')")
	g.mu.Lock()
	g.commitLocked(held)
	g.mu.Unlock()
	g.must("INSERT INTO t VALUES('after')")
	if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[newer] [after]]" {
		t.Fatalf("got %s", got)
	}
}

func TestHazard01RolledBackEpochThatWinsIsApplied(t *testing.T) {
	g := newGroup(t, 3)
	g.must("CREATE TABLE t(a)")
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool {
		g.intercept = nil
		done(errLost)
		go func() { g.mu.Lock(); defer g.mu.Unlock(); g.commitLocked(data) }()
		return true
	}
	g.mu.Unlock()
	u := unit("INSERT INTO t VALUES('once')")
	u.ID = wire.RequestID{Origin: 1, Seq: 1}
	if _, err := g.execUnit(u); err != nil && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotLeading) {
		t.Fatal(err)
	}
	// Sent again with its request ID it is applied exactly once, whichever came first.
	r, err := g.execUnit(u)
	for errors.Is(err, ErrNotLeading) {
		r, err = g.execUnit(u)
	}
	if err != nil || r.Result.RowsAffected != 1 {
		t.Fatalf("got %+v, %v", r, err)
	}
	if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[once]]" {
		t.Fatalf("got %s", got)
	}
}

func TestHazard02GapHalts(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	g.mu.Lock()
	lagging := g.dbs[1]
	g.dbs[1] = nil
	g.mu.Unlock()
	if err := lagging.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.must("INSERT INTO t VALUES(1)")
	g.must("INSERT INTO t VALUES(2)")
	g.mu.Lock()
	last := g.log[len(g.log)-1]
	g.mu.Unlock()
	lagging.Deliver(last.mark, last.data)
	err := lagging.Drain(t.Context())
	var gap *GapError
	if !errors.As(err, &gap) || !errors.Is(err, ErrHalted) {
		t.Fatalf("got %v, want a gap", err)
	}
	g.mu.Lock()
	g.dbs[1] = lagging
	g.mu.Unlock()
}

func TestHazard03JudgeEntry(t *testing.T) {
	m := func(term, index uint64) wire.Mark { return wire.Mark{Term: term, Index: index} }
	for _, c := range []struct {
		name              string
		entry, prev, have wire.Mark
		apply, gap        bool
	}{
		{"first", m(1, 5), m(0, 0), m(0, 0), true, false},
		{"next", m(2, 9), m(1, 5), m(1, 5), true, false},
		{"held already", m(1, 5), m(0, 0), m(1, 5), false, false},
		{"long ago", m(1, 3), m(0, 0), m(2, 9), false, false},
		{"stale epoch", m(2, 10), m(1, 5), m(2, 9), false, false},
		{"gap", m(2, 10), m(2, 9), m(1, 5), false, true},
		{"same index, other term", m(3, 9), m(2, 8), m(2, 9), false, true},
		{"file ahead of a rewritten log", m(3, 7), m(2, 6), m(2, 9), false, true},
		{"same index of prev, other term", m(3, 10), m(3, 9), m(2, 9), false, true},
	} {
		apply, err := judgeEntry(c.entry, c.prev, c.have)
		if apply != c.apply || (err != nil) != c.gap {
			t.Errorf("%s: apply %v, err %v", c.name, apply, err)
		}
	}
}

func TestHazard04DeferredForeignKeyIsTheUnitsOwnError(t *testing.T) {
	g := newGroup(t, 2)
	fk := func(sql string) wire.Unit { u := unit(sql); u.ForeignKeys = true; return u }
	for _, sql := range []string{"CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)"} {
		if _, err := g.execUnit(fk(sql)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for i := range errs {
		sql := "INSERT INTO p(id) VALUES(NULL)"
		if i == 3 {
			sql = "INSERT INTO c VALUES(999)"
		}
		wg.Go(func() { _, errs[i] = g.dbs[0].Exec(t.Context(), fk(sql)) })
	}
	wg.Wait()
	for i, err := range errs {
		var se *sqlite.Error
		if i == 3 && (!errors.As(err, &se) || se.Extended != sqlite.ConstraintForeignKey) || i != 3 && err != nil {
			t.Errorf("unit %d: %v", i, err)
		}
	}
}

func TestHazard05StatementThatEndsTheTransaction(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 'first')")
	var wg sync.WaitGroup
	errs := make([]error, 40)
	for i := range errs {
		sql, a := "INSERT INTO t VALUES(?, random())", int64(100+i)
		if i%4 == 3 {
			sql, a = "INSERT OR ROLLBACK INTO t VALUES(?, 'offender')", 1
		}
		u := unit(sql, wire.Int(a))
		u.Pin = true
		wg.Go(func() { _, errs[i] = g.dbs[0].Exec(t.Context(), u) })
	}
	wg.Wait()
	for i, err := range errs {
		if (err != nil) != (i%4 == 3) {
			t.Errorf("unit %d: %v", i, err)
		}
	}
	if got := g.query(0, "SELECT count(*) FROM t")[0][0]; got != "31" {
		t.Errorf("%s rows, want 31", got)
	}
}

func TestHazard06FailedStatementLeavesNoTrace(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE); CREATE TABLE seen(rowid_, changes_); INSERT INTO t VALUES(1, 1)")
	if _, err := g.exec("INSERT OR FAIL INTO t VALUES(50, 2), (51, 1)"); err == nil {
		t.Fatal("no error")
	}
	if got := g.query(0, "SELECT count(*) FROM t")[0][0]; got != "1" {
		t.Errorf("OR FAIL left rows: %s", got)
	}
	u := unit("INSERT INTO seen VALUES(last_insert_rowid(), changes())")
	u.Pre = wire.PreState{LastInsertID: 77, Changes: 5}
	u.HasPre = true
	if _, err := g.execUnit(u); err != nil {
		t.Fatal(err)
	}
	g.must("INSERT INTO seen VALUES(last_insert_rowid(), changes())")
	if got := fmt.Sprint(g.query(0, "SELECT * FROM seen")); got != "[[77 5] [0 0]]" {
		t.Errorf("got %s", got)
	}
}

func TestHazard07ForeignKeysCutTheEpoch(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p)")
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		u := unit("INSERT INTO c VALUES(?, 999)", wire.Int(int64(i)))
		u.ForeignKeys = i%2 == 1
		wg.Go(func() { _, errs[i] = g.dbs[0].Exec(t.Context(), u) })
	}
	wg.Wait()
	for i, err := range errs {
		if (err != nil) != (i%2 == 1) {
			t.Errorf("unit %d, foreign_keys %v: %v", i, i%2 == 1, err)
		}
	}
}

func TestHazard10LongStatementDoesNotHoldFinishedOnes(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	long := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		numbers := int64(300000)
		if testing.Short() {
			numbers = 30000 // as under the race detector
		}
		_, err := g.dbs[0].Exec(ctx, unit("INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < ?) SELECT count(*) FROM c", wire.Int(numbers)))
		long <- err
	}()
	for i := range 20 {
		g.must("INSERT INTO t VALUES(?)", wire.Int(int64(-i)))
	}
	if err := <-long; err != nil {
		t.Fatal(err)
	}
	if got := g.query(0, "SELECT count(*) FROM t")[0][0]; got != "21" {
		t.Errorf("%s rows", got)
	}
}

func TestHazard15RequestIDs(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY)")
	send := func(seq, lowest uint64, sql string) (wire.UnitResult, error) {
		u := unit(sql)
		u.ID, u.Lowest, u.WantRows = wire.RequestID{Origin: 9, Seq: seq}, lowest, true
		return g.execUnit(u)
	}
	first, err := send(1, 1, "INSERT INTO t(a) VALUES(NULL) RETURNING a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := send(1, 1, "INSERT INTO t(a) VALUES(NULL) RETURNING a")
	if err != nil || !again.Duplicate || again.Mark != first.Mark || string(again.Result.Rows.Data) != string(first.Result.Rows.Data) {
		t.Fatalf("sent again: %+v, %v; at first %+v", again, err, first)
	}
	if _, err := send(2, 2, "INSERT INTO t(a) VALUES(NULL) RETURNING a"); err != nil {
		t.Fatal(err)
	}
	// The memory is in the file.
	g.restart(0)
	g.dbs[0].Lead(1)
	if r, err := send(2, 2, "INSERT INTO t(a) VALUES(NULL) RETURNING a"); err != nil || !r.Duplicate {
		t.Fatalf("after a restart: %+v, %v", r, err)
	}
	if _, err := send(1, 2, "INSERT INTO t(a) VALUES(NULL) RETURNING a"); !errors.Is(err, ErrExpired) {
		t.Fatalf("an acknowledged request sent again got %v", err)
	}
	if got := g.query(0, "SELECT count(*) FROM t")[0][0]; got != "2" {
		t.Errorf("%s rows, want 2", got)
	}
}

func TestReplicatedTimeNeverRunsBackwards(t *testing.T) {
	g := newGroup(t, 2)
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	g.clock = func() time.Time { return now }
	g.must("CREATE TABLE t(a DEFAULT (datetime('now')), b)")
	g.must("INSERT INTO t(b) VALUES(1)")
	now = now.Add(-time.Hour)
	g.must("INSERT INTO t(b) VALUES(2)")
	if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[2030-01-02 03:04:05] [2030-01-02 03:04:05]]" {
		t.Errorf("got %s", got)
	}
}

func TestCanceledUnitIsNotApplied(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := g.dbs[0].Exec(ctx, unit("INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT x FROM c"))
	if err == nil || time.Since(start) > 2*time.Second {
		t.Fatalf("got %v after %v", err, time.Since(start))
	}
	g.must("INSERT INTO t VALUES(1)")
	if got := g.query(0, "SELECT count(*) FROM t")[0][0]; got != "1" {
		t.Errorf("%s rows, want 1", got)
	}
}

func TestRejectAndPin(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY, b, c DEFAULT CURRENT_TIMESTAMP, d DEFAULT (random()))")
	g.must("CREATE TRIGGER tr AFTER INSERT ON t WHEN new.b = 'x' BEGIN UPDATE t SET b = randomblob(4) WHERE a = new.a; END")
	for _, c := range []struct {
		sql, function string
	}{
		{"INSERT INTO t(b) VALUES(random())", "random"},
		{"INSERT INTO t(b) VALUES(hex(randomblob(8)))", "randomblob"},
		{"INSERT INTO t(b) VALUES(datetime('now'))", "datetime"},
		{"INSERT INTO t(b) VALUES(CURRENT_TIMESTAMP)", "current_timestamp"},
		{"INSERT INTO t(b) VALUES(strftime('%s'))", "strftime"},
		{"INSERT INTO t(b) WITH c(r) AS (SELECT random()) SELECT r FROM c", "random"},
		{"INSERT INTO t(b) VALUES(unixepoch())", "unixepoch"},
		{"UPDATE t SET b = date('NOW', '+1 day')", "date"},
		{"DELETE FROM t WHERE a IN (SELECT a FROM t ORDER BY random() LIMIT 1)", "random"},
		{"CREATE TABLE u AS SELECT random() AS r", "random"},
		{"INSERT INTO t(b) VALUES(datetime('2020-01-01'))", ""},
		{"INSERT INTO t(b) VALUES(strftime('%Y', '2020-01-01'))", ""},
		{"INSERT INTO t(b) VALUES('random() datetime(''now'')')", ""},
		{"INSERT INTO t(b) VALUES('x')", ""},
		{"INSERT INTO t(b) VALUES('y') -- random()", ""},
	} {
		_, err := g.exec(c.sql)
		var nd *NonDeterministicError
		switch {
		case c.function == "" && err != nil:
			t.Errorf("%s: %v", c.sql, err)
		case c.function != "" && (!errors.As(err, &nd) || nd.Function != c.function):
			t.Errorf("%s: got %v, want a refusal of %s", c.sql, err, c.function)
		}
		u := unit(c.sql)
		u.Pin = true
		if _, err := g.execUnit(u); err != nil {
			t.Errorf("pinned %s: %v", c.sql, err)
		}
		if strings.HasPrefix(c.sql, "CREATE") {
			g.must("DROP TABLE u")
		}
		if _, err := g.exec(c.sql); (err != nil) != (c.function != "") {
			t.Errorf("%s after it was pinned: %v", c.sql, err)
		}
	}
}

func TestRefusedStatements(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	for _, sql := range []string{
		"ATTACH ':memory:' AS x", "CREATE TEMP TABLE x(a)", "PRAGMA journal_mode=DELETE", "PRAGMA writable_schema=ON",
		"INSERT INTO t SELECT sqlite_version()", "INSERT INTO t SELECT fts5_source_id()", "UPDATE sqlite_colmena SET idx=1", "DELETE FROM sqlite_colmena", "DROP TABLE sqlite_colmena",
		"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "RELEASE colmena_unit", "INSERT INTO t VALUES(1); COMMIT", "INSERT INTO t VALUES(total_changes())",
		"INSERT INTO t(rowid, a) VALUES(9223372036854775807, 1)", "INSERT INTO t VALUES(datetime('2020-01-01','localtime'))",
		"VACUUM", "VACUUM INTO '/tmp/x'", "PRAGMA query_only=1",
		"CREATE TABLE x(a REFERENCES sqlite_colmena(id))", "CREATE TABLE x(a, FOREIGN KEY(a) REFERENCES SQLITE_COLMENA)",
		"CREATE TABLE temp.x(a)", "CREATE TABLE Temp.x AS SELECT 1", "CREATE VIEW temp.x AS SELECT 1", "CREATE VIRTUAL TABLE temp.x USING fts5(a)",
		"CREATE TRIGGER temp.x AFTER INSERT ON t BEGIN DELETE FROM t; END", "CREATE TRIGGER temp.x AFTER INSERT ON main.t BEGIN DELETE FROM t; END", "ANALYZE temp",
		"CREATE VIRTUAL TABLE x USING dbstat", "CREATE VIRTUAL TABLE x USING SQLite_dbpage",
	} {
		_, err := g.exec(sql)
		var refused *RefusedError
		if err == nil || strings.HasPrefix(sql, "VACUUM") && !errors.As(err, &refused) {
			t.Errorf("%s: got %v", sql, err)
		}
	}
	if got := g.query(0, "SELECT count(*) FROM t")[0][0]; got != "0" {
		t.Errorf("%s rows", got)
	}
	g.must("ANALYZE")
	g.must("REINDEX")
	g.must("PRAGMA user_version=5")
	if got := g.query(0, "PRAGMA user_version")[0][0]; got != "5" {
		t.Errorf("user_version %s", got)
	}
}

func TestManyWritersAndPinnedCopy(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := g.dbs[0].Exec(context.Background(), unit("INSERT INTO t(b) VALUES(?)", wire.Text(strings.Repeat("x", 100+w)))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 5 {
		p, err := g.dbs[0].Pin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		copyPinned(t, p, fmt.Sprintf("%s/copy%d", g.dir, i))
	}
	close(stop)
	wg.Wait()
}
