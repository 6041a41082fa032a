package colmena

import (
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/hooks"
	"github.com/mentasystems/colmena/internal/wire"
)

// ApplyEvent tells of one replicated entry, or of a gap. Index never goes back from one
// event to the next, whichever databases they are of, and no entry is told of twice while
// a node runs; after a restart events begin with what was not applied before it.
type ApplyEvent struct {
	Index, Term uint64    // of a gap: Gap.To, and 0
	Time        time.Time // of the leader, the same on every node
	DB          string    // "" for a gap in what was told of several databases
	Statements  []string
	Results     []ExecResult // of each statement
	// Gap is set instead when there are entries of which nothing is told: the queue
	// overflowed, a copy of the databases was installed, Load gave the database another
	// content, or this node's replica of it has stopped (then a second gap follows when
	// it has caught up). What was derived from earlier events must be built anew.
	Gap *Gap
}

// Gap is a range of log indexes, both ends included. It may reach back before entries
// that were told of.
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

// appliedEntry is what a database has applied.
type appliedEntry struct {
	term  uint64
	entry *wire.Entry
}

// entryApplied is called after each commit by the database's goroutine. The entry is
// given only where somebody is to be told of it.
func (n *Node) entryApplied(incarnation uint64, mark wire.Mark, e *wire.Entry) {
	if n.lead.Leading() {
		n.nudge(mark)
	}
	if e != nil {
		n.hooks.Applied(incarnation, mark.Index, appliedEntry{mark.Term, e})
	}
}

// onApply calls Config.OnApply.
func (n *Node) onApply(e hooks.Event[appliedEntry]) {
	ev := ApplyEvent{Index: e.Index, DB: e.DB, Term: e.Value.term}
	if e.Gap != nil {
		ev.Gap = &Gap{From: e.Gap.From, To: e.Gap.To}
	} else {
		ev.Time = time.UnixMilli(e.Value.entry.Time)
		for i := range e.Value.entry.Units {
			for j := range e.Value.entry.Units[i].Statements {
				s := &e.Value.entry.Units[i].Statements[j]
				ev.Statements = append(ev.Statements, s.SQL)
				ev.Results = append(ev.Results, ExecResult{LastInsertID: s.Outcome.LastInsertID, RowsAffected: s.Outcome.RowsAffected})
			}
		}
	}
	if ev.Gap == nil && len(ev.Statements) == 0 {
		return // an entry that only ends what was proposed before it
	}
	defer func() {
		if r := recover(); r != nil {
			n.log.Error("a hook panicked", "hook", "OnApply", "panic", fmt.Sprint(r))
			n.event(Event{Kind: EventHookPanicked, DB: ev.DB, Err: fmt.Errorf("OnApply: %v", r)})
		}
	}()
	n.cfg.OnApply(ev)
}
