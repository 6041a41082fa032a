package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/mentasystems/colmena"
)

// cluster is three nodes in this process.
type cluster struct {
	nodes            []*colmena.Node
	leader, follower *colmena.Node
}

func startCluster(dir string) (*cluster, error) {
	c := &cluster{}
	var first string
	for i := range 3 {
		addr, err := freeAddr()
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		cfg := colmena.Config{NodeID: fmt.Sprint("node-", i+1), DataDir: filepath.Join(dir, fmt.Sprint("node-", i+1)), Bind: addr, Bootstrap: i == 0}
		if i == 0 {
			first = addr
		} else {
			cfg.Join = []string{first}
		}
		n, err := colmena.New(cfg)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.nodes = append(c.nodes, n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for voters := 0; voters < 3; time.Sleep(20 * time.Millisecond) {
		members, err := c.nodes[0].Members(ctx)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		voters = 0
		for _, m := range members {
			if m.Voter {
				voters++
			}
		}
	}
	for _, n := range c.nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, errors.Join(err, c.close())
		}
		if n.IsLeader() {
			c.leader = n
		} else {
			c.follower = n
		}
	}
	return c, nil
}

func (c *cluster) close() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

const insert = "INSERT INTO kv(k, v) VALUES(?, ?)"

func benchWrites(c *cluster, plain *sql.DB, consensus float64, r *report) error {
	if !wanted("write") {
		return nil
	}
	for _, db := range []*sql.DB{plain, c.leader.DB()} {
		if _, err := db.Exec("CREATE TABLE kv(id INTEGER PRIMARY KEY, k TEXT, v TEXT)"); err != nil {
			return err
		}
	}
	write := func(db *sql.DB) func(context.Context, int, int) error {
		return func(ctx context.Context, w, i int) error {
			_, err := db.ExecContext(ctx, insert, "key", "a value of some length")
			return err
		}
	}
	rate, p50, p99, err := measure(1, write(plain))
	if err != nil {
		return err
	}
	r.add(line{"write", "plain SQLite, synchronous=FULL, 1 writer", rate, p50, p99, ""})
	leader := map[int]float64{}
	for _, workers := range []int{1, 32, 128, 512} {
		rate, p50, p99, err := measure(workers, write(c.leader.DB()))
		if err != nil {
			return err
		}
		ratio := ""
		if workers == 1 {
			ratio = fmt.Sprintf("%.2f x consensus p50 (<= 1.3)", p50.Seconds()/consensus)
		}
		leader[workers] = rate
		r.add(line{"write", fmt.Sprintf("leader, %d writers", workers), rate, p50, p99, ratio})
	}
	rate, p50, p99, err = measure(128, write(c.follower.DB()))
	if err != nil {
		return err
	}
	r.add(line{"write", "follower, 128 writers", rate, p50, p99, fmt.Sprintf("%.2f x leader (>= 0.8)", rate/leader[128])})
	return nil
}

// transaction is three statements of an interactive transaction, with think time before each.
func transaction(ctx context.Context, db *sql.DB, think time.Duration) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for range 3 {
		if think > 0 {
			time.Sleep(think)
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO tx(k, v) VALUES(?, ?)", "key", "a value of some length"); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

func benchInteractive(c *cluster, _ *sql.DB, _ float64, r *report) error {
	if !wanted("interactive") {
		return nil
	}
	if _, err := c.leader.DB().Exec("CREATE TABLE tx(id INTEGER PRIMARY KEY, k TEXT, v TEXT)"); err != nil {
		return err
	}
	for _, n := range []struct {
		name string
		db   *sql.DB
	}{{"leader", c.leader.DB()}, {"follower", c.follower.DB()}} {
		var alone float64
		for _, workers := range []int{1, 32, 128} {
			rate, p50, p99, err := measure(workers, func(ctx context.Context, _, _ int) error { return transaction(ctx, n.db, 0) })
			if err != nil {
				return err
			}
			ratio := ""
			switch workers {
			case 1:
				alone = rate
			case 32:
				ratio = fmt.Sprintf("%.1f x one alone (>= 8)", rate/alone)
			default:
				ratio = fmt.Sprintf("%.1f x one alone", rate/alone)
			}
			r.add(line{"interactive", fmt.Sprintf("3 statements, %s, %d concurrent", n.name, workers), rate, p50, p99, ratio})
		}
	}
	return benchBesideThinkers(c, r)
}

// benchBesideThinkers measures a writer beside 32 transactions that think 1 ms before each
// statement.
func benchBesideThinkers(c *cluster, r *report) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 32)
	for range 32 {
		go func() {
			for ctx.Err() == nil {
				if err := transaction(context.Background(), c.leader.DB(), time.Millisecond); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	rate, p50, p99, err := measure(1, func(ctx context.Context, _, _ int) error {
		_, err := c.leader.DB().ExecContext(ctx, "INSERT INTO tx(k, v) VALUES('x', 'y')")
		return err
	})
	cancel()
	for range 32 {
		err = errors.Join(err, <-done)
	}
	if err != nil {
		return err
	}
	r.add(line{"interactive", "1 writer beside 32 transactions that think 1 ms", rate, p50, p99, fmt.Sprintf("p99 %v (<= 5 ms)", p99.Round(10*time.Microsecond))})
	return nil
}

func benchReads(c *cluster, plain *sql.DB, _ float64, r *report) error {
	if !wanted("read") {
		return nil
	}
	const rows = 10000
	for _, db := range []*sql.DB{plain, c.leader.DB()} {
		if _, err := db.Exec("CREATE TABLE r(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO r SELECT value, 'a value of some length' FROM (WITH RECURSIVE c(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM c WHERE value < 10000) SELECT value FROM c)"); err != nil {
			return err
		}
	}
	read := func(db *sql.DB, level colmena.ConsistencyLevel) func(context.Context, int, int) error {
		return func(ctx context.Context, w, i int) error {
			var v string
			return db.QueryRowContext(colmena.WithConsistency(ctx, level), "SELECT v FROM r WHERE id = ?", (w*7919+i*31)%rows+1).Scan(&v)
		}
	}
	for workers, target := range map[int]string{1: "3", 8: "1.8"} {
		floor, p50, p99, err := measure(workers, read(plain, colmena.None))
		if err != nil {
			return err
		}
		r.add(line{"read", fmt.Sprintf("plain SQLite, %d goroutines", workers), floor, p50, p99, ""})
		rate, p50, p99, err := measure(workers, read(c.follower.DB(), colmena.None))
		if err != nil {
			return err
		}
		r.add(line{"read", fmt.Sprintf("None, follower, %d goroutines", workers), rate, p50, p99, fmt.Sprintf("%.1f x plain (>= %s)", rate/floor, target)})
	}
	for _, l := range []struct {
		level   colmena.ConsistencyLevel
		workers int
		target  string
	}{{colmena.Weak, 1, "p50 <= 90 us"}, {colmena.Strong, 1, "p50 <= 100 us"}, {colmena.Strong, 8, ">= 100,000/s"}} {
		rate, p50, p99, err := measure(l.workers, read(c.follower.DB(), l.level))
		if err != nil {
			return err
		}
		r.add(line{"read", fmt.Sprintf("%v, follower, %d goroutines", l.level, l.workers), rate, p50, p99, l.target})
	}
	return nil
}
