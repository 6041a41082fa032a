package colmena_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// isolate cuts node i off from all others, or heals with i < 0.
func isolate(c *testcluster.Cluster, i int) {
	for j, n := range c.Running() {
		switch {
		case i < 0:
			n.Partition(nil)
		case j == i:
			n.Partition(func(string) bool { return true })
		default:
			id := c.Config(i).NodeID
			n.Partition(func(other string) bool { return other == id })
		}
	}
}

func TestHazard15ExactlyOnceWhileLeadershipMoves(t *testing.T) {
	c := testcluster.New(t, 3)
	l := startLoad(t, c, 8)
	for i := range size(20) {
		l.await(20)
		if err := c.Node(i%3).TransferLeadership(limit(t), ""); err != nil {
			t.Logf("transfer: %v", err)
		}
	}
	l.await(20)
	l.stop()
}

func TestHazard15ExactlyOnceWhileNodesStopAndStart(t *testing.T) {
	c := testcluster.New(t, 3)
	l := startLoad(t, c, 8)
	for range size(10) {
		i := c.Leader()
		c.Stop(i)
		l.await(20)
		c.Start(i)
		c.WaitReady()
		l.await(20)
	}
	l.stop()
}

func TestHazard15ExactlyOnceWhileTheLeaderIsCutOff(t *testing.T) {
	c := testcluster.New(t, 3)
	l := startLoad(t, c, 8)
	var worst time.Duration
	for range max(2, size(10)/2) {
		i := c.Leader()
		l.longest.Store(0)
		isolate(c, i)
		l.await(200)
		worst = max(worst, time.Duration(l.longest.Load()))
		isolate(c, -1)
		l.await(50)
	}
	t.Logf("writes flowed again after at most %v", worst)
	if most := 10 * 250 * time.Millisecond; worst > most {
		t.Errorf("without a leader writes waited for %v, at most %v is right", worst, most)
	}
	l.stop()
}

// A register is written in ascending order; a reader must never see less than what was
// acknowledged, or seen by another reader, before it began.
func registerTest(t *testing.T, c *testcluster.Cluster, disturb func()) {
	t.Helper()
	exec(t, c.Node(0), "CREATE TABLE register(v INTEGER)")
	exec(t, c.Node(0), "INSERT INTO register VALUES(0)")
	rnd := random(t)
	seeds := []uint64{rnd.Uint64(), rnd.Uint64(), rnd.Uint64()}
	var known atomic.Int64 // acknowledged or seen
	var begun atomic.Int64
	var reads, writes atomic.Int64
	raise := func(v int64) {
		for have := known.Load(); v > have && !known.CompareAndSwap(have, v); have = known.Load() {
		}
	}
	quit := make(chan struct{})
	running := func() bool {
		select {
		case <-quit:
			return false
		default:
			return true
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for v := int64(1); running(); v++ {
			begun.Store(v)
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			_, err := c.Node(int(v)%3).DB().ExecContext(ctx, "UPDATE register SET v = max(v, ?)", v)
			cancel()
			if err == nil {
				raise(v)
				writes.Add(1)
			}
		}
	})
	for _, seed := range seeds {
		wg.Go(func() {
			for i := seed; running(); i = i*6364136223846793005 + 1442695040888963407 {
				least := known.Load()
				ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
				v, err := number(ctx, c.Node(int(i>>33%3)), colmena.Strong, "SELECT v FROM register")
				cancel()
				if err != nil {
					continue
				}
				reads.Add(1)
				if v < least || v > begun.Load() {
					t.Errorf("a Strong read saw %d, before it began %d was known", v, least)
					return
				}
				raise(v)
			}
		})
	}
	func() {
		defer wg.Wait()
		defer close(quit)
		disturb()
	}()
	t.Logf("%d writes, %d reads", writes.Load(), reads.Load())
	if writes.Load() == 0 || reads.Load() == 0 {
		t.Error("nothing was tried")
	}
}

// grows waits until a counter has grown.
func grows(c *testcluster.Cluster, what string, value func() uint64, by uint64) {
	want := value() + by
	c.Until(what, func() bool { return value() >= want })
}

