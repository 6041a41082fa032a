package colmena_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// smallDisk mounts a file system of its own for one directory.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill takes all space that is left and returns how to give it back.
func fill(t *testing.T, dir string) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	for len(block) > 0 {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

func TestFullDiskOnAFollowerHoldsUpNobodyAndHeals(t *testing.T) {
	disk := smallDisk(t, 48)
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) {
		if i == 2 {
			cfg.DataDir = filepath.Join(disk, "node")
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Timeout)
	defer cancel()
	db := c.Node(0).DB()
	if _, err := db.ExecContext(ctx, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)"); err != nil {
		t.Fatal(err)
	}
	release := fill(t, disk)
	for range 30 {
		if _, err := db.ExecContext(ctx, "INSERT INTO t(b) VALUES(?)", strings.Repeat("x", 50_000)); err != nil {
			t.Fatalf("a write failed because a follower's disk is full: %v", err)
		}
	}
	release()
	c.WaitConverged()
}

func TestFullDiskOnASingleNodeRefusesWritesAndLosesNothing(t *testing.T) {
	disk := smallDisk(t, 64)
	cfg := colmena.Config{DataDir: filepath.Join(disk, "node"), LeaderWait: 500 * time.Millisecond}
	n, err := colmena.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { n.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Timeout)
	defer cancel()
	if _, err := n.DB().ExecContext(ctx, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)"); err != nil {
		t.Fatal(err)
	}
	acked := 0
	insert := func() error {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := n.DB().ExecContext(short, "INSERT INTO t(b) VALUES(?)", strings.Repeat("x", 20_000))
		if err == nil {
			acked++
		}
		return err
	}
	for range 10 {
		if err := insert(); err != nil {
			t.Fatal(err)
		}
	}
	release := fill(t, disk)
	failed := false
	for range 200 {
		if err := insert(); err != nil {
			t.Logf("refused after %d rows: %v", acked, err)
			failed = true
			break
		}
	}
	if !failed {
		t.Fatal("the disk never filled up")
	}
	// Reading goes on, unless it would miss a write that was acknowledged because the
	// log has it, while the file could not take it.
	var count int
	err = n.DB().QueryRowContext(colmena.WithConsistency(ctx, colmena.None), "SELECT count(*) FROM t").Scan(&count)
	if !errors.Is(err, colmena.ErrNotCaughtUp) && (err != nil || count < acked) {
		t.Errorf("%d rows, %v; %d were acknowledged", count, err, acked)
	}
	release()
	deadline := time.Now().Add(15 * time.Second)
	for err := insert(); err != nil; err = insert() {
		if time.Now().After(deadline) {
			t.Fatalf("writes do not flow again: %v", err)
		}
	}
	if err := n.DB().QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&count); err != nil || count < acked {
		t.Errorf("%d rows, %d were acknowledged, %v", count, acked, err)
	}
}

// A disk that is full ends the transaction that met it, which is told so, and nothing else.
func TestHazard05FullDiskEndsTheTransaction(t *testing.T) {
	disk := smallDisk(t, 64)
	n, err := colmena.New(colmena.Config{DataDir: filepath.Join(disk, "node")})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	exec(t, n, "CREATE TABLE t(a)")
	tx, err := n.DB().BeginTx(limit(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	release := fill(t, disk)
	for i := 0; err == nil && i < 20; i++ {
		_, err = tx.Exec("INSERT INTO t VALUES(zeroblob(4 << 20))")
	}
	const full = 13
	var e *colmena.SQLError
	if !errors.As(err, &e) || e.Primary != full || errors.Is(err, colmena.ErrTxAborted) || !colmena.SafeToRetry(err) {
		t.Errorf("the statement that met it: %v", err)
	}
	var aborted *colmena.TxAbortedError
	if err := tx.Commit(); !errors.As(err, &aborted) || aborted.Reason != colmena.TxAbortStatement {
		t.Errorf("the commit: %v", err)
	}
	release()
	exec(t, n, "INSERT INTO t VALUES(2)")
	wantNumber(t, n, colmena.Strong, 2, "SELECT sum(a) FROM t")
}
