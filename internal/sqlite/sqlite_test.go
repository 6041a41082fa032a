package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"
)

// Some tests need a second process: the test binary runs itself with this set.
const childEnv = "COLMENA_SQLITE_TEST_CHILD"

var children = map[string]func() error{}

func TestMain(m *testing.M) {
	name := os.Getenv(childEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := children[name](); err != nil {
		os.Stdout.WriteString(err.Error())
		os.Exit(3)
	}
}

// runChild runs a child and returns what it printed.
func runChild(t *testing.T, name string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), childEnv+"="+name), env...)
	out, err := cmd.Output()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out)
}

func open(t *testing.T, path string, o Options) *Conn {
	t.Helper()
	c, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func openMemory(t *testing.T) *Conn { return open(t, "", Options{Memory: true}) }

func openWAL(t *testing.T, o Options) (*Conn, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.db")
	o.Create = true
	c := open(t, path, o)
	must(t, c.Exec("PRAGMA journal_mode=WAL"))
	return c, path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func prepare(t *testing.T, c *Conn, sql string) *Stmt {
	t.Helper()
	st, _, err := c.Prepare(sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return st
}

// query runs a script and returns its rows as "a|b;c|d".
func query(c *Conn, sql string) (string, error) {
	var rows []string
	for sql != "" {
		st, tail, err := c.Prepare(sql)
		if err != nil {
			return "", err
		}
		if sql = tail; st == nil {
			continue
		}
		for {
			row, err := st.Step()
			if err != nil {
				return "", errors.Join(err, st.Finalize())
			}
			if !row {
				break
			}
			var cols []string
			for i := range st.ColumnCount() {
				if v := st.ColumnText(i); st.ColumnType(i) == TypeNull {
					cols = append(cols, "NULL")
				} else {
					cols = append(cols, v)
				}
			}
			rows = append(rows, strings.Join(cols, "|"))
		}
		if err := st.Finalize(); err != nil {
			return "", err
		}
	}
	return strings.Join(rows, ";"), nil
}

func wantQuery(t *testing.T, c *Conn, sql, want string) {
	t.Helper()
	got, err := query(c, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if got != want {
		t.Fatalf("%s = %q, want %q", sql, got, want)
	}
}

func wantCode(t *testing.T, err error, code int) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != code {
		t.Fatalf("error %v, want code %d", err, code)
	}
	return e
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"", "a\x00b"} {
		_, err := Open(p, Options{Create: true})
		wantCode(t, err, Misuse)
	}
	for _, o := range []Options{{}, {ReadOnly: true}, {ReadOnly: true, Create: true}, {Pinned: true}} {
		_, err := Open(filepath.Join(dir, "missing"), o)
		wantCode(t, err, CantOpen)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Fatalf("files were created: %v", entries)
	}
	t.Chdir(dir)
	for _, p := range []string{":memory:", "file:x?mode=memory"} {
		c := open(t, p, Options{Create: true})
		must(t, c.Exec("CREATE TABLE t(a)"))
		if _, err := os.Stat(p); err != nil {
			t.Errorf("%q is not a file: %v", p, err)
		}
		if !filepath.IsAbs(c.Filename()) {
			t.Errorf("file name %q", c.Filename())
		}
	}
}

func TestReadOnlyConnectionCannotWrite(t *testing.T) {
	w, path := openWAL(t, Options{})
	must(t, w.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(1)"))
	r := open(t, path, Options{ReadOnly: true, CacheBytes: 1 << 20, BusyTimeout: time.Second})
	wantQuery(t, r, "SELECT a FROM t; PRAGMA cache_size", "1;-1024")
	wantCode(t, r.Exec("INSERT INTO t VALUES(2)"), ReadOnly)
}

func TestCloseWithOpenStatements(t *testing.T) {
	c, err := Open("", Options{Memory: true, Pinned: true})
	must(t, err)
	st := prepare(t, c, "SELECT 1 UNION SELECT 2 UNION SELECT ?")
	must(t, st.BindText(1, []byte("x")))
	_, err = st.Step()
	must(t, err)
	must(t, c.Close())
	must(t, c.Close())

	_, err = st.Step()
	wantCode(t, err, Misuse)
	wantCode(t, st.BindInt64(1, 1), Misuse)
	wantCode(t, st.Reset(), Misuse)
	must(t, st.Finalize())
	if st.ColumnCount() != 0 || st.ColumnType(0) != TypeNull || st.ColumnBytes(0) != nil || st.ColumnName(0) != "" || st.Busy() || st.ReadOnly() {
		t.Error("a closed statement answers")
	}
	wantCode(t, c.Exec("SELECT 1"), Misuse)
	wantCode(t, c.SyncWAL(), Misuse)
	_, _, err = c.Checkpoint(Passive)
	wantCode(t, err, Misuse)
	wantCode(t, c.DBConfig(ConfigQPSG, true), Misuse)
	c.Interrupt()
	c.SetNow(1)
	c.SetSeed(1)
	c.SetPreState(1, 1)
	c.SetAuthorizer(nil)
	c.SetProgress(0, nil)
	c.SetPreupdate(nil)
	if c.MainFile() != nil || c.WALFile() != nil || c.Limit(LimitLength, -1) != -1 || c.Changes() != 0 {
		t.Error("a closed connection answers")
	}
}

func TestPrepareReturnsTail(t *testing.T) {
	c := openMemory(t)
	script := " SELECT 1; -- note ; é\n ;; SELECT 'a;b' ;/* end */"
	st, tail, err := c.Prepare(script)
	must(t, err)
	if st.SQL() != " SELECT 1;" || tail != script[10:] {
		t.Fatalf("sql %q, tail %q", st.SQL(), tail)
	}
	st, tail, err = c.Prepare(tail)
	must(t, err)
	if !strings.HasSuffix(st.SQL(), "SELECT 'a;b' ;") || tail != "/* end */" {
		t.Fatalf("sql %q, tail %q", st.SQL(), tail)
	}
	for _, s := range []string{"", "  ", "-- x", "/* y */", ";", "/* open"} {
		st, tail, err := c.Prepare(s)
		if st != nil || tail != "" || err != nil {
			t.Errorf("%q: %v %q %v", s, st, tail, err)
		}
	}
	_, _, err = c.Prepare("SELECT 1\x00; SELECT 2")
	if e := wantCode(t, err, Generic); e.Offset != 8 || !strings.Contains(e.Msg, "NUL") {
		t.Errorf("%+v", e)
	}
	long := "SELECT '" + strings.Repeat("x", 200<<10) + "'"
	wantQuery(t, c, long, strings.Repeat("x", 200<<10))
	c.Limit(LimitSQLLength, 1000)
	_, _, err = c.Prepare(long)
	wantCode(t, err, TooBig)
}

func TestStatementProperties(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a INTEGER, b VARCHAR(10))"))
	st := prepare(t, c, "SELECT a, b AS bee, a+1 FROM t WHERE a=?1 OR a=:x OR a=@y OR a=$z OR a=?9")
	if !st.ReadOnly() || st.IsExplain() || st.ParamCount() != 9 || st.ColumnCount() != 3 {
		t.Fatal(st.ReadOnly(), st.IsExplain(), st.ParamCount(), st.ColumnCount())
	}
	for i, want := range []string{"", "?1", ":x", "@y", "$z", "", "", "", "", "?9", ""} {
		if got := st.ParamName(i); got != want {
			t.Errorf("parameter %d is %q, want %q", i, got, want)
		}
		if want != "" && st.ParamIndex(want) != i {
			t.Errorf("index of %q is %d", want, st.ParamIndex(want))
		}
	}
	if st.ParamIndex("x") != 0 || st.ParamIndex("") != 0 || st.ParamName(-1) != "" {
		t.Error("a name that does not exist was found")
	}
	for i, want := range [][2]string{{"a", "INTEGER"}, {"bee", "VARCHAR(10)"}, {"a+1", ""}, {"", ""}} {
		if got := [2]string{st.ColumnName(i), st.ColumnDeclType(i)}; got != want {
			t.Errorf("column %d is %q, want %q", i, got, want)
		}
	}
	if st := prepare(t, c, "EXPLAIN DELETE FROM t"); !st.IsExplain() {
		t.Error("EXPLAIN is not recognised")
	}
	if st := prepare(t, c, "DELETE FROM t"); st.ReadOnly() || st.IsExplain() || st.ColumnCount() != 0 {
		t.Error("DELETE is not recognised")
	}
}

func TestValuesSurviveUnchanged(t *testing.T) {
	c := openMemory(t)
	st := prepare(t, c, "SELECT ?1, typeof(?1)")
	big := bytes.Repeat([]byte("0123456789abcdef"), 20<<10)
	type value struct {
		typ  Type
		bind func() error
		want any
	}
	text := func(b []byte) value { return value{TypeText, func() error { return st.BindText(1, b) }, b} }
	blob := func(b []byte) value { return value{TypeBlob, func() error { return st.BindBlob(1, b) }, b} }
	values := []value{
		{TypeNull, func() error { return st.BindNull(1) }, nil},
		text(nil), text([]byte{}), text([]byte("é")), text([]byte("a\x00b")), text([]byte("\xff\xfe\x80")), text([]byte{0}), text(big),
		blob(nil), blob([]byte{}), blob([]byte{0, 1, 255}), blob(big), blob([]byte("small again")),
	}
	for _, v := range []int64{0, -1, math.MaxInt64, math.MinInt64} {
		values = append(values, value{TypeInt, func() error { return st.BindInt64(1, v) }, v})
	}
	for _, v := range []float64{0.5, math.Inf(1), math.SmallestNonzeroFloat64, -math.MaxFloat64} {
		values = append(values, value{TypeFloat, func() error { return st.BindFloat64(1, v) }, v})
	}
	for i, v := range values {
		must(t, v.bind())
		if row, err := st.Step(); !row || err != nil {
			t.Fatal(row, err)
		}
		if got := st.ColumnType(0); got != v.typ {
			t.Errorf("value %d: type %d, want %d", i, got, v.typ)
		}
		switch want := v.want.(type) {
		case []byte:
			if !bytes.Equal(st.ColumnBytes(0), want) || st.ColumnText(0) != string(want) {
				t.Errorf("value %d: %.40q, want %.40q", i, st.ColumnBytes(0), want)
			}
		case int64:
			if got := st.ColumnInt64(0); got != want {
				t.Errorf("value %d: %d, want %d", i, got, want)
			}
		case float64:
			if got := st.ColumnFloat64(0); got != want {
				t.Errorf("value %d: %g, want %g", i, got, want)
			}
		}
		must(t, st.Reset())
	}
	must(t, st.BindFloat64(1, math.NaN()))
	if _, err := st.Step(); err != nil || st.ColumnType(0) != TypeNull {
		t.Errorf("NaN: %v %d", err, st.ColumnType(0))
	}
	if st.ColumnType(99) != TypeNull || st.ColumnBytes(-1) != nil {
		t.Error("a column that does not exist has a value")
	}
}

func TestBindingsAreIndependentAndGuarded(t *testing.T) {
	c := openMemory(t)
	st := prepare(t, c, "SELECT ?1, ?2 UNION ALL SELECT 1, 2")
	must(t, st.BindText(1, []byte("first")))
	must(t, st.BindText(2, []byte("second")))
	for n := range 12 { // grows the first, which must not move the second
		want := strings.Repeat("y", 1<<n)
		must(t, st.BindText(1, []byte(want)))
		_, err := st.Step()
		must(t, err)
		if st.ColumnText(0) != want || st.ColumnText(1) != "second" {
			t.Fatalf("%q %q", st.ColumnText(0), st.ColumnText(1))
		}
		wantCode(t, st.BindText(2, []byte("SECOND")), Misuse)
		wantCode(t, st.ClearBindings(), Misuse)
		if !st.Busy() || st.ColumnText(1) != "second" {
			t.Fatal("a refused bind changed a value in use")
		}
		must(t, st.Reset())
	}
	wantCode(t, st.BindInt64(0, 1), Range)
	wantCode(t, st.BindInt64(3, 1), Range)
	must(t, st.ClearBindings())
	_, err := st.Step()
	must(t, err)
	if st.ColumnType(0) != TypeNull || st.ColumnType(1) != TypeNull {
		t.Error("bindings were not cleared")
	}
	must(t, st.Reset())
	c.Limit(LimitLength, 1000)
	wantCode(t, st.BindBlob(1, make([]byte, 2000)), TooBig)
}

func TestBindDoesNotAllocate(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a, b, c)"))
	st := prepare(t, c, "INSERT INTO t VALUES(?,?,?)")
	text, blob := []byte("hello"), []byte{1, 2, 3}
	if n := testing.AllocsPerRun(20, func() {
		_ = st.BindInt64(1, 7)
		_ = st.BindText(2, text)
		_ = st.BindBlob(3, blob)
		_, _ = st.Step()
		_ = st.Reset()
	}); n != 0 {
		t.Errorf("%v allocations per statement", n)
	}
}

func TestUTF16DatabaseReadsAsUTF8(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("PRAGMA encoding='UTF-16le'; CREATE TABLE t(a); INSERT INTO t VALUES('größe')"))
	wantQuery(t, c, "SELECT a FROM t", "größe")
}

