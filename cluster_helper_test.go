package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// size is n, or a tenth of it when tests are to be short, as under the race detector.
func size(n int) int {
	if testing.Short() {
		return max(1, n/10)
	}
	return n
}

// limit is a context that ends a test before the test's own timeout does.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Timeout)
	t.Cleanup(cancel)
	return ctx
}

func exec(t *testing.T, n *colmena.Node, query string, args ...any) sql.Result {
	t.Helper()
	res, err := n.DB().ExecContext(limit(t), query, args...)
	if err != nil {
		t.Fatalf("node %s: %s: %v", n.ID(), query, err)
	}
	return res
}

// number reads one number at a level.
func number(ctx context.Context, n *colmena.Node, level colmena.ConsistencyLevel, query string, args ...any) (int64, error) {
	var v int64
	err := n.DB().QueryRowContext(colmena.WithConsistency(ctx, level), query, args...).Scan(&v)
	return v, err
}

func wantNumber(t *testing.T, n *colmena.Node, level colmena.ConsistencyLevel, want int64, query string, args ...any) {
	t.Helper()
	if got, err := number(limit(t), n, level, query, args...); err != nil || got != want {
		t.Fatalf("node %s at %v: %s: %d, %v; want %d", n.ID(), level, query, got, err, want)
	}
}

// prompt fails the test if f takes longer than most.
func prompt(t *testing.T, what string, most time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	began := time.Now()
	go func() { defer close(done); f() }()
	select {
	case <-done:
		if d := time.Since(began); d > most {
			t.Errorf("%s took %v, at most %v is right", what, d, most)
		}
	case <-time.After(testcluster.Timeout):
		t.Fatalf("%s hangs", what)
	}
}

// seedFlag gives a randomised test the seed that it printed.
var seedFlag = flag.Uint64("seed", 0, "seed of the randomised tests, 0 takes a new one each time")

// random prints its seed.
func random(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: go test -run '^%s$' -seed %d", seed, t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// load is a number of writers that insert unique rows through every node, into a table
// that would take a row twice.
type load struct {
	t    *testing.T
	c    *testcluster.Cluster
	quit chan struct{}
	wg   sync.WaitGroup

	rounds  atomic.Int64
	ackedAt atomic.Int64 // when a write was last acknowledged, unix nanoseconds
	longest atomic.Int64 // nanoseconds between two acknowledgements

	mu      sync.Mutex
	acked   []int64
	unknown []int64
	refused []int64
	failure error // one that is no kind of error a write may have
}

// patience is how long a writer waits for one row.
const patience = 10 * time.Second

func startLoad(t *testing.T, c *testcluster.Cluster, writers int) *load {
	t.Helper()
	exec(t, c.Running()[0], "CREATE TABLE load(seq INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER NOT NULL)")
	l := &load{t: t, c: c, quit: make(chan struct{})}
	l.ackedAt.Store(time.Now().UnixNano())
	for w := range writers {
		l.wg.Go(func() { l.write(int64(w)) })
	}
	l.await(writers)
	return l
}

func (l *load) write(w int64) {
	for i := int64(0); ; i++ {
		select {
		case <-l.quit:
			return
		default:
		}
		nodes := l.c.Running()
		if len(nodes) == 0 {
			continue
		}
		id := w<<32 | i
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, err := nodes[int(w)%len(nodes)].DB().ExecContext(ctx, "INSERT INTO load(id) VALUES(?)", id)
		cancel()
		l.note(id, err)
	}
}

func (l *load) note(id int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acked = append(l.acked, id)
		now := time.Now().UnixNano()
		l.longest.Store(max(l.longest.Load(), now-l.ackedAt.Swap(now)))
		l.rounds.Add(1)
	case colmena.SafeToRetry(err) || errors.Is(err, colmena.ErrClosed) && !errors.Is(err, colmena.ErrOutcomeUnknown):
		l.refused = append(l.refused, id)
	case errors.Is(err, colmena.ErrOutcomeUnknown):
		l.unknown = append(l.unknown, id)
	default:
		l.failure = err
	}
}

// await waits until so many more rows are acknowledged.
func (l *load) await(rows int) {
	l.t.Helper()
	want := l.rounds.Load() + int64(rows)
	l.c.Until(fmt.Sprintf("%d more rows", rows), func() bool { return l.rounds.Load() >= want })
}

// stop ends the load, and checks that every row is there as often as was told.
func (l *load) stop() {
	l.t.Helper()
	close(l.quit)
	l.wg.Wait()
	n := l.c.Running()[0]
	rows, err := n.DB().QueryContext(colmena.WithConsistency(limit(l.t), colmena.Strong), "SELECT id, count(*) FROM load GROUP BY id")
	if err != nil {
		l.t.Fatal(err)
	}
	defer rows.Close()
	counts := map[int64]int{}
	for rows.Next() {
		var id int64
		var count int
		if err := rows.Scan(&id, &count); err != nil {
			l.t.Fatal(err)
		}
		counts[id] = count
	}
	if err := rows.Err(); err != nil {
		l.t.Fatal(err)
	}
	check := func(kind string, ids []int64, least, most int) {
		for _, id := range ids {
			if have := counts[id]; have < least || have > most {
				l.t.Errorf("row %d of writer %d, %s, is there %d times", id&0xffffffff, id>>32, kind, have)
			}
			delete(counts, id)
		}
	}
	check("acknowledged", l.acked, 1, 1)
	check("of unknown outcome", l.unknown, 0, 1)
	check("refused", l.refused, 0, 0)
	if len(counts) > 0 || l.failure != nil {
		l.t.Errorf("%d rows nobody wrote; error that says nothing of the outcome: %v", len(counts), l.failure)
	}
	l.t.Logf("%d acknowledged, %d unknown, %d refused; longest pause between two acknowledgements %v",
		len(l.acked), len(l.unknown), len(l.refused), time.Duration(l.longest.Load()).Round(time.Millisecond))
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
