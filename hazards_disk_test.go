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

// A leader whose disk hangs mutes itself, so that the others choose another. The write
// that met the disk has an unknown outcome, and the old leader comes back as a follower.
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
	// A write meets the stalled disk. Nobody but its writer waits for it.
	ctx, cancel := context.WithCancel(limit(t))
	defer cancel()
	result := make(chan error, 1)
	go func() {
		_, err := old.DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES('stalled')")
		result <- err
	}()
	began := time.Now()
	c.Until("another leader", func() bool { l, ok := other.Leader(); return ok && l.ID != old.ID() })
	add(t, other, 1)
	if took, most := time.Since(began), 10*250*time.Millisecond; took > most {
		t.Errorf("a leader with a stalled disk kept the others waiting for %v, at most %v is right", took, most)
	} else {
		t.Logf("another leader took a write after %v", took)
	}
	if stalls.Load() == 0 {
		t.Error("nobody was told of the stalled disk")
	}
	short, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if v, err := number(short, old, colmena.Strong, "SELECT count(*) FROM kv"); err == nil && v != 4 || err != nil && !errors.Is(err, colmena.ErrNoLeader) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a Strong read on the stalled node: %d rows, %v", v, err)
	}
	if v, err := number(short, old, colmena.Weak, "SELECT count(*) FROM kv"); err == nil && v != 4 {
		t.Errorf("a Weak read on the stalled node: %d rows", v)
	}
	cancel()
	if err := <-result; !errors.Is(err, colmena.ErrOutcomeUnknown) {
		t.Errorf("the write that met the stalled disk: %v", err)
	}
	release()
	c.Until("the old leader follows", func() bool { return !old.IsLeader() })
	add(t, old, 1)
	for _, n := range c.Running() { // the stalled write may or may not be there
		wantNumber(t, n, colmena.Strong, 5, "SELECT count(*) FROM kv WHERE v <> 'stalled'")
	}
}
