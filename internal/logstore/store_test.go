package logstore

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mentasystems/colmena/internal/durable"
	"go.etcd.io/bbolt"
)

func TestEntriesAndValuesSurviveReopening(t *testing.T) {
	cfg := Config{Path: storePath(t), StoreID: "node-1"}
	s := mustOpen(t, cfg)
	list := entries(1, 30, 100)
	list[3].Extensions = []byte("layered")
	list[4].Data, list[4].Type = nil, raft.LogNoop
	list[5] = entryAt(6, 100_000) // overflow pages
	must(t, s.StoreLogs(list))
	must(t, s.SetUint64([]byte("CurrentTerm"), 7))
	must(t, s.Set([]byte("LastVoteCand"), []byte("b")))
	must(t, s.Set([]byte("empty"), nil))
	for range 2 {
		expectRange(t, s, 1, 30)
		var got raft.Log
		for _, want := range list {
			must(t, s.GetLog(want.Index, &got))
			must(t, same(&got, want))
			must(t, s.readLog(want.Index, &got))
			must(t, same(&got, want))
		}
		if err := s.GetLog(31, &got); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("an entry that is not there: %v", err)
		}
		term, err := s.GetUint64([]byte("CurrentTerm"))
		if err != nil || term != 7 {
			t.Fatalf("term %d, %v", term, err)
		}
		if v, err := s.Get([]byte("empty")); err != nil || len(v) != 0 {
			t.Fatalf("empty value: %q, %v", v, err)
		}
		// raft compares this text.
		if _, err := s.GetUint64([]byte("nothing")); err == nil || err.Error() != "not found" {
			t.Fatalf("a missing value: %v", err)
		}
		index, lastTerm, err := s.LastEntry()
		if err != nil || index != 30 || lastTerm != 4 {
			t.Fatalf("last entry %d of term %d, %v", index, lastTerm, err)
		}
		must(t, s.Verify(t.Context()))
		must(t, s.Close())
		must(t, s.Close())
		if err := s.GetLog(1, &got); err == nil && s.cache.high == 0 {
			t.Fatal("reading a closed store succeeded")
		}
		if err := s.StoreLog(entryAt(31, 1)); !errors.Is(err, ErrClosed) {
			t.Fatalf("writing a closed store: %v", err)
		}
		if _, err := s.LastIndex(); !errors.Is(err, ErrClosed) {
			t.Fatalf("reading a closed store: %v", err)
		}
		s = mustOpen(t, cfg)
	}
}

func TestAnotherNodesStoreIsRefused(t *testing.T) {
	path := storePath(t)
	s := mustOpen(t, Config{Path: path})
	must(t, s.StoreLogs(entries(1, 3, 10)))
	must(t, s.Close())
	s = mustOpen(t, Config{Path: path, StoreID: "node-1"}) // unmarked: adopted
	must(t, s.Close())
	if _, err := Open(Config{Path: path, StoreID: "node-2"}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "node-1") {
		t.Fatalf("opening another node's store: %v", err)
	}
	s = mustOpen(t, Config{Path: path})
	if id, err := s.StoreID(); err != nil || id != "node-1" {
		t.Fatalf("store ID %q, %v", id, err)
	}
}

func TestAStoreInUseIsRefused(t *testing.T) {
	cfg := Config{Path: storePath(t)}
	s := mustOpen(t, cfg)
	if _, err := Open(cfg); !errors.Is(err, ErrLocked) {
		t.Fatalf("opening an open store: %v", err)
	}
	must(t, s.Close())
	mustOpen(t, cfg)
}

func TestHazard28EntriesAboveTheBoundAreRefused(t *testing.T) {
	s := mustOpen(t, Config{Path: storePath(t), MaxEntryBytes: 1000})
	if err := s.StoreLogs([]*raft.Log{entryAt(1, 10), entryAt(2, 1001)}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("a large entry: %v", err)
	}
	expectRange(t, s, 0, 0)
	must(t, s.StoreLogs([]*raft.Log{entryAt(1, 1000)}))
}

