package hooks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// names of the databases in these tests, by incarnation.
var names = map[uint64]string{1: "a", 2: "b", 3: "c"}

func register(q *Queue[string], db uint64, indexes ...uint64) {
	for _, i := range indexes {
		q.Register(db, names[db], i, 10)
	}
}

func applied(q *Queue[string], db uint64, indexes ...uint64) {
	for _, i := range indexes {
		q.Applied(db, i, fmt.Sprint(names[db], i))
	}
}

// told takes everything that can be told now: "a3" is an event, "a[3,4]" a gap of a
// database, "[3,4]" one of several.
func told(t *testing.T, q *Queue[string]) string {
	t.Helper()
	var out []string
	for {
		e, ok := q.next()
		switch {
		case !ok:
			return strings.Join(out, " ")
		case e.Gap != nil:
			out = append(out, fmt.Sprintf("%s[%d,%d]", e.DB, e.Gap.From, e.Gap.To))
			if e.Index != e.Gap.To {
				t.Errorf("a gap to %d has index %d", e.Gap.To, e.Index)
			}
		default:
			out = append(out, e.Value)
			if e.Value != fmt.Sprint(e.DB, e.Index) {
				t.Errorf("%q is told as entry %d of %q", e.Value, e.Index, e.DB)
			}
		}
	}
}

func want(t *testing.T, q *Queue[string], want string) {
	t.Helper()
	if got := told(t, q); got != want {
		t.Errorf("told is %q, want %q", got, want)
	}
}

func TestEventsComeInTheOrderOfTheLog(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 2)
	register(q, 2, 3)
	register(q, 1, 5, 6)
	register(q, 2, 8)
	applied(q, 2, 3, 8)
	want(t, q, "")
	applied(q, 1, 2)
	want(t, q, "a2 b3")
	applied(q, 1, 6) // 5 was a no-op
	want(t, q, "a6 b8")
	register(q, 1, 9)
	q.Passed(1, 9)
	register(q, 2, 10)
	applied(q, 2, 10)
	want(t, q, "b10")
}

func TestNothingIsToldTwice(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 2, 3)
	applied(q, 1, 2)
	want(t, q, "a2")
	register(q, 1, 2, 3) // delivered again
	applied(q, 1, 2, 3)
	want(t, q, "a3")
	applied(q, 1, 3, 4) // 4 was given no slot: the database is hidden, say
	want(t, q, "")
}

func TestStoppedDatabaseHoldsNobodyUpAndItsReturnIsAGap(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 1, 2)
	register(q, 2, 3)
	register(q, 1, 4)
	applied(q, 2, 3)
	applied(q, 1, 1)
	q.Stopped(1)
	want(t, q, "a1 a[2,2] b3 a[4,4]")
	register(q, 1, 5, 6)
	register(q, 2, 7)
	applied(q, 2, 7)
	q.Stopped(1) // as for each entry that it does not take
	want(t, q, "b7")
	applied(q, 1, 2, 4, 5, 6) // read from the log again
	want(t, q, "")
	q.GoOn(7, func(uint64) bool { return false })
	register(q, 1, 8)
	applied(q, 1, 8)
	want(t, q, "a[2,7] a8")
	q.GoOn(8, func(uint64) bool { return false })
	want(t, q, "")
}

func TestReturnOfOthersIsNotThatOfADatabaseThatStoppedAgain(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 1)
	register(q, 2, 2)
	q.Stopped(1)
	q.Stopped(2)
	want(t, q, "a[1,1] b[2,2]")
	q.GoOn(2, func(db uint64) bool { return db == 2 })
	want(t, q, "a[1,2]")
	q.GoOn(2, func(uint64) bool { return false })
	want(t, q, "b[1,2]")
}

func TestSkippedEntriesAreAGapOnceTheyAreApplied(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 1)
	applied(q, 1, 1)
	q.Skipped(3)
	q.Skipped(4)
	register(q, 1, 5)
	applied(q, 1, 5)
	want(t, q, "a1 a5")
	q.GoOn(6, func(uint64) bool { return false })
	want(t, q, "[3,6]")
}

func TestDroppedDatabaseHoldsNobodyUp(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 1, 2)
	register(q, 2, 3)
	applied(q, 2, 3)
	q.Passed(1, 1)
	q.Dropped(1)
	want(t, q, "a[2,2] b3")
	if len(q.dbs) != 1 {
		t.Errorf("%d databases are remembered", len(q.dbs))
	}
	q.Dropped(1)
	q.Stopped(1)
	q.Passed(1, 9)
	if len(q.dbs) != 1 {
		t.Errorf("%d databases are remembered", len(q.dbs))
	}
}

