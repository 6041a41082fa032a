//go:build linux

package logstore

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// On a real file system that runs full, appending fails, nothing that was acknowledged is lost, and with room it goes on.
func TestARealFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for unix.Unmount(dir, 0) != nil && time.Now().Before(deadline) {
		}
	})
	cfg := Config{Path: filepath.Join(dir, "raft.db"), CacheEntries: -1}
	s := mustOpen(t, cfg)
	ballast := filepath.Join(dir, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 600<<10), 0o600))
	acked, failures := uint64(0), 0
	for failures < 3 {
		err := s.StoreLogs(entries(acked+1, acked+3, 7000))
		if err == nil {
			if acked += 3; acked > 10_000 {
				t.Fatal("the disk never ran full")
			}
			continue
		}
		if failures++; !errors.Is(err, syscall.ENOSPC) || s.Failure() != nil {
			t.Fatalf("StoreLogs returned %v, failure %v", err, s.Failure())
		}
	}
	expectRange(t, s, 1, acked)
	must(t, s.Verify(t.Context()))
	must(t, os.Remove(ballast))
	must(t, s.StoreLogs(entries(acked+1, acked+3, 7000)))
	must(t, s.Close())
	s = mustOpen(t, cfg)
	expectRange(t, s, 1, acked+3)
	must(t, s.Verify(t.Context()))
	must(t, s.Close())
}
