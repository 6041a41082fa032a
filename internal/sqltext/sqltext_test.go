package sqltext

import "testing"

func TestFirstKeyword(t *testing.T) {
	for text, want := range map[string]Keyword{
		"": None, " \t\r\n;; -- x": None, "/* x */ ; /* y": None, "\uFEFF": None,
		"select 1": Other, "SELECTx": Other, "(select 1)": Other, "with x as (select 1) insert into t select * from x": Other,
		"begin": Other, "ATTACH 'x' AS y": Other, "explain insert into t values(1)": Other, "é": Other, "\x00": Other,
		"Insert into t values(1)": Write, "-- x\n/* y */ ;\uFEFF UPDATE t SET a=1": Write, "delete\tfrom t": Write, "REPLACE": Write,
		"create table t(a)": Write, "DROP TABLE t": Write, "alter table t add b": Write, "ANALYZE;": Write, "reindex": Write,
		"inserts": Other, "insert_": Other, "insert1": Other, "pragma": PRAGMA, "PRAGMA(x)": PRAGMA, "pragmatic": Other,
	} {
		if got, _ := FirstKeyword(text); got != want {
			t.Errorf("%q begins with keyword %d, want %d", text, got, want)
		}
	}
}

func TestFirstWord(t *testing.T) {
	for text, want := range map[string]string{
		"": "", " \t\r\n\f;; -- x": "", "/* x */ ; /* y": "", "/*": "", "/*/": "", "/**/a": "a", "\v a": "", "\uFEFF select": "select", "--": "", "-- x\nDrop": "Drop",
		"INSERT/**/INTO": "INSERT", "insert1": "insert", "INSERT_": "INSERT", "Vacuum;": "Vacuum", "(select)": "", "[a]": "", "@a": "", "\xc3\xa9": "", "`a`": "",
	} {
		if got := FirstWord(text); got != want {
			t.Errorf("%q begins with the word %q, want %q", text, got, want)
		}
	}
}

func TestSeemsToWrite(t *testing.T) {
	for text, want := range map[string]bool{
		"insert into t values(1)": true, " (Delete from t)": true, "\n\tREPLACE": true, "ANALYZE": true,
		"": false, "select 1": false, "insert\tinto t": false, "pragma x=1": false, "-- x\ninsert into t": false, "with x as (select 1) insert into t": false,
	} {
		if got := SeemsToWrite(text); got != want {
			t.Errorf("%q seems to write: %v", text, got)
		}
	}
}

func TestLastKind(t *testing.T) {
	for text, want := range map[string]Kind{
		"": Neither, "select 1": Neither, "pragma user_version=3": Neither, "insert into t values(';')": Rows, "with x as (select 1) delete from t": Rows, "create table t(a)": Schema, "Analyze": Schema,
		"insert into t values(1); create table u(a);": Schema, "create table u(a); insert into t values(1);; -- x": Rows, "create trigger g after insert on t begin delete from u; end": Schema,
		"create trigger g after insert on t begin delete from u; end; update t set a=1": Rows, "delete from t; select 1": Rows, "select 1;": Neither,
	} {
		if got := LastKind(text); got != want {
			t.Errorf("%q ends with kind %d, want %d", text, got, want)
		}
	}
}
