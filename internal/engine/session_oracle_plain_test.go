package engine

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// plainSQLite is the oracle: a connection to a file of its own, with no log, no batches and
// nothing that is undone and repeated.
type plainSQLite struct {
	t     *testing.T
	c     *sqlite.Conn
	x     *executor
	state wire.PreState // what the connection remembers, in the transaction under way
}

// plainRows bounds a result, in bytes, far above any in these tests.
const plainRows = 1 << 20

func newPlainSQLite(t *testing.T) *plainSQLite {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plain")
	if err := Create(path, "db", 7); err != nil {
		t.Fatal(err)
	}
	c, err := sqlite.Open(path, sqlite.Options{Pinned: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	o := &plainSQLite{t: t, c: c, x: newExecutor(c, false)}
	o.x.policy.trusted = true
	o.must("PRAGMA journal_mode=MEMORY") // nobody reads it meanwhile
	return o
}

// exec runs a statement string without what a session does around each statement.
func (o *plainSQLite) exec(sql string) (wire.Outcome, *wire.Rows, error) {
	return o.x.run(sql, nil, runOptions{trusted: true, rows: plainRows})
}

func (o *plainSQLite) must(sql string) *wire.Rows {
	o.t.Helper()
	_, rows, err := o.exec(sql)
	if err != nil {
		o.t.Fatalf("plain SQLite: %s: %v", sql, err)
	}
	return rows
}

// rowsInAMillisecond tells how long a statement must be for the log to come in between, on
// this machine: under the race detector a tenth of the rows take as long.
func (o *plainSQLite) rowsInAMillisecond() int {
	const rows = 20000
	start := time.Now()
	o.must(fmt.Sprintf("WITH q(n) AS (SELECT 0 UNION ALL SELECT n+1 FROM q WHERE n < %d) SELECT max(n) FROM q", rows))
	return int(rows * time.Millisecond / (time.Since(start) + 1))
}

// begin opens a transaction, as a connection that has done nothing yet.
func (o *plainSQLite) begin(m Modes) {
	o.t.Helper()
	o.must(fmt.Sprintf("PRAGMA foreign_keys=%v; PRAGMA recursive_triggers=%v; BEGIN", m.ForeignKeys, m.RecursiveTriggers))
	o.state = wire.PreState{}
	o.c.SetPreState(0, 0)
}

// commit ends the transaction, unless a deferred constraint stops it.
func (o *plainSQLite) commit() error {
	_, _, err := o.exec("COMMIT")
	return err
}

// unit runs a statement string in a transaction of its own.
func (o *plainSQLite) unit(sql string, m Modes) (wire.Outcome, *wire.Rows, error) {
	o.begin(m)
	out, rows, err := o.exec(sql)
	if err == nil {
		err = o.commit()
	}
	if !o.c.Autocommit() {
		o.must("ROLLBACK")
	}
	return out, rows, err
}

// run runs a statement string in the transaction: those before one that fails stay.
func (o *plainSQLite) run(sql string) (rows *wire.Rows, err error) {
	for sql != "" {
		got, tail, err := o.runFirst(sql)
		if err != nil {
			return nil, err
		}
		if got != nil {
			rows = got
		}
		sql = tail
	}
	return rows, nil
}

// runFirst runs the first statement of a string. One that fails leaves nothing behind, OR
// FAIL neither: that is where a session means to differ from SQLite, so it is done here too.
func (o *plainSQLite) runFirst(sql string) (rows *wire.Rows, tail string, err error) {
	p, tail, err := o.x.prepare(sql, runOptions{trusted: true})
	if err != nil || p == nil {
		return nil, tail, err
	}
	defer o.x.release(p)
	own := p.kind == kindSavepoint
	if !own {
		o.must("SAVEPOINT statement")
	}
	o.c.SetPreState(o.state.LastInsertID, o.state.Changes)
	out, rows, err := o.x.runOne(p, nil, plainRows)
	if err != nil {
		o.state = wire.PreState{LastInsertID: o.c.LastInsertRowID(), Changes: o.c.Changes()}
		if !own && !o.c.Autocommit() {
			o.must("ROLLBACK TO statement; RELEASE statement")
		}
		return nil, "", err
	}
	if !own {
		o.must("RELEASE statement")
	}
	o.state.LastInsertID = out.LastInsertID
	if p.kind == kindRows {
		o.state.Changes = out.RowsAffected
	}
	return rows, tail, nil
}

// query returns rows as group.query does.
func (o *plainSQLite) query(sql string) (rows [][]string) {
	o.t.Helper()
	r := o.must(sql)
	if r == nil {
		return nil
	}
	for data := r.Data; len(data) > 0; {
		row := make([]string, len(r.Columns))
		for i := range row {
			v, rest, err := wire.ReadValue(data)
			if err != nil {
				o.t.Fatalf("plain SQLite: %s: %v", sql, err)
			}
			row[i], data = valueText(v), rest
		}
		rows = append(rows, row)
	}
	return rows
}

// errorText is what an application may go by in an error of SQLite's.
func errorText(err error) string {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return fmt.Sprint(e.Extended, " ", e.Msg)
	}
	return fmt.Sprint(err)
}

// rowsText is all of a result, the types of its values too.
func rowsText(r *wire.Rows) string {
	if r == nil {
		return "no rows"
	}
	return fmt.Sprintf("%v, %d rows: %x", r.Columns, r.N, r.Data)
}

// oracleSchema has what makes an answer hard to keep when work is undone and repeated:
// counters that a trigger changes, rows that a constraint removes, defaults that read what
// the connection remembers, and triggers that fail in each of SQLite's ways.
const oracleSchema = `
CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, x INT UNIQUE, y TEXT, g AS (x*2) STORED, h AS (y||x));
CREATE TABLE s(k INTEGER PRIMARY KEY, v ANY, n INT NOT NULL DEFAULT 3) STRICT;
CREATE TABLE w(k, j, v DEFAULT (last_insert_rowid()), c DEFAULT (changes()), PRIMARY KEY(k,j)) WITHOUT ROWID;
CREATE TABLE p(id INTEGER PRIMARY KEY, v UNIQUE);
CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED, q REFERENCES p(v) ON UPDATE CASCADE ON DELETE SET NULL);
CREATE TABLE i(id INTEGER PRIMARY KEY, p REFERENCES p(id));
CREATE TABLE tree(id INTEGER PRIMARY KEY, up REFERENCES tree ON DELETE CASCADE, d INT);
CREATE TABLE l(n INTEGER PRIMARY KEY, what, r, ch);
CREATE TABLE rec(n);
CREATE TABLE long(rows);
CREATE TRIGGER at AFTER INSERT ON a BEGIN INSERT INTO l(what,r,ch) VALUES('a',last_insert_rowid(),changes()); END;
CREATE TRIGGER ar BEFORE INSERT ON a WHEN new.x = 7 BEGIN SELECT RAISE(ROLLBACK,'seven'); END;
CREATE TRIGGER af BEFORE INSERT ON a WHEN new.x = 6 BEGIN SELECT RAISE(FAIL,'six'); END;
CREATE TRIGGER ai BEFORE INSERT ON a WHEN new.x = 5 BEGIN SELECT RAISE(IGNORE); END;
CREATE TRIGGER ab AFTER UPDATE ON a WHEN new.x = 4 BEGIN INSERT INTO l(what) VALUES('gone'); SELECT RAISE(ABORT,'four'); END;
CREATE TRIGGER ad AFTER DELETE ON a BEGIN INSERT INTO l(what,r) VALUES('del',old.id); END;
CREATE TRIGGER rt AFTER INSERT ON rec WHEN new.n > 0 BEGIN INSERT INTO rec VALUES(new.n-1); END;
CREATE VIEW v AS SELECT x, y FROM a;
CREATE TRIGGER vi INSTEAD OF INSERT ON v BEGIN INSERT INTO a(x,y) VALUES(new.x,new.y); INSERT INTO l(what,r,ch) VALUES('v',last_insert_rowid(),changes()); END;
`

// oracleGroup is statements that exercise one thing. Each %d becomes a small number.
type oracleGroup struct {
	what    string
	session bool // a unit may not have them
	schema  bool // only in some transactions: after them sessions do not work ahead
	calm    bool // they seldom fail, so that transactions of them get to their commit
	fails   bool // they fail on purpose
	sql     []string
}

var oracleGroups = []oracleGroup{
	{what: "conflicts and the triggers that raise", sql: []string{
		"INSERT INTO a(x,y) VALUES(%d,'q')", "INSERT OR REPLACE INTO a(x,y) VALUES(%d,'r')", "INSERT OR IGNORE INTO a(x) VALUES(%d),(%d)",
		"INSERT OR FAIL INTO a(x) VALUES(%d+20),(%d)", "INSERT OR ROLLBACK INTO a(x) VALUES(%d+10)",
		"UPDATE a SET x = x+1 WHERE x=%d", "UPDATE OR REPLACE a SET x = %d WHERE x > %d", "UPDATE OR IGNORE a SET x = x + 1",
		"DELETE FROM a WHERE x=%d RETURNING id, g, h", "DELETE FROM a",
		"INSERT INTO a(x) VALUES(%d) ON CONFLICT(x) DO UPDATE SET y = y || '+' RETURNING id, x, y, g",
		"INSERT INTO v VALUES(%d,'v')", "INSERT INTO v SELECT x+30, y FROM v WHERE x=%d",
	}},
	{what: "keys and types", sql: []string{
		"DELETE FROM sqlite_sequence WHERE name='a'", "UPDATE sqlite_sequence SET seq = %d*100",
		"INSERT INTO s(v) VALUES(%d), ('text'), (x'00')", "INSERT INTO s(n) VALUES('not %d')", "UPDATE s SET k = k + 100 WHERE k = %d",
		"INSERT INTO w(k,j) VALUES(%d,%d)", "REPLACE INTO w(k,j) SELECT id, x FROM a", "DELETE FROM w",
	}},
	{what: "foreign keys", sql: []string{
		"INSERT INTO p VALUES(%d, %d)", "REPLACE INTO p VALUES(%d,%d)", "INSERT INTO c(p) VALUES(%d)", "INSERT INTO c(q) VALUES(%d)",
		"INSERT INTO i(p) VALUES(%d)", "DELETE FROM p WHERE id=%d", "UPDATE p SET v = v + 10 WHERE id=%d", "DELETE FROM c WHERE p=%d",
		"UPDATE p SET id = %d WHERE id = %d", "PRAGMA defer_foreign_keys=ON", "PRAGMA defer_foreign_keys=OFF", "EXPLAIN PRAGMA defer_foreign_keys=ON",
		"INSERT INTO tree VALUES(%d, %d, 1)", "INSERT INTO tree(up) SELECT id FROM tree LIMIT 5", "DELETE FROM tree", "DELETE FROM tree WHERE id=%d",
		"UPDATE tree SET up=%d WHERE id=%d", "INSERT INTO l(what,r) SELECT 'fk', count(*) FROM pragma_foreign_key_check",
	}},
	{what: "what the connection remembers", sql: []string{
		"INSERT INTO w(k,j,v) VALUES(%d, 50, last_insert_rowid())", "INSERT INTO l(what,r,ch) SELECT 'c', last_insert_rowid(), changes()",
		"SELECT last_insert_rowid(), changes()", "INSERT INTO rec VALUES(1); INSERT INTO rec VALUES(-%d); INSERT INTO a(x) VALUES(%d)",
	}},
	{what: "recursion", sql: []string{
		"INSERT INTO rec VALUES(%d)", "DELETE FROM rec",
		"WITH q(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM q WHERE n<%d) INSERT INTO rec SELECT n FROM q RETURNING n",
	}},
	{what: "queries", sql: []string{
		"SELECT * FROM a", "SELECT * FROM w", "SELECT count(*), max(n) FROM l", "SELECT * FROM sqlite_sequence", "SELECT * FROM p", "SELECT * FROM c",
		"SELECT * FROM tree", "WITH q AS (SELECT 1) SELECT * FROM q", "VALUES(1),(2)", "SELECT 1/0, abs(-5)",
	}},
	{what: "failures", fails: true, sql: []string{
		"INSERT INTO nowhere VALUES(1)", "SELEC", "SELECT abs(-9223372036854775808)", "INSERT INTO rec VALUES(-1); SELEC",
	}},
	{what: "the log table", sql: []string{
		"DELETE FROM l WHERE n %% 3 = 0", "DELETE FROM l", "UPDATE l SET r = r FROM a WHERE a.id = l.r",
		"INSERT INTO l(what,r,ch) SELECT type, name, sql FROM sqlite_schema", "INSERT INTO l(what, r) SELECT 'tl', name FROM pragma_table_list('x')",
	}},
	{what: "savepoints", session: true, sql: []string{
		"SAVEPOINT s1", "SAVEPOINT s2", "SAVEPOINT S1", "RELEASE s1", "RELEASE s2", "ROLLBACK TO s1", "ROLLBACK TO s2",
		";;ROLLBACK TO SAVEPOINT s1", "SAVEPOINT s1", "SAVEPOINT s2", "/* x */ SAVEPOINT \"s1\"",
	}},
	{what: "pragmas that read", session: true, sql: []string{"PRAGMA user_version", "PRAGMA foreign_key_check"}},
	{what: "the header and statistics", schema: true, sql: []string{
		"PRAGMA user_version=%d", "PRAGMA application_id=%d", "REINDEX", "REINDEX a", "ANALYZE", "ANALYZE a", "DROP TABLE IF EXISTS sqlite_stat1",
	}},
	{what: "the schema", schema: true, sql: []string{
		"CREATE TABLE x(a, b)", "DROP TABLE x", "ALTER TABLE x RENAME TO x2", "ALTER TABLE x2 RENAME TO x", "ALTER TABLE x ADD COLUMN c%d DEFAULT 5",
		"ALTER TABLE x DROP COLUMN b", "ALTER TABLE x RENAME COLUMN a TO aa", "CREATE TABLE IF NOT EXISTS x AS SELECT * FROM a",
		"INSERT INTO x SELECT x, y FROM a LIMIT 10", "CREATE INDEX xi ON x(a)", "DROP INDEX xi", "CREATE UNIQUE INDEX ai ON a(y)", "DROP INDEX ai",
		"ALTER TABLE a RENAME COLUMN y TO yy", "ALTER TABLE a RENAME COLUMN yy TO y",
		"CREATE TRIGGER xt AFTER INSERT ON l BEGIN UPDATE l SET what = what||'!' WHERE n = new.n; END", "DROP TRIGGER xt",
		"DROP TABLE p", "DROP TABLE i", "CREATE TABLE p(id INTEGER PRIMARY KEY, v UNIQUE)", "CREATE TABLE i(id INTEGER PRIMARY KEY, p REFERENCES p(id))",
	}},
	{what: "writes that get to their commit", calm: true, sql: []string{
		"INSERT OR REPLACE INTO a(x,y) VALUES(%d+10,'r')", "INSERT OR IGNORE INTO a(x) VALUES(%d+10),(%d+10)", "INSERT OR IGNORE INTO a(x) VALUES(5),(%d+10)",
		"INSERT INTO a(x) VALUES(%d+10) ON CONFLICT(x) DO UPDATE SET y = y || '+' RETURNING id, x, y, g", "DELETE FROM a WHERE x=%d RETURNING id, g, h",
		"UPDATE OR REPLACE a SET x = x + 1 WHERE x > 10 AND x < %d + 10", "INSERT OR IGNORE INTO v VALUES(%d+10,'v')",
		"INSERT INTO s(v) VALUES(%d), ('text'), (x'00')", "REPLACE INTO w(k,j) VALUES(%d,%d)", "REPLACE INTO w(k,j,v) VALUES(%d, 50, last_insert_rowid())",
		"DELETE FROM w WHERE k=%d", "INSERT INTO c(p) VALUES(%d)", "REPLACE INTO p VALUES(%d, %d)", "DELETE FROM c WHERE p=%d", "DELETE FROM c",
		"PRAGMA defer_foreign_keys=ON", "INSERT INTO rec VALUES(%d)", "DELETE FROM rec", "INSERT INTO l(what,r,ch) SELECT 'c', last_insert_rowid(), changes()",
	}},
	{what: "queries between them", calm: true, sql: []string{
		"SELECT last_insert_rowid(), changes()", "SELECT count(*), sum(x) FROM a", "SELECT * FROM sqlite_sequence", "SELECT count(*) FROM c",
		"SELECT max(n) FROM l", "SELECT * FROM pragma_foreign_key_check",
	}},
	{what: "savepoints between them", calm: true, session: true, sql: []string{
		"SAVEPOINT s1; INSERT INTO rec VALUES(%d); ROLLBACK TO s1", "SAVEPOINT s1; DELETE FROM rec; RELEASE s1; INSERT INTO rec VALUES(3)",
		"SAVEPOINT s2; SAVEPOINT s1; REPLACE INTO w(k,j) VALUES(1,1); ROLLBACK TO s2; REPLACE INTO w(k, j) VALUES(2,2); RELEASE s2",
	}},
	{what: "long statements, which the log interrupts", calm: true, fails: true, sql: []string{ // and then one that fails
		"DELETE FROM rec; WITH q(n) AS (SELECT 0 UNION ALL SELECT n-1 FROM q WHERE n > -%d * (SELECT rows FROM long)) INSERT INTO rec SELECT n FROM q WHERE n %% 1000 = 0; SELEC",
		"INSERT INTO l(what, r) WITH q(n) AS (SELECT 0 UNION ALL SELECT n+1 FROM q WHERE n < %d * (SELECT rows FROM long)) SELECT 'q', n FROM q WHERE n %% 5000 = 0; INSERT INTO nowhere VALUES(1)",
	}},
	{what: "failures that leave rows behind in SQLite", calm: true, fails: true, sql: []string{
		"INSERT OR FAIL INTO a(x) VALUES(%d+40),(%d+50),(6)", "INSERT OR FAIL INTO p VALUES(%d+100, NULL), (1000, 1000), (1000, 1000)",
	}},
}
