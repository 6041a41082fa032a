package colmenatest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
)

// TestDBIsThereAtOnce holds the time that DB takes: 20 ms, at the lower quartile of several,
// since a disk and processors that are busy with something else only ever add to it. For
// the same reason there are more rounds.
func TestDBIsThereAtOnce(t *testing.T) {
	const most, rounds, times = 20 * time.Millisecond, 5, 15
	if raceDetector {
		t.Skip("SQLite is 35 to 50 times slower under the race detector")
	}
	var quartile time.Duration
	for range rounds {
		var took []time.Duration
		for range times {
			began := time.Now()
			db := DB(t)
			took = append(took, time.Since(began))
			if _, err := db.Exec("CREATE TABLE t(a)"); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(took)
		quartile = took[times/4]
		if t.Logf("lower quartile %v, longest %v", quartile, took[times-1]); quartile <= most {
			return
		}
	}
	t.Errorf("DB takes %v at the lower quartile, at most %v is right", quartile, most)
}

// TestDBsOfParallelTestsAreApart holds that each test has a database of its own, as many
// as run side by side.
func TestDBsOfParallelTestsAreApart(t *testing.T) {
	for i := range 8 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := DB(t)
			if _, err := db.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(?)", i); err != nil {
				t.Fatal(err)
			}
			var n, a int
			if err := db.QueryRow("SELECT count(*), max(a) FROM t").Scan(&n, &a); err != nil || n != 1 || a != i {
				t.Errorf("%d rows, %d, %v; want the row %d", n, a, err, i)
			}
		})
	}
}

func TestDBTakesOptions(t *testing.T) {
	db := DB(t, func(i int, cfg *colmena.Config) { cfg.NonDeterministic = colmena.Pin })
	if _, err := db.Exec("CREATE TABLE t(a); INSERT INTO t VALUES(random())"); err != nil {
		t.Error(err)
	}
	said := record(t, func(tb testing.TB) { DB(tb, func(_ int, cfg *colmena.Config) { cfg.ReadConns = -1 }) })
	if !strings.Contains(said, "start a node: ") || !strings.Contains(said, "ReadConns") {
		t.Errorf("a Config that is refused gives %q", said)
	}
}

// TestDBIsClosedWithItsTest holds that nothing can be done with the handle afterwards.
func TestDBIsClosedWithItsTest(t *testing.T) {
	var ping func() error
	if said := record(t, func(tb testing.TB) { ping = DB(tb).Ping }); said != "" {
		t.Fatal(said)
	}
	if err := ping(); !errors.Is(err, colmena.ErrClosed) {
		t.Errorf("after its test the handle gives %v", err)
	}
}

// TestGoroutineLeftBehindIsReported has a hook outlive its node.
func TestGoroutineLeftBehindIsReported(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	said := record(t, func(tb testing.TB) {
		db := DB(tb, func(_ int, cfg *colmena.Config) {
			cfg.OnApply = func(colmena.ApplyEvent) { close(entered); <-leave }
		})
		if _, err := db.Exec("CREATE TABLE t(a)"); err != nil {
			tb.Fatal(err)
		}
		<-entered
	})
	close(leave)
	if !strings.Contains(said, "are left behind") || !strings.Contains(said, "TestGoroutineLeftBehindIsReported") {
		t.Errorf("the hook is not reported: %q", said)
	}
}