func TestStatementSurvivesSchemaChange(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a INT); INSERT INTO t VALUES(1)"))
	st := prepare(t, c, "SELECT * FROM t")
	check := func(names ...string) {
		t.Helper()
		row, err := st.Step()
		if !row || err != nil {
			t.Fatal(row, err)
		}
		if st.ColumnCount() != len(names) {
			t.Fatalf("%d columns, want %d", st.ColumnCount(), len(names))
		}
		for i, n := range names {
			if st.ColumnName(i) != n {
				t.Errorf("column %d is %q, want %q", i, st.ColumnName(i), n)
			}
		}
		must(t, st.Reset())
	}
	check("a")
	must(t, c.Exec("ALTER TABLE t ADD COLUMN b TEXT DEFAULT 'x'"))
	check("a", "b")
	must(t, c.Exec("ALTER TABLE t RENAME COLUMN a TO z"))
	check("z", "b")
	must(t, c.Exec("DROP TABLE t"))
	_, err := st.Step()
	wantCode(t, err, Generic)
	must(t, c.Exec("CREATE TABLE t(n REAL); INSERT INTO t VALUES(1)"))
	check("n")
	if st.ColumnDeclType(0) != "REAL" {
		t.Errorf("declared type %q", st.ColumnDeclType(0))
	}
}

