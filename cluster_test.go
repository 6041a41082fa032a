package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

func TestSingleNode(t *testing.T) {
	dir := t.TempDir()
	for run := range 3 {
		start := time.Now()
		n, err := colmena.New(colmena.Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		db := n.DB()
		if run == 0 {
			if _, err := db.Exec("CREATE TABLE kv(key TEXT PRIMARY KEY, value TEXT)"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := db.Exec("INSERT INTO kv VALUES(?, ?)", fmt.Sprint("k", run), "v"); err != nil {
			t.Fatal(err)
		}
		t.Log("to first write", time.Since(start))
		var count int
		if err := db.QueryRow("SELECT count(*) FROM kv").Scan(&count); err != nil || count != run+1 {
			t.Fatalf("%d rows, %v", count, err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThreeNodes(t *testing.T) {
	c := testcluster.New(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Timeout)
	defer cancel()
	if _, err := c.Node(1).DB().ExecContext(ctx, "CREATE TABLE kv(k INTEGER PRIMARY KEY, v TEXT)"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		res, err := c.Node(i).DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES(?)", i)
		if err != nil {
			t.Fatal(err)
		}
		if id, _ := res.LastInsertId(); id != int64(i+1) {
			t.Errorf("node %d got LastInsertId %d", i, id)
		}
		for _, level := range []colmena.ConsistencyLevel{colmena.None, colmena.Weak, colmena.Strong} {
			for j := range 3 {
				if level == colmena.None && i != j {
					continue
				}
				var count int
				start := time.Now()
				if err := c.Node(j).DB().QueryRowContext(colmena.WithConsistency(ctx, level), "SELECT count(*) FROM kv").Scan(&count); err != nil || count != i+1 {
					t.Errorf("node %d at %v: %d rows, %v", j, level, count, err)
				}
				t.Logf("write on %d, read on %d at %v: %v", i, j, level, time.Since(start))
			}
		}
	}
}

func openDB(t *testing.T, n *colmena.Node, name string, opts ...colmena.DBOption) *sql.DB {
	t.Helper()
	db, err := n.OpenDB(name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestDatabasesAreIsolated(t *testing.T) {
	c := testcluster.New(t, 3)
	ctx := limit(t)
	for i, name := range []string{"a", "b", "c"} {
		db := openDB(t, c.Node(i), name)
		if _, err := db.ExecContext(ctx, "CREATE TABLE t(v); INSERT INTO t VALUES(?)", name); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Running() {
		if err := n.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		if names := n.Databases(); len(names) != 3 {
			t.Errorf("node %s knows %v", n.ID(), names)
		}
		for _, name := range []string{"a", "b", "c"} {
			var v string
			if err := openDB(t, n, name, colmena.Strong).QueryRowContext(ctx, "SELECT v FROM t").Scan(&v); err != nil || v != name {
				t.Errorf("node %s, database %s: %q, %v", n.ID(), name, v, err)
			}
		}
	}
	if _, err := c.Node(0).DB().QueryContext(ctx, "SELECT v FROM t"); err == nil {
		t.Error("the default database has another one's table")
	}
}

func TestDroppedDatabaseIsMadeAnew(t *testing.T) {
	c := testcluster.New(t, 3)
	ctx := limit(t)
	for run := range size(20) {
		n := c.Node(run % 3)
		db := openDB(t, n, "d")
		if _, err := db.ExecContext(ctx, "CREATE TABLE t(run); INSERT INTO t VALUES(?)", run); err != nil {
			t.Fatalf("run %d: %v", run, err)
		}
		for _, n := range c.Running() {
			var v int
			if err := openDB(t, n, "d", colmena.Strong).QueryRowContext(ctx, "SELECT run FROM t").Scan(&v); err != nil || v != run {
				t.Fatalf("run %d, node %s: %d, %v", run, n.ID(), v, err)
			}
		}
		dropper := c.Node((run + 1) % 3)
		if err := dropper.DropDB(ctx, "d"); err != nil {
			t.Fatal(err)
		}
		if names := dropper.Databases(); len(names) > 0 {
			t.Fatalf("run %d: where it was dropped there is still %v", run, names)
		}
		if _, err := db.QueryContext(ctx, "SELECT run FROM t"); err == nil || !strings.Contains(err.Error(), "no such table") {
			t.Fatalf("run %d: a dropped database answers %v", run, err)
		}
	}
	c.WaitConverged()
	for i := range 3 {
		c.Until(fmt.Sprintf("end of the dropped files on node %d", i), func() bool {
			left, err := filepath.Glob(filepath.Join(c.Config(i).DataDir, "generations", "*", "db.*"))
			return err == nil && len(left) == 0
		})
	}
}

func TestDropWhileWritersWrite(t *testing.T) {
	c := testcluster.New(t, 3)
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 6 {
		db := openDB(t, c.Node(w%3), "d")
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				_, err := db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS t(v); INSERT INTO t VALUES(?)", i)
				cancel()
				if err != nil && !errors.Is(err, colmena.ErrOutcomeUnknown) && !colmena.SafeToRetry(err) {
					t.Errorf("a write while the database was dropped: %v", err)
					return
				}
			}
		})
	}
	for i := range size(30) {
		if err := c.Node(i%3).DropDB(limit(t), "d"); err != nil {
			t.Errorf("drop: %v", err)
		}
	}
	close(quit)
	wg.Wait()
}

func TestDatabaseNamesAreValidated(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "data")
	n, err := colmena.New(colmena.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	exec(t, n, "CREATE TABLE t(a)")
	for _, name := range []string{"../escape", "..", ".", "a/b", "a\\b", "A", "a.b", "a b", "ä", "a\x00", strings.Repeat("a", 65), "/tmp/x"} {
		if db, err := n.OpenDB(name); err == nil {
			db.Close()
			t.Errorf("OpenDB(%q) gives a handle", name)
		}
		if err := n.DropDB(limit(t), name); err == nil {
			t.Errorf("DropDB(%q) is no error", name)
		}
		if _, err := n.ExecMulti(limit(t), name, []colmena.Statement{{SQL: "CREATE TABLE t(a)"}}); err == nil {
			t.Errorf("ExecMulti(%q) is no error", name)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the data directory there are %v, %v", entries, err)
	}
}

func TestViolationIsItsWritersAlone(t *testing.T) {
	c := testcluster.New(t, 3)
	exec(t, c.Node(0), "CREATE TABLE u(k INTEGER PRIMARY KEY, v UNIQUE, w NOT NULL DEFAULT 1 CHECK(w > 0))")
	exec(t, c.Node(0), "INSERT INTO u(k, v) VALUES(-1, 'taken')")
	for run := range size(20) {
		n := c.Node(run % 3)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for w := range 20 {
			wg.Go(func() {
				<-start
				v := fmt.Sprintf("%d-%d", run, w)
				if w%5 == 0 {
					v = "taken"
				}
				_, err := n.DB().ExecContext(limit(t), "INSERT INTO u(k, v) VALUES(?, ?)", run*100+w, v)
				if w%5 == 0 && !colmena.IsUnique(err) || w%5 != 0 && err != nil {
					t.Errorf("run %d, writer %d on node %s: %v", run, w, n.ID(), err)
				}
			})
		}
		close(start)
		wg.Wait()
	}
	wantNumber(t, c.Node(1), colmena.Strong, int64(1+16*size(20)), "SELECT count(*) FROM u")
}

func TestErrorsAreTheSameEverywhere(t *testing.T) {
	c := testcluster.New(t, 3)
	exec(t, c.Node(0), "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE u(k TEXT PRIMARY KEY, v UNIQUE, w NOT NULL DEFAULT 1 CHECK(w > 0), p REFERENCES p(id)); INSERT INTO u(k, v) VALUES('a', 'b')")
	c.WaitConverged()
	cases := []struct {
		sql  string
		code int
		is   func(error) bool
	}{
		{"INSERT INTO u(k, v) VALUES('x', 'b')", 2067, colmena.IsUnique},
		{"INSERT INTO u(k, v) VALUES('a', 'c')", 1555, colmena.IsUnique},
		{"INSERT INTO u(k, w) VALUES('x', NULL)", 1299, colmena.IsNotNull},
		{"INSERT INTO u(k, w) VALUES('x', 0)", 275, colmena.IsCheck},
		{"PRAGMA foreign_keys=ON; INSERT INTO u(k, p) VALUES('x', 7)", 787, colmena.IsForeignKey},
		{"INSERT INTO nowhere VALUES(1)", 1, nil},
		{"INSERT INTO u(k) VALUES(", 1, nil},
		{"SELECT nothing FROM u", 1, nil},
		{"SELECT abs(-9223372036854775808) FROM u", 1, nil},
	}
	for _, tc := range cases {
		var want *colmena.SQLError
		for i := range 3 {
			db := openDB(t, c.Node((c.Leader()+i)%3), "", colmena.Strong)
			_, err := db.ExecContext(limit(t), tc.sql)
			got, ok := err.(*colmena.SQLError) // as it is: callers look at its type
			if !ok || got.ExtendedCode != tc.code || tc.is != nil && !tc.is(err) || !colmena.SafeToRetry(err) {
				t.Errorf("%s: %v", tc.sql, err)
				continue
			}
			if want == nil {
				want = got
			} else if *got != *want || got.Error() != want.Error() {
				t.Errorf("%s: on the leader\n%+v\non a follower\n%+v", tc.sql, want, got)
			}
		}
	}
	for _, q := range []string{"INSERT INTO u(k, v) VALUES('r', random())", "ATTACH 'x' AS y", "VACUUM INTO 'x'"} {
		var want string
		for i := range 3 {
			_, err := c.Node((c.Leader()+i)%3).DB().ExecContext(limit(t), q)
			if err == nil || i > 0 && err.Error() != want || !colmena.SafeToRetry(err) {
				t.Errorf("%s on follower %d: %v, on the leader: %s", q, i, err, want)
			} else if i == 0 {
				want = err.Error()
			}
		}
	}
}

func TestCancellationIsPrompt(t *testing.T) {
	const endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
	c := testcluster.New(t, 3)
	exec(t, c.Node(0), "CREATE TABLE t(a)")
	c.WaitConverged()
	stages := map[string]struct {
		sql   string
		level colmena.ConsistencyLevel
	}{
		"a running write":           {"INSERT INTO t " + endless + "SELECT max(n) FROM c", colmena.Weak},
		"a running read":            {endless + "SELECT max(n) FROM c", colmena.None},
		"a running read at Strong":  {endless + "SELECT max(n) FROM c", colmena.Strong},
		"a write behind a long one": {"INSERT INTO t VALUES(1)", colmena.Weak},
	}
	for i := range 3 {
		n := c.Node(i)
		for what, stage := range stages {
			var wg sync.WaitGroup
			if strings.Contains(what, "behind") {
				long, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer stop()
				wg.Go(func() { _, _ = c.Node(0).DB().ExecContext(long, stages["a running write"].sql) })
			}
			for _, kind := range []string{"cancelled", "past its deadline"} {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				want := context.DeadlineExceeded
				if kind == "cancelled" {
					want = context.Canceled
					ctx, cancel = context.WithCancel(t.Context())
					time.AfterFunc(50*time.Millisecond, cancel)
				}
				prompt(t, fmt.Sprintf("node %d: %s, %s", i, what, kind), time.Second, func() {
					rows, err := n.DB().QueryContext(colmena.WithConsistency(ctx, stage.level), stage.sql)
					if err == nil {
						for rows.Next() {
						}
						err = rows.Err()
						rows.Close()
					}
					if !errors.Is(err, want) && !strings.Contains(what, "behind") {
						t.Errorf("node %d: %s, %s: %v", i, what, kind, err)
					}
				})
				cancel()
			}
			wg.Wait()
		}
		exec(t, n, "INSERT INTO t VALUES(2)")
	}
	expired, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if _, err := c.Node(0).DB().ExecContext(expired, "INSERT INTO t VALUES(3)"); !colmena.SafeToRetry(err) {
		t.Errorf("before anything was sent: %v", err)
	}
}

func TestAfterCloseEveryCallSaysSo(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.LeaderWait = 5 * time.Second })
	kv(t, c, 1)
	for _, i := range []int{c.Follower(), c.Leader()} {
		n := c.Node(i)
		db := openDB(t, n, "")
		ctx, cancel := context.WithCancel(t.Context())
		// Calls that are under way when the node closes.
		waiting := make(chan error, 8)
		began := make(chan struct{}, 8)
		for _, call := range []func() error{
			func() error {
				_, err := number(colmena.WithMinIndex(ctx, 1<<40), n, colmena.None, "SELECT 1")
				return err
			},
			func() error {
				_, err := number(ctx, n, colmena.None, "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c")
				return err
			},
		} {
			go func() { began <- struct{}{}; waiting <- call() }()
			<-began
		}
		prompt(t, "Close", 6*time.Second, func() { c.Stop(i) })
		for range 2 {
			select {
			case err := <-waiting:
				if err == nil {
					t.Error("a call under way at Close gave no error")
				} else if !errors.Is(err, colmena.ErrClosed) {
					t.Errorf("a call under way at Close: %v", err)
				}
			case <-time.After(testcluster.Timeout):
				t.Fatal("a call under way at Close hangs")
			}
		}
		_, openErr := n.OpenDB("x")
		_, membersErr := n.Members(ctx)
		_, execErr := db.ExecContext(ctx, "INSERT INTO kv(v) VALUES('x')")
		_, multiErr := n.ExecMulti(ctx, "", []colmena.Statement{{SQL: "INSERT INTO kv(v) VALUES('x')"}})
		_, queryErr := number(ctx, n, colmena.None, "SELECT 1")
		_, strongErr := number(ctx, n, colmena.Strong, "SELECT 1")
		_, forwardErr := colmena.Forward(ctx, n, echo, question{})
		for what, err := range map[string]error{
			"OpenDB": openErr, "Members": membersErr, "Exec": execErr, "ExecMulti": multiErr, "None": queryErr, "Strong": strongErr, "Forward": forwardErr,
			"Snapshot": n.Snapshot(ctx), "DropDB": n.DropDB(ctx, "x"), "WaitReady": n.WaitReady(ctx), "WaitForLeader": n.WaitForLeader(ctx),
			"RemoveNode": n.RemoveNode(ctx, "x"), "TransferLeadership": n.TransferLeadership(ctx, ""), "AddVoter": n.AddVoter(ctx, "x"), "DemoteVoter": n.DemoteVoter(ctx, "x"),
		} {
			if !errors.Is(err, colmena.ErrClosed) {
				t.Errorf("node %d: %s after Close: %v", i, what, err)
			}
		}
		_, _, _, _ = n.AppliedIndex(), n.IsLeader(), n.Databases(), n.Addr()
		n.Leader()
		if err := n.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
		cancel()
		c.Start(i)
		c.WaitReady()
	}
}

func TestOpensAndClosesLeaveNothingBehind(t *testing.T) {
	dir := t.TempDir()
	before := goleak.IgnoreCurrent()
	for i := range 20 {
		cfg := colmena.Config{NodeID: "a", DataDir: dir}
		if i%2 == 1 {
			cfg.Bind, cfg.Bootstrap = "127.0.0.1:0", true
		}
		n, err := colmena.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if i%3 != 0 {
			exec(t, n, "CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(?)", i)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := goleak.Find(before); err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
	}
	n, err := colmena.New(colmena.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	wantNumber(t, n, colmena.Strong, 13, "SELECT count(*) FROM t")
	if names := n.Databases(); !slices.Equal(names, []string{colmena.DefaultDatabase}) {
		t.Errorf("databases %v", names)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCloseWhileWritersWrite(t *testing.T) {
	n, err := colmena.New(colmena.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	exec(t, n, "CREATE TABLE t(a)")
	db := n.DB()
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range cap(errs) {
		wg.Go(func() {
			for {
				if _, err := db.ExecContext(context.Background(), "INSERT INTO t VALUES(1)"); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	at := n.AppliedIndex() + 20
	for n.AppliedIndex() < at {
		wantNumber(t, n, colmena.None, 1, "SELECT 1")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	prompt(t, "writers after Close", time.Second, wg.Wait)
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, colmena.ErrClosed) {
			t.Errorf("a write under way at Close: %v", err)
		}
	}
}
