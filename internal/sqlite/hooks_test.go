package sqlite

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestAuthorizerSeesAndDecides(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a, b); INSERT INTO t VALUES(1,2)"))
	var seen []Action
	verdict := VerdictOK
	c.SetAuthorizer(func(a Action) Verdict {
		seen = append(seen, a)
		if a.Code == ActionRead && a.Arg2 == "b" {
			return verdict
		}
		return VerdictOK
	})
	wantQuery(t, c, "SELECT a, b FROM t", "1|2")
	want := []Action{{Code: ActionSelect}, {Code: ActionRead, Arg1: "t", Arg2: "a", Database: "main"}, {Code: ActionRead, Arg1: "t", Arg2: "b", Database: "main"}}
	if !slices.Equal(seen, want) {
		t.Errorf("%+v", seen)
	}
	kept := prepare(t, c, "SELECT b FROM t")
	verdict = VerdictIgnore
	wantQuery(t, c, "SELECT a, b FROM t", "1|NULL")
	verdict = VerdictDeny
	_, _, err := c.Prepare("SELECT a, b FROM t")
	if e := wantCode(t, err, Auth); e.Msg != "authorization denied: access to t.b is prohibited" {
		t.Errorf("%+v", e)
	}
	if row, err := kept.Step(); !row || err != nil {
		t.Errorf("a compiled statement was asked about again: %v", err)
	}
	c.SetAuthorizer(nil)
	wantQuery(t, c, "SELECT a, b FROM t", "1|2")

	for i := range 2 * maxInterned { // the interned names are bounded and stay correct
		var got string
		c.SetAuthorizer(func(a Action) Verdict { got = a.Arg1; return VerdictOK })
		name := fmt.Sprintf("savepoint_%d", i)
		st := prepare(t, c, "PRAGMA "+name)
		must(t, st.Finalize())
		if got != name {
			t.Fatalf("%q, want %q", got, name)
		}
	}
	if len(c.names) > maxInterned {
		t.Errorf("%d names are kept", len(c.names))
	}
}

