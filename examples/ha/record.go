package main

import (
	"slices"
	"sync"
	"time"
)

// record is what a client was told of its writes.
type record struct {
	mu   sync.Mutex
	told map[string]told // by ID
	acks []time.Time     // of each acknowledged write, ascending
}

// told is the outcome of a write, and its row if it was acknowledged.
type told struct {
	outcome
	row line
}

func newRecord() *record { return &record{told: map[string]told{}} }

func (r *record) add(id string, t told) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told[id] = t
	if t.outcome == written {
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
	Lost                         []string // acknowledged, now or before this run, and not on every node
	Altered                      []string // acknowledged, and not what was written
	Doubled                      []string // more than once on some node
	Ghosts                       []string // said to be not applied, and there
	Strange                      []string // there, and written by nobody
	Different                    []string // nodes that hold something else than the first
}

// judge compares what a client was told, and the rows that were there before, with what each
// node holds.
func judge(record map[string]told, before []line, held []content, nodes []string) verdict {
	var v verdict
	on := make([]map[string]line, len(held))
	for i, c := range held {
		on[i] = make(map[string]line, len(c.Rows))
		for _, l := range c.Rows {
			if _, again := on[i][l.ID]; again && !slices.Contains(v.Doubled, l.ID) {
				v.Doubled = append(v.Doubled, l.ID)
			}
			on[i][l.ID] = l
		}
		if c.Sum != held[0].Sum || len(c.Rows) != len(held[0].Rows) {
			v.Different = append(v.Different, nodes[i])
		}
	}
	there := func(id string) bool {
		return slices.ContainsFunc(on, func(rows map[string]line) bool { _, ok := rows[id]; return ok })
	}
	known := map[string]bool{}
	must := func(want line) {
		known[want.ID] = true
		lost, altered := false, false
		for _, rows := range on {
			got, ok := rows[want.ID]
			lost, altered = lost || !ok, altered || ok && got != want
		}
		if lost {
			v.Lost = append(v.Lost, want.ID)
		}
		if altered {
			v.Altered = append(v.Altered, want.ID)
		}
	}
	for _, l := range before {
		must(l)
	}
	for id, t := range record {
		switch t.outcome {
		case written:
			v.Written++
			must(t.row)
		case notApplied:
			v.NotApplied++
			if there(id) {
				v.Ghosts = append(v.Ghosts, id)
			}
		default:
			v.Unknown++
			if there(id) {
				v.UnknownWritten++
			}
		}
	}
	for _, rows := range on {
		for id := range rows {
			if _, sent := record[id]; !sent && !known[id] {
				known[id] = true
				v.Strange = append(v.Strange, id)
			}
		}
	}
	for _, list := range [][]string{v.Lost, v.Altered, v.Doubled, v.Ghosts, v.Strange} {
		slices.Sort(list)
	}
	return v
}
