package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// A commit that a deposed leader has not got into its log yet could still be taken when it
// leads again, however often its term has changed. Who was told that it never was applied
// has done it anew by then.
func TestHazard15WhatWasResolvedAsNeverAppliedStaysSo(t *testing.T) {
	g := newGroup(t, 3)
	g.must("CREATE TABLE t(a)")
	held := make(chan []byte, 1)
	var done func(error)
	g.mu.Lock()
	g.intercept = func(data []byte, f func(error)) bool { done = f; held <- data; return true }
	g.mu.Unlock()
	x := g.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	id := wire.RequestID{Origin: 5, Seq: 1}
	told := make(chan StepResult, 1)
	go func() { told <- x.s.Commit(context.Background(), id, 1) }()
	data := <-held
	g.mu.Lock()
	g.intercept = nil
	g.dbs[0].StepDown()
	g.term++
	g.dbs[1].Lead(g.term)
	g.mu.Unlock()
	if _, err := g.dbs[1].Exec(t.Context(), wire.Unit{ID: id, Lowest: 1, Resolve: true}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("resolved by the next leader: %v", err)
	}
	g.mu.Lock()
	g.dbs[1].StepDown()
	g.term++
	g.commitLocked(data)
	done(nil)
	g.dbs[0].Lead(g.term)
	g.mu.Unlock()
	if r := <-told; r.Err == nil {
		t.Error("the commit was told to have succeeded")
	}
	if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[]" {
		t.Errorf("it was told never to be applied, and there is %s", got)
	}
}

// What an epoch that was undone had found out about a request is forgotten: it may have
// been applied since.
func TestHazard15RequestIsLookedUpAnewAfterItsEpochWasUndone(t *testing.T) {
	running, goOn := make(chan struct{}, 1), make(chan struct{})
	lib := NewLibrary([]Function{{sqlite.Function{Name: "hold", Func: func([]any) (any, error) { running <- struct{}{}; <-goOn; return int64(1), nil }}, "1"}}, nil,
		func(Kind, string, string) []string { return nil })
	g := newGroup(t, 1, func(c *Config) { c.Library = lib })
	g.must("CREATE TABLE t(a)")
	d := g.dbs[0]
	resolve := &Unit{Req: wire.Unit{ID: wire.RequestID{Origin: 5, Seq: 1}, Lowest: 1, Resolve: true}}
	told := make(chan struct{})
	resolve.Done = func(*Unit) { close(told) }
	busy := &Unit{Req: unit("INSERT INTO t WITH RECURSIVE s(i) AS (SELECT hold() UNION ALL SELECT i + 1 FROM s WHERE i < 100000) SELECT i FROM s"), Done: func(*Unit) {}}
	d.Submit(resolve, busy)
	<-running
	g.mu.Lock()
	// The one who led meanwhile has applied it.
	g.commitLocked(foreignEntry(d.Mark(), resolve.Req.ID))
	g.term++
	d.Lead(g.term)
	g.mu.Unlock()
	close(goOn)
	<-told
	if resolve.Err != nil || !resolve.Result.Duplicate {
		t.Errorf("told %v, %+v", resolve.Err, resolve.Result)
	}
}

// A fence that is sent while the request itself is judged does its work after it: the
// error of the one says nothing of what became of the other.
func TestHazard15FenceBesideARequestThatFails(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a UNIQUE)")
	g.must("INSERT INTO t VALUES(1)")
	id := wire.RequestID{Origin: 5, Seq: 1}
	failing := unit("INSERT INTO t VALUES(1)")
	failing.ID, failing.Lowest = id, 1
	var told sync.WaitGroup
	told.Add(2)
	first := &Unit{Req: failing, Done: func(*Unit) { told.Done() }}
	fence := &Unit{Req: wire.Unit{ID: id, Lowest: 1, Resolve: true}, Done: func(*Unit) { told.Done() }}
	g.dbs[0].Submit(first, fence)
	told.Wait()
	if !isCode(first.Err, sqlite.Constraint) || !errors.Is(fence.Err, ErrNotFound) {
		t.Errorf("the request: %v, the fence: %v", first.Err, fence.Err)
	}
	g.must("DELETE FROM t")
	if _, err := g.execUnit(failing); !errors.Is(err, ErrNotFound) {
		t.Errorf("the request comes again: %v", err)
	}
}

// What waits for a request that was stopped is answered though the database ends meanwhile.
func TestSameRequestIsAnsweredWhenTheDatabaseEnds(t *testing.T) {
	confirm := make(chan func(bool), 1)
	g := newGroup(t, 1, func(c *Config) { c.Confirm = func(_ uint64, done func(bool)) { confirm <- done } })
	id := wire.RequestID{Origin: 5, Seq: 1}
	endless := unit("WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s) SELECT count(*) FROM s") // one that only reads ends no transaction
	endless.ID, endless.Lowest, endless.Timeout = id, 1, 50
	again := endless
	again.Timeout = 0
	var told sync.WaitGroup
	told.Add(2)
	first := &Unit{Req: endless, Done: func(*Unit) { told.Done() }}
	second := &Unit{Req: again, Done: func(*Unit) { told.Done() }}
	g.dbs[0].Submit(first, second)
	done := <-confirm
	if err := g.dbs[0].Close(); err != nil {
		t.Fatal(err)
	}
	g.dbs[0] = nil
	done(true)
	ended := make(chan struct{})
	go func() { told.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the second was never answered")
	}
	if !errors.Is(first.Err, ErrTimeout) || !errors.Is(second.Err, ErrClosed) {
		t.Errorf("told %v and %v", first.Err, second.Err)
	}
}
