package engine

import (
	"errors"
	"syscall"
	"testing"

	"github.com/mentasystems/colmena/internal/sqlite"
)

// Sync asks the disk for both files: where either cannot be synced it says so, and the
// replica stops, because the disk may not tell a second time. A pipe takes the place of
// the file, which no fsync succeeds on.
func TestHazard18SyncReachesTheDisk(t *testing.T) {
	for what, file := range map[string]func(*sqlite.Conn) *sqlite.File{"log": (*sqlite.Conn).WALFile, "main file": (*sqlite.Conn).MainFile} {
		t.Run(what, func(t *testing.T) {
			g := newGroup(t, 1)
			d := g.dbs[0]
			g.must("CREATE TABLE t(a)")
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
			fd, ok := file(d.check.conn).Fd()
			if !ok {
				t.Fatal("no file descriptor")
			}
			kept, err := syscall.Dup(int(fd))
			if err != nil {
				t.Fatal(err)
			}
			var pipe [2]int
			if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			swap := func(from int) {
				if err := syscall.Dup3(from, int(fd), syscall.O_CLOEXEC); err != nil {
					t.Fatal(err)
				}
			}
			swap(pipe[0])
			err = d.Sync()
			swap(kept)
			for _, f := range []int{kept, pipe[0], pipe[1]} {
				_ = syscall.Close(f)
			}
			if err == nil || !errors.Is(d.Err(), ErrHalted) {
				t.Errorf("Sync: %v, the replica: %v", err, d.Err())
			}
			g.mu.Lock()
			g.halts[0] = errors.New("on purpose")
			g.mu.Unlock()
		})
	}
}
