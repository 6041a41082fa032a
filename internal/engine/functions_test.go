package engine

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

func testLibrary(missing *[]string) *Library {
	return NewLibrary(
		[]Function{{sqlite.Function{Name: "Twice", Args: 1, Func: func(a []any) (any, error) { return 2 * a[0].(int64), nil }}, "1"}},
		[]Collation{{sqlite.Collation{Name: "back", Compare: func(a, b string) int { return strings.Compare(b, a) }}, "1"}},
		func(_ Kind, _, item string) []string {
			if item == "" {
				return nil
			}
			return *missing
		})
}

func TestLibraryItems(t *testing.T) {
	var missing []string
	l := testLibrary(&missing)
	if want := "c back 1\nf twice/1 1\n"; l.List() != want {
		t.Errorf("list %q, want %q", l.List(), want)
	}
	for item, want := range map[string]bool{"f twice/1 1\n": true, "c back 1\n": true, "f twice/1 11\n": false, "f wice/1 1\n": false, "f twice/2 1\n": false, "c twice/1 1\n": false} {
		if Lists(l.List(), item) != want {
			t.Errorf("item %q: listed is not %v", item, want)
		}
	}
	if !Names(l.List(), KindFunction, "TWICE") || !Names(l.List(), KindCollation, "back") || Names(l.List(), KindFunction, "twic") || Names(l.List(), KindFunction, "back") {
		t.Error("names are not found as they are")
	}
	for needs, want := range map[string]string{"": "", "f twice/1 1\n": "", "c back 1\nf twice/1 1\n": "", "f twice/1 2\n": "this node has twice/1 1",
		"f nobody/0 1\n": "which this node does not have", "x": "no function or collation", "f\n": "no function or collation"} {
		err := l.check(needs)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("needs %q: %v; want %q", needs, err, want)
		}
	}
	var none *Library
	if err := none.check("f twice/1 1\n"); err == nil {
		t.Error("a node without any functions has one")
	}
}

// The gate opens and closes while the database runs, and statements stay prepared.
func TestLibraryGate(t *testing.T) {
	var missing []string
	lib := testLibrary(&missing)
	path := filepath.Join(t.TempDir(), "db")
	if err := Create(path, "db", 7); err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	var entries []wire.Entry
	var d *DB
	d, err := Open(Config{Path: path, Name: "db", Incarnation: 7, Proposer: 1, Library: lib, ProposalLost: func(error) bool { return false },
		Propose: func(data []byte, done func(error)) {
			index++
			var e wire.Entry
			if err := wire.DecodeEntry(data, &e); err != nil {
				t.Error(err)
			}
			entries = append(entries, e)
			d.Deliver(wire.Mark{Term: 1, Index: index}, data)
			done(nil)
		}})
	if err != nil {
		t.Fatal(err)
	}
	d.Lead(1)
	run := func(sql string) error {
		_, err := d.Exec(t.Context(), wire.Unit{Statements: []wire.Statement{{SQL: sql}}})
		return err
	}
	needs := func() string { return entries[len(entries)-1].Units[0].Needs }
	for _, s := range []struct{ sql, needs string }{
		{"CREATE TABLE t(a, b TEXT)", ""},
		{"CREATE INDEX ta ON t(twice(a))", "f twice/1 1\n"},
		{"CREATE INDEX tb ON t(b COLLATE back)", ""},
		{"INSERT INTO t VALUES(1, 'a')", "f twice/1 1\n"},
		{"INSERT INTO t VALUES(2, 'b')", "c back 1\nf twice/1 1\n"},
		{"UPDATE t SET a = twice(a) WHERE 0", "f twice/1 1\n"},
		{"CREATE TABLE plain(a, b TEXT)", ""},
		{"INSERT INTO plain VALUES(1, 'a'), (2, 'b')", ""},
	} {
		if err := run(s.sql); err != nil {
			t.Fatalf("%s: %v", s.sql, err)
		}
		if needs() != s.needs {
			t.Errorf("%s: the entry needs %q, want %q", s.sql, needs(), s.needs)
		}
	}
	gated := []string{"INSERT INTO t VALUES(1, 'a')", "UPDATE t SET a = twice(a) WHERE 0", "DELETE FROM plain WHERE a = (SELECT twice(a) FROM plain) AND b < 0",
		"INSERT INTO plain SELECT a, b FROM plain WHERE 0 ORDER BY b COLLATE back"}
	for round := range 3 {
		missing = nil
		for _, sql := range gated {
			if err := run(sql); err != nil {
				t.Errorf("round %d: %s: %v", round, sql, err)
			}
		}
		missing = []string{"node-9"}
		for _, sql := range gated {
			var late *NotReadyError
			if err := run(sql); !errors.As(err, &late) || late.Missing[0] != "node-9" {
				t.Errorf("round %d: %s: %v", round, sql, err)
			}
		}
		if err := run("INSERT INTO plain VALUES(1, 'a')"); err != nil {
			t.Errorf("round %d: a write without functions: %v", round, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// A node that lacks them can still tell what the file states, and open it.
	for _, l := range []*Library{nil, lib} {
		if m, _, err := l.Verify(path); err != nil || m.Index != index {
			t.Errorf("verify: %v, %v", m, err)
		}
	}
	d, err = Open(Config{Path: path, Name: "db", Incarnation: 7, Proposer: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if m, err := Export(path); err != nil || m.Index != index {
		t.Errorf("export: %v, %v", m, err)
	}
}