func TestHazard22StrongReadsAreNeverStaleWhileLeadershipMoves(t *testing.T) {
	c := testcluster.New(t, 3)
	registerTest(t, c, func() {
		for i := range size(20) {
			grows(c, "writes", c.Node(0).AppliedIndex, 20)
			if err := c.Node(i%3).TransferLeadership(limit(t), ""); err != nil {
				t.Logf("transfer: %v", err)
			}
		}
	})
}

func TestHazard22StrongReadsAreNeverStaleWhenTheLeaderIsCutOff(t *testing.T) {
	c := testcluster.New(t, 3)
	registerTest(t, c, func() {
		for range max(2, size(10)/2) {
			i := c.Leader()
			isolate(c, i)
			grows(c, "writes", c.Node((i+1)%3).AppliedIndex, 8)
			isolate(c, -1)
			grows(c, "writes", c.Node(i).AppliedIndex, 8)
		}
	})
}

func TestHazard22MinorityLeaderRefusesWritesAndStrongReads(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.LeaderWait = time.Second })
	kv(t, c, 3)
	c.WaitConverged()
	i := c.Leader()
	old, other := c.Node(i), c.Node((i+1)%3)
	isolate(c, i)
	if v, err := number(limit(t), old, colmena.Strong, "SELECT count(*) FROM kv"); !errors.Is(err, colmena.ErrNoLeader) {
		t.Errorf("a Strong read on a minority leader: %d, %v", v, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := old.DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES('lost?')")
	if err == nil || !errors.Is(err, colmena.ErrNoLeader) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a write on a minority leader: %v", err)
	}
	t.Logf("the write got: %v", err)
	add(t, other, 1)
	wantNumber(t, old, colmena.None, 3, "SELECT count(*) FROM kv")
	isolate(c, -1)
	add(t, old, 1)
	c.WaitReady()
	rows, err := number(limit(t), old, colmena.Strong, "SELECT count(*) FROM kv WHERE v <> 'lost?'")
	if err != nil || rows != 5 {
		t.Errorf("%d rows, %v", rows, err)
	}
}

func TestErrNoLeaderAfterLeaderWait(t *testing.T) {
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) {
		cfg.LeaderWait = 150 * time.Millisecond
		if i == 2 {
			cfg.LeaderWait = -1
		}
	})
	c.SkipCompare = true
	kv(t, c, 1)
	c.WaitConverged()
	for i := range 3 {
		n := c.Node(i)
		n.Partition(func(string) bool { return true })
	}
	c.Until("no leader", func() bool {
		for _, n := range c.Running() {
			if _, ok := n.Leader(); ok {
				return false
			}
		}
		return true
	})
	for i := range 3 {
		n := c.Node(i)
		calls := map[string]func() error{
			"write":  func() error { _, err := n.DB().ExecContext(limit(t), "INSERT INTO kv(v) VALUES('x')"); return err },
			"Weak":   func() error { _, err := number(limit(t), n, colmena.Weak, "SELECT count(*) FROM kv"); return err },
			"Strong": func() error { _, err := number(limit(t), n, colmena.Strong, "SELECT count(*) FROM kv"); return err },
			"Members": func() error {
				_, err := n.Members(limit(t))
				return err
			},
			"TransferLeadership": func() error { return n.TransferLeadership(limit(t), "") },
			"DropDB":             func() error { return n.DropDB(limit(t), "x") },
			"Forward":            func() error { _, err := colmena.Forward(limit(t), n, echo, question{}); return err },
		}
		for what, call := range calls {
			most := time.Second
			if i == 2 {
				most = 150 * time.Millisecond
			}
			prompt(t, what, most, func() {
				if err := call(); !errors.Is(err, colmena.ErrNoLeader) {
					t.Errorf("node %d: %s without a leader: %v", i, what, err)
				} else if !colmena.SafeToRetry(err) {
					t.Errorf("node %d: %s without a leader is not safe to retry: %v", i, what, err)
				}
			})
		}
		wantNumber(t, n, colmena.None, 1, "SELECT count(*) FROM kv")
	}
}

