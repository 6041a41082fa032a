package dbconn

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
)

// A caller that looks at an error's type finds it, whatever statement it is of.
func TestErrorsOfControlStatementsAreReturnedAsTheyAre(t *testing.T) {
	c := connect(t, newHost(t).open(nil))
	c.exec("PRAGMA foreign_keys=on", "CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE t(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)")
	check := func(query string, code int) {
		t.Helper()
		err := c.fails(query)
		if e, ok := err.(*sqlite.Error); !ok || e.Code != code {
			t.Errorf("%s: %T %v", query, err, err)
		}
	}
	check("COMMIT", sqlite.Generic)
	check("ROLLBACK", sqlite.Generic)
	check("RELEASE a", sqlite.Generic)
	check("ROLLBACK TO a", sqlite.Generic)
	c.exec("BEGIN")
	check("BEGIN", sqlite.Generic)
	check("RELEASE a", sqlite.Generic)
	check("INSERT INTO t VALUES(7); COMMIT", sqlite.Constraint)
	c.exec("INSERT INTO p VALUES(7)", "COMMIT") // the constraint had kept it open
	if n := c.number("SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func TestReleaseOfTheSavepointThatBeganTheTransactionCommits(t *testing.T) {
	h := newHost(t)
	db := h.open(nil)
	c, other := connect(t, db), connect(t, db)
	c.exec("CREATE TABLE t(a)", "SAVEPOINT one", "INSERT INTO t VALUES(1)", "SAVEPOINT ONE", "INSERT INTO t VALUES(2)", "RELEASE one")
	if n := other.number("SELECT count(*) FROM t"); n != 0 {
		t.Errorf("%d rows are seen before the outer savepoint is released", n)
	}
	c.exec("SAVEPOINT two", "ROLLBACK TO one", "INSERT INTO t VALUES(3)")
	_ = c.fails("RELEASE two") // ROLLBACK TO has ended it
	c.exec("RELEASE One")
	if n := other.number("SELECT sum(a) FROM t"); n != 3 {
		t.Errorf("the rows add up to %d", n)
	}
	_ = c.fails("COMMIT")
	c.exec("BEGIN", "SAVEPOINT one", "INSERT INTO t VALUES(4)", "RELEASE one", "ROLLBACK") // BEGIN began it
	if n := other.number("SELECT sum(a) FROM t"); n != 3 {
		t.Errorf("the rows add up to %d after a rollback", n)
	}
}

// A statement that rolls the transaction back ends it; nothing runs until its client has
// said that it knows.
func TestTransactionThatAStatementEndedStaysEnded(t *testing.T) {
	h := newHost(t)
	db := h.open(nil)
	c, other := connect(t, db), connect(t, db)
	c.exec("CREATE TABLE t(a UNIQUE)", "INSERT INTO t VALUES(1)")
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		c.exec("BEGIN", "INSERT INTO t VALUES(2)")
		if err := c.fails("INSERT OR ROLLBACK INTO t VALUES(1)"); errors.Is(err, errAborted) {
			t.Errorf("the statement's own error: %v", err)
		}
		other.exec("UPDATE t SET a = a") // the writer is free
		if err := c.fails("INSERT INTO t VALUES(3)"); !errors.Is(err, errAborted) {
			t.Errorf("a statement after the end: %v", err)
		}
		if _, err := c.ExecContext(c.ctx, end); (end == "ROLLBACK") != (err == nil) || err != nil && !errors.Is(err, errAborted) {
			t.Errorf("%s: %v", end, err)
		}
		if n := c.number("SELECT count(*) FROM t"); n != 1 {
			t.Errorf("%d rows after %s", n, end)
		}
	}
}

// Where a statement has ended the transaction of a sql.Tx and has begun another, that is the
// one which the sql.Tx ends, under its own context and not that of the statement.
func TestTransactionBegunInThePlaceOfAnother(t *testing.T) {
	h := newHost(t)
	db := h.open(nil)
	connect(t, db).exec("CREATE TABLE t(a)")
	for _, begin := range []struct{ readOnly, buffered bool }{{}, {readOnly: true}, {buffered: true}} {
		for _, commit := range []bool{true, false} {
			connect(t, db).exec("DELETE FROM t")
			h.buffers = begin.buffered
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: begin.readOnly})
			if err != nil {
				t.Fatal(err)
			}
			h.buffers = false
			short, cancel := context.WithCancel(t.Context())
			_, err = tx.ExecContext(short, "COMMIT; BEGIN; INSERT INTO t VALUES(1)")
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			end := tx.Rollback
			if commit {
				end = tx.Commit
			}
			if err := end(); err != nil {
				t.Errorf("%+v, commit %v: %v", begin, commit, err)
			}
			if n := connect(t, db).number("SELECT count(*) FROM t"); commit != (n == 1) {
				t.Errorf("%+v, commit %v: %d rows", begin, commit, n)
			}
			if tx, err = db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: begin.readOnly}); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("COMMIT"); err != nil {
				t.Fatal(err)
			}
			if code, _ := h.errs().Code(tx.Commit()); code != sqlite.Generic {
				t.Errorf("%+v: a commit without a transaction gives code %d", begin, code)
			}
		}
	}
	if n := h.dropped.Load(); n != 0 {
		t.Errorf("%d transactions were dropped", n)
	}
}

