package engine

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// besideAHolder returns sessions that have seen nothing, and one that holds the writer.
func (g *group) besideAHolder(n int) (others []*tx, holder *tx) {
	g.t.Helper()
	for range n {
		others = append(others, g.beginTx())
	}
	holder = g.beginTx()
	holder.must("INSERT INTO t VALUES(0)")
	return others, holder
}

// eventually polls a condition of the queues.
func (g *group) eventually(what string, ok func(d *DB) bool) {
	g.t.Helper()
	d := g.dbs[0]
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		is := ok(d)
		d.mu.Unlock()
		if is {
			return
		}
		if time.Now().After(end) {
			g.t.Fatal(what)
		}
	}
}

func TestTransactionThatHasDoneNothingEndsWithoutTheWriter(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	others, holder := g.besideAHolder(2)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if r := others[0].s.Rollback(ctx); r.Err != nil || !r.Over {
		t.Errorf("rollback: %+v", r)
	}
	if r := others[1].s.Commit(ctx, wire.RequestID{}, 0); r.Err != nil || !r.Over {
		t.Errorf("commit: %+v", r)
	}
	if r := others[1].run("SELECT 1"); r.Err == nil || !r.Over {
		t.Errorf("after its end: %+v", r)
	}
	holder.mustCommit()
}

// A statement that was canceled while it waited for the writer has not run, so that its
// transaction goes on, and may try again.
func TestCanceledWaitForTheWriterLeavesTheTransactionOpen(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	others, holder := g.besideAHolder(1)
	x := others[0]
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		r := x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: "INSERT INTO t VALUES(1)"}})
		cancel()
		if !errors.Is(r.Err, ErrCanceled) || !errors.Is(r.Err, context.DeadlineExceeded) || r.Over {
			t.Fatalf("got %+v", r)
		}
	}
	holder.mustCommit()
	x.must("INSERT INTO t VALUES(2)")
	x.mustCommit()
	if got := g.query(0, "SELECT group_concat(a) FROM t"); got[0][0] != "0,2" {
		t.Errorf("rows %v", got)
	}
}

// A session whose client goes while it waits for the writer is in no queue any more, however
// long the writer is held.
func TestSessionAbandonedWhileItWaitsIsForgotten(t *testing.T) {
	g := newGroup(t, 1, func(c *Config) { c.MaxWait = 20 * time.Millisecond })
	g.must("CREATE TABLE t(a)")
	others, holder := g.besideAHolder(1)
	told := make(chan StepResult, 1)
	go func() { told <- others[0].run("INSERT INTO t VALUES(1)") }()
	g.eventually("it does not wait", func(d *DB) bool { return len(d.returning) == 1 })
	others[0].s.Abort()
	if r := <-told; r.Err == nil {
		t.Errorf("told %+v", r)
	}
	g.eventually("it is kept", func(d *DB) bool { return len(d.returning)+len(d.shelf) == 0 })
	holder.mustCommit()
}

// Transactions that were begun and forgotten are in nobody's way for ever.
func TestTransactionsThatDoNothingMakeRoomInTime(t *testing.T) {
	g := newGroup(t, 1, func(c *Config) { c.MaxSessions, c.MaxSessionTime = 2, 50*time.Millisecond })
	forgotten := []*tx{g.beginTx(), g.beginTx()}
	began := time.Now()
	var big *TooLargeError
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := g.dbs[0].Begin(t.Context(), SessionOptions{})
		if err == nil {
			s.Abort()
			break
		}
		if !errors.As(err, &big) || time.Now().After(end) {
			t.Fatalf("begin: %v", err)
		}
	}
	for time.Since(began) <= 50*time.Millisecond { // until the later one is late too
		time.Sleep(time.Millisecond)
	}
	for _, x := range forgotten {
		var aborted *AbortedError
		if r := x.run("SELECT 1"); !errors.As(r.Err, &aborted) || aborted.Reason != AbortTime || !r.Over {
			t.Errorf("a forgotten one: %+v", r)
		}
	}
}

// To roll back, or to end because its client has gone, a session that is parked does not
// repeat its work.
func TestParkedSessionIsRolledBackWithoutItsWork(t *testing.T) {
	var calls atomic.Int64
	lib := NewLibrary([]Function{{sqlite.Function{Name: "seen", Func: func([]any) (any, error) { return calls.Add(1), nil }}, "1"}}, nil,
		func(Kind, string, string) []string { return nil })
	g := newGroup(t, 1, func(c *Config) { c.Library = lib })
	g.must("CREATE TABLE t(a)")
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(seen() > 0)")
	if err := g.dbs[0].Do(t.Context(), func() {}); err != nil { // which parks it
		t.Fatal(err)
	}
	if r := x.s.Rollback(t.Context()); r.Err != nil || !r.Over {
		t.Errorf("rollback: %+v", r)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("its statement ran %d times", n)
	}
	g.must("INSERT INTO t VALUES(1)")
}
