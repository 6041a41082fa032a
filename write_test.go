package colmena_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
	"github.com/mentasystems/colmena/internal/wire"
)

// A write that is too large fails by itself, not those that travel with it.
func TestTooLargeWriteFailsAlone(t *testing.T) {
	c := testcluster.New(t, 3)
	exec(t, c.Node(0), "CREATE TABLE kv(k INTEGER PRIMARY KEY, v)")
	ctx := limit(t)
	for _, n := range []*colmena.Node{c.Node(c.Follower()), c.Node(c.Leader())} {
		var wg sync.WaitGroup
		quit := make(chan struct{})
		for w := range 20 {
			wg.Go(func() {
				for {
					select {
					case <-quit:
						return
					default:
					}
					if _, err := n.DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES(?)", w); err != nil {
						t.Errorf("a small write: %v", err)
						return
					}
				}
			})
		}
		blob := make([]byte, 17<<20)
		for range 3 {
			_, err := n.DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES(?)", blob)
			var big *colmena.LimitError
			if !errors.As(err, &big) || !colmena.SafeToRetry(err) || errors.Is(err, colmena.ErrOutcomeUnknown) {
				t.Errorf("17 MiB: %v", err)
			}
		}
		close(quit)
		wg.Wait()
	}
	wantNumber(t, c.Node(0), colmena.Strong, 0, "SELECT count(*) FROM kv WHERE length(v) > 1000")
}

// A leader that hangs closes no connection. Writes that are on their way to it go on to
// the next leader as soon as there is one, and happen once.
func TestWritesLeaveALeaderThatHangs(t *testing.T) {
	c := testcluster.New(t, 3)
	exec(t, c.Node(0), "CREATE TABLE kv(k INTEGER PRIMARY KEY, v)")
	l := c.Leader()
	f, next := (l+1)%3, (l+2)%3
	exec(t, c.Node(f), "INSERT INTO kv(v) VALUES('before')")
	c.WaitConverged()
	release := c.Node(l).HoldDatabase(colmena.DefaultDatabase)
	defer release()
	var wg sync.WaitGroup
	ctx := limit(t)
	var mu sync.Mutex
	var last time.Time
	const writes = 8
	forwarded := c.Node(f).Status().ForwardedWrites
	for i := range writes {
		wg.Go(func() {
			_, err := c.Node(f).DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES(?)", i)
			if err != nil {
				t.Errorf("write %d: %v", i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			last = time.Now()
		})
	}
	c.Until("writes on their way", func() bool { return c.Node(f).Status().ForwardedWrites >= forwarded+writes })
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := c.Node(l).TransferLeadership(short, c.Node(next).ID()); err != nil {
		t.Logf("transfer: %v", err) // it waits for the writes that hang, and goes on without them
	}
	c.Until("another leader", func() bool { return c.Node(next).IsLeader() || c.Node(f).IsLeader() })
	led := time.Now()
	prompt(t, "the writes on their way", 3*time.Second, wg.Wait)
	t.Logf("answered %v after there was a leader", last.Sub(led).Round(time.Millisecond))
	release()
	wantNumber(t, c.Node(f), colmena.Strong, writes+1, "SELECT count(*) FROM kv")
}

// Closing while entries are being committed leaves no goroutine waiting for raft, even
// for an entry that raft forgets.
func TestCloseLeavesNoProposal(t *testing.T) {
	for range size(10) {
		n, err := colmena.New(colmena.Config{NodeID: "a", DataDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(limit(t))
		var begun sync.WaitGroup
		for i := range 6 {
			db := openDB(t, n, fmt.Sprint("d", i))
			begun.Add(1)
			wg.Go(func() {
				_, err := db.ExecContext(ctx, "CREATE TABLE t(a)")
				begun.Done()
				for err == nil {
					_, err = db.ExecContext(ctx, "INSERT INTO t VALUES(1)")
				}
				if !errors.Is(err, colmena.ErrClosed) {
					t.Error(err)
				}
			})
		}
		begun.Wait()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		cancel()
	}
	var stacks string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); runtime.Gosched() {
		buf := make([]byte, 1<<20)
		stacks = string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "deferError).Error") {
			return
		}
	}
	t.Errorf("proposals are waited for after Close:\n%s", stacks)
}

// A query that goes to a node that cannot answer it is asked again where it can be.
func TestQueryIsAskedAgain(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 3)
	c.WaitConverged()
	l := c.Leader()
	f, other := (l+1)%3, (l+2)%3
	for _, node := range []string{c.Node(other).ID(), "nobody", c.Node(l).ID(), c.Node(f).ID()} {
		if rows, err := c.Node(f).QueryAt(limit(t), node, "SELECT k FROM kv"); err != nil || rows != 3 {
			t.Errorf("asked of %s: %d rows, %v", node, rows, err)
		}
	}
	// The leader closes while queries are on their way to it.
	leader := c.Node(l).ID()
	quit, failed := make(chan struct{}), make(chan error, 4)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				// A result may break off; that it does not begin has no excuse.
				if _, err := c.Node(f).QueryAt(limit(t), leader, "SELECT k FROM kv"); err != nil && !errors.Is(err, colmena.ErrNotApplied) || errors.Is(err, colmena.ErrClosed) {
					failed <- err
					return
				}
			}
		})
	}
	c.Stop(l)
	exec(t, c.Node(f), "INSERT INTO kv(v) VALUES('after')")
	close(quit)
	wg.Wait()
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
	c.Start(l)
}

// The state of another node is not this one's.
func TestBrokenResultTellsOfTheOtherNode(t *testing.T) {
	for _, code := range []wire.ErrorCode{wire.ErrClosed, wire.ErrHalted, wire.ErrNotLeader, wire.ErrCanceled} {
		err := colmena.BrokenResult(code)
		for _, own := range []error{colmena.ErrClosed, colmena.ErrReplicaHalted, context.Canceled} {
			if errors.Is(err, own) {
				t.Errorf("%v over there looks like %v here: %v", code, own, err)
			}
		}
		if !colmena.SafeToRetry(err) {
			t.Errorf("%v: %v is not safe to retry", code, err)
		}
	}
}

// A write without a deadline outlasts ApplyTimeout and LeaderWait while its statement
// runs, on the leader and through a follower.
func TestWriteMayRunAsLongAsAStatementMay(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) {
		cfg.ApplyTimeout, cfg.LeaderWait = time.Second, 50*time.Millisecond
		cfg.MaxStatementTime = 1500 * time.Millisecond
	})
	exec(t, c.Node(0), "CREATE TABLE kv(k INTEGER PRIMARY KEY, v)")
	for _, i := range []int{c.Leader(), c.Follower()} {
		began := time.Now()
		_, err := c.Node(i).DB().Exec("INSERT INTO kv(v) WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT x FROM c WHERE x < 0")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, colmena.ErrNotApplied) || errors.Is(err, colmena.ErrOutcomeUnknown) {
			t.Errorf("node %d, after %v: %v", i, time.Since(began), err)
		}
		if d := time.Since(began); d < 1400*time.Millisecond {
			t.Errorf("ended after %v", d)
		}
	}
}
