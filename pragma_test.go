package colmena

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // what the driver is compared with
)

// TestPragmasAnswerAsSQLite compares the pragmas that act on the connection with
// SQLite's own answers, in one sequence, as they remember one another.
func TestPragmasAnswerAsSQLite(t *testing.T) {
	plain, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "plain.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	plain.SetMaxOpenConns(1)
	ours := testNode(t).DB()
	ours.SetMaxOpenConns(1)
	for _, q := range []string{
		"PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "PRAGMA journal_mode", "PRAGMA main.journal_mode", "PRAGMA foreign_keys", "PRAGMA foreign_keys=ON", "PRAGMA foreign_keys",
		"PRAGMA foreign_keys=256", "PRAGMA foreign_keys", "PRAGMA foreign_keys(0)", "PRAGMA foreign_keys", "PRAGMA \"foreign_keys\"='yes'", "PRAGMA foreign_keys; PRAGMA foreign_keys",
		"PRAGMA foreign_keys=off; PRAGMA foreign_keys", "PRAGMA busy_timeout", "PRAGMA busy_timeout=5000", "PRAGMA busy_timeout=-5", "PRAGMA busy_timeout=+0x10",
		"PRAGMA cache_size", "PRAGMA cache_size=-64000", "PRAGMA cache_size", "PRAGMA cache_size=1e3", "PRAGMA cache_size",
		"PRAGMA synchronous", "PRAGMA synchronous=NORMAL", "PRAGMA synchronous", "PRAGMA synchronous=4", "PRAGMA synchronous", "PRAGMA synchronous=banana", "PRAGMA synchronous",
		"PRAGMA synchronous=7", "PRAGMA synchronous", "PRAGMA synchronous='extra'", "PRAGMA synchronous", "PRAGMA synchronous=full", "PRAGMA synchronous",
		"PRAGMA temp_store", "PRAGMA temp_store=memory", "PRAGMA temp_store", "PRAGMA temp_store=9", "PRAGMA temp_store", "PRAGMA temp_store=1", "PRAGMA temp_store",
		"PRAGMA mmap_size", "PRAGMA mmap_size=1000000", "PRAGMA mmap_size", "PRAGMA locking_mode", "PRAGMA locking_mode=normal",
		"PRAGMA wal_autocheckpoint", "PRAGMA wal_autocheckpoint=50", "PRAGMA wal_autocheckpoint=-3", "PRAGMA wal_autocheckpoint",
		"PRAGMA journal_size_limit", "PRAGMA journal_size_limit=1234", "PRAGMA journal_size_limit=-7", "PRAGMA optimize", "PRAGMA optimize(0x10002)",
		"PRAGMA recursive_triggers", "PRAGMA recursive_triggers=on", "PRAGMA recursive_triggers", "PRAGMA recursive_triggers=off", "PRAGMA defer_foreign_keys", "PRAGMA defer_foreign_keys=0", "PRAGMA wal_checkpoint(TRUNCATE)",
		"PRAGMA user_version", "PRAGMA user_version=3", "PRAGMA user_version", "PRAGMA application_id(77)", "PRAGMA application_id", "PRAGMA query_only", "PRAGMA query_only=0",
		"PRAGMA analysis_limit", "PRAGMA analysis_limit=400", "PRAGMA encoding", "PRAGMA encoding='UTF-8'", "PRAGMA auto_vacuum", "PRAGMA auto_vacuum=0", "PRAGMA page_size", "PRAGMA page_size=4096",
		"PRAGMA legacy_alter_table=off", "PRAGMA writable_schema", "PRAGMA writable_schema=off", "PRAGMA read_uncommitted", "PRAGMA automatic_index", "PRAGMA shrink_memory", "PRAGMA incremental_vacuum",
		"PRAGMA table_info(t)", "PRAGMA index_list('t')", "PRAGMA foreign_key_check", "PRAGMA integrity_check", "PRAGMA quick_check(1)", "SELECT name FROM pragma_table_info('t')",
		"PRAGMA foreign_keys=ON; CREATE TABLE u(b); PRAGMA user_version=4", "SELECT name FROM sqlite_schema WHERE name='u'", "PRAGMA user_version", "PRAGMA foreign_keys",
		"PRAGMA foreign_keys=", "PRAGMA foreign_keys ()", "PRAGMA nosuch.foreign_keys", ";;PRAGMA foreign_keys;;",
	} {
		want, wantErr := dump(plain, q)
		got, gotErr := dump(ours, q)
		if got != want || (gotErr == nil) != (wantErr == nil) || gotErr != nil && gotErr.Error() != wantErr.Error() {
			t.Errorf("%s:\n got %s, %v\nwant %s, %v", q, got, gotErr, want, wantErr)
		}
	}
}

