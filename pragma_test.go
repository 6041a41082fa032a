package colmena

import (
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // what the driver is compared with
)

func TestFirstKeyword(t *testing.T) {
	for text, want := range map[string]keyword{
		"": keywordNone, " \t\r\n;; -- x": keywordNone, "/* x */ ; /* y": keywordNone, "\uFEFF": keywordNone,
		"select 1": keywordOther, "SELECTx": keywordOther, "(select 1)": keywordOther, "with x as (select 1) insert into t select * from x": keywordOther,
		"begin": keywordOther, "ATTACH 'x' AS y": keywordOther, "explain insert into t values(1)": keywordOther, "é": keywordOther, "\x00": keywordOther,
		"Insert into t values(1)": keywordWrite, "-- x\n/* y */ ;\uFEFF UPDATE t SET a=1": keywordWrite, "delete\tfrom t": keywordWrite, "REPLACE": keywordWrite,
		"create table t(a)": keywordWrite, "DROP TABLE t": keywordWrite, "alter table t add b": keywordWrite, "ANALYZE;": keywordWrite, "reindex": keywordWrite,
		"inserts": keywordOther, "insert_": keywordOther, "insert1": keywordOther, "pragma": keywordPragma, "PRAGMA(x)": keywordPragma, "pragmatic": keywordOther,
	} {
		if got, _ := firstKeyword(text); got != want {
			t.Errorf("%q begins with keyword %d, want %d", text, got, want)
		}
	}
}

func TestParsePragma(t *testing.T) {
	for text, want := range map[string]pragma{
		"pragma foreign_keys":                          {name: "foreign_keys"},
		"PRAGMA Foreign_Keys = ON;":                    {name: "foreign_keys", value: "ON", set: true},
		"pragma/**/main . foreign_keys--x\n(1);":       {schema: "main", name: "foreign_keys", value: "1", set: true},
		"pragma 'ma''in'.\"a\"\"b\" = `c``d`":          {schema: "ma'in", name: "a\"b", value: "c`d", set: true},
		"pragma [cache_size]=[x y]":                    {name: "cache_size", value: "x y", set: true},
		"pragma cache_size=-64000":                     {name: "cache_size", value: "-64000", set: true},
		"pragma cache_size = - 1.5":                    {name: "cache_size", value: "-1.5", set: true},
		"pragma x(+0x1F)":                              {name: "x", value: "0x1F", set: true},
		"pragma table_info(t)":                         {name: "table_info", value: "t", set: true},
		"pragma x = DELETE /* y */ ":                   {name: "x", value: "DELETE", set: true},
		"pragma x=''":                                  {name: "x", set: true},
		"pragma encoding='UTF-8'":                      {name: "encoding", value: "UTF-8", set: true},
		"pragma x; pragma y":                           {name: "x"},
		"pragma journal_mode=wal; create table t(a);;": {name: "journal_mode", value: "wal", set: true},
	} {
		got, rest, ok := parsePragma(text)
		if !ok || got != want || !strings.HasSuffix(text, rest) {
			t.Errorf("%q is read as %+v %q %v, want %+v", text, got, rest, ok, want)
		}
	}
	for _, text := range []string{"", "pragma", "pragma ;", "pragma x y", "pragma x=", "pragma x=1 2", "pragma x()", "pragma x(1", "pragma x=1)", "pragma x=?", "pragma x=:a",
		"pragma x=x'00'", "pragma x='a", "pragma x=1_0", "pragma x.y.z", "pragma 1", "select 1", "'pragma' x", "pragma x = 1,2", "pragma x=--1\n", "pragma x=$a", "pragma x=1e", "pragma x\x00"} {
		if got, _, ok := parsePragma(text); ok {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

// FuzzParsePragma: what is read as a PRAGMA is one for SQLite too, and what follows it
// is what follows its semicolon.
func FuzzParsePragma(f *testing.F) {
	for _, s := range []string{"pragma foreign_keys=on;", "PRAGMA main.'x'(+1.5) -- y\n;select 1", "pragma/*x*/[a]=`b`", "pragma x=0x1f", "pragma x=-.5;;", "\uFEFFpragma x", "pragma x='a''b'"} {
		f.Add(s)
	}
	db, err := sql.Open("sqlite", filepath.Join(f.TempDir(), "fuzz.db"))
	if err != nil {
		f.Fatal(err)
	}
	defer db.Close()
	f.Fuzz(func(t *testing.T, s string) {
		kw, at := firstKeyword(s)
		p, rest, ok := parsePragma(s[at:])
		if !ok {
			return
		}
		if kw != keywordPragma || !strings.HasSuffix(s, rest) {
			t.Fatalf("%q: keyword %d, pragma %+v, rest %q", s, kw, p, rest)
		}
		// EXPLAIN prepares it without carrying it out.
		head := s[at : len(s)-len(rest)]
		if strings.ContainsRune(head, 0) || reservedValue(p.value) || reservedValue(p.name) || reservedValue(p.schema) || p.schema != "" && p.schema != "main" {
			return
		}
		if st, err := db.Prepare("EXPLAIN " + head); err != nil {
			if strings.Contains(err.Error(), "syntax error") || strings.Contains(err.Error(), "unrecognized token") || strings.Contains(err.Error(), "incomplete") {
				t.Fatalf("%q is read as %+v, SQLite says %v", head, p, err)
			}
		} else {
			st.Close()
		}
	})
}

// reservedValue reports whether a name may be one of SQLite's reserved words, which it
// does not take unquoted and the driver, harmlessly, does.
func reservedValue(s string) bool {
	if len(s) < 2 || len(s) > 12 {
		return false
	}
	for _, c := range s {
		if c|0x20 < 'a' || c|0x20 > 'z' {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "on", "off", "yes", "no", "true", "false", "wal", "main":
		return false
	}
	return true
}

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
		"PRAGMA recursive_triggers", "PRAGMA recursive_triggers=off", "PRAGMA defer_foreign_keys", "PRAGMA defer_foreign_keys=0", "PRAGMA wal_checkpoint(TRUNCATE)",
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
		"PRAGMA writable_schema=ON", "PRAGMA recursive_triggers=1", "PRAGMA foreign_keys=banana", "PRAGMA ignore_check_constraints=true", "PRAGMA schema_version=7", "PRAGMA hard_heap_limit=1"} {
		var refused *RefusedError
		if _, err := db.Exec(q); !errors.As(err, &refused) {
			t.Errorf("%s: %v, want a RefusedError", q, err)
		}
	}
}
