package sqlite

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// Comparing with os.ReadFile drops SQLite's locks, which matters to nobody here.
func TestFilesAreReadThroughSQLite(t *testing.T) {
	for _, o := range []Options{{}, {Pinned: true}} {
		c, path := openWAL(t, o)
		must(t, c.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(300000)); INSERT INTO t VALUES(1)"))
		for name, f := range map[string]*File{"": c.MainFile(), "-wal": c.WALFile()} {
			want, err := os.ReadFile(path + name)
			must(t, err)
			size, err := f.Size()
			must(t, err)
			if size != int64(len(want)) {
				t.Fatalf("%q: size %d, want %d", name, size, len(want))
			}
			got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%q: the bytes differ", name)
			}
			b := make([]byte, 10)
			if n, err := f.ReadAt(b, size-4); n != 4 || err != io.EOF || !bytes.Equal(b[:4], want[size-4:]) {
				t.Errorf("%q: at the end %d %v", name, n, err)
			}
			if n, err := f.ReadAt(b, size+100); n != 0 || err != io.EOF {
				t.Errorf("%q: past the end %d %v", name, n, err)
			}
			if _, err := f.ReadAt(b, -1); err == nil {
				t.Errorf("%q: a negative offset is read", name)
			}
			if fd, ok := f.Fd(); ok != (runtime.GOOS != "windows") || ok && fd == 0 {
				t.Errorf("%q: descriptor %d %v", name, fd, ok)
			}
		}
		f := c.MainFile()
		must(t, c.Close())
		if _, err := f.Size(); err == nil {
			t.Error("a closed connection's file is read")
		}
	}
}

func TestWALFileExistsInWALModeOnly(t *testing.T) {
	c := openMemory(t)
	must(t, c.Exec("CREATE TABLE t(a)"))
	if c.MainFile() != nil || c.WALFile() != nil {
		t.Error("a database in memory has a file")
	}
	must(t, c.SyncWAL())
	must(t, c.SyncFile())

	c = open(t, filepath.Join(t.TempDir(), "x.db"), Options{Create: true})
	for _, mode := range []string{"DELETE", "PERSIST", "MEMORY", "WAL", "DELETE"} {
		must(t, c.Exec("PRAGMA journal_mode="+mode+"; DROP TABLE IF EXISTS t; BEGIN; CREATE TABLE t(a)"))
		if (c.WALFile() != nil) != (mode == "WAL") {
			t.Errorf("journal mode %s: WAL file %v", mode, c.WALFile())
		}
		must(t, c.SyncWAL())
		must(t, c.SyncFile())
		must(t, c.Exec("COMMIT"))
	}
}

func TestCheckpointModes(t *testing.T) {
	c, path := openWAL(t, Options{})
	must(t, c.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(1)"))
	must(t, c.SyncWAL())
	if n, done, err := c.Checkpoint(Passive); n < 2 || done != n || err != nil {
		t.Error(n, done, err)
	}
	r := open(t, path, Options{ReadOnly: true})
	must(t, r.Exec("BEGIN; SELECT * FROM t"))
	must(t, c.Exec("INSERT INTO t VALUES(2)"))
	n, done, err := c.Checkpoint(Truncate)
	wantCode(t, err, Busy)
	if n <= 0 || done >= n {
		t.Errorf("behind a reader: %d of %d", done, n)
	}
	must(t, r.Exec("COMMIT"))
	if n, done, err := c.Checkpoint(Truncate); n != 0 || done != 0 || err != nil {
		t.Error(n, done, err)
	}
	if size, err := c.WALFile().Size(); size != 0 || err != nil {
		t.Error(size, err)
	}
	if n, done, err := openMemory(t).Checkpoint(CheckpointFull); n != -1 || done != -1 || err != nil {
		t.Error(n, done, err)
	}
}

func init() {
	children["second"] = func() error {
		c, err := Open(os.Getenv("COLMENA_SQLITE_TEST_PATH"), Options{BusyTimeout: time.Millisecond})
		if err != nil {
			return err
		}
		_, err = query(c, "SELECT * FROM t")
		fmt.Print(err)
		return c.Close()
	}
}

// Nothing in this test may open and close the file by itself: that would drop
// the very locks it is about.
func TestSecondProcessIsKeptOut(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the platform has no exclusive VFS")
	}
	for _, o := range []Options{{}, {Pinned: true}} {
		c, path := openWAL(t, o)
		must(t, c.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(1)"))
		r := open(t, path, Options{ReadOnly: true})
		wantQuery(t, r, "SELECT a FROM t", "1")
		if got := runChild(t, "second", "COLMENA_SQLITE_TEST_PATH="+path); got != "database is locked (5) (SQLITE_BUSY)" {
			t.Errorf("the second process got %q", got)
		}
		must(t, r.Close())
		must(t, c.Close())
		if got := runChild(t, "second", "COLMENA_SQLITE_TEST_PATH="+path); got != "<nil>" {
			t.Errorf("after closing the second process got %q", got)
		}
	}
}