func TestPragmasThatWouldPartAReplicaAreRefused(t *testing.T) {
	db := testNode(t).DB()
	for _, q := range []string{"PRAGMA journal_mode=DELETE", "PRAGMA journal_mode(off)", "PRAGMA locking_mode=EXCLUSIVE", "PRAGMA encoding='UTF-16'", "PRAGMA page_size=512", "PRAGMA auto_vacuum=1",
		"PRAGMA writable_schema=ON", "PRAGMA recursive_triggers=banana", "PRAGMA foreign_keys=banana", "PRAGMA ignore_check_constraints=true", "PRAGMA schema_version=7", "PRAGMA hard_heap_limit=1"} {
		var refused *RefusedError
		if _, err := db.Exec(q); !errors.As(err, &refused) {
			t.Errorf("%s: %v, want a RefusedError", q, err)
		}
	}
}

// What a query would tell of the connection that it happens to run on is refused.
func TestQueriesForTheStateOfAnotherConnectionAreRefused(t *testing.T) {
	db := testNode(t).DB()
	db.SetMaxOpenConns(1)
	mustExec(t, db, "CREATE TABLE t(a)")
	mustExec(t, db, "PRAGMA foreign_keys=ON")
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	queries := []string{"SELECT * FROM pragma_foreign_keys", "SELECT count(*) FROM t, pragma_Recursive_Triggers", "SELECT query_only FROM pragma_query_only", "SELECT 1 FROM pragma_defer_foreign_keys", "SELECT a, total_changes() FROM t"}
	for _, q := range queries {
		var refused *RefusedError
		if err := tx.QueryRow(q).Scan(new(any)); !errors.As(err, &refused) {
			t.Errorf("in a transaction: %s: %v, want a RefusedError", q, err)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for _, q := range queries {
		var refused *RefusedError
		if err := db.QueryRow(q).Scan(new(any)); !errors.As(err, &refused) {
			t.Errorf("%s: %v, want a RefusedError", q, err)
		}
	}
}

// TestPragmasInATransaction compares the pragmas that last for a transaction with SQLite's.
func TestPragmasInATransaction(t *testing.T) {
	ours, plain := pair(t, "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p)")
	run := func(db *sql.DB, steps []string) (out []string) {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, q := range steps {
			rows, err := conn.QueryContext(t.Context(), q)
			if err != nil {
				out = append(out, q+": "+err.Error())
				continue
			}
			var v any
			for rows.Next() {
				if err := rows.Scan(&v); err != nil {
					t.Fatal(err)
				}
			}
			out = append(out, fmt.Sprint(q, ": ", v, rows.Err()))
			rows.Close()
		}
		return out
	}
	for _, steps := range [][]string{
		{"PRAGMA foreign_keys=on", "BEGIN", "INSERT INTO c VALUES(1)", "PRAGMA defer_foreign_keys=on", "PRAGMA defer_foreign_keys", "INSERT INTO c VALUES(1)", "COMMIT", "INSERT INTO p VALUES(1)", "COMMIT", "PRAGMA defer_foreign_keys", "BEGIN", "INSERT INTO c VALUES(2)", "ROLLBACK"},
		{"PRAGMA foreign_keys=on", "PRAGMA defer_foreign_keys=on", "BEGIN", "PRAGMA defer_foreign_keys", "INSERT INTO c VALUES(2)", "PRAGMA foreign_keys=off", "PRAGMA foreign_keys", "ROLLBACK", "PRAGMA defer_foreign_keys"},
		{"PRAGMA defer_foreign_keys=on", "SELECT count(*) FROM p", "BEGIN", "PRAGMA defer_foreign_keys", "COMMIT"},
		{"PRAGMA recursive_triggers=on", "BEGIN", "PRAGMA recursive_triggers", "PRAGMA recursive_triggers=on", "PRAGMA user_version=9", "PRAGMA user_version", "ROLLBACK", "PRAGMA user_version", "PRAGMA recursive_triggers=off"},
	} {
		got, want := run(ours, steps), run(plain, steps)
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("got  %s\nwant %s", got[i], want[i])
			}
		}
	}
	conn, err := ours.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mustExec(t, conn, "BEGIN")
	var refused *RefusedError
	if _, err := conn.ExecContext(t.Context(), "PRAGMA recursive_triggers=on"); !errors.As(err, &refused) {
		t.Errorf("recursive_triggers changed in a transaction: %v", err)
	}
}

