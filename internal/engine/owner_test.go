package engine

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestHazard19PinWhoseContextEndsLeavesNothing(t *testing.T) {
	g := newGroup(t, 1)
	d := g.dbs[0]
	g.must("CREATE TABLE t(a)")
	hold := make(chan struct{})
	var wg sync.WaitGroup
	held := make(chan struct{})
	wg.Go(func() { _ = d.Do(t.Context(), func() { close(held); <-hold }) })
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.Pin(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(hold)
	wg.Wait()
	for range 20 {
		g.must("INSERT INTO t VALUES(?)", wire.Text(strings.Repeat("x", 5000)))
	}
	if err := d.check.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	frames, moved, err := d.check.conn.Checkpoint(sqlite.Passive)
	d.check.unlock()
	if err != nil || moved != frames {
		t.Errorf("%d of %d frames were moved, %v: something holds the log", moved, frames, err)
	}
}

func TestHazard18SyncBesideClose(t *testing.T) {
	for range 10 {
		g := newGroup(t, 1)
		d := g.dbs[0]
		g.must("CREATE TABLE t(a)")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := d.Sync(); err != nil && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
			}
		})
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		wg.Wait()
		g.dbs[0] = nil
	}
}

func TestHazard20CheckpointsEndWhenTheLogWasReset(t *testing.T) {
	g := newGroup(t, 1)
	d := g.dbs[0]
	if err := d.Do(t.Context(), func() { d.cfg.WALBytes = 256 << 10; _ = d.w.Exec("PRAGMA journal_size_limit=262144") }); err != nil {
		t.Fatal(err)
	}
	g.must("CREATE TABLE t(a)")
	g.must("INSERT INTO t VALUES(?)", wire.Text(strings.Repeat("x", 5<<20)))
	var size int64
	for deadline := time.Now().Add(10 * time.Second); ; {
		g.must("INSERT INTO t VALUES(1)")
		if err := d.Do(t.Context(), func() { size = d.check.walSize() }); err != nil {
			t.Fatal(err)
		}
		if size <= d.cfg.WALBytes {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log is %d bytes long, and checkpoints go on for ever", size)
		}
	}
}

// A leader that was deposed without knowing it would answer by an old state.
func TestHazard09FailuresWaitForTheTermToBeConfirmed(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a UNIQUE)")
	g.must("INSERT INTO t VALUES(1)")
	for _, confirmed := range []bool{true, false} {
		if err := g.dbs[0].Do(t.Context(), func() {
			g.dbs[0].cfg.Confirm = func(_ uint64, done func(bool)) { go done(confirmed) }
		}); err != nil {
			t.Fatal(err)
		}
		_, err := g.exec("INSERT INTO t VALUES(1)")
		var se *sqlite.Error
		if confirmed != errors.As(err, &se) || confirmed == errors.Is(err, ErrNotLeading) {
			t.Errorf("term confirmed %v: got %v", confirmed, err)
		}
	}
}

func TestHazard27QueueIsBoundedInBytes(t *testing.T) {
	g := newGroup(t, 1)
	d := g.dbs[0]
	g.must("CREATE TABLE t(a)")
	hold := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Do(t.Context(), func() { <-hold }) })
	big := wire.Text(strings.Repeat("x", 8<<20))
	refused := make(chan error, 100)
	for range 20 {
		d.Submit(&Unit{Req: unit("INSERT INTO t VALUES(?)", big), Done: func(u *Unit) {
			if u.Err != nil {
				refused <- u.Err
			}
		}})
	}
	var large *TooLargeError
	if err := <-refused; !errors.As(err, &large) {
		t.Errorf("got %v", err)
	}
	close(hold)
	wg.Wait()
}

// An epoch that is out when the replica stops for a reason of its own is answered: nothing
// that would decide it is taken in any more.
func TestHaltAnswersTheEpochThatIsOut(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	d := g.dbs[0]
	out := make(chan []byte, 1)
	g.mu.Lock()
	g.intercept = func(data []byte, _ func(error)) bool { out <- data; return true }
	g.mu.Unlock()
	told := make(chan error, 1)
	go func() {
		_, err := g.exec("INSERT INTO t VALUES(1)")
		told <- err
	}()
	data := <-out
	d.halt(errors.New("the disk fails"))
	select {
	case err := <-told:
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("the writer is told %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the writer is told nothing")
	}
	g.mu.Lock()
	g.intercept = nil
	g.commitLocked(data)
	g.halts[0] = nil
	g.mu.Unlock()
	g.restart(0)
	if err := g.dbs[0].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := g.query(0, "SELECT a FROM t"); len(got) != 1 {
		t.Errorf("after replaying: %v", got)
	}
}