// A connection that goes back to the pool in a transaction lets go of it.
func TestPooledConnectionKeepsNoTransaction(t *testing.T) {
	for _, begin := range []string{"BEGIN", "SAVEPOINT a", "PRAGMA query_only=on; BEGIN"} {
		h := newHost(t)
		db := h.open(nil)
		db.SetMaxOpenConns(1)
		c := connect(t, db)
		c.exec("CREATE TABLE t(a)", begin)
		if begin[0] != 'P' {
			c.exec("INSERT INTO t VALUES(1)")
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if n := h.dropped.Load(); n != 1 {
			t.Errorf("%s: it was told of %d dropped transactions", begin, n)
		}
		connect(t, h.open(nil)).exec("INSERT INTO t VALUES(2)") // it waits for nobody
		c = connect(t, db)
		c.exec("PRAGMA query_only=off", "UPDATE t SET a = a")
		if n := c.number("SELECT sum(a) FROM t"); n != 2 {
			t.Errorf("%s: the rows add up to %d", begin, n)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		tx, err := db.BeginTx(t.Context(), nil)
		if err == nil {
			err = tx.Commit()
		}
		if n := h.dropped.Load(); err != nil || n != 1 {
			t.Errorf("%s: after another that ended it was told of %d, %v", begin, n, err)
		}
	}
}

// A commit ends with the context of its transaction's begin, one that is sent as text with
// its own.
func TestCommitEndsWithItsContext(t *testing.T) {
	h := newHost(t)
	db := h.open(nil)
	connect(t, db).exec("CREATE TABLE t(a)")
	for _, h.buffers = range []bool{false, true} {
		h.lose, h.hang = true, true
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		tx, err := db.BeginTx(short, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("buffered %v: %v", h.buffers, err)
		}
		cancel()
		for begin, end := range map[string]string{"BEGIN": "COMMIT", "SAVEPOINT s": "RELEASE s"} {
			if h.buffers && begin != "BEGIN" {
				continue // it is refused
			}
			c := connect(t, db)
			c.exec(begin, "INSERT INTO t VALUES(2)")
			short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if _, err := c.ExecContext(short, end); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", end, err)
			}
			cancel()
		}
		h.lose, h.hang = false, false
		if k := connect(t, db).number("SELECT count(*) FROM t"); k != 0 {
			t.Errorf("%d rows", k)
		}
	}
}

// The counts of a buffered transaction are there after its commit, if that succeeded, and a
// commit that failed leaves what the connection remembers.
func TestCountsOfABufferedTransaction(t *testing.T) {
	h := newHost(t)
	c := connect(t, h.open(nil))
	c.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", "INSERT INTO t VALUES(41, 0)")
	h.buffers = true
	for _, h.lose = range []bool{true, false} {
		tx, err := c.BeginTx(c.ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		var results []sql.Result
		for _, q := range []string{"INSERT INTO t(a) VALUES(1), (2)", "UPDATE t SET a = a + 1"} {
			res, err := tx.Exec(q)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := res.RowsAffected(); !errors.Is(err, errNotCommitted) {
				t.Errorf("%s: a count before the commit: %v", q, err)
			}
			results = append(results, res)
		}
		var r *refused
		if _, err := tx.Query("SELECT 1"); !errors.As(err, &r) {
			t.Errorf("a query: %v", err)
		}
		if err := tx.Commit(); !h.lose && err != nil || h.lose && !errors.Is(err, errLost) {
			t.Fatal(err)
		}
		for i, want := range []int64{2, 3} {
			n, err := results[i].RowsAffected()
			if h.lose && !errors.Is(err, errNotCommitted) || !h.lose && (err != nil || n != want) {
				t.Errorf("lost %v: %d rows, %v", h.lose, n, err)
			}
		}
		want := 43
		if h.lose {
			want = 41
		}
		if id := c.number("SELECT last_insert_rowid()"); id != want {
			t.Errorf("lost %v: last_insert_rowid() is %d, want %d", h.lose, id, want)
		}
	}
}

func TestReadOnlyTransactionRefusesWritesOfEveryForm(t *testing.T) {
	h := newHost(t)
	db := h.open(nil)
	connect(t, db).exec("CREATE TABLE t(a)")
	c := connect(t, db)
	tx, err := c.BeginTx(c.ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, db).exec("CREATE TABLE later(a)", "INSERT INTO t VALUES(1)")
	for _, q := range []string{"INSERT INTO t VALUES(1)", "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "WITH x AS (SELECT 1) INSERT INTO later SELECT * FROM x"} {
		var r *refused
		if _, err := tx.Exec(q); !errors.As(err, &r) {
			t.Errorf("%s: %v", q, err)
		}
	}
	var n int
	if err := tx.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 0 {
		t.Errorf("the snapshot has %d rows, %v", n, err)
	}
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
}

func TestClosedNodeEndsConnections(t *testing.T) {
	h := newHost(t)
	db := h.open(nil)
	c := connect(t, db)
	c.exec("CREATE TABLE t(a)")
	tx, err := db.BeginTx(c.ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	h.closed.Store(true)
	if err := c.fails("SELECT 1"); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if err := tx.Commit(); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if _, err := db.Conn(context.Background()); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if err := errors.Join(c.Close(), db.Close()); err != nil || h.detached != 1 {
		t.Errorf("%v, the pool was told of %d times", err, h.detached)
	}
}

// Foreign keys that are deferred before a transaction begins are so in it, and no longer.
func TestForeignKeysDeferredForTheNextTransaction(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		h := newHost(t)
		c := connect(t, h.open(func(cfg *Config) { cfg.ForeignKeys = true }))
		c.exec("CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE c(p REFERENCES p)", "INSERT INTO p VALUES(7)")
		h.buffers = buffered
		before := h.db.Mark()
		c.exec("PRAGMA defer_foreign_keys=on", "BEGIN", "COMMIT")
		if buffered && h.db.Mark() != before {
			t.Error("a buffered transaction without statements is an entry")
		}
		if id := c.number("SELECT last_insert_rowid()"); id != 7 {
			t.Errorf("buffered %v: last_insert_rowid() is %d", buffered, id)
		}
		c.exec("PRAGMA defer_foreign_keys=on", "BEGIN", "INSERT INTO c VALUES(1)", "INSERT INTO p VALUES(1)", "COMMIT")
		if n := c.number("SELECT count(*) FROM c"); n != 1 {
			t.Errorf("buffered %v: %d rows", buffered, n)
		}
		c.exec("BEGIN")
		_, err := c.ExecContext(c.ctx, "INSERT INTO c VALUES(2)")
		if buffered {
			c.exec("INSERT INTO p VALUES(2)")
			err = c.fails("COMMIT")
		}
		if code, _ := h.errs().Code(err); code != sqlite.Constraint {
			t.Errorf("buffered %v: the next transaction: %v", buffered, err)
		}
	}
}

// PRAGMA query_only holds from where it stands, in a transaction too.
func TestQueryOnlyInATransaction(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		h := newHost(t)
		c := connect(t, h.open(nil))
		c.exec("CREATE TABLE t(a)")
		h.buffers = buffered
		c.exec("BEGIN", "INSERT INTO t VALUES(1)", "CREATE TABLE u(a)", "PRAGMA query_only=on")
		for _, q := range []string{"INSERT INTO t VALUES(2)", "WITH x AS (SELECT 2) INSERT INTO t SELECT * FROM x", "SELECT 1; DELETE FROM t", "PRAGMA user_version=3",
			"WITH x AS (SELECT 2) INSERT INTO u SELECT * FROM x"} {
			var r *refused
			if err := c.fails(q); !errors.As(err, &r) {
				t.Errorf("buffered %v: %s: %v", buffered, q, err)
			}
		}
		if !buffered {
			c.exec("SAVEPOINT a", "ROLLBACK TO a", "RELEASE a")
			if n := c.number("SELECT count(*) FROM t"); n != 1 {
				t.Errorf("%d rows", n)
			}
		}
		c.exec("PRAGMA query_only=off", "INSERT INTO t VALUES(3)", "COMMIT")
		if n := c.number("SELECT sum(a) FROM t"); n != 4 {
			t.Errorf("buffered %v: the rows add up to %d", buffered, n)
		}
	}
}
