package colmena

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/dbconn"
)

func testNode(t *testing.T) *Node {
	t.Helper()
	n, err := New(Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// pair is a database of ours and one of plain SQLite, to be told apart by nobody.
func pair(t *testing.T, schema string) (ours, plain *sql.DB) {
	t.Helper()
	plain, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "plain.db")+"?_time_format=sqlite")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	plain.SetMaxOpenConns(1)
	ours = testNode(t).DB()
	ours.SetMaxOpenConns(1)
	if schema != "" {
		mustExec(t, plain, schema)
		mustExec(t, ours, schema)
	}
	return ours, plain
}

func mustExec(t *testing.T, db interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}, query string, args ...any) sql.Result {
	t.Helper()
	res, err := db.ExecContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return res
}

// dump runs a query and describes everything it returned.
func dump(db *sql.DB, query string, args ...any) (string, error) {
	rows, err := db.Query(query, args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return "", err
	}
	types, err := rows.ColumnTypes()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i, ct := range types {
		length, unlimited := ct.Length()
		nullable, known := ct.Nullable()
		fmt.Fprintf(&b, "%s %s %d %v %v %v; ", names[i], ct.DatabaseTypeName(), length, unlimited, nullable, known)
	}
	for rows.Next() {
		values := make([]any, len(names))
		dest := make([]any, len(names))
		for i := range values {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return "", err
		}
		for _, v := range values {
			if m, ok := v.(time.Time); ok {
				v = m.UTC().Format(time.RFC3339Nano)
			}
			fmt.Fprintf(&b, "%T(%#v) ", v, v)
		}
		b.WriteString("| ")
	}
	return b.String(), rows.Err()
}

func TestQueriesAnswerAsSQLite(t *testing.T) {
	const schema = `CREATE TABLE v(id INTEGER PRIMARY KEY, i INT, r REAL, s VARCHAR(10), b BLOB, d DATE, dt DATETIME, ts timestamp, bo BOOLEAN, tz TIMESTAMP WITH TIME ZONE, n);
CREATE TABLE u(a TEXT UNIQUE NOT NULL, c INT CHECK(c<10));`
	ours, plain := pair(t, schema)
	moment := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.FixedZone("", 5400))
	for _, step := range []struct {
		query string
		args  []any
	}{
		{"INSERT INTO v(i,r,s,b,d,dt,ts,bo,tz,n) VALUES(?,?,?,?,?,?,?,?,?,?)", []any{math.MinInt64, 1.5, "text\x00zero", []byte{0, 1, 255}, moment, moment, moment, true, moment, nil}},
		{"INSERT INTO v(i,r,s,b,d,dt,ts,bo,tz,n) VALUES(?,?,?,?,?,?,?,?,?,?)", []any{int8(-3), math.Inf(1), "", nil, "2024-05-06", "not a time", "2024-05-06 07:08", false, nil, uint32(7)}},
		{"INSERT INTO v(i,r,s,b,d,dt,ts,bo) VALUES(?4,?3,?2,?1,?1,?2,?4,?3)", []any{[]byte("x"), "y", 2.0, 17}},
		{"INSERT INTO v(s,n,dt) VALUES(:s,@n,$dt)", []any{sql.Named("dt", int64(1700000000)), sql.Named("s", "é"), sql.Named("n", math.NaN())}},
		{"SELECT * FROM v ORDER BY id", nil},
		{"SELECT * FROM v WHERE id=?", []any{1}},
		{"SELECT * FROM v WHERE id=99", nil},
		{"SELECT dt, max(dt), upper(s) AS big, count(*), id+0.5, x'', typeof(bo) FROM v GROUP BY id ORDER BY id", nil},
		{"SELECT ?, ?2, :x, ?", []any{1, "two", sql.Named("x", 3), 4}},
		{"SELECT 1; SELECT 2, 3", nil},
		{"", nil},
		{"-- nothing", nil},
		{"SELECT ?", nil},
		{"SELECT :a", nil},
		{"INSERT INTO u VALUES('a',1),('b',2) RETURNING a, c, rowid AS id", nil},
		{"INSERT INTO u VALUES(?,?) RETURNING *", []any{"r", 3}},
		{"UPDATE u SET c=c+1 WHERE a>'zzz' RETURNING a", nil},
		{"DELETE FROM u WHERE a='r' RETURNING rowid", nil},
		{"SELECT last_insert_rowid(), changes()", nil},
		{"INSERT INTO u VALUES('a',1)", nil},
		{"INSERT INTO u VALUES(NULL,1)", nil},
		{"INSERT INTO u VALUES('x',11)", nil},
		{"INSERT INTO u VALUES('x')", nil},
		{"INSERT INTO nosuch VALUES(1)", nil},
		{"SELECT * FROM nosuch", nil},
		{"SELEC 1", nil},
		{"SELECT abs(-9223372036854775808)", nil},
		{"SELECT a, abs(CASE a WHEN 'b' THEN -9223372036854775808 ELSE 1 END) FROM u ORDER BY a", nil},
		{"WITH x(a,c) AS (VALUES('w',5)) INSERT INTO u SELECT * FROM x RETURNING a", nil},
		{"EXPLAIN QUERY PLAN INSERT INTO u VALUES('q',1)", nil},
		{"VALUES(1,'x'),(2,'y')", nil},
		{"SELECT * FROM u ORDER BY a", nil},
		{"CREATE TABLE w(x INT); INSERT INTO w VALUES(1),(2); SELECT * FROM w", nil},
		{"REPLACE INTO u VALUES('a',9) RETURNING c", nil},
	} {
		want, wantErr := dump(plain, step.query, step.args...)
		got, gotErr := dump(ours, step.query, step.args...)
		if got = strings.ReplaceAll(got, "[]uint8([]byte{})", "[]uint8([]byte(nil))"); got != want || !sameError(gotErr, wantErr) {
			t.Errorf("%s %v:\n got %s, %v\nwant %s, %v", step.query, step.args, got, gotErr, want, wantErr)
		}
	}
}