func TestWeakReadsSeeAcknowledgedWrites(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 0)
	for i := range int64(size(100)) {
		add(t, c.Node(int(i)%3), 1)
		for _, n := range c.Running() {
			wantNumber(t, n, colmena.Weak, i+1, "SELECT count(*) FROM kv")
		}
	}
}

func TestHazard24FollowerReadsItsOwnWritesAtNone(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 0)
	n := c.Node(c.Follower())
	for i := range int64(size(200)) {
		add(t, n, 1)
		wantNumber(t, n, colmena.None, i+1, "SELECT count(*) FROM kv")
	}
	// Cut off right after the answer it may not have the entry: it waits a bounded
	// time and then says so, or it has it.
	add(t, n, 1)
	n.Partition(func(string) bool { return true })
	prompt(t, "a read at None without a leader", 4*time.Second, func() {
		v, err := number(limit(t), n, colmena.None, "SELECT count(*) FROM kv")
		if err == nil && v != int64(size(200)+1) || err != nil && !errors.Is(err, colmena.ErrNotCaughtUp) {
			t.Errorf("%d, %v", v, err)
		}
	})
	n.Partition(nil)
}

func TestMinIndexAndMaxStaleness(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	c.WaitConverged()
	i := c.Follower()
	n := c.Node(i)
	stale := func(d time.Duration) error {
		ctx := colmena.WithMaxStaleness(limit(t), d)
		var v int64
		return n.DB().QueryRowContext(ctx, "SELECT count(*) FROM kv").Scan(&v)
	}
	// A new term begins with entries that no database sees.
	if err := n.TransferLeadership(limit(t), c.Node(3-i-c.Leader()).ID()); err != nil {
		t.Fatal(err)
	}
	c.WaitReady()
	if err := stale(time.Second); err != nil {
		t.Errorf("a follower in touch with its leader, nothing written: %v", err)
	}
	at := c.Node(0).AppliedIndex()
	if v, err := number(colmena.WithMinIndex(limit(t), at), n, colmena.None, "SELECT count(*) FROM kv"); err != nil || v != 1 {
		t.Errorf("%d, %v", v, err)
	}
	n.Partition(func(string) bool { return true })
	add(t, c.Node(c.Leader()), 1)
	at = c.Node(c.Leader()).AppliedIndex()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	prompt(t, "a read of an index that does not come", time.Second, func() {
		if _, err := number(colmena.WithMinIndex(ctx, at), n, colmena.None, "SELECT count(*) FROM kv"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, colmena.ErrNotCaughtUp) {
			t.Errorf("an index that does not come: %v", err)
		}
	})
	c.Until("staleness", func() bool { return stale(100*time.Millisecond) != nil })
	if err := stale(100 * time.Millisecond); !errors.Is(err, colmena.ErrStale) {
		t.Errorf("cut off: %v", err)
	}
	if err := stale(time.Hour); err != nil {
		t.Errorf("within an hour: %v", err)
	}
	n.Partition(nil)
	if v, err := number(colmena.WithMinIndex(limit(t), at), n, colmena.None, "SELECT count(*) FROM kv"); err != nil || v != 2 {
		t.Errorf("%d, %v", v, err)
	}
	c.Until("freshness", func() bool { return stale(time.Second) == nil })
}

// What bounded staleness promises: what was acknowledged longer ago than the bound is
// seen, or the read says that it cannot prove it.
func TestMaxStalenessIsNeverOlder(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	c.WaitConverged()
	n := c.Node(c.Follower())
	leader := c.Node(c.Leader())
	const bound = 50 * time.Millisecond
	for i := range int64(size(50)) {
		add(t, leader, 1)
		acked := time.Now()
		for time.Since(acked) < 2*bound {
			began := time.Now()
			var v int64
			err := n.DB().QueryRowContext(colmena.WithMaxStaleness(limit(t), bound), "SELECT count(*) FROM kv").Scan(&v)
			if err != nil && !errors.Is(err, colmena.ErrStale) {
				t.Fatal(err)
			}
			if err == nil && v < i+2 && began.Sub(acked) > bound {
				t.Fatalf("a write acknowledged %v ago is not seen", began.Sub(acked))
			}
			if err == nil && v >= i+2 {
				break
			}
		}
	}
}
