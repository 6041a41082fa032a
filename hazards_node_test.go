package colmena

import (
	"errors"
	"strings"
	"testing"
	"time"
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
	n.intake.Halt(errors.New("on purpose"))
	if _, err := n.takeSnapshot(); !errors.Is(err, ErrReplicaHalted) {
		t.Errorf("got %v", err)
	}
}

func TestHazard03UnsyncedLogIsRefusedForAMember(t *testing.T) {
	_, err := New(Config{DataDir: t.TempDir(), Bind: "127.0.0.1:0", Bootstrap: true, UnsafeNoRaftLogFsync: true})
	if err == nil || !strings.Contains(err.Error(), "UnsafeNoRaftLogFsync") {
		t.Errorf("got %v", err)
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