// sameError compares codes and messages; errors that are not SQLite's only by their end.
func sameError(got, want error) bool {
	var a interface{ Code() int }
	var b interface{ Code() int }
	switch {
	case got == nil || want == nil:
		return got == want
	case errors.As(got, &a) && errors.As(want, &b):
		return a.Code() == b.Code() && got.Error() == want.Error()
	}
	return strings.Contains(got.Error(), want.Error())
}

func TestExecCountsAsSQLite(t *testing.T) {
	ours, plain := pair(t, "CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
	counts := func(db *sql.DB, query string, args ...any) string {
		res, err := db.Exec(query, args...)
		if err != nil {
			return err.Error()
		}
		id, _ := res.LastInsertId()
		n, _ := res.RowsAffected()
		return fmt.Sprintf("id %d, rows %d", id, n)
	}
	for _, q := range []string{"INSERT INTO t(a) VALUES('x'),('y'),('z')", "SELECT * FROM t", "UPDATE t SET a='w' WHERE id>1", "INSERT INTO t VALUES(77,'k') RETURNING id",
		"DELETE FROM t WHERE id=1; INSERT INTO t(a) VALUES('1'); UPDATE t SET a=2", "UPDATE t SET a=1 WHERE id=1000", "INSERT INTO t(a) SELECT last_insert_rowid()+changes() FROM t",
		"DELETE FROM t", "SELECT changes()", "PRAGMA foreign_keys=on"} {
		if got, want := counts(ours, q), counts(plain, q); got != want {
			t.Errorf("%s: %s, want %s", q, got, want)
		}
		const state = "SELECT last_insert_rowid(), changes(), (SELECT group_concat(id||a) FROM t)"
		got, gotErr := dump(ours, state)
		want, wantErr := dump(plain, state)
		if got != want || gotErr != nil || wantErr != nil {
			t.Errorf("after %s: %s, %v, want %s, %v", q, got, gotErr, want, wantErr)
		}
	}
}

func TestStatementStringsAreAtomic(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(a UNIQUE)")
	if _, err := db.Exec("INSERT INTO t VALUES(?); INSERT INTO t VALUES(?1)", 1); !IsUnique(err) {
		t.Errorf("a string that fails at its end: %v", err)
	}
	var n int
	if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 0 {
		t.Errorf("it left %d rows, %v", n, err)
	}
}

func TestScanTypesFollowTheRow(t *testing.T) {
	ours, plain := pair(t, "CREATE TABLE v(i INT, r REAL, s TEXT, b BLOB, d DATETIME, bo BOOLEAN, z INT, n)")
	types := func(db *sql.DB, query string) (out []reflect.Type) {
		rows, err := db.Query(query)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		cts, err := rows.ColumnTypes()
		if err != nil {
			t.Fatal(err)
		}
		for _, ct := range cts {
			out = append(out, ct.ScanType())
		}
		return out
	}
	any, bytes := reflect.TypeFor[any](), reflect.TypeFor[[]byte]()
	empty := []reflect.Type{reflect.TypeFor[int64](), reflect.TypeFor[float64](), reflect.TypeFor[string](), bytes, reflect.TypeFor[time.Time](), reflect.TypeFor[bool](), reflect.TypeFor[int64](), any}
	if got := types(ours, "SELECT * FROM v"); !reflect.DeepEqual(got, empty) {
		t.Errorf("without a row: %v, want %v", got, empty)
	}
	for _, db := range []*sql.DB{ours, plain} {
		mustExec(t, db, "INSERT INTO v VALUES(1, 1.5, 's', x'00', 5, 1, NULL, NULL)")
	}
	want := types(plain, "SELECT * FROM v")
	for i := range want {
		if want[i] == nil {
			want[i] = any
		}
	}
	if got := types(ours, "SELECT * FROM v"); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestPreparedStatements(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(a)")
	ins, err := db.Prepare("INSERT INTO t VALUES(?)")
	if err != nil {
		t.Fatal(err)
	}
	defer ins.Close()
	sel, err := db.Prepare("SELECT count(*) FROM t WHERE a>=?")
	if err != nil {
		t.Fatal(err)
	}
	defer sel.Close()
	for i := range 3 {
		if _, err := ins.Exec(i); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	if err := sel.QueryRow(1).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows, %v", n, err)
	}
	for _, q := range []string{"SELECT nosuch FROM t", "SELEC"} {
		if st, err := db.Prepare(q); err == nil {
			st.Close()
			t.Errorf("%s is prepared", q)
		}
	}
}

func TestForeignKeysArePerConnection(t *testing.T) {
	n := testNode(t)
	db := n.DB()
	mustExec(t, db, "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p)")
	one, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	other, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	mustExec(t, one, "PRAGMA foreign_keys=ON")
	if _, err := one.ExecContext(t.Context(), "INSERT INTO c VALUES(1)"); !IsForeignKey(err) {
		t.Errorf("with foreign keys: %v", err)
	}
	mustExec(t, other, "INSERT INTO c VALUES(1)")
	strict, err := n.OpenDB("", ForeignKeys(true))
	if err != nil {
		t.Fatal(err)
	}
	defer strict.Close()
	if _, err := strict.Exec("INSERT INTO c VALUES(2)"); !IsForeignKey(err) {
		t.Errorf("a handle with foreign keys: %v", err)
	}
}

func TestHandlesRefuseWhatTheirOptionsSay(t *testing.T) {
	n := testNode(t)
	mustExec(t, n.DB(), "CREATE TABLE t(a); INSERT INTO t VALUES(1)")
	ro, err := n.OpenDB(DefaultDatabase, ReadOnly(), None, TimeFormatUnix)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	var refused *RefusedError
	for _, q := range []string{"INSERT INTO t VALUES(2)", "PRAGMA user_version=3", "CREATE TABLE u(a)"} {
		if _, err := ro.Exec(q); !errors.As(err, &refused) {
			t.Errorf("%s on a read-only handle: %v", q, err)
		}
	}
	var a int
	if err := ro.QueryRow("SELECT a FROM t").Scan(&a); err != nil || a != 1 {
		t.Errorf("read %d, %v", a, err)
	}
	tx, err := ro.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	for _, opt := range []DBOption{ConsistencyLevel(9), MaxStaleness(-1), TimeFormat(99)} {
		if db, err := n.OpenDB("x", opt); err == nil {
			db.Close()
			t.Errorf("option %v is taken", opt)
		}
	}
	for _, name := range []string{"../x", "a/b", "A", "a.b", "a b", ".", "é", "nul\x00", strings.Repeat("x", 65)} {
		if db, err := n.OpenDB(name); err == nil {
			db.Close()
			t.Errorf("database %q is opened", name)
		} else if !strings.Contains(err.Error(), "a-z") {
			t.Errorf("the error for %q does not tell the rule: %v", name, err)
		}
	}
	conn, err := n.DB().Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mustExec(t, conn, "PRAGMA query_only=ON")
	if _, err := conn.ExecContext(t.Context(), "DELETE FROM t"); !errors.As(err, &refused) {
		t.Errorf("a write with query_only: %v", err)
	}
	mustExec(t, conn, "PRAGMA query_only=OFF; DELETE FROM t")
}

func TestTimeFormatsOfAHandle(t *testing.T) {
	n := testNode(t)
	mustExec(t, n.DB(), "CREATE TABLE t(f INT, at DATETIME)")
	moment := time.Date(2024, 5, 6, 7, 8, 9, 0, time.FixedZone("", 3600))
	for f := TimeFormatSQLite; f <= TimeFormatUnixNano; f++ {
		db, err := n.OpenDB("", f)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		mustExec(t, db, "INSERT INTO t VALUES(?, ?)", f, moment)
		var got time.Time
		if err := db.QueryRow("SELECT at FROM t WHERE f=?", f).Scan(&got); err != nil || !got.Equal(moment) {
			t.Errorf("format %d: %v, %v", f, got, err)
		}
	}
	var text string
	if err := n.DB().QueryRow("SELECT group_concat(at||'', ' ') FROM t").Scan(&text); err != nil {
		t.Fatal(err)
	}
	const want = "2024-05-06 07:08:09+01:00 2024-05-06 06:08:09 2024-05-06T07:08:09+01:00 1714975689 1714975689000 1714975689000000 1714975689000000000"
	if text != want {
		t.Errorf("stored %s, want %s", text, want)
	}
}

func TestDefaultHandleBelongsToTheNode(t *testing.T) {
	n := testNode(t)
	first := n.DB()
	if n.DB() != first {
		t.Error("the node gives two handles")
	}
	mustExec(t, first, "CREATE TABLE t(a)")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := n.DB()
	if second == first {
		t.Fatal("a closed handle is given again")
	}
	if err := first.Close(); err != nil { // twice
		t.Fatal(err)
	}
	mustExec(t, second, "INSERT INTO t VALUES(1)")
	if n.DB() != second {
		t.Error("closing the first handle again detached the second")
	}
}

func TestAfterCloseEverythingSaysSo(t *testing.T) {
	n := testNode(t)
	mustExec(t, n.DB(), "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)")
	own, err := n.OpenDB("")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	connector, err := n.Connector("")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := connector.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := own.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stmt, err := own.Prepare("SELECT a FROM t")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, execErr := own.Exec("INSERT INTO t VALUES(3)")
	_, queryErr := own.Query("SELECT a FROM t")
	_, connErr := conn.ExecContext(ctx, "SELECT 1")
	_, beginErr := own.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	_, stmtErr := stmt.Exec()
	_, rawErr := raw.(driver.ExecerContext).ExecContext(ctx, "SELECT 1", nil)
	_, connectErr := connector.Connect(ctx)
	_, openErr := n.OpenDB("x")
	_, handleErr := n.DB().Exec("SELECT 1")
	for what, err := range map[string]error{"Exec": execErr, "Query": queryErr, "Conn": connErr, "BeginTx": beginErr, "Stmt": stmtErr, "driver.Conn": rawErr, "Connect": connectErr,
		"OpenDB": openErr, "Ping": own.Ping(), "the node's own handle": handleErr} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

func TestRowsEndWithTheirContext(t *testing.T) {
	db := testNode(t).DB()
	ctx, cancel := context.WithCancel(t.Context())
	rows, err := db.QueryContext(ctx, "WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM x) SELECT i FROM x")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for range 10 {
		if !rows.Next() {
			t.Fatal(rows.Err())
		}
	}
	cancel()
	deadline := time.Now().Add(10 * time.Second)
	for rows.Next() {
		if time.Now().After(deadline) {
			t.Fatal("the rows go on")
		}
	}
	if !errors.Is(rows.Err(), context.Canceled) {
		t.Errorf("the rows ended with %v", rows.Err())
	}
	if _, err := db.ExecContext(ctx, "CREATE TABLE t(a)"); !errors.Is(err, context.Canceled) {
		t.Errorf("a write under a canceled context: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	var n int
	err = db.QueryRowContext(ctx, "WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM x) SELECT count(*) FROM x").Scan(&n)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an endless query ended with %v", err)
	}
}

func TestReturnedRowsThatWereNotKeptAreNoRetry(t *testing.T) {
	if SafeToRetry(dbconn.ErrRowsNotKept) {
		t.Error("the write happened, and is said to be safe to repeat")
	}
}

// TestColumnsFollowTheSchema runs one text before and after the table was changed: the
// statement was kept by the connection that reads, and is compiled again.
func TestColumnsFollowTheSchema(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(a, b DATETIME); INSERT INTO t VALUES('x', '2024-01-02 03:04:05')")
	for _, step := range []struct{ change, want string }{
		{"", "a b:DATETIME | x 2024-01-02T03:04:05Z"},
		{"ALTER TABLE t ADD COLUMN c DEFAULT 7", "a b:DATETIME c | x 2024-01-02T03:04:05Z 7"},
		{"ALTER TABLE t DROP COLUMN a", "b:DATETIME c | 2024-01-02T03:04:05Z 7"},
		{"ALTER TABLE t RENAME COLUMN b TO d", "d:DATETIME c | 2024-01-02T03:04:05Z 7"},
		{"DROP TABLE t; CREATE TABLE t(b, c); INSERT INTO t VALUES('2024-01-02', 1)", "b c | 2024-01-02 1"},
	} {
		mustExec(t, db, step.change)
		check := func(what string, q interface {
			QueryContext(context.Context, string, ...any) (*sql.Rows, error)
		}) {
			t.Helper()
			rows, err := q.QueryContext(t.Context(), "SELECT * FROM t")
			if err != nil {
				t.Fatal(err)
			}
			if got := header(t, rows); got != step.want {
				t.Errorf("%s, after %q: %s, want %s", what, step.change, got, step.want)
			}
		}
		check("handle", db)
		for what, readOnly := range map[string]bool{"read-only transaction": true, "transaction": false} {
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: readOnly})
			if err != nil {
				t.Fatal(err)
			}
			check(what, tx)
			if err := tx.Rollback(); err != nil { // its connection to the file reads for the next
				t.Fatal(err)
			}
		}
	}
}

// header describes the columns and the first row.
func header(t *testing.T, rows *sql.Rows) string {
	t.Helper()
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	into := make([]any, len(types))
	for i, c := range types {
		into[i] = new(any)
		b.WriteString(strings.TrimSuffix(c.Name()+":"+c.DatabaseTypeName(), ":") + " ")
	}
	b.WriteString("|")
	if !rows.Next() {
		t.Fatal("no row")
	}
	if err := rows.Scan(into...); err != nil {
		t.Fatal(err)
	}
	if rows.Next() {
		b.WriteString(" and more after")
	}
	for _, v := range into {
		if at, ok := (*v.(*any)).(time.Time); ok {
			*v.(*any) = at.Format(time.RFC3339)
		}
		fmt.Fprintf(&b, " %v", *v.(*any))
	}
	return b.String()
}

// TestOwnTableIsNotListed lists tables as tools do that drop or dump all of them.
func TestOwnTableIsNotListed(t *testing.T) {
	dir := t.TempDir()
	for try := range 2 {
		n, err := New(Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		db := n.DB()
		if try == 0 {
			mustExec(t, db, "CREATE TABLE t(a); ALTER TABLE t RENAME TO u")
		}
		for _, list := range []string{"SELECT name FROM sqlite_schema WHERE type = 'table'", "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name", "PRAGMA integrity_check"} {
			want := "u"
			if list == "PRAGMA integrity_check" {
				want = "ok"
			}
			rows, err := db.QueryContext(t.Context(), list)
			if err != nil {
				t.Fatal(err)
			}
			if got := header(t, rows); !strings.HasSuffix(got, "| "+want) {
				t.Errorf("%s: %s, want %s", list, got, want)
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCountersAreSQLites compares what a connection remembers of its last write, also of
// one that failed, outside a transaction and inside.
func TestCountersAreSQLites(t *testing.T) {
	ours, plain := pair(t, "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE); CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)")
	conns := make([]*sql.Conn, 2)
	for i, db := range []*sql.DB{ours, plain} {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		mustExec(t, c, "PRAGMA foreign_keys=on")
		conns[i] = c
	}
	state := func(c *sql.Conn, query string) string {
		res, err := c.ExecContext(t.Context(), query)
		told := fmt.Sprint(err)
		if err == nil {
			id, _ := res.LastInsertId()
			n, _ := res.RowsAffected()
			told = fmt.Sprint(id, n)
		}
		var id, n int64
		if err := c.QueryRowContext(t.Context(), "SELECT last_insert_rowid(), changes()").Scan(&id, &n); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s; then %d, %d", told, id, n)
	}
	script := []string{"INSERT INTO t VALUES(3, 'a'), (4, 'b')", "INSERT INTO t VALUES(7, 'c'), (8, 'd'), (9, 'a')", "UPDATE t SET a='x'", "INSERT INTO nosuch VALUES(1)", "UPDATE t SET id=id+10", "PRAGMA user_version=5",
		"INSERT INTO t VALUES('text', 1)", "DELETE FROM t WHERE a='b'", "CREATE INDEX i ON t(a, id)", "UPDATE t SET a=a||'z'", "SELECT abs(-9223372036854775808)", "INSERT INTO t(a) VALUES(1); SELECT 1"}
	outside := append(append([]string{}, script...), "INSERT INTO c VALUES(5)", "DROP INDEX i")
	inside := append(append([]string{"BEGIN"}, script...), "SAVEPOINT s", "INSERT INTO t(a) VALUES(77), (78)", "ROLLBACK TO s", "INSERT INTO c VALUES(5)", "COMMIT", "ROLLBACK")
	for _, q := range append(append(outside, "DELETE FROM t"), inside...) {
		got, want := state(conns[0], q), state(conns[1], q)
		if word := strings.Fields(q)[0]; word == "CREATE" || word == "DROP" { // RowsAffected of DDL is 0
			_, got, _ = strings.Cut(got, ";")
			_, want, _ = strings.Cut(want, ";")
		}
		if got != want {
			t.Errorf("%s: %s, want %s", q, got, want)
		}
	}
}