// The largest entry there may be is far below what bolt can hold, and reads back.
func TestHazard28LargestEntryReadsBack(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 64 MiB")
	}
	cfg := Config{Path: storePath(t), NoSync: true, CacheEntries: -1, MaxEntryBytes: MaxEntryBytesDefault}
	if MaxEntryBytesDefault > bbolt.MaxValueSize/16 {
		t.Errorf("entries of %d bytes are not far below bolt's limit of %d", MaxEntryBytesDefault, bbolt.MaxValueSize)
	}
	s := mustOpen(t, cfg)
	want := entryAt(1, MaxEntryBytesDefault)
	must(t, s.StoreLogs([]*raft.Log{want, entryAt(2, 10)}))
	must(t, s.Close())
	s = mustOpen(t, cfg)
	var got raft.Log
	must(t, s.GetLog(1, &got))
	must(t, same(&got, want))
}

func TestDeleteRangeCutsHeadAndTail(t *testing.T) {
	s := mustOpen(t, Config{Path: storePath(t), NoSync: true, CacheEntries: 64})
	n := uint64(3*deleteChunk + 100)
	must(t, s.StoreLogs(entries(1, n, 20)))
	must(t, s.DeleteRange(n-9, n)) // a conflict
	expectRange(t, s, 1, n-10)
	var e raft.Log
	if err := s.GetLog(n-5, &e); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("a cut entry: %v", err)
	}
	if err := s.DeleteRange(5, 10); err == nil {
		t.Fatal("a hole was made")
	}
	must(t, s.DeleteRange(1, 2*deleteChunk+50))
	expectRange(t, s, 2*deleteChunk+51, n-10)
	must(t, s.Verify(t.Context()))
	must(t, s.DeleteRange(1, 5))
	must(t, s.DeleteRange(n, n+5))
	must(t, s.StoreLogs([]*raft.Log{entryAt(n+1_000_000, 5)})) // raft leaves a gap after installing a snapshot
	must(t, s.Verify(t.Context()))
	must(t, s.DeleteRange(1, n+1_000_000))
	expectRange(t, s, 0, 0)
	must(t, s.DeleteRange(1, 10))
	must(t, s.StoreLogs(entries(7, 9, 5)))
	expectRange(t, s, 7, 9)
}

func TestTheCacheNeverDisagreesWithTheFile(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(uint64(seed), 0))
	path := storePath(t)
	cfg := Config{Path: path, NoSync: true, CacheEntries: 16, CacheBytes: 4000}
	s := mustOpen(t, cfg)
	model := map[uint64]*raft.Log{}
	first, last, term := uint64(1), uint64(0), uint64(1)
	for step := range 400 {
		switch op := rnd.IntN(10); {
		case op < 6:
			var list []*raft.Log
			for range 1 + rnd.IntN(8) {
				last++
				e := entryAt(last, rnd.IntN(900))
				if rnd.IntN(60) == 0 {
					e = entryAt(last, 20_000)
				}
				e.Term = term
				list = append(list, e)
				model[last] = e
			}
			must(t, s.StoreLogs(list))
		case op < 7 && last > first+1:
			cut := first + 1 + rnd.Uint64N(last-first)
			must(t, s.DeleteRange(cut, last))
			last = cut - 1
			term++
		case op < 8 && last > first:
			cut := first + rnd.Uint64N(last-first)
			must(t, s.DeleteRange(first, cut))
			first = cut + 1
		case op < 9 && step%10 == 0:
			must(t, s.Close())
			s = mustOpen(t, cfg)
		}
		if last < first {
			continue
		}
		expectRange(t, s, first, last)
		for range 5 {
			i := first + rnd.Uint64N(last-first+1)
			var got raft.Log
			must(t, s.GetLog(i, &got))
			must(t, same(&got, model[i]))
			must(t, s.readLog(i, &got))
			must(t, same(&got, model[i]))
		}
		if s.cache.bytes > 4000 || s.cache.high+1-s.cache.low > 16 {
			t.Fatalf("the cache holds %d bytes in entries %d to %d", s.cache.bytes, s.cache.low, s.cache.high)
		}
	}
	must(t, s.Verify(t.Context()))
}

