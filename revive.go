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
		healthy := true
		for _, d := range n.dbs.all() {
			if d.Err() == nil {
				continue
			}
			if err := n.revive(d); err != nil {
				healthy = false
				n.log.Warn("replica cannot go on yet", "db", d.Name(), "err", err)
			}
		}
		if healthy && n.store.Failure() == nil {
			n.halted.Store(nil)
			n.stateChanged()
		}
	}
}

// localFailure reports whether a replica stopped for a reason that may pass.
func localFailure(err error) bool {
	var div *engine.DivergedError
	var gap *engine.GapError
	return !errors.As(err, &div) && !errors.As(err, &gap) && !errors.Is(err, wire.ErrCorrupt)
}

func (n *Node) revive(old *engine.DB) error {
	if err := old.Err(); !localFailure(err) {
		return err
	}
	// The log's goroutine delivers nothing meanwhile.
	n.delivering.Lock()
	defer n.delivering.Unlock()
	d, err := n.dbs.reopen(old)
	if err != nil {
		return err
	}
	if err := n.redeliver(d); err != nil {
		return err
	}
	// The set of databases may have waited for this one.
	if err := d.Drain(n.group.Context()); err != nil {
		return err
	}
	if err := n.dbs.reload(); err != nil {
		return err
	}
	n.log.Info("replica goes on", "db", d.Name(), "mark", d.Mark().String())
	return d.Err()
}

// redeliver hands a database the entries it has not applied, from the log.
func (n *Node) redeliver(d *engine.DB) error {
	first, err := n.store.FirstIndex()
	if err != nil {
		return err
	}
	// What the log no longer holds is older than a snapshot, and so in the file; a gap
	// would be noticed.
	for i := max(d.Mark().Index+1, first); i <= n.applied.Load(); i++ {
		var l raft.Log
		if err := n.store.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d cannot be read again: %w", i, err)
		}
		if l.Type != raft.LogCommand {
			continue
		}
		if inc, _, _, _, err := wire.EntryOwner(l.Data); err == nil && inc == d.Incarnation() {
			d.Deliver(wire.Mark{Term: l.Term, Index: l.Index}, l.Data)
		}
	}
	return nil
}

// reopen replaces a stopped database by its file opened anew.
func (s *databases) reopen(old *engine.DB) (*engine.DB, error) {
	s.change.Lock()
	defer s.change.Unlock()
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
