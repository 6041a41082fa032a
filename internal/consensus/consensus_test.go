package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/logstore"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// machine keeps what it is handed.
type machine struct {
	mu       sync.Mutex
	commands []string
	last     uint64
	hold     chan struct{} // Deliver waits for it, if it is not nil
	refuse   error         // of snapshots
	taken    int
}

func (m *machine) deliver(mark wire.Mark, command bool, data []byte) {
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = mark.Index
	if command {
		m.commands = append(m.commands, string(data))
	}
}

func (m *machine) snapshot() (func(io.Writer) error, error) {
	return func(w io.Writer) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.taken++
		_, err := w.Write((&snapshot.Manifest{ClusterID: "c"}).Encode())
		return err
	}, m.refuse
}

func (m *machine) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.commands)
}

// alone is raft on the directory of a node without others. It runs.
func alone(t *testing.T, dir string, m *machine, form bool) *Raft {
	t.Helper()
	log, err := logstore.Open(logstore.Config{Path: filepath.Join(dir, "raft.db"), StoreID: "s", MaxEntryBytes: wire.MaxEntryBytes, StallAfter: time.Minute,
		Logger: slog.New(slog.DiscardHandler), Stall: func(time.Duration) {}, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	gens, err := snapshot.OpenGenerations(filepath.Join(dir, "generations"))
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := snapshot.New(snapshot.Config{Dir: filepath.Join(dir, "snapshots"), ScratchDir: filepath.Join(dir, "scratch"), Generations: gens,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r := New(Config{NodeID: "a", HeartbeatTimeout: 300 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond, SnapshotInterval: time.Hour,
		SnapshotThreshold: 1 << 20, TrailingLogs: 10, Log: log, Snapshots: snaps, Logger: slog.New(slog.DiscardHandler),
		Machine: Machine{Deliver: m.deliver, Snapshot: m.snapshot}})
	if form {
		if err := errors.Join(r.Form(), r.Form()); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Stop(t.Context(), func() {}), snaps.Close(), log.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func propose(t *testing.T, r *Raft, data string) error {
	t.Helper()
	done := make(chan error, 1)
	r.Propose([]byte(data), func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the proposal is not answered")
		return nil
	}
}

func TestNodeAloneLeadsAtOnceAndDeliversInOrder(t *testing.T) {
	dir, m := t.TempDir(), &machine{}
	began := time.Now()
	t.Run("first start", func(t *testing.T) {
		r := alone(t, dir, m, true)
		until(t, "leadership", func() bool { return r.LeadingTerm() != 0 })
		if d := time.Since(began); d > 250*time.Millisecond {
			t.Errorf("it led after %v", d)
		}
		if r.Leader() != "a" || r.Role() != "leader" || len(r.Others()) != 0 || !slices.Equal(r.Voters(), []string{"a"}) {
			t.Errorf("leader %q, %s, others %v, voters %v", r.Leader(), r.Role(), r.Others(), r.Voters())
		}
		for i := range 3 {
			if err := propose(t, r, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := m.seen(); !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Errorf("delivered: %q", got)
		}
		at := r.Committed()
		if r.NoCommands(1, at) || !r.NoCommands(1, 1) || !r.NoCommands(at+1, at+5) {
			t.Error("commands are told from raft's own entries wrongly")
		}
		if _, data, err := r.Entry(1); data != nil || err != nil {
			t.Errorf("raft's own entry: %q, %v", data, err)
		}
	})
	again := &machine{}
	r := alone(t, dir, again, false)
	until(t, "replay", func() bool { return slices.Equal(again.seen(), []string{"0", "1", "2"}) })
	until(t, "leadership", func() bool { return r.LeadingTerm() != 0 })
	again.refuse = errors.New("on purpose")
	if err := r.Snapshot(t.Context()); err == nil || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("the machine refuses: %v", err)
	}
	again.refuse = nil
	if err := r.Snapshot(t.Context()); err != nil || again.taken != 1 {
		t.Errorf("%d snapshots, %v", again.taken, err)
	}
}

// Watch tells of leadership won, and of its end.
func TestWatchTellsOfEveryChange(t *testing.T) {
	r := alone(t, t.TempDir(), &machine{}, true)
	ctx, cancel := context.WithCancel(t.Context())
	changed, over := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(over)
		r.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	for r.LeadingTerm() == 0 {
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing was told")
		}
	}
	cancel()
	<-over
}

// A delivery that does not return holds up Stop no longer than it is allowed to, and what was proposed is answered.
func TestStopEndsWhatWaits(t *testing.T) {
	dir, m := t.TempDir(), &machine{}
	t.Run("stop", func(t *testing.T) {
		r := alone(t, dir, m, true)
		until(t, "leadership", func() bool { return r.LeadingTerm() != 0 })
		if err := r.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		f := r.raft.Barrier(0)
		r.endWith(f)
		if v := reflect.ValueOf(f).Elem().FieldByName("ShutdownCh"); f.Error() != nil || !v.IsValid() || v.Interface() != any(r.ended) {
			t.Error("a future of raft cannot be told of its end: see endWith")
		}
		hold := make(chan struct{})
		m.mu.Lock()
		m.hold = hold
		m.mu.Unlock()
		answers := make(chan error, 3)
		for range cap(answers) {
			r.Propose([]byte("x"), func(err error) { answers <- err })
		}
		until(t, "commit", func() bool { return r.Committed() >= 5 })
		ended := r.ended
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		unblocked := false
		if err := r.Stop(ctx, func() { unblocked = true; close(hold) }); err != nil || !unblocked {
			t.Errorf("%v, unblocked %v", err, unblocked)
		}
		<-ended
		for range cap(answers) {
			select {
			case <-answers:
			case <-time.After(10 * time.Second):
				t.Fatal("a proposal is never answered")
			}
		}
		r.ended = make(chan struct{}) // for the Stop of the cleanup, which finds raft ended
	})
}

// A log that cannot be read ends raft's goroutines, and no caller's.
func TestLogThatCannotBeReadEndsNoCaller(t *testing.T) {
	r := alone(t, t.TempDir(), &machine{}, true)
	if err := r.cfg.Log.Close(); err != nil {
		t.Fatal(err)
	}
	returned := make(chan bool, 1)
	go func() {
		ok := false
		defer func() { returned <- ok }()
		ok = !r.NoCommands(999, 999)
	}()
	if !<-returned {
		t.Error("the caller's goroutine has ended, or the entry counts as none")
	}
}

// Only what raft never took in is known not to be applied.
func TestHazard14ErrorsOfProposals(t *testing.T) {
	for err, lost := range map[error]bool{
		raft.ErrNotLeader: false, raft.ErrEnqueueTimeout: false, raft.ErrLeadershipTransferInProgress: false,
		raft.ErrLeadershipLost: true, raft.ErrRaftShutdown: true, raft.ErrAbortedByRestore: true, errors.New("disk"): true,
	} {
		if got := Lost(fmt.Errorf("x: %w", err)); got != lost {
			t.Errorf("%v: the entry can still be committed: %v", err, got)
		}
	}
}
