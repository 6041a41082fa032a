// Package hooks tells an application what was applied, in the order of the log, although
// databases apply in parallel.
//
// Before a database is handed an entry, the log's goroutine gives the entry a slot in a
// queue. When the database has applied it, it fills the slot. What is told is taken from
// the head, so that a database that is behind has those ahead of it wait, and nobody is
// told anything twice or out of order. Nothing waits for the queue itself: it is bounded,
// and what finds no room, or what a database that has stopped leaves behind, becomes a
// gap that is told instead.
package hooks

import (
	"context"
	"sort"
	"sync"
)

// Bounds of a queue.
const (
	DefaultMaxSlots = 4096
	DefaultMaxBytes = 64 << 20
)

// Event is what is told of one entry, or of a gap.
type Event[T any] struct {
	Index uint64 // the last one, of a gap
	DB    string // "" for a gap of several databases
	Value T
	Gap   *Gap
}

// Gap is a range of indexes, both ends included, among which are entries that were or
// will be applied and of which nothing is told.
type Gap struct{ From, To uint64 }

// Queue puts what databases have applied into the order of the log. Its methods are safe
// for concurrent use and never wait. On a nil queue, of an application that wants to be
// told nothing, they do nothing.
type Queue[T any] struct {
	maxSlots, maxBytes int
	wake               chan struct{} // one slot

	mu    sync.Mutex // guards what follows
	slots []slot[T]  // by index
	bytes int
	lost  *slot[T] // a gap behind slots: what found no room
	dbs   map[uint64]*database
	last  uint64 // newest index that has a slot, or ends a gap
	// skipped is the first entry that reached no database, 0 if none.
	skipped uint64
}

type state int

const (
	open    state = iota // the database has not dealt with the entry yet
	nothing              // it has passed it over
	event                // it has applied it
	gap
)

type slot[T any] struct {
	state state
	index uint64
	from  uint64 // of a gap
	db    uint64
	name  string
	size  int
	value T
	// waits says, of a gap, up to which entry it waits for which database: what is read
	// when the gap is told must hold what the gap is about.
	waits map[uint64]uint64
}

// database is what the queue knows of one, by incarnation.
type database struct {
	name       string
	registered uint64 // the last entry that was given a slot
	passed     uint64 // the last one dealt with
	// broken is the first entry that the database has not applied and that will not be
	// told of, because it stopped; 0 while it goes on.
	broken uint64
}

// NewQueue returns a queue that holds at most so many entries, and bytes of them; 0 is
// the default.
func NewQueue[T any](maxSlots, maxBytes int) *Queue[T] {
	if maxSlots == 0 {
		maxSlots = DefaultMaxSlots
	}
	if maxBytes == 0 {
		maxBytes = DefaultMaxBytes
	}
	return &Queue[T]{maxSlots: maxSlots, maxBytes: maxBytes, wake: make(chan struct{}, 1), dbs: map[uint64]*database{}}
}

// Register gives an entry a slot. The log's goroutine calls it, in order, before the
// database gets the entry. An entry that was delivered before has had its slot.
func (q *Queue[T]) Register(db uint64, name string, index uint64, size int) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if index <= q.last {
		return
	}
	d := q.dbs[db]
	if d == nil {
		d = &database{}
		q.dbs[db] = d
	}
	d.name, d.registered, q.last = name, index, index
	switch {
	case d.broken != 0: // told when it goes on
	case q.lost == nil && len(q.slots) < q.maxSlots && (q.bytes == 0 || q.bytes+size <= q.maxBytes):
		q.slots = append(q.slots, slot[T]{index: index, db: db, name: name, size: size})
		q.bytes += size
	case q.lost == nil:
		q.lost = &slot[T]{state: gap, from: index, index: index, waits: map[uint64]uint64{db: index}}
	default:
		q.lost.index, q.lost.waits[db] = index, index
	}
}

// Applied fills an entry's slot. The database's goroutine calls it. Entries before it
// that the database has not spoken of were no-ops.
func (q *Queue[T]) Applied(db, index uint64, value T) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	i := sort.Search(len(q.slots), func(i int) bool { return q.slots[i].index >= index })
	if i < len(q.slots) && q.slots[i].index == index && q.slots[i].db == db && q.slots[i].state == open {
		q.slots[i].state, q.slots[i].value = event, value
	}
	q.passedLocked(db, index)
}

// Passed says that a database has dealt with every entry up to index.
func (q *Queue[T]) Passed(db, index uint64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.passedLocked(db, index)
}

func (q *Queue[T]) passedLocked(db, index uint64) {
	if d := q.dbs[db]; d != nil {
		d.passed = max(d.passed, index)
	}
	q.signal()
}

// Stopped says that a database has stopped: what it has not applied becomes a gap. What
// it is handed from now on is told of as another one, by GoOn.
func (q *Queue[T]) Stopped(db uint64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if d := q.dbs[db]; d != nil && d.broken == 0 {
		d.broken = d.passed + 1
	}
	q.leaveLocked(func(other uint64) bool { return other == db })
}

// Dropped says that a database is gone. What it has not applied becomes a gap.
func (q *Queue[T]) Dropped(db uint64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leaveLocked(func(other uint64) bool { return other == db })
	delete(q.dbs, db)
}

