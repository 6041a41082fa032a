package colmena_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// A node that has much to replay closes between two entries, and goes on there.
func TestCloseInterruptsALongReplay(t *testing.T) {
	const entries, each = 300, 50 * time.Millisecond
	var slow, calls atomic.Int64
	slow.Store(-1)
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) {
		cfg.Functions = []colmena.Function{{Name: "work", Args: 0, Version: "1", Func: func([]any) (any, error) {
			if slow.Load() == int64(i) {
				calls.Add(1)
				time.Sleep(each)
			}
			return int64(1), nil
		}}}
	})
	follower := c.Follower()
	exec(t, c.Node(c.Leader()), "CREATE TABLE t(v)")
	c.WaitConverged()
	c.Stop(follower)
	db := c.Node(c.Leader()).DB()
	for range entries {
		mustExec(t, db, "INSERT INTO t VALUES(work())")
	}
	slow.Store(int64(follower))
	c.Start(follower)
	c.Until("replay", func() bool { return calls.Load() > 0 })
	began := time.Now()
	c.Stop(follower)
	took := time.Since(began)
	t.Logf("Close took %v, %d entries were replayed", took, calls.Load())
	if took > entries*each/2 || calls.Load() > entries/2 {
		t.Errorf("Close took %v and waited for %d entries of %d", took, calls.Load(), entries)
	}
	slow.Store(-1)
	c.Start(follower)
	c.WaitConverged()
	wantNumber(t, c.Node(follower), colmena.None, entries, "SELECT count(*) FROM t")
}
