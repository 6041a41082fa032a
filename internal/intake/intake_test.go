package intake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// node writes down what happens to entries, in order.
type node struct {
	*Intake
	done chan struct{}

	mu      sync.Mutex // guards what follows
	did     []string
	dbs     map[uint64]*database
	dropped uint64 // up to here incarnations were given
	reload  error
	goOn    error
}

func (n *node) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.did = append(n.did, fmt.Sprintf(format, args...))
}

func (n *node) has(t *testing.T, want ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.did, want) {
		t.Errorf("done: %q; want %q", n.did, want)
	}
	n.did = nil
}

type database struct {
	n       *node
	name    string
	stopped bool
}

func (d *database) Name() string { return d.name }

func (d *database) Deliver(mark wire.Mark, _ []byte) bool {
	d.n.note("%s takes %d", d.name, mark.Index)
	return !d.stopped
}

func (d *database) Drain(context.Context) error {
	if d.stopped {
		return errors.New("stopped")
	}
	return nil
}

func (n *node) Register(_ uint64, name string, index uint64, _ int) {
	n.note("register %s %d", name, index)
}
func (n *node) Stopped(db uint64)                      { n.note("stopped %d", db) }
func (n *node) Skipped(index uint64)                   { n.note("skipped %d", index) }
func (n *node) GoOn(index uint64, _ func(uint64) bool) { n.note("hooks go on at %d", index) }
func (n *node) Installed(index uint64)                 { n.note("installed %d", index) }
func (n *node) Closed()                                { n.note("closed") }

func newNode() *node {
	n := &node{done: make(chan struct{}), dropped: 9}
	n.dbs = map[uint64]*database{0: {n: n, name: "system"}, 1: {n: n, name: "a"}, 2: {n: n, name: "hidden"}}
	n.Intake = New(Config{
		Route: func(inc uint64) (Database, bool) {
			if d := n.dbs[inc]; d != nil {
				return d, true
			}
			return nil, inc <= n.dropped
		},
		Shown: func(name string) bool { return name != "hidden" }, Hooks: n,
		Reload: func() error { return n.reload }, Changed: func() { n.note("changed") }, Delivered: func() {},
		GoOn: func(_ context.Context, missed uint64) error {
			n.note("go on from %d", missed)
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.goOn
		},
		Stopped: func(uint64) bool { return false }, GoneOn: func() { n.note("gone on") },
		Halted: func(name string, err error) { n.note("%s halted", name) },
		Done:   n.done, Logger: slog.New(slog.DiscardHandler),
	})
	return n
}

// entry of a database.
func entry(incarnation uint64) []byte {
	var e wire.EntryEncoder
	e.Begin(wire.EntryHeader{DB: incarnation})
	return e.Finish()
}

func (n *node) take(index, incarnation uint64) {
	n.Deliver(wire.Mark{Term: 1, Index: index}, true, entry(incarnation))
}

func TestEntriesGoToTheirDatabases(t *testing.T) {
	n := newNode()
	n.StartAt(4)
	n.take(5, 1)
	n.has(t, "register a 5", "a takes 5")
	n.take(6, 2)
	n.has(t, "hidden takes 6")
	n.take(7, 0)
	n.has(t, "system takes 7", "changed")
	n.take(8, 9) // dropped
	n.Deliver(wire.Mark{Term: 1, Index: 9}, false, []byte("raft's own"))
	n.has(t)
	n.dbs[1].stopped = true
	n.take(10, 1)
	n.has(t, "register a 10", "a takes 10", "stopped 1")
	n.dbs[0].stopped = true
	n.take(11, 0)
	n.has(t, "system takes 11", "stopped 0") // it has reported by itself
	if n.Applied() != 11 || n.Missing() || n.Halted() != nil {
		t.Errorf("applied %d, missing %v, halted %v", n.Applied(), n.Missing(), n.Halted())
	}
}

// H2: what does not reach its database halts the node, and is read from the log again, from the first on.
func TestEntryThatReachesNoDatabaseIsNotSkipped(t *testing.T) {
	for name, miss := range map[string]func(n *node){
		"garbage":          func(n *node) { n.Deliver(wire.Mark{Term: 1, Index: 5}, true, []byte("garbage")) },
		"without data":     func(n *node) { n.Deliver(wire.Mark{Term: 1, Index: 5}, true, nil) },
		"unknown database": func(n *node) { n.take(5, 77) },
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode()
			miss(n)
			n.has(t, "skipped 5", "log halted")
			n.take(6, 1)
			n.has(t, "register a 6", "a takes 6")
			n.take(7, 78)
			n.has(t, "skipped 7", "log halted")
			if !n.Missing() || n.Halted() == nil || n.Applied() != 7 {
				t.Errorf("%s: missing %v, halted %v, applied %d", name, n.Missing(), n.Halted(), n.Applied())
			}
			ctx, cancel := context.WithCancel(t.Context())
			n.goOn = errors.New("the disk is full")
			go n.Run(ctx)
			time.Sleep(retry)
			synctest.Wait()
			n.has(t, "go on from 5")
			if !n.Missing() || n.Halted() == nil {
				t.Error("it went on")
			}
			n.mu.Lock()
			n.goOn = nil
			n.mu.Unlock()
			time.Sleep(3 * retry)
			n.has(t, "go on from 5", "hooks go on at 7", "gone on")
			if n.Missing() || n.Halted() != nil {
				t.Error("it did not go on")
			}
			cancel()
		})
	}
}

func TestSetThatCannotFollowHalts(t *testing.T) {
	n := newNode()
	n.reload = errors.New("no room for a file")
	n.take(5, 0)
	n.has(t, "system takes 5", "skipped 5", "system halted")
	if !n.Missing() || !errors.Is(n.Halted(), n.reload) {
		t.Errorf("missing %v, %v", n.Missing(), n.Halted())
	}
}

func TestInstalledCopyHoldsWhatWasMissed(t *testing.T) {
	n := newNode()
	n.take(5, 77)
	n.has(t, "skipped 5", "log halted")
	broken := errors.New("broken")
	if err := n.Install(func() (uint64, error) { return 0, broken }); err != broken {
		t.Error(err)
	}
	n.has(t, "closed", "skipped 1", "system halted")
	if err := n.Install(func() (uint64, error) { return 20, nil }); err != nil || n.Missing() || n.Halted() != nil || n.Applied() != 20 {
		t.Errorf("%v, missing %v, halted %v, applied %d", err, n.Missing(), n.Halted(), n.Applied())
	}
	n.has(t, "installed 20", "changed")
}

// What is delivered while the node closes is read again at the next start.
func TestClosingNodeDoesNotHalt(t *testing.T) {
	n := newNode()
	close(n.done)
	n.take(5, 77)
	n.has(t)
	if n.Halted() != nil {
		t.Error(n.Halted())
	}
}
