package main

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
)

// terms is what a node has seen of who led when, from colmena's hooks. Rows get their seq
// in the order of the replicated log, in which terms never go back; so all rows between the
// first and the last of a term are that term's.
//
// The leader puts it into the table of the same name, so that a node knows it too of rows
// that were applied while it was down.
type terms struct {
	mu   sync.Mutex
	seen map[uint64]term // by number
	new  map[uint64]bool // what has changed since it was last taken
}

// term is a term of Raft's. Leader is "" and First 0 while not known.
type term struct {
	Number      uint64
	Leader      string
	First, Last int64
}

// termsMax bounds how many terms are remembered and read.
const termsMax = 500

func newTerms() *terms { return &terms{seen: map[uint64]term{}, new: map[uint64]bool{}} }

// saw notes that a row was applied in a term.
func (t *terms) saw(number uint64, seq int64) { t.add(term{Number: number, First: seq, Last: seq}) }

// led notes who won a term.
func (t *terms) led(number uint64, leader string) { t.add(term{Number: number, Leader: leader}) }

func (t *terms) add(more term) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen[more.Number] = merge(t.seen[more.Number], more)
	t.new[more.Number] = true
	if len(t.seen) > termsMax {
		oldest := slices.Min(slices.Collect(maps.Keys(t.seen)))
		delete(t.seen, oldest)
		delete(t.new, oldest)
	}
}

// merge joins what is known of one term.
func merge(a, b term) term {
	a.Number, a.Leader = b.Number, cmp.Or(a.Leader, b.Leader)
	if a.First == 0 || b.First != 0 && b.First < a.First {
		a.First = b.First
	}
	a.Last = max(a.Last, b.Last)
	return a
}

// take returns what is new since the last call, and giveBack takes it back.
func (t *terms) take() []term {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []term
	for n := range t.new {
		list = append(list, t.seen[n])
	}
	clear(t.new)
	return list
}

func (t *terms) giveBack(list []term) {
	for _, one := range list {
		t.add(one)
	}
}

func (t *terms) all() map[uint64]term {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.seen)
}

// whose returns the term in which a row was applied, and who led it: 0 and "" where that is
// not known.
func whose(all map[uint64]term, seq int64) (uint64, string) {
	for _, t := range all {
		if t.First != 0 && t.First <= seq && seq <= t.Last {
			return t.Number, t.Leader
		}
	}
	return 0, ""
}

const noteTerm = `
INSERT INTO terms(term, leader, first, last) VALUES(?, nullif(?, ''), nullif(?, 0), nullif(?, 0))
ON CONFLICT(term) DO UPDATE SET
	leader = coalesce(leader, excluded.leader),
	first = min(coalesce(first, excluded.first), coalesce(excluded.first, first)),
	last = max(coalesce(last, excluded.last), coalesce(excluded.last, last))`

// noteTerms writes what is new into the table.
func (a *application) noteTerms(ctx context.Context) error {
	list := a.terms.take()
	for i, t := range list {
		if _, err := a.db.ExecContext(ctx, noteTerm, t.Number, t.Leader, t.First, t.Last); err != nil {
			a.terms.giveBack(list[i:])
			return err
		}
	}
	return nil
}

// allTerms joins what stands in the table, as far as this node has applied it, with what
// this node has seen itself.
func (a *application) allTerms(ctx context.Context) (map[uint64]term, error) {
	all := a.terms.all()
	rows, err := a.own.QueryContext(ctx, "SELECT term, coalesce(leader, ''), coalesce(first, 0), coalesce(last, 0) FROM terms ORDER BY term DESC LIMIT ?", termsMax)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var t term
		if err := rows.Scan(&t.Number, &t.Leader, &t.First, &t.Last); err != nil {
			return nil, err
		}
		all[t.Number] = merge(all[t.Number], t)
	}
	return all, rows.Err()
}
