package engine

import (
	"fmt"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// How an epoch is proposed, and how its units are answered.

// propose hands the epoch to the log. An epoch in which nothing succeeded is
// decided at once: its errors rest on committed state alone.
func (d *DB) propose(e *epoch) {
	if e.good == 0 {
		d.abandon(e)
		d.answerConfirmed(e)
		return
	}
	if d.w.Autocommit() {
		// Its transaction has ended unnoticed: what would be committed is not what ran.
		d.undoEpoch(e, nil)
		return
	}
	durable.CrashPoint("propose.before")
	var enc wire.EntryEncoder
	enc.Begin(wire.EntryHeader{DB: d.cfg.Incarnation, Prev: e.prev, Proposer: d.cfg.Proposer, Epoch: e.seq, Engine: sqlite.Fingerprint(), Time: e.time, ForeignKeys: e.modes.ForeignKeys, RecursiveTriggers: e.modes.RecursiveTriggers})
	for _, u := range e.units {
		if !u.failed {
			enc.AppendUnit(&u.entry)
		}
	}
	if err := enc.Err(); err != nil {
		d.tooLarge(e, enc.Len())
		return
	}
	data := enc.Finish()
	e.proposed = true
	d.proposed.Store(e.seq) // before the entry can come back
	seq := e.seq
	d.cfg.Propose(data, func(err error) {
		if err != nil {
			d.enqueue(logItem{kind: itemProposal, epoch: seq, err: err})
		}
	})
}

// tooLarge undoes an epoch whose entry exceeds what the log takes. A unit alone in
// it can never succeed; others are tried one by one.
func (d *DB) tooLarge(e *epoch, size int) {
	if e.good > 1 {
		for _, u := range e.units {
			u.alone = true
		}
		d.undoEpoch(e, nil)
		return
	}
	d.abandon(e)
	for _, u := range e.units {
		if !u.failed {
			u.failed, u.Err = true, &TooLargeError{What: "the replicated entry", Size: size, Most: wire.MaxEntryBytes}
		}
	}
	d.answer(e, nil)
}

// answerConfirmed answers an epoch in which nothing succeeded. Its errors rest on
// committed state alone; but a leader that was deposed without knowing it would judge
// by an old state, so its term is confirmed first.
func (d *DB) answerConfirmed(e *epoch) {
	if d.cfg.Confirm == nil || len(e.units) == 0 {
		d.answer(e, nil)
		return
	}
	units := e.units
	e.units = nil
	d.cfg.Confirm(e.term, func(ok bool) {
		for _, u := range units {
			if !ok {
				u.Err = ErrNotLeading
			}
			d.finish(u)
		}
	})
}

// proposalFailed handles an epoch whose proposal ended without its entry coming
// back. Whether the entry can still win decides what the units are told.
func (d *DB) proposalFailed(seq uint64, err error) {
	e := d.epoch
	if e == nil || e.seq != seq {
		return // decided meanwhile: the log wins over a late error (H13)
	}
	d.abandon(e)
	d.abortSession(AbortLeader, err)
	if d.cfg.ProposalLost(err) {
		d.answer(e, fmt.Errorf("%w: %w", ErrUnknown, err))
	} else {
		d.answer(e, fmt.Errorf("%w: %w", ErrNotLeading, err))
	}
}

// answer tells every unit of the epoch. err is nil when what they rest on is
// decided: then the failed ones get their own error.
func (d *DB) answer(e *epoch, err error) {
	for _, u := range e.units {
		switch {
		case err == nil && u.Req.Resolve && !u.failed:
			u.Err = ErrNotFound
		case err != nil && u.failed:
			u.Err = ErrNotLeading // it was not proposed, and its error is not decided
		case err != nil:
			u.Err = err
		}
		d.finish(u)
	}
	e.units = nil
}
