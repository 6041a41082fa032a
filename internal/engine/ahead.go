package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/wire"
)

// While an epoch is on its round trip the writer would be idle, and the clients of sessions
// are a round trip of their own away at every statement. So sessions work on, in an epoch
// that stands on the proposed one: in the same SQLite transaction, under a savepoint. When
// the log has spoken the savepoint is undone (folded), the proposed epoch is committed as if
// nothing had been there, and what had finished above it is repeated in a transaction of its
// own, compared, and proposed at once. If the proposed epoch is void, so is what stood on it.
//
// What runs ahead runs twice. So it is for sessions, whose clients take longer than their
// statements, and for the few units between them.

const (
	aheadCost  = cutAfter / 2 // of what a session has done, to be repeated ahead
	aheadUnits = 64           // that wait, to be run ahead between sessions
	// aheadEpochCost is of what an epoch has done, to be stood on, or to stand: a statement
	// that ends SQLite's transaction has the one run again, and the other always is.
	aheadEpochCost = 10 * time.Millisecond
)

// runAhead lets sessions work while the proposed epoch is on its way. It reports whether it
// did anything.
func (d *DB) runAhead() bool {
	if !d.wantsAhead() {
		return false
	}
	e := d.ahead
	if e == nil {
		if err := d.runInternal(d.saveAhead); err != nil {
			return false // they wait, as they would elsewhere
		}
		e = &epoch{base: d.epoch, term: d.epoch.term, modes: d.epoch.modes, byID: map[wire.RequestID]*Unit{}}
		d.ahead = e
	}
	var units []*Unit
	if d.holder == nil {
		units = d.nextUnits()
	}
	if d.fill(e, units) == fillStop {
		d.fold()
	}
	return true
}

// wantsAhead reports whether there is a session that can work on the proposed epoch. Where
// the schema has changed in it, or where there are virtual tables, whose memory goes by
// savepoints, sessions wait (H6).
func (d *DB) wantsAhead() bool {
	e := d.epoch
	if e == nil || !e.proposed || e.closed || d.leading.Load() != e.term || d.logWaits() {
		return false
	}
	if s := d.holder; s != nil {
		return d.hasAsked(s) && d.goesAhead(e, s)
	}
	d.grant()
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.returning) > 0 && d.goesAhead(e, d.returning[0]) && len(d.units) <= aheadUnits
}

// goesAhead reports whether a session can work on an epoch once that is proposed.
func (d *DB) goesAhead(e *epoch, s *Session) bool {
	plain := !d.virtual && !d.touched || d.ahead != nil
	return plain && d.cfg.BatchWindow >= 0 && s.opts.Modes == e.modes && s.cost <= aheadCost && e.cost <= aheadEpochCost
}

// remembersAny reports whether the memory of requests refuses a unit that ran ahead, now
// that what it stood on is in it: other replicas will look after that too (H15).
func (d *DB) remembersAny(e *epoch) bool {
	return slices.ContainsFunc(e.units, func(u *Unit) bool {
		_, v := d.memory.look(u.Req.ID)
		return !u.failed && v != requestFresh
	})
}

// logWaits reports whether the log has spoken since the owner looked.
func (d *DB) logWaits() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log) > 0 || d.closing
}

// mustClose reports whether something must not wait any longer for what began at a moment
// in an epoch: the units that have finished in it, or those of the one that it stands on.
func (d *DB) mustClose(e *epoch, began, now time.Time) bool {
	if e.base != nil {
		return d.logWaits()
	}
	return d.finishedWait(e) && now.Sub(began) > cutAfter
}

// fold undoes what stands on the proposed epoch. It is to be repeated when that is
// committed, and until then nothing more runs.
func (d *DB) fold() {
	e := d.ahead
	if e == nil || e.base == nil {
		return
	}
	d.comeDown(e)
	if len(e.units) == 0 {
		d.ahead = nil
	}
	durable.CrashPoint("ahead.folded")
}

// comeDown takes an epoch, and the work of the session that holds the writer, out of the
// transaction of the one that it stands on.
func (d *DB) comeDown(e *epoch) {
	base := e.base
	e.base, base.closed = nil, true
	if d.holder != nil {
		d.holder.live = false
	}
	if d.halted.Load() != nil {
		return
	}
	err := d.runInternal(d.undoAhead)
	if err == nil {
		err = d.runInternal(d.releaseAhead)
	}
	if err == nil {
		err = d.forgetUndone(d.touched)
		d.touched = false
	}
	if err != nil {
		d.restore(base)
	}
}

// restore runs a proposed epoch again whose transaction was lost with what stood on it. The
// log may want it committed, so this replica stops if that cannot be done.
func (d *DB) restore(e *epoch) bool {
	err := d.rollbackOpen()
	if err == nil {
		err = d.runInternal(d.begin)
	}
	if err == nil && !d.repeatUnits(e) {
		err = errors.New("its units gave other results")
	}
	if err != nil {
		d.halt(fmt.Errorf("the epoch that was proposed could not be run again: %w", err))
	}
	return err == nil
}

// void ends what was done ahead, because what it stood on will not be committed or the
// writer is not this node's any more. What else stands in the transaction, and the session
// that holds the writer, are the caller's to end.
func (d *DB) void() {
	e := d.ahead
	if e == nil {
		return
	}
	d.ahead, e.base = nil, nil
	if d.holder != nil {
		d.holder.live = false
	}
	d.answer(e, ErrNotLeading)
}
