package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// measure runs op in so many goroutines, each with its number, for the time of a figure.
func measure(workers int, op func(ctx context.Context, worker, i int) error) (rate float64, p50, p99 time.Duration, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	until := began.Add(*flagFor)
	for w := range workers {
		wg.Go(func() {
			var took []time.Duration
			for i := 0; ctx.Err() == nil; i++ {
				start := time.Now()
				if start.After(until) {
					break
				}
				if err := op(ctx, w, i); err != nil {
					mu.Lock()
					if failed == nil { // the others end because of it
						failed = err
					}
					mu.Unlock()
					cancel()
					return
				}
				took = append(took, time.Since(start))
			}
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if failed != nil || len(all) == 0 {
		return 0, 0, 0, failed
	}
	rate = float64(len(all)) / time.Since(began).Seconds()
	slices.Sort(all)
	return rate, all[len(all)/2], all[len(all)*99/100], nil
}

// wanted reports whether a group was asked for.
func wanted(group string) bool { return strings.HasPrefix(group, *flagOnly) }