// Callers find nondeterministic calls by denying functions and looking at the
// error's offset: it is a place in the statement's own text, or -1 when the
// call comes from the schema. A call that is itself part of an ON clause
// reports -1 too, though it stands in the text; and one case has an offset
// into another text, so what stands there must be compared with the function.
func TestDeniedFunctionIsLocated(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec(`CREATE TABLE t(a, b);
		CREATE TABLE d(a, b DEFAULT (random()));
		CREATE TABLE dc(a, b DEFAULT CURRENT_TIMESTAMP);
		CREATE TABLE g(a); CREATE TRIGGER g1 AFTER INSERT ON g BEGIN INSERT INTO t VALUES(random(), 1); END;
		CREATE TABLE gd(a); CREATE TRIGGER gd1 AFTER INSERT ON gd BEGIN INSERT INTO d(a) VALUES(1); END;
		CREATE VIEW v AS SELECT random() AS r;
		CREATE VIEW vc AS WITH x AS (SELECT datetime('now') AS r) SELECT r FROM x;
		CREATE TABLE chk(a, CHECK(a <> random()));
		CREATE TABLE gen(a, b AS (date(a)) STORED);
		CREATE TABLE ix(a); CREATE INDEX ix1 ON ix(date(a));
		PRAGMA foreign_keys=ON;
		CREATE TABLE p(a PRIMARY KEY); CREATE TABLE k(a DEFAULT CURRENT_DATE REFERENCES p(a) ON DELETE SET DEFAULT)`))
	deny := strings.Fields("random randomblob datetime date time julianday strftime unixepoch timediff current_timestamp current_time current_date")
	var called []string
	c.SetAuthorizer(func(a Action) Verdict {
		if a.Code == ActionFunction && slices.Contains(deny, strings.ToLower(a.Arg2)) {
			called = append(called, strings.ToLower(a.Arg2)+":"+a.Trigger)
			return VerdictDeny
		}
		return VerdictOK
	})
	const compiles = -2
	for _, f := range []struct {
		sql    string
		call   string // first function: trigger
		offset int
	}{
		{"SELECT '€', random()", "random:", 14},
		{"SELECT CURRENT_TIMESTAMP", "current_timestamp:", 7},
		{"SELECT datetime(?)", "datetime:", 7},
		{"SELECT date(a) FROM t", "date:", 7},
		{"WITH x AS (SELECT random() AS r) SELECT r FROM x", "random:x", 18},
		{"UPDATE t SET a=1 WHERE b=(SELECT random())", "random:", 33},
		{"INSERT INTO t VALUES(1,1) RETURNING random()", "random:", 36},
		{"INSERT INTO p VALUES(1) ON CONFLICT(a) DO UPDATE SET a=random()", "random:", 55},
		{"CREATE TABLE n(a DEFAULT (random()))", "random:", 26},
		{"CREATE TABLE n(a CHECK(a<>random()))", "random:", 26},
		{"INSERT INTO g VALUES(random())", "random:", 21},
		{"SELECT 1 FROM t JOIN g ON g.a=random()", "random:", -1},
		{"SELECT 1 FROM t JOIN g ON g.a=(SELECT random())", "random:", 38},
		{"INSERT INTO d(a) VALUES(1)", "random:", -1},
		{"INSERT INTO dc DEFAULT VALUES", "current_timestamp:", -1},
		{"INSERT INTO g VALUES(1)", "random:g1", -1},
		{"INSERT INTO gd VALUES(1)", "random:gd1", -1},
		{"SELECT 1 FROM v", "random:v", -1},
		{"SELECT * FROM vc", "datetime:x", -1},
		{"SELECT random(), r FROM v", "random:v", -1},
		{"DELETE FROM p", "current_date:", -1},
		{"INSERT INTO d(a,b) VALUES(1,2)", "", compiles},
		{"INSERT INTO chk VALUES(1)", "", compiles},
		{"INSERT INTO gen(a) VALUES(1)", "", compiles},
		// Reading a column asks about its DEFAULT, which is not evaluated; for a
		// stored generated column the offset points into CREATE TABLE's text.
		{"SELECT b FROM d", "random:", -1},
		{"SELECT b FROM gen", "date:", 26},
		{"INSERT INTO ix VALUES(1)", "", compiles},
		{"CREATE VIEW n AS SELECT random()", "", compiles},
		{"CREATE TRIGGER n AFTER INSERT ON t BEGIN SELECT random(); END", "", compiles},
		{"WITH x AS (SELECT random()) SELECT 1", "", compiles},
		{"SELECT 'random()'", "", compiles},
	} {
		called = nil
		st, _, err := c.Prepare(f.sql)
		offset := compiles
		if err != nil {
			offset = wantCode(t, err, Generic).Offset
		} else {
			must(t, st.Finalize())
		}
		first := ""
		if len(called) > 0 {
			first = called[0]
		}
		if offset != f.offset || first != f.call {
			t.Errorf("%s: offset %d of %q, want %d of %q", f.sql, offset, first, f.offset, f.call)
		}
	}
}

const endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n"

func TestProgressInterrupts(t *testing.T) {
	c := openMemory(t)
	calls := 0
	c.SetProgress(1000, func() bool { calls++; return calls == 5 })
	wantCode(t, c.Exec(endless), Interrupt)
	if calls != 5 {
		t.Errorf("%d calls", calls)
	}
	c.SetProgress(0, nil)
	wantQuery(t, c, "SELECT 1", "1")
}

func TestInterruptFromAnotherGoroutine(t *testing.T) {
	c := openMemory(t)
	running := make(chan struct{})
	var once sync.Once
	c.SetProgress(1000, func() bool { once.Do(func() { close(running) }); return false })
	var wg sync.WaitGroup
	wg.Go(func() { <-running; c.Interrupt() })
	e := wantCode(t, c.Exec(endless), Interrupt)
	wg.Wait()
	if e.Error() != "interrupted (9)" {
		t.Error(e)
	}
	wantQuery(t, c, "SELECT 1", "1")
}