// TestPragmasBehindOtherStatements holds that a string may end as SQLite's own recipe for the
// change of a table does, in a transaction and outside, and that it stays atomic.
func TestPragmasBehindOtherStatements(t *testing.T) {
	ours, plain := pair(t, "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p); INSERT INTO p VALUES(1); INSERT INTO c VALUES(1)")
	const recipe = "PRAGMA foreign_keys=OFF; CREATE TABLE n(id INTEGER PRIMARY KEY, more); INSERT INTO n(id) SELECT id FROM p; DROP TABLE p; ALTER TABLE n RENAME TO p; PRAGMA busy_timeout=50; PRAGMA foreign_keys = ON; -- done"
	state := func(db *sql.DB) (out string) {
		for _, q := range []string{"PRAGMA foreign_keys", "PRAGMA busy_timeout", "SELECT count(more) || count(*) FROM p", "SELECT count(*) FROM c"} {
			got, err := dump(db, q)
			out += fmt.Sprint(q, got, err, "\n")
		}
		return out
	}
	for _, db := range []*sql.DB{ours, plain} {
		mustExec(t, db, "PRAGMA foreign_keys=ON")
		mustExec(t, db, recipe)
	}
	if got, want := state(ours), state(plain); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	tx, err := ours.Begin()
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, tx, "CREATE TABLE x(a); PRAGMA foreign_keys=off; PRAGMA foreign_keys=on")
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Exec("PRAGMA foreign_keys=off; INSERT INTO c VALUES(7); INSERT INTO p(id) VALUES(1); PRAGMA foreign_keys=on"); !IsUnique(err) {
		t.Errorf("a string that fails in its middle: %v", err)
	}
	for query, want := range map[string]int{"PRAGMA foreign_keys": 0, "SELECT count(*) FROM c": 1, "SELECT count(*) FROM x": 0} {
		var got int
		if err := ours.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", query, got, err, want)
		}
	}
}

// TestPragmasOfTheConnectionAreAskedByThemselves holds that no other connection answers for
// what this one remembers.
func TestPragmasOfTheConnectionAreAskedByThemselves(t *testing.T) {
	db, err := testNode(t).OpenDB("", ForeignKeys(true))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for _, q := range []string{"SELECT foreign_keys FROM pragma_foreign_keys", "SELECT * FROM pragma_busy_timeout()", "SELECT 1; PRAGMA foreign_keys", "EXPLAIN PRAGMA cache_size"} {
		for what, query := range map[string]func(string, ...any) (*sql.Rows, error){"a connection": db.Query, "a transaction": tx.Query} {
			var refused *RefusedError
			if rows, err := query(q); !errors.As(err, &refused) || !strings.Contains(err.Error(), "by itself") {
				t.Errorf("%s on %s: %v", q, what, err)
				if err == nil {
					_ = rows.Close()
				}
			}
		}
	}
	var on int
	if err := tx.QueryRow("PRAGMA foreign_keys").Scan(&on); err != nil || on != 1 {
		t.Errorf("PRAGMA foreign_keys: %d, %v", on, err)
	}
}
