package sqltext

import (
	"slices"
	"testing"
)

func TestParseControl(t *testing.T) {
	for sql, want := range map[string]Control{
		"BEGIN": {Kind: Begin}, " begin immediate transaction ; ": {Kind: Begin}, "BEGIN EXCLUSIVE TRANSACTION x": {Kind: Begin}, "/* a */ BEGIN -- b": {Kind: Begin},
		"COMMIT": {Kind: Commit}, "END TRANSACTION;": {Kind: Commit}, "ROLLBACK": {Kind: Rollback}, "rollback transaction": {Kind: Rollback},
		"ROLLBACK TO a": {RollbackTo, "a"}, "ROLLBACK TRANSACTION TO SAVEPOINT \"a b\"": {RollbackTo, "a b"}, "ROLLBACK TRANSACTION x TO y": {RollbackTo, "y"},
		"SAVEPOINT 'x';": {Savepoint, "x"}, "RELEASE SAVEPOINT [x]": {Release, "x"}, "RELEASE x": {Release, "x"},
	} {
		if got, ok := ParseControl(sql); !ok || got != want {
			t.Errorf("%q: %v, %v", sql, got, ok)
		}
	}
	for _, sql := range []string{"", "BEGINNING", "BEGIN x y z", "COMMIT work now", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "SELECT 1", "BEGIN; SELECT 1", "SAVEPOINT 1"} {
		if got, ok := ParseControl(sql); ok {
			t.Errorf("%q: %v", sql, got)
		}
	}
}

func TestSplit(t *testing.T) {
	for sql, want := range map[string][]string{
		"SELECT 1": {"SELECT 1"},
		"SELECT ';'; SELECT \"a;b\" -- c;d\n; /* ; */ SELECT [x;y]": {"SELECT ';';", " SELECT \"a;b\" -- c;d\n;", " /* ; */ SELECT [x;y]"},
		"CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT CASE 1 WHEN 2 THEN 3 END; DELETE FROM y; END; COMMIT": {
			"CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT CASE 1 WHEN 2 THEN 3 END; DELETE FROM y; END;", " COMMIT"},
		"create temp trigger t begin select 1;end;select 2": {"create temp trigger t begin select 1;end;", "select 2"},
		"CREATE TABLE trigger(a); BEGIN":                    {"CREATE TABLE trigger(a);", " BEGIN"},
		"SELECT 'open; SELECT 2":                            {"SELECT 'open; SELECT 2"},
		";;SELECT 1;;":                                      {";;SELECT 1;", ";"},
	} {
		var got []string
		for rest := sql; rest != ""; {
			var first string
			first, rest = Split(rest)
			got = append(got, first)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q", sql, got)
		}
	}
}

func TestHasControl(t *testing.T) {
	for sql, want := range map[string]bool{
		"BEGIN": true, "SELECT 1; COMMIT": true, "SELECT 'x;COMMIT'": false, "INSERT INTO t VALUES(1);": false, "-- x\nSAVEPOINT a": true,
		"CREATE TRIGGER t AFTER INSERT ON x BEGIN DELETE FROM y; END": false, "": false, "ENDING": false,
	} {
		if got := HasControl(sql); got != want {
			t.Errorf("%q: %v", sql, got)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add("CREATE TRIGGER t BEGIN SELECT 1; END; SELECT ';'")
	f.Fuzz(func(t *testing.T, sql string) {
		whole := ""
		for rest := sql; rest != ""; {
			first, tail := Split(rest)
			if first == "" {
				t.Fatalf("%q: nothing is cut off", rest)
			}
			whole += first
			rest = tail
		}
		if whole != sql {
			t.Fatalf("%q became %q", sql, whole)
		}
		HasControl(sql)
		ParseControl(sql)
	})
}