func TestInterruptRacesClose(t *testing.T) {
	for range 50 {
		c, err := Open("", Options{Memory: true, Pinned: true})
		must(t, err)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						c.Interrupt()
					}
				}
			})
		}
		_ = c.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(1)") // may be interrupted
		must(t, c.Close())
		close(stop)
		wg.Wait()
	}
}

func TestPreupdateReportsRows(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a, b); CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID; CREATE TABLE l(x); CREATE TRIGGER tr AFTER DELETE ON t BEGIN INSERT INTO l VALUES(old.a); END"))
	var got []string
	str := func(v Value, err error) string {
		if err != nil {
			return "-"
		}
		switch v.Type {
		case TypeInt:
			return fmt.Sprint(v.Int)
		case TypeFloat:
			return fmt.Sprint(v.Float)
		case TypeText, TypeBlob:
			return string(v.Bytes)
		}
		return "NULL"
	}
	c.SetPreupdate(func(ch Change) {
		s := fmt.Sprintf("%s %s.%s %d>%d depth %d", ch.Op, ch.Database, ch.Table, ch.OldRowID, ch.NewRowID, ch.Depth())
		for i := range ch.Columns() {
			s += " " + str(ch.Old(i)) + ">" + str(ch.New(i))
		}
		got = append(got, s)
	})
	for _, step := range []struct{ sql, want string }{
		{"INSERT INTO t VALUES(1,'x')", "INSERT main.t 1>1 depth 0 ->1 ->x"},
		{"UPDATE t SET rowid=9, b=x'6162'", "UPDATE main.t 1>9 depth 0 1>1 x>ab"},
		{"INSERT INTO w VALUES(1.5, NULL)", "INSERT main.w 0>0 depth 0 ->1.5 ->NULL"},
		{"DELETE FROM t", "DELETE main.t 9>9 depth 0 1>- ab>-;INSERT main.l 1>1 depth 1 ->1"},
		{"DELETE FROM l", "DELETE main.l 1>1 depth 0 1>-"},
		{"CREATE TEMP TABLE tt(a); INSERT INTO tt VALUES(1)", "INSERT temp.tt 1>1 depth 0 ->1"},
		{"CREATE TABLE z(a); DROP TABLE z", ""},
	} {
		got = nil
		must(t, c.Exec(step.sql))
		if s := strings.Join(got, ";"); s != step.want {
			t.Errorf("%s: %q, want %q", step.sql, s, step.want)
		}
	}
	got = nil
	c.SetPreupdate(nil)
	must(t, c.Exec("INSERT INTO t VALUES(1,2)"))
	if got != nil {
		t.Error("a removed hook was called")
	}
}

// After the largest rowid SQLite draws rowids from a generator nobody can
// seed. Every way to store that rowid passes the preupdate hook first.
func TestLargestRowIDIsSeenByPreupdate(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a); CREATE TABLE i(id INTEGER PRIMARY KEY, a); CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, a); CREATE VIRTUAL TABLE f USING fts5(x); CREATE VIRTUAL TABLE r USING rtree(id,a,b); CREATE TABLE u(a); INSERT INTO u VALUES(1)"))
	seen := false
	c.SetPreupdate(func(ch Change) { seen = seen || ch.Op != OpDelete && ch.NewRowID == math.MaxInt64 })
	for _, s := range []string{
		"INSERT INTO t(rowid,a) VALUES(9223372036854775807,1)",
		"INSERT INTO i VALUES(9223372036854775807,1)",
		"INSERT INTO auto VALUES(9223372036854775807,1)",
		"INSERT INTO f(rowid,x) VALUES(9223372036854775807,'a')",
		"INSERT INTO r VALUES(9223372036854775807,1,2)",
		"UPDATE u SET rowid=9223372036854775807",
	} {
		seen = false
		must(t, c.Exec(s))
		if !seen {
			t.Errorf("%s: the rowid was not reported", s)
		}
	}
	wantCode(t, c.Exec("INSERT INTO auto(a) VALUES(1)"), Full)
	for range 3 {
		seen = false
		must(t, c.Exec("INSERT INTO t(a) VALUES(1)"))
		if seen || c.LastInsertRowID() == math.MaxInt64 {
			t.Error("an ordinary rowid was reported as the largest")
		}
	}
}