func TestHazard28AFailedWriteIsFinal(t *testing.T) {
	for _, op := range []string{durable.OpAppend, durable.OpSync} {
		t.Run(op, func(t *testing.T) {
			var fatal atomic.Int32
			cfg := Config{Path: storePath(t), Fatal: func(error) { fatal.Add(1) }}
			s := mustOpen(t, cfg)
			must(t, s.StoreLogs(entries(1, 5, 50)))
			failOnce(t, op, cfg.Path, syscall.EIO)
			first := s.StoreLogs(entries(6, 7, 50))
			if !errors.Is(first, syscall.EIO) {
				t.Fatalf("StoreLogs returned %v", first)
			}
			for _, err := range []error{s.StoreLogs(entries(6, 7, 50)), s.SetUint64([]byte("x"), 1), s.DeleteRange(1, 2), s.Failure()} {
				if !errors.Is(err, first) {
					t.Fatalf("a later write returned %v", err)
				}
			}
			if n := fatal.Load(); n != 1 {
				t.Fatalf("Fatal was called %d times", n)
			}
			var e raft.Log
			must(t, s.GetLog(3, &e))
			must(t, s.Close())

			// What reads well may not be on disk: the next Open writes the file afresh.
			before, err := os.Stat(cfg.Path)
			must(t, err)
			s = mustOpen(t, cfg)
			after, err := os.Stat(cfg.Path)
			must(t, err)
			if os.SameFile(before, after) {
				t.Fatal("the file was not written afresh")
			}
			if _, err := os.Stat(cfg.Path + unsyncedSuffix); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("the marker is still there: %v", err)
			}
			last, err := s.LastIndex()
			must(t, err)
			if op == durable.OpAppend && last != 5 || op == durable.OpSync && last != 7 {
				t.Fatalf("last index %d", last)
			}
			must(t, s.StoreLogs(entries(last+1, last+3, 50)))
		})
	}
}

// failOnce makes the next operation of that kind on the path fail.
func failOnce(t *testing.T, op, path string, err error) {
	t.Helper()
	var done atomic.Bool
	t.Cleanup(durable.SetHook(func(gotOp, gotPath string) error {
		if gotOp == op && gotPath == path && done.CompareAndSwap(false, true) {
			return err
		}
		return nil
	}))
}

func TestAFullDiskAtAWriteIsNotFinal(t *testing.T) {
	cfg := Config{Path: storePath(t), Fatal: func(err error) { t.Errorf("Fatal: %v", err) }}
	s := mustOpen(t, cfg)
	failOnce(t, durable.OpAppend, cfg.Path, fullErrors[0])
	if err := s.StoreLogs(entries(1, 5, 50)); !errors.Is(err, fullErrors[0]) {
		t.Fatalf("StoreLogs returned %v", err)
	}
	must(t, s.StoreLogs(entries(1, 5, 50)))
}

func TestAFullDiskAtAnFsyncIsFinal(t *testing.T) {
	cfg := Config{Path: storePath(t)}
	s := mustOpen(t, cfg)
	failOnce(t, durable.OpSync, cfg.Path, syscall.ENOSPC)
	if err := s.StoreLogs(entries(1, 5, 50)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("StoreLogs returned %v", err)
	}
	if err := s.StoreLogs(entries(1, 5, 50)); !errors.Is(err, syscall.ENOSPC) || s.Failure() == nil {
		t.Fatalf("StoreLogs afterwards returned %v", err)
	}
}

