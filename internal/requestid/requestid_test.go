package requestid

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func fixed(origin uint64) func(context.Context) (uint64, error) {
	return func(context.Context) (uint64, error) { return origin, nil }
}

func begin(t *testing.T, s *Source) (ID, uint64) {
	t.Helper()
	id, lowest, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id, lowest
}

func TestLowestIsTheOldestThatIsOutstanding(t *testing.T) {
	s := New(fixed(7))
	a, lowest := begin(t, s)
	if a != (ID{7, 1}) || lowest != 1 {
		t.Fatalf("%v, %d", a, lowest)
	}
	b, _ := begin(t, s)
	c, _ := begin(t, s)
	s.End(b)
	if d, lowest := begin(t, s); d.Seq != 4 || lowest != 1 {
		t.Errorf("the first is outstanding: %v, %d", d, lowest)
	}
	s.End(a)
	if e, lowest := begin(t, s); e.Seq != 5 || lowest != 3 {
		t.Errorf("the third is outstanding: %v, %d", e, lowest)
	}
	s.End(c)
	if _, lowest := begin(t, s); lowest != 4 {
		t.Errorf("the fourth is outstanding: %d", lowest)
	}
}

// In any order of ends the lowest is what a set of the outstanding says.
func TestLowestInRandomOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := New(fixed(1))
	out := map[uint64]bool{}
	for range 2000 {
		id, lowest := begin(t, s)
		out[id.Seq] = true
		for seq := range out {
			if seq < lowest {
				t.Fatalf("%d is outstanding and below %d", seq, lowest)
			}
		}
		if !out[lowest] {
			t.Fatalf("%d is not outstanding", lowest)
		}
		for seq := range out {
			if r.IntN(3) == 0 {
				s.End(ID{1, seq})
				delete(out, seq)
			}
		}
	}
}

// All who wait share one registration, and the next one tries after a failure.
func TestOneRegistersForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		release := make(chan error)
		s := New(func(context.Context) (uint64, error) { asked.Add(1); return 9, <-release })
		var failed atomic.Int32
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, _, err := s.Begin(t.Context()); err != nil {
					failed.Add(1)
				}
			})
		}
		synctest.Wait()
		if asked.Load() != 1 {
			t.Fatalf("%d ask at once", asked.Load())
		}
		release <- errors.New("no")
		synctest.Wait()
		release <- nil
		wg.Wait()
		if asked.Load() != 2 || failed.Load() != 1 {
			t.Errorf("%d asked, %d failed", asked.Load(), failed.Load())
		}
	})
}

func TestWaitingForAnOriginEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		s := New(func(context.Context) (uint64, error) { <-hold; return 1, nil })
		go func() { _, _, _ = s.Begin(context.Background()) }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := s.Begin(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(hold)
	})
}

// After an origin was forgotten another one is asked for, once, and what ends late does
// not count for it.
func TestExpiredOriginIsReplaced(t *testing.T) {
	var origins uint64
	s := New(func(context.Context) (uint64, error) { origins++; return origins, nil })
	old, _ := begin(t, s)
	s.Expired(old.Origin)
	id, lowest := begin(t, s)
	if id != (ID{2, 1}) || lowest != 1 {
		t.Errorf("%v, %d", id, lowest)
	}
	s.End(old)
	s.Expired(old.Origin) // told by a second write of the old origin
	if id, lowest := begin(t, s); id != (ID{2, 2}) || lowest != 1 {
		t.Errorf("%v, %d", id, lowest)
	}
}
