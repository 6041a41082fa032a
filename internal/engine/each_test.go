package engine

import (
	"reflect"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

// A request that is sent again gets the outcome of every statement again: on the
// leader, on a replica that replayed it, and after a restart.
func TestRepeatedUnitReturnsEveryOutcomeAgain(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	u := wire.Unit{ID: wire.RequestID{Origin: 3, Seq: 1}, Lowest: 1, WantEach: true, Statements: []wire.Statement{
		{SQL: "INSERT INTO t(v) VALUES(1), (2), (3)"}, {SQL: "UPDATE t SET v = v + 1 WHERE v > 1"}, {SQL: "DELETE FROM t WHERE v = 1"},
	}}
	want := []wire.Outcome{{RowsAffected: 3, LastInsertID: 3}, {RowsAffected: 2, LastInsertID: 3}, {RowsAffected: 1, LastInsertID: 3}}
	first, err := g.execUnit(u)
	if err != nil {
		t.Fatal(err)
	}
	g.restart(1)
	for i, d := range []*DB{g.dbs[0], g.dbs[1]} {
		if err := d.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.Lead(g.term)
		again, err := d.Exec(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		if !again.Duplicate || !reflect.DeepEqual(first.Result.Each, want) || !reflect.DeepEqual(again.Result, first.Result) || again.Mark != first.Mark {
			t.Errorf("replica %d answers %+v, first was %+v", i, again, first)
		}
	}
	u.ID.Seq, u.WantEach = 2, false
	if res, err := g.execUnit(u); err != nil || res.Result.Each != nil {
		t.Errorf("without asking: %+v, %v", res, err)
	}
}
