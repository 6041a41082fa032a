package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"

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
