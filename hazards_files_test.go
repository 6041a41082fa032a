package colmena_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// generation is the directory of a node's live database files.
func generation(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "generations", "g-*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("generations %v, %v", found, err)
	}
	return found[0]
}

// The log before a snapshot is gone, so a file that is older than the newest snapshot
// has lost acknowledged writes for good: the node must not start on it.
func TestHazard16FileOlderThanItsSnapshotIsRefused(t *testing.T) {
	cfg := colmena.Config{DataDir: t.TempDir(), SnapshotInterval: time.Hour}
	run := func(f func(n *colmena.Node)) {
		t.Helper()
		n, err := colmena.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		f(n)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	run(func(n *colmena.Node) { exec(t, n, "CREATE TABLE kv(k INTEGER PRIMARY KEY, v TEXT)"); add(t, n, 3) })
	live, kept := generation(t, cfg.DataDir), t.TempDir()
	if err := os.CopyFS(kept, os.DirFS(live)); err != nil {
		t.Fatal(err)
	}
	run(func(n *colmena.Node) {
		add(t, n, 3)
		if err := n.Snapshot(limit(t)); err != nil {
			t.Fatal(err)
		}
	})
	if err := errors.Join(os.RemoveAll(live), os.CopyFS(live, os.DirFS(kept))); err != nil {
		t.Fatal(err)
	}
	n, err := colmena.New(cfg)
	var stale *snapshot.StaleFilesError
	if !errors.As(err, &stale) {
		if err == nil {
			err = n.Close()
		}
		t.Fatalf("a node started on files older than its snapshot: %v", err)
	}
	t.Log(err)
}

// A node that was killed leaves its write-ahead logs behind. When a copy takes the
// files' place they must not be read into it.
func TestHazard17OldLogsStayBehindWhenACopyIsInstalled(t *testing.T) {
	c := testcluster.New(t, 3, shortLog)
	kv(t, c, 20)
	c.WaitConverged()
	i := c.Follower()
	old, kept := generation(t, c.Config(i).DataDir), t.TempDir()
	if err := os.CopyFS(kept, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	c.Stop(i)
	logs, err := filepath.Glob(filepath.Join(kept, "*-wal"))
	if err != nil || len(logs) < 2 {
		t.Fatalf("logs %v, %v: without any this shows nothing", logs, err)
	}
	for _, log := range logs {
		b, err := os.ReadFile(log)
		if err == nil {
			err = os.WriteFile(filepath.Join(old, filepath.Base(log)), b, 0o600)
		}
		if err != nil || len(b) == 0 {
			t.Fatalf("%s has %d bytes, %v", log, len(b), err)
		}
	}
	exec(t, c.Node(c.Leader()), "DELETE FROM kv")
	add(t, c.Node(c.Leader()), 40)
	cutLogs(t, c)
	add(t, c.Node(c.Leader()), 5)
	n := c.Start(i)
	c.WaitReady()
	c.Until("the copy's generation", func() bool {
		_, err := os.Stat(old)
		return errors.Is(err, fs.ErrNotExist)
	})
	if live := generation(t, c.Config(i).DataDir); live == old {
		t.Errorf("the copy went live in %s", live)
	}
	wantNumber(t, n, colmena.None, 45, "SELECT count(*) FROM kv")
	c.Compare()
}

// A database whose replay stands still holds up no other one.
func TestHazard27DatabasesApplyInParallel(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := c.Node(c.Leader()), c.Node(c.Follower())
	write := func(query string) {
		t.Helper()
		for _, name := range []string{"slow", "quick"} {
			db, err := leader.OpenDB(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.ExecContext(limit(t), query); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("CREATE TABLE t(a)")
	c.WaitConverged()
	release := follower.HoldDatabase("slow")
	defer release()
	write("INSERT INTO t VALUES(1)")
	rows := func(name string) (v int) {
		t.Helper()
		db, err := follower.OpenDB(name, colmena.None)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.QueryRowContext(limit(t), "SELECT count(*) FROM t").Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	c.Until("the quick database's row", func() bool { return rows("quick") == 1 })
	if n := rows("slow"); n != 0 {
		t.Errorf("%d rows in the database that is held", n)
	}
}

// A term begins with entries that no database ever sees. Reads wait for what is in the
// databases, not for those.
func TestHazard23ReadsDoNotWaitForEntriesThatNoDatabaseSees(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	c.WaitConverged()
	at := c.Node(0).AppliedIndex()
	for run := range 2 {
		next := c.Node(c.Follower())
		if err := next.TransferLeadership(limit(t), next.ID()); err != nil {
			t.Fatal(err)
		}
		c.WaitReady()
		for _, n := range c.Running() {
			for _, level := range []colmena.ConsistencyLevel{colmena.Weak, colmena.Strong} {
				prompt(t, fmt.Sprintf("a read at %v after transfer %d", level, run+1), 2*time.Second, func() {
					wantNumber(t, n, level, 1, "SELECT count(*) FROM kv")
				})
			}
		}
	}
	if now := c.Node(0).AppliedIndex(); now != at {
		t.Errorf("something was written meanwhile: entry %d, before %d", now, at)
	}
}