func TestAFailedRewriteKeepsTheMarker(t *testing.T) {
	cfg := Config{Path: storePath(t)}
	s := mustOpen(t, cfg)
	must(t, s.StoreLogs(entries(1, 5, 50)))
	failOnce(t, durable.OpAppend, cfg.Path, syscall.EIO)
	if s.StoreLogs(entries(6, 7, 50)) == nil {
		t.Fatal("the write did not fail")
	}
	must(t, s.Close())
	failOnce(t, durable.OpSync, cfg.Path+".new", syscall.EIO)
	if _, err := Open(cfg); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Open returned %v", err)
	}
	if _, err := os.Stat(cfg.Path + unsyncedSuffix); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, cfg)
	expectRange(t, s, 1, 5)
}

func TestHazard26LateWritesAreReported(t *testing.T) {
	type report struct {
		d time.Duration
	}
	reports := make(chan report, 100)
	cfg := Config{Path: storePath(t), StallAfter: time.Millisecond, Stall: func(d time.Duration) { reports <- report{d} }}
	s := mustOpen(t, cfg)
	drain := func() {
		for len(reports) > 0 {
			<-reports
		}
	}
	must(t, s.StoreLogs(entries(1, 2, 10)))
	drain()
	late := make(chan struct{})
	var once sync.Once
	t.Cleanup(durable.SetHook(func(op, path string) error {
		if op == durable.OpAppend && path == cfg.Path {
			once.Do(func() { <-late })
		}
		return nil
	}))
	ended := make(chan error, 1)
	go func() { ended <- s.StoreLogs(entries(3, 4, 10)) }()
	select {
	case r := <-reports:
		if r.d < time.Millisecond {
			t.Fatalf("reported after %v", r.d)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a late write was not reported")
	}
	close(late)
	must(t, <-ended)
	if r := <-reports; r.d != 0 {
		t.Fatalf("the end was reported as %v", r.d)
	}
}

func TestAFailedCreationLeavesNothingBehind(t *testing.T) {
	for _, op := range []string{durable.OpAppend, durable.OpSync, durable.OpRename} {
		cfg := Config{Path: storePath(t), StoreID: "n"}
		restore := durable.SetHook(func(got, path string) error {
			if got == op && strings.HasPrefix(path, cfg.Path) {
				return syscall.EIO
			}
			return nil
		})
		_, err := Open(cfg)
		restore()
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s: %v", op, err)
		}
		if _, err := os.Stat(cfg.Path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: an unfinished store is in place", op)
		}
		s := mustOpen(t, cfg)
		must(t, s.Close())
		names, err := filepath.Glob(filepath.Join(filepath.Dir(cfg.Path), "*"))
		must(t, err)
		if len(names) != 1 {
			t.Fatalf("%s: the directory holds %v", op, names)
		}
	}
}

// raft appends on its main goroutine while it compacts on another and replication reads.
func TestAppendingCompactingAndReadingAtOnce(t *testing.T) {
	s := mustOpen(t, Config{Path: storePath(t), NoSync: true, CacheEntries: 32})
	const n = 1500
	var last, first atomic.Uint64
	first.Store(1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(1); i <= n; i += 3 {
			if err := s.StoreLogs(entries(i, i+2, 200)); err != nil {
				t.Error(err)
			}
			last.Store(i + 2)
		}
	})
	wg.Go(func() {
		for last.Load() < n {
			if l := last.Load(); l > 200 {
				first.Store(l - 100) // readers look at what is kept only
				if err := s.DeleteRange(1, l-150); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 3 {
		wg.Go(func() {
			for last.Load() < n {
				var e raft.Log
				l := last.Load()
				if l == 0 {
					continue
				}
				if err := s.GetLog(l, &e); err != nil && l > first.Load() {
					t.Error(err)
				} else if err == nil {
					if err := same(&e, entryAt(l, 200)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	must(t, s.Verify(t.Context()))
}