func TestErrorsReadLikeTheDriver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := sql.Open("sqlite", path)
	must(t, err)
	setup := "CREATE TABLE t(a UNIQUE, b NOT NULL, c CHECK(c>0)); INSERT INTO t VALUES(1,1,1)"
	if _, err := db.Exec(setup); err != nil {
		t.Fatal(err)
	}
	c := openMemory(t)
	must(t, c.Exec(setup))
	for _, s := range []string{
		"INSERT INTO t VALUES(1,1,1)", "INSERT INTO t VALUES(2,NULL,1)", "INSERT INTO t VALUES(2,1,0)", "SELECT nope FROM t",
		"SELEC 1", "SELECT (", "SELECT abs(-9223372036854775808)", "SELECT load_extension('x')", "COMMIT",
	} {
		_, want := db.Exec(s)
		got := c.Exec(s)
		if want == nil || got == nil || got.Error() != want.Error() {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
	must(t, db.Close())
	e := wantCode(t, c.Exec("SELECT 1, nope FROM t"), Generic)
	if e.Offset != 10 || e.SQL != "SELECT 1, nope FROM t" || e.Extended != Generic {
		t.Errorf("%+v", e)
	}
	e = wantCode(t, c.Exec("INSERT INTO t VALUES(1,1,1)"), Constraint)
	if e.Offset != -1 || e.Extended != ConstraintUnique || e.Msg != "constraint failed: UNIQUE constraint failed: t.a" {
		t.Errorf("%+v", e)
	}
}

func TestFailedStatementCanRunAgain(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a UNIQUE)"))
	st := prepare(t, c, "INSERT INTO t VALUES(?) RETURNING a")
	for i, want := range []bool{true, false, true} {
		must(t, st.BindInt64(1, int64(i/2)))
		row, err := st.Step()
		if row != want || (err == nil) != want {
			t.Fatalf("run %d: %v %v", i, row, err)
		}
		must(t, st.Reset())
	}
	wantQuery(t, c, "SELECT count(*) FROM t", "2")
}

