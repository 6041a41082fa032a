package engine

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// rewritten gives an entry as a leader with another engine would have proposed it.
func rewritten(t *testing.T, data []byte, change func(*wire.Entry)) []byte {
	t.Helper()
	var e wire.Entry
	if err := wire.DecodeEntry(data, &e); err != nil {
		t.Fatal(err)
	}
	if e.Engine != sqlite.Fingerprint() {
		t.Errorf("the entry states engine %x, this one is %x", e.Engine, sqlite.Fingerprint())
	}
	change(&e)
	var enc wire.EntryEncoder
	enc.Begin(e.EntryHeader)
	for i := range e.Units {
		enc.AppendUnit(&e.Units[i])
	}
	if err := enc.Err(); err != nil {
		t.Fatal(err)
	}
	return enc.Finish()
}

// An entry names the engine that ran it first. Another one is no reason to stop; where
// the outcomes differ it is the first thing to know.
func TestHazard12DivergenceNamesTheOtherEngine(t *testing.T) {
	const foreign = 0xfeed
	for _, c := range []struct {
		name          string
		engine        uint64
		diverge, skew bool
	}{
		{"another engine, same outcome", foreign, false, false},
		{"another engine, another outcome", foreign, true, true},
		{"same engine, another outcome", sqlite.Fingerprint(), true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGroup(t, 2)
			g.must("CREATE TABLE t(a)")
			g.mu.Lock()
			g.intercept = func(data []byte, done func(error)) bool {
				g.intercept = nil
				g.commitLocked(rewritten(t, data, func(e *wire.Entry) {
					e.Engine = c.engine
					if c.diverge {
						e.Units[0].Statements[0].Outcome.LastInsertID += 40
					}
				}))
				done(nil)
				return true
			}
			g.mu.Unlock()
			r := g.must("INSERT INTO t VALUES(1)")
			err := g.dbs[1].Drain(t.Context())
			var div *DivergedError
			if errors.As(err, &div) != c.diverge {
				t.Fatalf("got %v", err)
			}
			if !c.diverge {
				return
			}
			names := strings.Contains(err.Error(), fmt.Sprintf("%016x", uint64(foreign))) && strings.Contains(err.Error(), "another engine")
			if div.Mark != r.Mark || div.Proposer != c.engine || names != c.skew {
				t.Errorf("got %+v: %v", div, err)
			}
			if m := g.dbs[1].Mark(); m.Index >= r.Mark.Index {
				t.Errorf("a replica that parted has moved on to %v", m)
			}
		})
	}
}

// files copies a database's files as they are, without asking SQLite.
func files(t *testing.T, path, to string, suffixes ...string) {
	t.Helper()
	for _, s := range suffixes {
		b, err := os.ReadFile(path + s)
		if err == nil {
			err = os.WriteFile(to+s, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Behind a reader a checkpoint moves and syncs next to nothing; what Sync vouches for
// is main file and log together, and they hold the mark.
func TestHazard18SyncCoversTheMark(t *testing.T) {
	g := newGroup(t, 1)
	d := g.dbs[0]
	g.must("CREATE TABLE t(a)")
	r, err := d.Reader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		g.must("INSERT INTO t VALUES(?)", wire.Int(int64(i)))
	}
	mark := d.Mark()
	if err := d.Do(t.Context(), func() { _, _, err = d.w.Checkpoint(sqlite.Passive) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	both, alone := t.TempDir()+"/db", t.TempDir()+"/db"
	files(t, d.cfg.Path, both, "", "-wal")
	files(t, d.cfg.Path, alone, "")
	if m, _, err := Verify(both); err != nil || m != mark {
		t.Errorf("main file and log hold %v, %v; synced at %v", m, err, mark)
	}
	if m, _, err := Verify(alone); err == nil && m.Index >= mark.Index {
		t.Errorf("the main file alone holds %v: the checkpoint was not held up, so this shows nothing", m)
	}
}

// More entries than the bound wait outside, and go on when there is room.
func TestHazard27DeliveryIsBoundedInBytes(t *testing.T) {
	g := newGroup(t, 2)
	g.dbs[1].cfg.MaxLogQueue = 1 << 20
	g.must("CREATE TABLE t(a)")
	if err := g.dbs[1].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	follower := g.dbs[1]
	g.dbs[1] = nil
	g.mu.Unlock()
	big := wire.Text(strings.Repeat("x", 400<<10))
	for range 6 {
		g.must("INSERT INTO t VALUES(?)", big)
	}
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = follower.Do(t.Context(), func() { close(held); <-hold }) })
	<-held
	delivered := make(chan struct{})
	go func() {
		defer close(delivered)
		for _, l := range g.log[1:] {
			follower.Deliver(l.mark, l.data)
		}
	}()
	queued := func() int {
		follower.mu.Lock()
		defer follower.mu.Unlock()
		return follower.logBytes
	}
	for deadline := time.Now().Add(10 * time.Second); queued() < 800<<10; {
		if time.Now().After(deadline) {
			t.Fatal("nothing was delivered")
		}
	}
	select {
	case <-delivered:
		t.Error("everything was taken in")
	case <-time.After(20 * time.Millisecond):
	}
	if n := queued(); n > 1<<20 {
		t.Errorf("%d bytes wait, at most %d may", n, 1<<20)
	}
	close(hold)
	wg.Wait()
	<-delivered
	g.mu.Lock()
	g.dbs[1] = follower
	g.mu.Unlock()
}
