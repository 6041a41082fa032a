// Package nudge has a leader tell its followers at once what was committed: raft would tell them with the next entry, or after its CommitTimeout.
// A nudge is a courtesy. The newest replaces one that waits, and a follower that hangs, lags or cannot be reached is left to raft for a while.
package nudge

import (
	"context"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// Config is what a Nudger needs of its node.
type Config struct {
	Term      func() uint64   // in which this node leads, 0 if it does not
	Followers func() []string // IDs of whom to tell
	// Send tells a follower, in the name of the mark's term, that the entry was committed, and reports whether that follower had it. It may take
	// as long as it likes.
	Send func(id string, committed wire.Mark) bool
	Done <-chan struct{} // closed when the node closes
}

// Nudger tells followers. Its methods may be called from several goroutines at once.
type Nudger struct {
	cfg     Config
	waiting chan wire.Mark // one slot

	mu   sync.Mutex           // guards what follows
	mute map[string]time.Time // no nudges until
	out  map[string]bool      // a nudge is on its way
}

// New returns a nudger; Run makes it work.
func New(cfg Config) *Nudger {
	return &Nudger{cfg: cfg, waiting: make(chan wire.Mark, 1), mute: map[string]time.Time{}, out: map[string]bool{}}
}

// Committed asks for the followers to be told of an entry of the term in which this node leads; the newest one counts. It does not wait.
func (n *Nudger) Committed(mark wire.Mark) {
	if mark.Term != n.cfg.Term() {
		return
	}
	for {
		select {
		case n.waiting <- mark:
			return
		default:
		}
		select {
		case <-n.waiting:
		default:
		}
	}
}

// Run tells followers until ctx ends.
func (n *Nudger) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case mark := <-n.waiting:
			if n.cfg.Term() == mark.Term {
				n.tell(mark)
			}
		}
	}
}

// tell sends to all at once, and waits for the quickest answer only: a slow follower has its own next nudge.
func (n *Nudger) tell(mark wire.Mark) {
	done := make(chan struct{}, 1)
	sent := 0
	for _, id := range n.cfg.Followers() {
		if !n.begin(id) {
			continue
		}
		sent++
		go func() {
			n.end(id, n.cfg.Send(id, mark))
			select {
			case done <- struct{}{}:
			default:
			}
		}()
	}
	if sent > 0 {
		select {
		case <-done:
		case <-n.cfg.Done:
		}
	}
}

// begin reports whether a follower may be nudged: one that could not be reached, or lags, is left to raft for a while, and one nudge at a time is on
// its way: a follower that hangs must not gather them.
func (n *Nudger) begin(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.out[id] || time.Now().Before(n.mute[id]) {
		return false
	}
	n.out[id] = true
	return true
}

// pause is how long a follower is left to raft.
const pause = 200 * time.Millisecond

func (n *Nudger) end(id string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.out, id)
	if ok {
		delete(n.mute, id)
	} else {
		n.mute[id] = time.Now().Add(pause)
	}
}