func TestPreStateIsSeenBySQL(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)"))
	if c.Changes() != 2 || c.TotalChanges() != 2 || c.LastInsertRowID() != 2 {
		t.Fatal(c.Changes(), c.TotalChanges(), c.LastInsertRowID())
	}
	c.SetPreState(-5, 1<<40)
	c.SetTotalChanges(7)
	wantQuery(t, c, "SELECT last_insert_rowid(), changes(), total_changes()", "-5|1099511627776|7")
	must(t, c.Exec("INSERT INTO t SELECT changes()"))
	wantQuery(t, c, "SELECT a FROM t WHERE rowid=last_insert_rowid(); SELECT changes(), total_changes()", "1099511627776;1|8")
}

// What SQLite leaves in changes() after statements that are not DML is what
// the last DML left there: callers have to normalise it.
func TestChangesAfterEachKindOfStatement(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a PRIMARY KEY, b); CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO t VALUES(1,1),(2,2),(3,3)"))
	const stale = 77
	for _, step := range []struct {
		sql  string
		want int64
	}{
		{"CREATE TABLE u(a)", stale},
		{"CREATE TABLE v AS SELECT * FROM t", stale},
		{"CREATE INDEX i ON t(b)", stale},
		{"ALTER TABLE t ADD COLUMN c", stale},
		{"ANALYZE", stale},
		{"SELECT * FROM t", stale},
		{"REPLACE INTO t(a) VALUES(1)", 1},
		{"INSERT INTO t(a) VALUES(1) ON CONFLICT(a) DO UPDATE SET b=4", 1},
		{"INSERT INTO t(a) VALUES(1) ON CONFLICT(a) DO NOTHING", 0},
		{"INSERT INTO t(a,b) SELECT a+10, b FROM t", 3},
		{"INSERT INTO f(x) VALUES('a'),('b')", 2},
		{"DELETE FROM f", 2},
		{"DELETE FROM t WHERE a=99", 0},
		{"DELETE FROM t", 6},
		{"DROP TABLE t", stale},
		{"VACUUM", stale},
	} {
		c.SetPreState(0, stale)
		must(t, c.Exec(step.sql))
		if c.Changes() != step.want {
			t.Errorf("%s: changes %d, want %d", step.sql, c.Changes(), step.want)
		}
	}
}

