package catalogue

import (
	"context"
	"errors"
	"fmt"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// Reopen replaces a stopped database by its file opened anew.
func (s *Set) Reopen(old *engine.DB) (*engine.DB, error) {
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
		s.cfg.Warn("a stopped database could not be closed cleanly", "db", old.Name(), "err", err)
	}
	d, err := engine.Open(s.cfg.Engine(old.Name(), old.Incarnation(), s.path(old)))
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

// Log is what a set reads entries from again.
type Log interface {
	// First is the first index the log holds.
	First() (uint64, error)
	// Last is the last one that was handed to the databases.
	Last() uint64
	// Entry returns an entry. Its data are nil if it is not for a database.
	Entry(index uint64) (term uint64, data []byte, err error)
}

// GoOn brings back every database that stopped for a reason that may pass, hands all of
// them the entries from missed on again, unless that is 0, and returns when everything
// is applied; or it tells what keeps the set from that. Nothing else may be delivered
// meanwhile.
func (s *Set) GoOn(ctx context.Context, log Log, missed uint64) error {
	for _, d := range s.All() {
		if d.Err() == nil {
			continue
		}
		if err := s.revive(ctx, log, d); err != nil {
			return err
		}
	}
	// The set of databases may have waited for one of them, and entries for the set.
	if err := s.System().Drain(ctx); err != nil {
		return err
	}
	if err := s.Reload(); err != nil {
		return err
	}
	if missed != 0 {
		if err := s.redeliver(ctx, log, missed, func(uint64) bool { return true }); err != nil {
			return err
		}
	}
	return s.Drain(ctx)
}

// LocalFailure reports whether a replica stopped for a reason that may pass: a full
// disk, an I/O error. One that parted from the others stays stopped.
func LocalFailure(err error) bool {
	var div *engine.DivergedError
	var gap *engine.GapError
	return !errors.As(err, &div) && !errors.As(err, &gap) && !errors.Is(err, wire.ErrCorrupt)
}

// revive opens a stopped database anew and hands it what it has not applied.
func (s *Set) revive(ctx context.Context, log Log, old *engine.DB) error {
	var lack *engine.LackError
	if err := old.Err(); !LocalFailure(err) || errors.As(err, &lack) {
		return err // what it lacks it gets at the next start
	}
	d, err := s.Reopen(old)
	if err != nil {
		return err
	}
	// What the log no longer holds is older than a snapshot, and so in the file; a gap
	// would be noticed.
	return s.redeliver(ctx, log, d.Mark().Index+1, func(inc uint64) bool { return inc == d.Incarnation() })
}

// redeliver hands databases their entries again, from the log; what they hold already
// they pass over.
func (s *Set) redeliver(ctx context.Context, log Log, from uint64, wanted func(incarnation uint64) bool) error {
	first, err := log.First()
	if err != nil {
		return err
	}
	for i := max(from, first); i <= log.Last(); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		term, data, err := log.Entry(i)
		if err != nil {
			return fmt.Errorf("entry %d cannot be read again: %w", i, err)
		}
		if data == nil {
			continue
		}
		inc, _, _, _, err := wire.EntryOwner(data)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if !wanted(inc) {
			continue
		}
		db, known := s.Route(inc)
		switch {
		case db != nil:
			db.Deliver(wire.Mark{Term: term, Index: i}, data)
		case !known:
			return fmt.Errorf("entry %d belongs to database %d, which this node does not know", i, inc)
		}
		if inc != 0 {
			continue
		}
		if err := db.Drain(ctx); err != nil {
			return err
		}
		if err := s.Reload(); err != nil {
			return err
		}
	}
	return nil
}
