package logstore

import (
	"errors"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mentasystems/colmena/internal/durable"
)

type nullFSM struct{}

func (nullFSM) Apply(*raft.Log) any                 { return nil }
func (nullFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }
func (nullFSM) Restore(r io.ReadCloser) error       { return r.Close() }

// startRaft starts a single voter on the store.
func startRaft(s *Store) (*raft.Raft, error) {
	conf := raft.DefaultConfig()
	conf.LocalID = "a"
	conf.LogOutput = io.Discard
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	addr, trans := raft.NewInmemTransport("a")
	snaps := raft.NewDiscardSnapshotStore()
	err := raft.BootstrapCluster(conf, s, s, snaps, trans, raft.Configuration{Servers: []raft.Server{{ID: "a", Address: addr}}})
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return nil, err
	}
	var r *raft.Raft
	err = s.Contain(func() (err error) {
		r, err = raft.NewRaft(conf, nullFSM{}, s.Log(), s.Stable(), snaps, trans)
		return err
	})
	return r, err
}

// stopRaft fails the test if Shutdown hangs.
func stopRaft(t *testing.T, r *raft.Raft) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- r.Shutdown().Error() }()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("raft.Shutdown hangs")
	}
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("waited too long for %s", what)
		panic("not reached")
	}
}

func TestRaftRunsOnTheStore(t *testing.T) {
	cfg := Config{Path: storePath(t), StoreID: "a"}
	for range 2 {
		s := mustOpen(t, cfg)
		r, err := startRaft(s)
		must(t, err)
		await(t, "leadership", r.LeaderCh())
		for range 20 {
			must(t, r.Apply([]byte("command"), 10*time.Second).Error())
		}
		stopRaft(t, r)
		must(t, s.Verify(t.Context()))
		must(t, s.Close())
	}
}

// raft panics on its main goroutine when it cannot save the term: neither a dead disk nor a full one may take the application down.
func TestATermThatCannotBeSavedEndsRaftNotTheProcess(t *testing.T) {
	for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
		fatal := make(chan error, 1)
		cfg := Config{Path: storePath(t), Fatal: func(err error) { fatal <- err }}
		s := mustOpen(t, cfg)
		r, err := startRaft(s)
		must(t, err)
		await(t, "leadership", r.LeaderCh())
		stopRaft(t, r)
		must(t, s.Close())

		// The node starts as a follower and times out into an election, whose term it cannot save.
		s = mustOpen(t, cfg)
		term, err := s.GetUint64([]byte(keyCurrentTerm))
		must(t, err)
		var armed atomic.Bool
		restore := durable.SetHook(func(op, path string) error {
			if armed.Load() && op == durable.OpAppend && path == cfg.Path {
				return errno
			}
			return nil
		})
		r, err = startRaft(s)
		must(t, err)
		armed.Store(true)
		// It may have been elected before the hook was armed: then the next append fails, it steps down, and the election after that fails.
		r.Apply([]byte("x"), time.Second)
		if err := await(t, "Fatal", fatal); !errors.Is(err, errno) {
			t.Fatalf("Fatal got %v", err)
		}
		for deadline := time.Now().Add(20 * time.Second); s.ended.Load() == nil; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatal("raft's goroutine goes on")
			}
		}
		future := r.Apply([]byte("y"), 50*time.Millisecond)
		stopRaft(t, r)
		if err := future.Error(); err == nil {
			t.Fatal("a raft without its main goroutine applied a command")
		}
		restore()
		after, err := s.GetUint64([]byte(keyCurrentTerm))
		must(t, err)
		if after > term+1 {
			t.Fatalf("the term went from %d to %d", term, after)
		}
		must(t, s.Close())
	}
}

func TestStartingRaftOnAStoreThatCannotWriteIsAnError(t *testing.T) {
	cfg := Config{Path: storePath(t)}
	s := mustOpen(t, cfg)
	r, err := startRaft(s)
	must(t, err)
	stopRaft(t, r)
	failOnce(t, durable.OpAppend, cfg.Path, syscall.EIO)
	if _, err := startRaft(s); !errors.Is(err, syscall.EIO) {
		t.Fatalf("starting raft returned %v", err)
	}
}

func TestAPanicWhileRaftStartsIsAnError(t *testing.T) {
	s := mustOpen(t, Config{Path: storePath(t)})
	if err := s.Contain(func() error { panic("no log") }); err == nil || !strings.Contains(err.Error(), "no log") {
		t.Fatalf("Contain returned %v", err)
	}
	must(t, s.Contain(func() error { return nil }))
}

// A committed entry that cannot be read ends the goroutine that needs it, and is reported.
func TestAnUnreadableEntryEndsTheGoroutineThatNeedsIt(t *testing.T) {
	fatal := make(chan error, 1)
	s := mustOpen(t, Config{Path: storePath(t), CacheEntries: -1, Fatal: func(err error) { fatal <- err }})
	// As if it had rotted: stored with a checksum of something else.
	must(t, s.bolt.StoreLogs([]*raft.Log{{Index: 1, Term: 1, Data: []byte("x"), Extensions: []byte{1, 2, 3, 4, sealVersion}}}))
	ended := make(chan bool, 1)
	go func() {
		reached := false
		defer func() { ended <- reached }()
		s.Log().GetLog(1, new(raft.Log))
		reached = true
	}()
	if await(t, "the goroutine's end", ended) {
		t.Fatal("GetLog returned")
	}
	if err := await(t, "Fatal", fatal); !isDamaged(err) {
		t.Fatalf("Fatal got %v", err)
	}
	if err := s.Log().GetLog(2, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("a missing entry: %v", err)
	}
}
