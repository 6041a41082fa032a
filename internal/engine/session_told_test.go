package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// That a result is too large may rest on rows that are never committed.
func TestHazard09SizeOfAResultIsToldWhenItIsDecided(t *testing.T) {
	g := newGroup(t, 1, func(c *Config) { c.MaxResult = 1000 })
	g.must("CREATE TABLE t(a)")
	out := make(chan func(error), 1)
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool { out <- done; return true }
	g.mu.Unlock()
	s := g.beginBehindAUnit("INSERT INTO t VALUES(zeroblob(5000))")
	told := make(chan StepResult, 1)
	go func() {
		told <- s.Run(t.Context(), Statement{Statement: wire.Statement{SQL: "SELECT a FROM t"}, WantRows: true})
	}()
	done := <-out
	g.mu.Lock()
	g.intercept = nil
	g.mu.Unlock()
	done(errNotProposed)
	select {
	case r := <-told:
		var over *AbortedError
		if !errors.As(r.Err, &over) {
			t.Errorf("told %v", r.Err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was told")
	}
}

// What a query of a session called does not count against its writes.
func TestSessionMayQueryWithWhatItsWritesMayNotUse(t *testing.T) {
	var missing []string
	g := newGroup(t, 1, func(c *Config) { c.Library = testLibrary(&missing) })
	g.must("CREATE TABLE t(a)")
	missing = []string{"another"}
	x := g.beginTx()
	if n := x.number("SELECT twice(4)"); n != 8 {
		t.Errorf("got %d", n)
	}
	x.must("INSERT INTO t VALUES(1)")
	var late *NotReadyError
	if r := x.run("INSERT INTO t VALUES(twice(1))"); !errors.As(r.Err, &late) {
		t.Errorf("a write with what not all have: %v", r.Err)
	}
	x.mustCommit()
}
