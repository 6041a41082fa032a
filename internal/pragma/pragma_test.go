package pragma

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/wire"
)

// show describes what became of a statement string.
func show(rest string, kw sqltext.Keyword, a *Answer, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	if a == nil {
		return fmt.Sprintf("goes on: %d %s", kw, rest)
	}
	var b strings.Builder
	for _, c := range a.Columns {
		b.WriteString(c.Name + " ")
	}
	for _, row := range a.Rows {
		b.WriteString("|")
		for _, v := range row {
			if v.Kind == wire.KindInt {
				fmt.Fprintf(&b, " %d", v.Int64())
			} else {
				b.WriteString(" " + string(v.B))
			}
		}
	}
	return b.String()
}

// TestPragmasAreRemembered runs one sequence on one connection. The root compares these
// answers with SQLite's.
func TestPragmasAreRemembered(t *testing.T) {
	var s State
	for _, step := range []struct{ query, want string }{
		{"PRAGMA foreign_keys", "foreign_keys | 0"}, {"PRAGMA foreign_keys=ON", ""}, {"PRAGMA main.foreign_keys", "foreign_keys | 1"}, {"PRAGMA foreign_keys(0); PRAGMA foreign_keys", "foreign_keys | 0"},
		{"PRAGMA busy_timeout=5000", "timeout | 5000"}, {"PRAGMA busy_timeout=-5", "timeout | 0"}, {"PRAGMA busy_timeout = 0x10 ;;", "timeout | 16"}, {"PRAGMA busy_timeout", "timeout | 16"},
		{"PRAGMA cache_size", "cache_size | -2000"}, {"PRAGMA cache_size=1e3", ""}, {"PRAGMA cache_size", "cache_size | 1"},
		{"PRAGMA synchronous", "synchronous | 2"}, {"PRAGMA synchronous='extra'; PRAGMA synchronous", "synchronous | 3"}, {"PRAGMA synchronous=banana; PRAGMA synchronous", "synchronous | 1"},
		{"PRAGMA synchronous=7; PRAGMA synchronous", "synchronous | 0"}, {"PRAGMA temp_store=memory; PRAGMA temp_store", "temp_store | 2"}, {"PRAGMA temp_store=9; PRAGMA temp_store", "temp_store | 0"},
		{"PRAGMA journal_size_limit=-7", "journal_size_limit | -1"}, {"PRAGMA journal_mode=WAL", "journal_mode | wal"}, {"PRAGMA locking_mode", "locking_mode | normal"},
		{"PRAGMA automatic_index", "automatic_index | 1"}, {"PRAGMA automatic_index=yes", ""}, {"PRAGMA encoding='UTF-8'", ""}, {"PRAGMA auto_vacuum=none", ""},
		{"PRAGMA wal_checkpoint(TRUNCATE)", "busy log checkpointed | 0 0 0"}, {"PRAGMA optimize", "optimize "}, {"PRAGMA shrink_memory", ""}, {"PRAGMA defer_foreign_keys", "defer_foreign_keys | 0"},
	} {
		if got := show(s.Run(step.query, false)); got != step.want {
			t.Errorf("%s: %s, want %s", step.query, got, step.want)
		}
	}
}

