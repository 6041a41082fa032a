package ownwrites

import (
	"fmt"
	"sync"
	"testing"
)

func want(t *testing.T, k *Marks, db string, index uint64) {
	t.Helper()
	if got := k.Get(db); got != index {
		t.Errorf("a read of %s waits for entry %d, want %d", db, got, index)
	}
}

func TestNewestMarkCounts(t *testing.T) {
	k := New(0, nil)
	want(t, k, "a", 0)
	k.Note("a", 5)
	k.Note("a", 3)
	k.Note("b", 9)
	want(t, k, "a", 5)
	want(t, k, "b", 9)
	k.Forget("a")
	want(t, k, "a", 0)
}

func TestWhatIsHeldIsForgottenFirst(t *testing.T) {
	k := New(4, func(db string, index uint64) bool { return db != "lags" })
	k.Note("lags", 50)
	for i := range 1000 {
		k.Note(fmt.Sprint("db", i), uint64(100+i))
		if len(k.m) > 4 {
			t.Fatalf("%d databases are remembered", len(k.m))
		}
	}
	want(t, k, "lags", 50)
	want(t, k, "db1", 0)
	want(t, k, "db999", 1099)
}

// Forgetting must never let a read go ahead of a write that it has to show.
func TestForgottenMarksMakeReadsWaitTooLongAndNeverTooShort(t *testing.T) {
	k := New(4, func(string, uint64) bool { return false })
	for i := range 1000 {
		k.Note(fmt.Sprint("db", i), uint64(1000-i))
	}
	k.Note("db0", 7) // a late word of an earlier write
	if len(k.m) > 4 {
		t.Errorf("%d databases are remembered", len(k.m))
	}
	for i := range 1000 {
		if got := k.Get(fmt.Sprint("db", i)); got < uint64(1000-i) {
			t.Fatalf("a read of db%d waits for entry %d, acknowledged was %d", i, got, 1000-i)
		}
	}
}

func TestMarksNotedAtOnceAreNotLost(t *testing.T) {
	k := New(8, func(string, uint64) bool { return false })
	const writers, writes = 16, 500
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := 1; i <= writes; i++ {
				db := fmt.Sprint("db", (w+i)%writers)
				k.Note(db, uint64(i))
				if got := k.Get(db); got < uint64(i) {
					t.Errorf("a read of %s waits for entry %d, acknowledged was %d", db, got, i)
					return
				}
			}
		})
	}
	all.Wait()
}