// leaveLocked makes gaps of what databases have not dealt with.
func (q *Queue[T]) leaveLocked(left func(db uint64) bool) {
	for i := range q.slots {
		s := &q.slots[i]
		switch {
		case s.state != open || !left(s.db):
		case q.dbs[s.db].passed < s.index:
			s.state, s.from = gap, s.index
		default:
			s.state = nothing
		}
		for db := range s.waits {
			if left(db) {
				delete(s.waits, db)
			}
		}
	}
	if q.lost != nil {
		for db := range q.lost.waits {
			if left(db) {
				delete(q.lost.waits, db)
			}
		}
	}
	q.signal()
}

// Replaced says that a database now bears the name of another, former, 0 for none: what
// was told of the name is void from the entry at index on.
func (q *Queue[T]) Replaced(former, db uint64, name string, index uint64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	from := uint64(1)
	if d := q.dbs[former]; d != nil {
		from = d.registered + 1
	}
	if d := q.dbs[db]; d != nil {
		d.name = name
	}
	q.gapLocked(name, from, index)
}

// Skipped says that the entry at index did not reach its database. GoOn says that it has.
func (q *Queue[T]) Skipped(index uint64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.skipped == 0 || index < q.skipped {
		q.skipped = index
	}
}

// GoOn says that databases which had stopped go on, and that what they and others had
// missed, up to index, is applied; stopped reports those of which that is not so.
func (q *Queue[T]) GoOn(index uint64, stopped func(db uint64) bool) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	from := q.skipped
	var back []*database
	for db, d := range q.dbs {
		if d.broken == 0 || stopped(db) {
			continue
		}
		back = append(back, d)
		if q.skipped != 0 {
			from = min(from, d.broken)
		}
	}
	sort.Slice(back, func(i, j int) bool { return back[i].broken < back[j].broken })
	if from != 0 {
		q.gapLocked("", from, index)
	}
	for _, d := range back {
		if from == 0 && d.broken <= max(index, q.last) {
			q.gapLocked(d.name, d.broken, index)
		}
		d.broken = 0
	}
	q.skipped = 0
}

// Installed says that a copy has taken the place of all databases, which holds their
// entries up to index, or more. What they had not applied is part of the gap.
func (q *Queue[T]) Installed(index uint64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	from, kept := q.last+1, q.slots[:0]
	for _, s := range q.slots {
		switch {
		case s.state == event:
			kept = append(kept, s)
			continue
		case s.state == nothing, s.state == open && q.dbs[s.db].passed >= s.index:
		case s.state == open:
			from = min(from, s.index)
		default:
			from = min(from, s.from)
		}
		q.bytes -= s.size
	}
	clear(q.slots[len(kept):])
	q.slots = kept
	if q.lost != nil {
		from = min(from, q.lost.from)
		q.lost = nil
	}
	clear(q.dbs)
	q.skipped = 0
	q.gapLocked("", from, max(index, from))
}

// Closed says that every database was closed and none took its place: what they have not
// applied becomes a gap.
func (q *Queue[T]) Closed() {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leaveLocked(func(uint64) bool { return true })
}

// gapLocked has a gap told behind all that waits.
func (q *Queue[T]) gapLocked(name string, from, to uint64) {
	q.last = max(q.last, to)
	to = q.last // what is told next is newer
	switch {
	case q.lost != nil:
		q.lost.from, q.lost.index = min(q.lost.from, from), to
	case len(q.slots) >= q.maxSlots:
		q.lost = &slot[T]{state: gap, from: from, index: to, waits: map[uint64]uint64{}}
	default:
		q.slots = append(q.slots, slot[T]{state: gap, from: from, index: to, name: name})
	}
	q.signal()
}

// next takes what can be told now from the head.
func (q *Queue[T]) next() (Event[T], bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if len(q.slots) == 0 && q.lost != nil {
			q.slots, q.lost = append(q.slots, *q.lost), nil // from here on there is room
		}
		if len(q.slots) == 0 || !q.readyLocked(&q.slots[0]) {
			return Event[T]{}, false
		}
		s := q.popLocked()
		if s.state == open || s.state == nothing {
			continue
		}
		e := Event[T]{Index: s.index, DB: s.name, Value: s.value}
		if s.state == gap {
			for len(q.slots) > 0 && q.slots[0].state == gap && q.slots[0].name == s.name && q.readyLocked(&q.slots[0]) {
				e.Index, s.from = q.slots[0].index, min(s.from, q.slots[0].from)
				q.popLocked()
			}
			e.Gap = &Gap{From: s.from, To: e.Index}
		}
		return e, true
	}
}

func (q *Queue[T]) readyLocked(s *slot[T]) bool {
	for db, index := range s.waits {
		if d := q.dbs[db]; d != nil && d.passed < index {
			return false
		}
	}
	return s.state != open || q.dbs[s.db].passed >= s.index
}

func (q *Queue[T]) popLocked() slot[T] {
	s := q.slots[0]
	q.slots[0] = slot[T]{} // it holds an entry
	q.slots = q.slots[1:]
	q.bytes -= s.size
	return s
}

func (q *Queue[T]) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Run calls tell with one event after the other until ctx ends.
func (q *Queue[T]) Run(ctx context.Context, tell func(Event[T])) {
	if q == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		for ctx.Err() == nil {
			e, ok := q.next()
			if !ok {
				break
			}
			tell(e)
		}
	}
}