func TestWhatIsForTheDatabaseGoesOn(t *testing.T) {
	for query, want := range map[string]struct {
		kw   sqltext.Keyword
		rest string
	}{
		"": {sqltext.None, ""}, "SELECT 1": {sqltext.Other, "SELECT 1"}, "DROP TABLE t": {sqltext.Write, "DROP TABLE t"},
		"PRAGMA foreign_keys=on; INSERT INTO t VALUES(1)":   {sqltext.Write, " INSERT INTO t VALUES(1)"},
		"PRAGMA query_only=on; SELECT 1; PRAGMA query_only": {sqltext.Other, " SELECT 1; PRAGMA query_only"},
		"PRAGMA table_info(t)":                              {sqltext.Other, "PRAGMA table_info(t)"},
		"PRAGMA temp.foreign_keys=on":                       {sqltext.Other, "PRAGMA temp.foreign_keys=on"},
		"PRAGMA foreign_keys=":                              {sqltext.Other, "PRAGMA foreign_keys="},
		"PRAGMA user_version":                               {sqltext.Other, "PRAGMA user_version"},
		"PRAGMA user_version=3":                             {sqltext.Write, "PRAGMA user_version=3"},
		"PRAGMA cache_size=1; PRAGMA user_version=3":        {sqltext.Write, " PRAGMA user_version=3"},
		"PRAGMA defer_foreign_keys=on; DELETE FROM t":       {sqltext.Write, "PRAGMA defer_foreign_keys=on; DELETE FROM t"},
		"PRAGMA page_size":                                  {sqltext.Other, "PRAGMA page_size"},
	} {
		var s State
		rest, kw, answer, err := s.Run(query, false)
		if rest != want.rest || kw != want.kw || answer != nil || err != nil {
			t.Errorf("%s: %s, want %d %s", query, show(rest, kw, answer, err), want.kw, want.rest)
		}
	}
}

func TestSwitchesOfTheConnection(t *testing.T) {
	s := State{ForeignKeys: true}
	run := func(query string, inTx bool) {
		t.Helper()
		if _, _, _, err := s.Run(query, inTx); err != nil {
			t.Fatal(err)
		}
	}
	run("PRAGMA foreign_keys=off; PRAGMA query_only=on", true)
	if !s.ForeignKeys || !s.QueryOnly {
		t.Errorf("inside a transaction %+v: foreign_keys cannot change there, query_only can", s)
	}
	run("PRAGMA foreign_keys=off; PRAGMA query_only=0", false)
	if s.ForeignKeys || s.QueryOnly {
		t.Errorf("outside %+v", s)
	}
}

func TestWhatWouldPartAReplicaIsRefused(t *testing.T) {
	for _, query := range []string{"PRAGMA journal_mode=DELETE", "PRAGMA journal_mode(off)", "PRAGMA locking_mode=EXCLUSIVE", "PRAGMA encoding='UTF-16'", "PRAGMA page_size=512", "PRAGMA auto_vacuum=1",
		"PRAGMA writable_schema=ON", "PRAGMA recursive_triggers=banana", "PRAGMA automatic_index=off", "PRAGMA foreign_keys=banana", "PRAGMA query_only=maybe", "PRAGMA ignore_check_constraints=true",
		"PRAGMA cache_size=1; PRAGMA fullfsync=1"} {
		var s State
		var refused *RefusedError
		if _, _, answer, err := s.Run(query, false); !errors.As(err, &refused) || refused.Advice == "" || answer != nil {
			t.Errorf("%s: %v, want a RefusedError", query, err)
		}
	}
}

func TestCutTail(t *testing.T) {
	for query, want := range map[string]string{
		"CREATE TABLE t(a); PRAGMA foreign_keys=ON":                                    " PRAGMA foreign_keys=ON",
		"PRAGMA foreign_keys=off; DROP TABLE t; PRAGMA main.query_only(0) ;; --":       " PRAGMA main.query_only(0) ;; --",
		"A; PRAGMA foreign_keys=on; B; PRAGMA cache_size=5; PRAGMA automatic_index=1;": " PRAGMA cache_size=5; PRAGMA automatic_index=1;",
		"A; PRAGMA writable_schema=on":                                                 "",
		"A; PRAGMA foreign_keys=banana":                                                "",
		"A; PRAGMA foreign_keys":                                                       "",
		"A; PRAGMA user_version=3":                                                     "",
		"A; PRAGMA temp.foreign_keys=on":                                               "",
		"A; -- PRAGMA foreign_keys=on":                                                 "",
		"PRAGMA foreign_keys=on; PRAGMA foreign_keys=off":                              "",
		"CREATE TRIGGER g BEGIN B; PRAGMA foreign_keys=on; END":                        "",
	} {
		if body, tail := CutTail(query); body+tail != query || tail != want {
			t.Errorf("%s: %q and %q, want the tail %q", query, body, tail, want)
		}
	}
}
