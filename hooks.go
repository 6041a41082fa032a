package colmena

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/wire"
)

// ApplyEvent tells of one replicated entry, or of a gap.
type ApplyEvent struct {
	Index, Term uint64
	Time        time.Time // of the leader, the same on every node
	DB          string
	Statements  []string
	Results     []ExecResult // of each statement
	// Gap is set instead when entries were applied of which nothing is told: the
	// queue overflowed, or a copy of the database was installed. What was derived
	// from earlier events must be built anew.
	Gap *Gap
}

// Gap is a range of log indexes, both ends included; To is 0 while the end is not known.
type Gap struct{ From, To uint64 }

// EventKind says what happened.
type EventKind int

// Kinds of events.
const (
	EventLeadershipWon EventKind = iota + 1
	EventLeadershipLost
	EventReplicaHalted // this node's copy of a database has stopped; Err tells why
	EventLogFailed     // the log takes no more writes; Err tells why
	EventDiskStalled
	EventHookPanicked
	EventRemoved // this node is no member any more
)

// String returns the kind's name.
func (k EventKind) String() string {
	names := [...]string{"", "leadership won", "leadership lost", "replica halted", "log failed", "disk stalled", "hook panicked", "removed"}
	if k > 0 && int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event %d", int(k))
}

// Event is something an operator should know of.
type Event struct {
	Kind EventKind
	DB   string
	Term uint64
	Err  error
}

// event reports to Config.OnEvent. A panic there harms nothing.
func (n *Node) event(e Event) {
	if n.cfg.OnEvent == nil {
		return
	}
	defer n.contain("OnEvent")
	n.cfg.OnEvent(e)
}

func (n *Node) contain(hook string) {
	if r := recover(); r != nil {
		n.log.Error("a hook panicked", "hook", hook, "panic", fmt.Sprint(r))
	}
}

// maxQueuedEvents bounds what waits for a slow hook.
const maxQueuedEvents = 4096

// hookQueue calls Config.OnApply, in order, off the apply path. Databases apply in
// parallel, so the order is that of each database.
type hookQueue struct {
	n    *Node
	wake chan struct{} // one slot

	mu     sync.Mutex
	events []ApplyEvent
	lost   *Gap              // what did not fit, told when there is room
	seen   map[string]uint64 // last index told of, by database
}

func newHookQueue(n *Node) *hookQueue {
	return &hookQueue{n: n, wake: make(chan struct{}, 1), seen: map[string]uint64{}}
}

// applied is called after each commit by the database's goroutine.
func (q *hookQueue) applied(db string, mark wire.Mark, e *wire.Entry) {
	if q.n.leading.Load() != 0 {
		q.n.nudge(mark)
	}
	if e == nil || db == catalogue.SystemName || plainfile.IsHidden(db) {
		return
	}
	ev := ApplyEvent{Index: mark.Index, Term: mark.Term, Time: time.UnixMilli(e.Time), DB: db}
	for i := range e.Units {
		for j := range e.Units[i].Statements {
			s := &e.Units[i].Statements[j]
			ev.Statements = append(ev.Statements, s.SQL)
			ev.Results = append(ev.Results, ExecResult{LastInsertID: s.Outcome.LastInsertID, RowsAffected: s.Outcome.RowsAffected})
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if mark.Index <= q.seen[db] {
		return
	}
	q.seen[db] = mark.Index
	q.add(ev)
}

func (q *hookQueue) add(ev ApplyEvent) {
	switch {
	case q.lost != nil && ev.Gap == nil:
		q.lost.To = max(q.lost.To, ev.Index)
	case len(q.events) >= maxQueuedEvents:
		q.lost = &Gap{From: ev.Index, To: ev.Index}
	default:
		q.events = append(q.events, ev)
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// gap says that entries were skipped, because a copy was installed.
func (q *hookQueue) gap() {
	if q.n.cfg.OnApply == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	g := Gap{From: 1}
	for _, d := range q.n.dbs.All() {
		name, now := d.Name(), d.Mark().Index
		if d.Incarnation() == 0 {
			continue
		}
		if from := q.seen[name] + 1; g.To == 0 || from < g.From {
			g.From = from // the database that was told of least far
		}
		g.To = max(g.To, now)
		q.seen[name] = max(q.seen[name], now)
	}
	if q.lost != nil {
		q.lost.From, q.lost.To = min(q.lost.From, g.From), max(q.lost.To, g.To)
		return
	}
	q.add(ApplyEvent{Gap: &g})
}

func (q *hookQueue) run(ctx context.Context) {
	if q.n.cfg.OnApply == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		for {
			ev, ok := q.next()
			if !ok || ctx.Err() != nil {
				break
			}
			q.call(ev)
		}
	}
}

func (q *hookQueue) next() (ApplyEvent, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.events) > 0 {
		ev := q.events[0]
		q.events = q.events[1:]
		return ev, true
	}
	if q.lost != nil {
		ev := ApplyEvent{Gap: q.lost}
		q.lost = nil
		return ev, true
	}
	return ApplyEvent{}, false
}

func (q *hookQueue) call(ev ApplyEvent) {
	defer func() {
		if r := recover(); r != nil {
			q.n.log.Error("a hook panicked", "hook", "OnApply", "panic", fmt.Sprint(r))
			q.n.event(Event{Kind: EventHookPanicked, DB: ev.DB, Err: fmt.Errorf("OnApply: %v", r)})
		}
	}()
	q.n.cfg.OnApply(ev)
}

// nudge asks for followers to be told that mark was committed; the newest one counts.
func (n *Node) nudge(mark wire.Mark) {
	g := nudge{mark: mark, term: n.leading.Load()}
	if g.mark.Term != g.term || n.net == nil {
		return
	}
	for {
		select {
		case n.nudges <- g:
			return
		default:
		}
		select {
		case <-n.nudges:
		default:
		}
	}
}

// replaced tells the hooks that a database has another content than they were told of.
func (q *hookQueue) replaced(db string, index uint64) {
	if q.n.cfg.OnApply == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	from := q.seen[db] + 1
	q.seen[db] = max(q.seen[db], index)
	q.add(ApplyEvent{Index: index, DB: db, Gap: &Gap{From: from, To: index}})
}
