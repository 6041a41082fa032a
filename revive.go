package colmena

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// reviveTick is how often a replica that stopped for a local reason is tried again.
const reviveTick = time.Second

// reviveReplicas brings databases back that stopped because of this machine: a full
// disk, an I/O error. The file is opened anew, and what was delivered since its mark is
// read from the log again, so nothing is skipped. A replica that parted from the others
// stays stopped.
func (n *Node) reviveReplicas(ctx context.Context) {
	tick := time.NewTicker(reviveTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.halted.Load() == nil {
			continue
		}
		if err := n.goOn(); err != nil {
			n.log.Warn("this node cannot go on yet", "err", err)
			continue
		}
		n.halted.Store(nil)
		n.stateChanged()
		n.log.Info("this node goes on")
	}
}

// goOn brings back everything that stopped, or tells what keeps it from that. The
// log's goroutine delivers nothing meanwhile.
func (n *Node) goOn() error {
	n.delivering.Lock()
	defer n.delivering.Unlock()
	if err := n.store.Failure(); err != nil {
		return err
	}
	for _, d := range n.dbs.All() {
		if d.Err() == nil {
			continue
		}
		if err := n.revive(d); err != nil {
			return err
		}
	}
	// The set of databases may have waited for one of them, and entries for the set.
	if err := n.dbs.System().Drain(n.group.Context()); err != nil {
		return err
	}
	if err := n.dbs.Reload(); err != nil {
		return err
	}
	if from := n.missedFrom.Load(); from != 0 {
		if err := n.redeliver(from, func(uint64) bool { return true }); err != nil {
			return err
		}
		n.missedFrom.Store(0)
	}
	return n.dbs.Drain(n.group.Context())
}

// localFailure reports whether a replica stopped for a reason that may pass.
func localFailure(err error) bool {
	var div *engine.DivergedError
	var gap *engine.GapError
	return !errors.As(err, &div) && !errors.As(err, &gap) && !errors.Is(err, wire.ErrCorrupt)
}

// revive opens a stopped database anew and hands it what it has not applied.
func (n *Node) revive(old *engine.DB) error {
	var lack *engine.LackError
	if err := old.Err(); !localFailure(err) || errors.As(err, &lack) {
		return err // what it lacks it gets at the next start
	}
	d, err := n.dbs.Reopen(old)
	if err != nil {
		return err
	}
	// What the log no longer holds is older than a snapshot, and so in the file; a gap
	// would be noticed.
	return n.redeliver(d.Mark().Index+1, func(inc uint64) bool { return inc == d.Incarnation() })
}

// redeliver hands databases their entries again, from the log; what they hold already
// they pass over.
func (n *Node) redeliver(from uint64, wanted func(incarnation uint64) bool) error {
	first, err := n.store.FirstIndex()
	if err != nil {
		return err
	}
	for i := max(from, first); i <= n.applied.Load(); i++ {
		var l raft.Log
		if err := n.store.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d cannot be read again: %w", i, err)
		}
		if l.Type != raft.LogCommand {
			continue
		}
		inc, _, _, _, err := wire.EntryOwner(l.Data)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if !wanted(inc) {
			continue
		}
		db, known := n.dbs.Route(inc)
		switch {
		case db != nil:
			db.Deliver(wire.Mark{Term: l.Term, Index: l.Index}, l.Data)
		case !known:
			return fmt.Errorf("entry %d belongs to database %d, which this node does not know", i, inc)
		}
		if inc != 0 {
			continue
		}
		if err := db.Drain(n.group.Context()); err != nil {
			return err
		}
		if err := n.dbs.Reload(); err != nil {
			return err
		}
	}
	return nil
}

// Reopen replaces a stopped database by its file opened anew.
func (s *databases) Reopen(old *engine.DB) (*engine.DB, error) {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	current := s.byInc[old.Incarnation()]
	if old.Incarnation() == 0 {
		current = s.sys
	}
	s.mu.RUnlock()
	if current != old {
		return nil, errors.New("it was replaced meanwhile")
	}
	if err := old.Close(); err != nil {
		s.log("a stopped database could not be closed cleanly", "db", old.Name(), "err", err)
	}
	d, err := engine.Open(s.cfg(old.Name(), old.Incarnation(), s.path(old)))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.Incarnation() == 0 {
		s.sys = d
	} else {
		s.byInc[d.Incarnation()], s.byName[d.Name()] = d, d
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return d, nil
}
