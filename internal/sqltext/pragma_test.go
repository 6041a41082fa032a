package sqltext

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // what the parser is compared with
)

func TestParsePragma(t *testing.T) {
	for text, want := range map[string]Pragma{
		"pragma foreign_keys":                          {Name: "foreign_keys"},
		"PRAGMA Foreign_Keys = ON;":                    {Name: "foreign_keys", Value: "ON", Set: true},
		"pragma/**/main . foreign_keys--x\n(1);":       {Schema: "main", Name: "foreign_keys", Value: "1", Set: true},
		"pragma 'ma''in'.\"a\"\"b\" = `c``d`":          {Schema: "ma'in", Name: "a\"b", Value: "c`d", Set: true},
		"pragma [cache_size]=[x y]":                    {Name: "cache_size", Value: "x y", Set: true},
		"pragma cache_size=-64000":                     {Name: "cache_size", Value: "-64000", Set: true},
		"pragma cache_size = - 1.5":                    {Name: "cache_size", Value: "-1.5", Set: true},
		"pragma x(+0x1F)":                              {Name: "x", Value: "0x1F", Set: true},
		"pragma table_info(t)":                         {Name: "table_info", Value: "t", Set: true},
		"pragma x = DELETE /* y */ ":                   {Name: "x", Value: "DELETE", Set: true},
		"pragma x=''":                                  {Name: "x", Set: true},
		"pragma encoding='UTF-8'":                      {Name: "encoding", Value: "UTF-8", Set: true},
		"pragma x; pragma y":                           {Name: "x"},
		"pragma journal_mode=wal; create table t(a);;": {Name: "journal_mode", Value: "wal", Set: true},
	} {
		got, rest, ok := ParsePragma(text)
		if !ok || got != want || !strings.HasSuffix(text, rest) {
			t.Errorf("%q is read as %+v %q %v, want %+v", text, got, rest, ok, want)
		}
	}
	for _, text := range []string{"", "pragma", "pragma ;", "pragma x y", "pragma x=", "pragma x=1 2", "pragma x()", "pragma x(1", "pragma x=1)", "pragma x=?", "pragma x=:a",
		"pragma x=x'00'", "pragma x='a", "pragma x=1_0", "pragma x.y.z", "pragma 1", "select 1", "'pragma' x", "pragma x = 1,2", "pragma x=--1\n", "pragma x=$a", "pragma x=1e", "pragma x\x00"} {
		if got, _, ok := ParsePragma(text); ok {
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
		kw, at := FirstKeyword(s)
		p, rest, ok := ParsePragma(s[at:])
		if !ok {
			return
		}
		if kw != PRAGMA || !strings.HasSuffix(s, rest) {
			t.Fatalf("%q: keyword %d, pragma %+v, rest %q", s, kw, p, rest)
		}
		// EXPLAIN prepares it without carrying it out.
		head := s[at : len(s)-len(rest)]
		if strings.ContainsRune(head, 0) || reservedValue(p.Value) || reservedValue(p.Name) || reservedValue(p.Schema) || p.Schema != "" && p.Schema != "main" {
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
