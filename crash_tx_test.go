package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// crashHalves is written to by transactions: each adds both halves of a row, and its number to the count.
const crashHalves = "CREATE TABLE halves(writer INTEGER, n INTEGER, half INTEGER); CREATE TABLE counts(writer INTEGER PRIMARY KEY, n INTEGER NOT NULL)" // takes a half twice

// crashRow is a transaction that adds the row after the last one and returns its number. think is called
// between its halves.
func crashRow(ctx context.Context, tx *sql.Tx, writer int, think func()) (n int, err error) {
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(n), 0) + 1 FROM counts WHERE writer = ?", writer).Scan(&n); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO halves VALUES(?, ?, 1)", writer, n); err != nil {
		return 0, err
	}
	think()
	if _, err := tx.ExecContext(ctx, "INSERT INTO halves VALUES(?, ?, 2)", writer, n); err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO counts VALUES(?, ?) ON CONFLICT(writer) DO UPDATE SET n = excluded.n", writer, n)
	return n, err
}

// crashTxWriter is crashWriter with transactions, in the process that is killed.
func crashTxWriter(ctx context.Context, n *colmena.Node, r crashRun, w int) error {
	for range r.Rows {
		var row int
		err := colmena.InTx(ctx, n.DB(), nil, func(tx *sql.Tx) (err error) {
			row, err = crashRow(ctx, tx, r.Writer+w, func() { time.Sleep(2 * time.Millisecond) })
			return err
		})
		if err != nil {
			return err
		}
		fmt.Println("acked", r.Writer+w, row)
	}
	return nil
}

// crashTxClient runs transactions through a node that stays. What becomes of each it must be told: it was
// committed, or nothing of it happened.
type crashTxClient struct {
	writer int
	acked  int
	lost   int // that were aborted
	err    error
}

func (c *crashTxClient) run(ctx context.Context, n *colmena.Node, quit chan struct{}) {
	for c.err == nil {
		select {
		case <-quit:
			return
		default:
		}
		row, err := c.one(ctx, n)
		switch {
		case err == nil && row != c.acked+1:
			c.err = fmt.Errorf("writer %d: row %d was committed after row %d", c.writer, row, c.acked)
		case err == nil:
			c.acked = row
		case errors.Is(err, colmena.ErrTxAborted) && !errors.Is(err, colmena.ErrOutcomeUnknown):
			c.lost++
		default:
			c.err = fmt.Errorf("writer %d: a transaction through a node that was not killed: %w", c.writer, err)
		}
	}
}

func (c *crashTxClient) one(ctx context.Context, n *colmena.Node) (row int, err error) {
	tx, err := n.DB().BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	if row, err = crashRow(ctx, tx, c.writer, func() { time.Sleep(2 * time.Millisecond) }); err != nil {
		_ = tx.Rollback()
		return 0, err
	}
	return row, tx.Commit()
}

// TestLeaderKilledUnderTransactions kills the leader while clients on all nodes are in the middle of transactions.
func TestLeaderKilledUnderTransactions(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.SnapshotInterval = time.Hour })
	exec(t, c.Node(0), crashTable)
	exec(t, c.Node(0), crashHalves)
	kills, lost := 0, 0
	for _, point := range slices.Sorted(maps.Keys(crashPlans)) {
		for _, plan := range crashPlans[point] {
			if plan.kind != crashTx {
				continue
			}
			for i, nth := range plan.nth {
				if kills++; testing.Short() && (i > 0 || kills%4 != 1) {
					continue
				}
				if !t.Run(fmt.Sprintf("%s:%d", point, nth), func(t *testing.T) {
					c.TB = t
					lost += crashUnderTx(t, c, fmt.Sprintf("%s:%d", point, nth), 1000*kills)
				}) {
					c.SkipCompare = true
					return
				}
				c.TB = t
			}
		}
	}
	if lost == 0 {
		t.Error("no client of a node that stayed lost a transaction: nothing was tried")
	}
	t.Logf("%d transactions were aborted", lost)
}

// crashUnderTx kills the leader at a point, once. It returns how many transactions of others it took along.
func crashUnderTx(t *testing.T, c *testcluster.Cluster, point string, writer int) (lost int) {
	ctx := limit(t)
	victim := c.Node(crashVictim)
	run := crashRun{NodeID: victim.ID(), Dir: c.Config(crashVictim).DataDir, Bind: victim.Addr(), Join: c.Node(0).Addr(),
		Writer: writer, Writers: 2, Rows: 100_000, Transactions: true}
	c.Stop(crashVictim)
	c.Leader()
	quit := make(chan struct{})
	var wg sync.WaitGroup
	clients := make([]crashTxClient, 4)
	for i := range clients {
		clients[i].writer = writer + 10 + i
		wg.Go(func() { clients[i].run(ctx, c.Node(i%2), quit) })
	}
	single, singles := make([]error, 2), make([]int, 2) // finished writes are what transactions are parked for
	for i := range single {
		wg.Go(func() { single[i] = crashLoad(ctx, c.Node(i), writer+20+i, &singles[i], quit) })
	}
	stop := sync.OnceFunc(func() { close(quit); wg.Wait() })
	defer stop()
	acks := crashAcks{}
	crashStart(t, run, point, acks, func() { crashTransfer(t, ctx, c.Node(0), run.NodeID) })()
	victim = c.Start(crashVictim)
	if err := victim.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := errors.Join(single...); err != nil {
		t.Fatal(err)
	}
	for _, x := range clients {
		if x.err != nil {
			t.Fatal(x.err)
		}
		lost += x.lost
		acks[x.writer] = x.acked
	}
	if err := crashHalvesWhole(ctx, victim, writer, acks); err != nil {
		t.Fatal(err)
	}
	for i, n := range singles {
		wantNumber(t, victim, colmena.Strong, int64(n), "SELECT count(*) FROM crash WHERE writer = ?", writer+20+i)
	}
	c.Compare()
	return lost
}

// crashHalvesWhole checks that every acknowledged row is there once and whole, of the killed process's writers
// at most the next one too, and nothing else.
func crashHalvesWhole(ctx context.Context, n *colmena.Node, writer int, acks crashAcks) error {
	rows, err := n.DB().QueryContext(colmena.WithConsistency(ctx, colmena.Strong),
		`SELECT writer, n, count(*), sum(half), (SELECT n FROM counts WHERE counts.writer = halves.writer) FROM halves
WHERE writer BETWEEN ? AND ? GROUP BY writer, n ORDER BY writer, n`, writer, writer+999)
	if err != nil {
		return err
	}
	defer rows.Close()
	have, counted := crashAcks{}, crashAcks{}
	for rows.Next() {
		var w, i, halves, sum, count int
		if err := rows.Scan(&w, &i, &halves, &sum, &count); err != nil {
			return err
		}
		if halves != 2 || sum != 3 || i != have[w]+1 {
			return fmt.Errorf("writer %d: of row %d, after row %d, %d halves are there, of sum %d", w, i, have[w], halves, sum)
		}
		have[w], counted[w] = i, count
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for w := range have {
		if counted[w] != have[w] {
			return fmt.Errorf("writer %d: %d rows, and the count is %d", w, have[w], counted[w])
		}
	}
	for w := writer; w < writer+20; w++ {
		most := acks[w]
		if w < writer+10 {
			most++ // one may have been committed and not told any more
		}
		if have[w] < acks[w] || have[w] > most {
			return fmt.Errorf("writer %d: %d rows were acknowledged, %d are there", w, acks[w], have[w])
		}
	}
	return nil
}