func TestReplacedDatabaseIsAGapOfItsName(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 4)
	register(q, 2, 5)
	applied(q, 1, 4)
	applied(q, 2, 5)
	q.Replaced(1, 3, "a", 9)
	q.Dropped(1)
	q.Register(3, "a", 10, 1)
	q.Applied(3, 10, "a10")
	want(t, q, "a4 b5 a[5,9] a10")
	q.Replaced(0, 4, "new", 11)
	want(t, q, "new[1,11]")
}

func TestInstalledCopyIsOneGap(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 4, 5, 6)
	register(q, 2, 7)
	applied(q, 1, 4)
	applied(q, 2, 7)
	q.Stopped(1)
	q.Skipped(8)
	q.Installed(20)
	register(q, 1, 19, 20, 21) // 19 and 20 are delivered again
	applied(q, 1, 21)
	want(t, q, "a4 b7 [5,20] a21")
	q.GoOn(21, func(uint64) bool { return false })
	want(t, q, "")
}

func TestClosedDatabasesHoldNothingBack(t *testing.T) {
	q := NewQueue[string](0, 0)
	register(q, 1, 1)
	register(q, 2, 2, 3)
	applied(q, 2, 2)
	q.Closed()
	want(t, q, "a[1,1] b2 b[3,3]")
}

// A gap is told when what it is about is applied, because it is then read.
func TestOverflowIsOneGapToldWhenItIsApplied(t *testing.T) {
	q := NewQueue[string](3, 0)
	register(q, 1, 1, 2, 3, 4, 5)
	register(q, 2, 6)
	applied(q, 1, 1, 2, 3, 4)
	want(t, q, "a1 a2 a3")
	register(q, 1, 7) // there is room again
	applied(q, 1, 5, 7)
	want(t, q, "")
	applied(q, 2, 6)
	want(t, q, "[4,6] a7")
	register(q, 1, 8, 9, 10, 11)
	register(q, 2, 12)
	q.Replaced(2, 3, "b", 13)
	q.Dropped(2)
	applied(q, 1, 8, 9, 10, 11)
	want(t, q, "a8 a9 a10 [11,13]")
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	q := NewQueue[string](0, 25)
	register(q, 1, 1, 2, 3)
	applied(q, 1, 1, 2, 3)
	want(t, q, "a1 a2 [3,3]")
	q.Register(1, "a", 4, 1000) // alone it fits
	applied(q, 1, 4)
	want(t, q, "a4")
	if q.bytes != 0 {
		t.Errorf("%d bytes are counted in an empty queue", q.bytes)
	}
}

func TestNilQueueDoesNothing(t *testing.T) {
	var q *Queue[string]
	register(q, 1, 1)
	applied(q, 1, 1)
	q.Passed(1, 1)
	q.Stopped(1)
	q.Dropped(1)
	q.Replaced(1, 2, "a", 3)
	q.Skipped(1)
	q.GoOn(1, nil)
	q.Installed(1)
	q.Closed()
	q.Run(context.Background(), nil)
}

// Whatever databases do at once: events come in order, none twice, and every entry that
// was applied is an event or within a gap.
func TestEveryEntryIsToldOrInAGap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	q := NewQueue[string](64, 0)
	const databases, last = 4, 3000
	noop := func(index uint64) bool { return index != last && rand.New(rand.NewPCG(seed, index)).IntN(10) == 0 }
	var queues [databases + 1]chan uint64
	var work sync.WaitGroup
	for db := uint64(1); db <= databases; db++ {
		queues[db] = make(chan uint64, last)
		work.Go(func() {
			r := rand.New(rand.NewPCG(seed, last+db))
			for i := range queues[db] {
				if noop(i) {
					q.Passed(db, i)
				} else {
					q.Applied(db, i, "")
				}
				if r.IntN(50) == 0 {
					time.Sleep(time.Microsecond)
				}
			}
		})
	}
	covered := make([]bool, last+1)
	previous := uint64(0)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go q.Run(ctx, func(e Event[string]) {
		if e.Index < previous || e.Index == previous && e.Gap == nil {
			t.Errorf("entry %d after %d", e.Index, previous)
		}
		previous = e.Index
		from := e.Index
		if e.Gap != nil {
			from = e.Gap.From
		}
		for i := from; i <= e.Index; i++ {
			covered[i] = true
		}
		if e.Index == last {
			close(done)
		}
	})
	r := rand.New(rand.NewPCG(seed, 0))
	for i := uint64(1); i <= last; i++ {
		db := 1 + r.Uint64N(databases)
		q.Register(db, fmt.Sprint(db), i, 1)
		if i < last && r.IntN(100) == 0 {
			q.Stopped(db)
			q.GoOn(i, func(uint64) bool { return false })
		}
		queues[db] <- i
	}
	for db := uint64(1); db <= databases; db++ {
		close(queues[db])
	}
	work.Wait()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the end is not told")
	}
	for i := uint64(1); i <= last; i++ {
		if !covered[i] && !noop(i) {
			t.Errorf("entry %d is neither told nor in a gap", i)
		}
	}
}
