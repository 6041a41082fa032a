package engine

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// Commands that come faster than a session's work can be repeated do not keep it from going on.
func TestSessionGoesOnBetweenCommands(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	x := g.beginTx()
	rows := 50000
	if testing.Short() {
		rows = 5000 // as under the race detector, which is slower by more than that
	}
	x.must("INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?) SELECT i FROM s", wire.Int(int64(rows)))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = g.dbs[0].Do(ctx, func() {})
			}
		})
	}
	short, end := context.WithTimeout(t.Context(), 5*time.Second)
	for range 5 {
		if r := x.s.Run(short, Statement{Statement: wire.Statement{SQL: "INSERT INTO t VALUES(1)"}}); r.Err != nil {
			t.Error(r.Err)
			break
		}
	}
	end()
	cancel()
	wg.Wait()
	x.commit()
}

// While an epoch is out, which may take for ever without a majority, a parked session ends
// in time, and its end is not waited for by looking again and again.
func TestParkedSessionEndsInTimeWhileAnEpochIsOut(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	d := g.dbs[0]
	if err := d.Do(t.Context(), func() { d.cfg.MaxSessionIdle = 30 * time.Millisecond }); err != nil {
		t.Fatal(err)
	}
	out := make(chan func(error), 1)
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool { out <- done; return true }
	g.mu.Unlock()
	s := g.beginBehindAUnit("INSERT INTO t VALUES(1)")
	done := <-out
	defer done(errNotProposed)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		over := s.over
		d.mu.Unlock()
		var aborted *AbortedError
		if errors.As(over, &aborted) && aborted.Reason == AbortIdle {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the session has ended with %v", over)
		}
	}
}

// beginBehindAUnit has a session work in the epoch in which another one has committed.
func (g *group) beginBehindAUnit(sql string) *Session {
	g.t.Helper()
	d := g.dbs[0]
	second, first := g.beginTx(), g.beginTx()
	first.must(sql)
	ran := make(chan StepResult, 1)
	go func() { ran <- second.run("SELECT 1") }()
	for n := 0; n == 0; {
		d.mu.Lock()
		n = len(d.returning)
		d.mu.Unlock()
	}
	go first.commit()
	if r := <-ran; r.Err != nil {
		g.t.Error(r.Err)
	}
	return second.s
}

// Writes that were withdrawn while they waited take no room from others.
func TestWithdrawnWritesMakeRoom(t *testing.T) {
	g := newGroup(t, 1, func(c *Config) { c.MaxQueued, c.MaxWait = 3, -1 })
	g.must("CREATE TABLE t(a)")
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(0)")
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := g.dbs[0].Exec(ctx, unit("INSERT INTO t VALUES(1)"))
		cancel()
		if !errors.Is(err, ErrCanceled) {
			t.Fatalf("a write that gave up: %v", err)
		}
	}
	last := &Unit{Req: unit("INSERT INTO t VALUES(2)")}
	told := make(chan struct{})
	last.Done = func(*Unit) { close(told) }
	g.dbs[0].Submit(last)
	x.mustCommit()
	<-told
	if got := g.query(0, "SELECT group_concat(a) FROM t"); last.Err != nil || got[0][0] != "0,2" {
		t.Errorf("%v, rows %v", last.Err, got)
	}
}
