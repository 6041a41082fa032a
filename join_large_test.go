package colmena_test

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

var joinMiB = flag.Int("join.mib", 48, "size of the database that a fourth node joins while writers write; 1024 for the figure in DESIGN.md")

// A node that joins a large database, whose log is gone, gets it as a copy; writers write
// meanwhile, and none of them fails.
func TestFourthNodeJoinsALargeDatabaseWhileWritersWrite(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { colmena.SetTrailingLogs(cfg, 16) })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	db := c.Running()[0].DB()
	if _, err := db.ExecContext(ctx, "CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB); CREATE TABLE w(id INTEGER PRIMARY KEY, v)"); err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 256<<10)
	mib := *joinMiB
	if testing.Short() {
		mib = min(mib, 8)
	}
	for i := range mib * 4 {
		chunk[i%len(chunk)]++
		if _, err := db.ExecContext(ctx, "INSERT INTO big(b) VALUES(?)", chunk); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Running() {
		if err := n.Snapshot(ctx); err != nil {
			t.Fatal(err)
		}
	}
	quit := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	for w := range 8 {
		wg.Go(func() {
			n := c.Running()[w%3]
			for {
				select {
				case <-quit:
					return
				default:
				}
				began := time.Now()
				if _, err := n.DB().ExecContext(ctx, "INSERT INTO w(v) VALUES(?)", w); err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	began := time.Now()
	i := c.Add()
	c.WaitVoters(4)
	joined := time.Since(began)
	close(quit)
	wg.Wait()
	// The sender counts a copy when it hears that it has arrived.
	c.Until("the copy: the log was sent instead, which is another test", func() bool { return c.Node(c.Leader()).Status().SnapshotSends > 0 })
	want, err := number(ctx, c.Running()[0], colmena.Strong, "SELECT count(*) FROM w")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := number(ctx, c.Node(i), colmena.Weak, "SELECT count(*) FROM w"); err != nil || got != want || int(want) != len(took) {
		t.Errorf("the fourth node has %d rows, %v; the others %d, acknowledged were %d", got, err, want, len(took))
	}
	slices.Sort(took)
	t.Logf("%s", fmt.Sprintf("%d MiB: a voter after %v; %d writes meanwhile, p99 %v", mib, joined.Round(time.Millisecond), len(took), took[len(took)*99/100].Round(time.Microsecond)))
}
