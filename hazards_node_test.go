package colmena

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// alone is a node without a listener.
func alone(t *testing.T) *Node {
	t.Helper()
	n, err := New(Config{DataDir: t.TempDir(), SnapshotInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := n.DB().ExecContext(t.Context(), "CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	return n
}

// A replica that dropped what it was given must not let the log be cut.
func TestHazard02StoppedReplicaTakesNoSnapshot(t *testing.T) {
	n := alone(t)
	if err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	why := errors.New("on purpose")
	n.halted.Store(&why)
	if _, err := (&fsm{n}).Snapshot(); !errors.Is(err, ErrReplicaHalted) {
		t.Errorf("got %v", err)
	}
	n.halted.Store(nil)
}

func TestHazard03UnsyncedLogIsRefusedForAMember(t *testing.T) {
	_, err := New(Config{DataDir: t.TempDir(), Bind: "127.0.0.1:0", Bootstrap: true, UnsafeNoRaftLogFsync: true})
	if err == nil || !strings.Contains(err.Error(), "UnsafeNoRaftLogFsync") {
		t.Errorf("got %v", err)
	}
}

// Only what raft never took in is known not to be applied.
func TestHazard14ErrorsOfProposals(t *testing.T) {
	for err, lost := range map[error]bool{
		raft.ErrNotLeader: false, raft.ErrEnqueueTimeout: false, raft.ErrLeadershipTransferInProgress: false,
		raft.ErrLeadershipLost: true, raft.ErrRaftShutdown: true, raft.ErrAbortedByRestore: true, errors.New("disk"): true,
	} {
		if got := proposalLost(fmt.Errorf("x: %w", err)); got != lost {
			t.Errorf("%v: the entry can still be committed: %v", err, got)
		}
	}
}

// While a copy is on its way the log behind it is kept, or it would arrive too old.
func TestHazard19LogIsKeptWhileACopyIsOut(t *testing.T) {
	n := alone(t)
	if err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	metas, err := n.snaps.List()
	if err != nil || len(metas) == 0 {
		t.Fatalf("%d snapshots, %v", len(metas), err)
	}
	_, stream, err := n.snaps.Open(metas[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.DB().ExecContext(t.Context(), "INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	if err := n.Snapshot(t.Context()); err == nil {
		t.Error("a snapshot was taken, and the log may be cut")
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Snapshot(t.Context()); err != nil {
		t.Error(err)
	}
}

// A log that cannot be read ends raft's goroutines, and no caller's.
func TestLogThatCannotBeReadEndsNoCaller(t *testing.T) {
	n := alone(t)
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
	returned := make(chan bool, 1)
	go func() {
		ok := false
		defer func() { returned <- ok }()
		ok = !n.noCommands(999, 999)
	}()
	if !<-returned {
		t.Error("the caller's goroutine has ended, or the entry counts as none")
	}
}
