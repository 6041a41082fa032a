package colmena_test

import (
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// The largest result that a write may return, at the largest MaxResultBytes there is, comes
// through a follower, and the other replicas repeat the write.
func TestLargestReturnedResult(t *testing.T) {
	const most, rows = 32 << 20, 33
	c := testcluster.New(t, 2, func(_ int, cfg *colmena.Config) { cfg.MaxResultBytes = most })
	follower := c.Node(c.Follower())
	exec(t, follower, "CREATE TABLE t(a)")
	const insert = "INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?) SELECT i FROM s RETURNING zeroblob(?)"
	tx, err := follower.DB().BeginTx(limit(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []querier{tx, follower.DB()} {
		got, err := q.QueryContext(limit(t), insert, rows, most/rows-64)
		if err != nil {
			t.Fatal(err)
		}
		k := 0
		for got.Next() {
			k++
		}
		if err := got.Err(); err != nil || k != rows {
			t.Errorf("%d rows, %v", k, err)
		}
		if q == tx {
			if err := tx.Commit(); err != nil {
				t.Error(err)
			}
		}
	}
	wantNumber(t, follower, colmena.Strong, 2*rows, "SELECT count(*) FROM t")
}
