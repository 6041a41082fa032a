package colmena_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// stallLog makes every write of a node's log hang until release is called.
func stallLog(t *testing.T, dir string) (release func()) {
	t.Helper()
	path, gate := filepath.Join(dir, "raft.db"), make(chan struct{})
	restore := durable.SetHook(func(op, p string) error {
		if op == durable.OpAppend && p == path {
			<-gate
		}
		return nil
	})
	release = sync.OnceFunc(func() { restore(); close(gate) })
	t.Cleanup(release)
	return release
}

// A leader whose disk hangs mutes itself, so that the others choose another; what was
// on its way is written once, and the old leader comes back as a follower.
func TestHazard26StalledDiskMovesLeadership(t *testing.T) {
	var stalls atomic.Int64
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) {
		cfg.OnEvent = func(e colmena.Event) {
			if e.Kind == colmena.EventDiskStalled {
				stalls.Add(1)
			}
		}
	})
	kv(t, c, 3)
	c.WaitConverged()
	i := c.Leader()
	old, other := c.Node(i), c.Node((i+1)%3)
	release := stallLog(t, c.Config(i).DataDir)
	began := time.Now()
	add(t, other, 1)
	took := time.Since(began)
	t.Logf("the write waited for %v", took)
	if most := 10 * 250 * time.Millisecond; took > most {
		t.Errorf("a stalled leader kept a write waiting for %v, at most %v is right", took, most)
	}
	if stalls.Load() == 0 {
		t.Error("nobody was told of the stalled disk")
	}
	if l, ok := other.Leader(); !ok || l.ID == old.ID() {
		t.Errorf("the leader is %+v, %v", l, ok)
	}
	for _, level := range []colmena.ConsistencyLevel{colmena.Weak, colmena.Strong} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		v, err := number(ctx, old, level, "SELECT count(*) FROM kv")
		cancel()
		if err == nil && v != 4 || err != nil && !errors.Is(err, colmena.ErrNoLeader) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("on the stalled node at %v: %d rows, %v", level, v, err)
		}
		t.Logf("on the stalled node at %v: %d rows, %v", level, v, err)
	}
	release()
	c.Until("the old leader follows", func() bool { return !old.IsLeader() })
	add(t, old, 1)
	wantRows(t, c, 5)
}
