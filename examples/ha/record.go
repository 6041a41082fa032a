package main

import (
	"slices"
	"sync"
	"time"
)

// record is what a client was told of its writes.
type record struct {
	mu       sync.Mutex
	outcomes map[string]outcome // by ID
	acks     []time.Time        // of each acknowledged write, ascending
}

func newRecord() *record { return &record{outcomes: map[string]outcome{}} }

func (r *record) add(id string, o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcomes[id] = o
	if o == written {
		r.acks = append(r.acks, time.Now())
	}
}

// longestWait returns the longest time without an acknowledgement between two moments. A
// wait that began before them, or ends after them, counts with what lies between.
func (r *record) longestWait(from, to time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return longestWait(r.acks, from, to)
}

func longestWait(acks []time.Time, from, to time.Time) (longest time.Duration) {
	i, _ := slices.BinarySearchFunc(acks, from, time.Time.Compare)
	last := from
	for ; i < len(acks) && acks[i].Before(to); i++ {
		longest, last = max(longest, acks[i].Sub(last)), acks[i]
	}
	return max(longest, to.Sub(last))
}

// verdict is what became of all writes, by what the nodes hold in the end.
type verdict struct {
	Written, Unknown, NotApplied int      // as the client was told
	UnknownWritten               int      // of Unknown: what is in the log after all
	Lost                         []string // acknowledged, and not on every node
	Doubled                      []string // more than once on some node
	Ghosts                       []string // said to be not applied, and there
	Different                    []string // nodes that hold something else than the first
}

// judge compares what a client was told with what each node holds.
func judge(told map[string]outcome, held []content, nodes []string) verdict {
	var v verdict
	counts := make([]map[string]int, len(held))
	for i, c := range held {
		counts[i] = map[string]int{}
		for _, id := range c.IDs {
			counts[i][id]++
			if counts[i][id] == 2 && !slices.Contains(v.Doubled, id) {
				v.Doubled = append(v.Doubled, id)
			}
		}
		if c.Sum != held[0].Sum || len(c.IDs) != len(held[0].IDs) {
			v.Different = append(v.Different, nodes[i])
		}
	}
	on := func(id string) (n int) {
		for _, c := range counts {
			n += min(c[id], 1)
		}
		return n
	}
	for id, o := range told {
		switch o {
		case written:
			v.Written++
			if on(id) < len(held) {
				v.Lost = append(v.Lost, id)
			}
		case notApplied:
			v.NotApplied++
			if on(id) > 0 {
				v.Ghosts = append(v.Ghosts, id)
			}
		default:
			v.Unknown++
			if on(id) > 0 {
				v.UnknownWritten++
			}
		}
	}
	slices.Sort(v.Lost)
	slices.Sort(v.Doubled)
	slices.Sort(v.Ghosts)
	return v
}