func TestDeferredForeignKeys(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE k(p REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED); CREATE TABLE i(p REFERENCES p(id)); INSERT INTO k VALUES(9);"+
		"PRAGMA foreign_keys=ON; BEGIN; PRAGMA defer_foreign_keys=ON"))
	for _, step := range []struct {
		sql  string
		want bool
	}{{"SELECT 1", false}, {"INSERT INTO k VALUES(5)", true}, {"INSERT INTO p VALUES(5)", false}, {"SAVEPOINT s; DELETE FROM p", true}, {"ROLLBACK TO s", false},
		{"INSERT INTO i VALUES(6)", true}, {"DELETE FROM k WHERE p = 9", false}, {"INSERT INTO k VALUES(7)", true}, {"DELETE FROM k WHERE p = 7", false}, {"DELETE FROM i", true}, {"INSERT INTO i VALUES(6)", false}} {
		must(t, c.Exec(step.sql))
		if n, err := c.DeferredForeignKeys(); n != step.want || err != nil {
			t.Errorf("%s: %v %v, want %v", step.sql, n, err, step.want)
		}
	}
	if c.Autocommit() {
		t.Error("no transaction is open")
	}
	must(t, c.Exec("COMMIT"))
	if !c.Autocommit() {
		t.Error("a transaction is open")
	}
}

func TestDefensiveModeIsSwitchable(t *testing.T) {
	c := openMemory(t)
	write := "PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql=sql"
	must(t, c.Exec("CREATE TABLE t(a)"))
	wantCode(t, c.Exec(write), Generic)
	must(t, c.DBConfig(ConfigDefensive, false))
	must(t, c.Exec(write))
	if err := c.DBConfig(12345, true); err == nil {
		t.Error("an unknown switch was accepted")
	}
	if prev := c.Limit(LimitAttached, 0); prev != 10 || c.Limit(LimitAttached, -1) != 0 {
		t.Errorf("limit was %d", prev)
	}
	wantCode(t, c.Exec("ATTACH ':memory:' AS x"), Generic)
}

func TestFingerprintIsStable(t *testing.T) {
	first := Fingerprint()
	if first == 0 || first != Fingerprint() || !strings.HasPrefix(Version(), "3.") || len(SourceID()) < 60 {
		t.Error(Fingerprint(), Version(), SourceID())
	}
}
