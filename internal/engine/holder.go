package engine

import (
	"errors"
	"slices"
	"time"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/wire"
)

// The owner's side of sessions. One session holds the writer; its work stands on top of
// the units that have finished in the open epoch, under the unit savepoint, and each of its
// statements ran under another one. Finished units must not wait for its client to think.
// So after a moment its work is undone (parked), the epoch is proposed with what has
// finished, and its statements run again, first of all and on the very state that they ran
// on before (resumed): while that epoch is on its way (ahead.go), or in the next. Queries
// are answered from memory, so no cursor spans a cut (H8).
//
// What a session is told must not rest on units that may not win: a statement's error, a
// rollback and a commit that changed nothing are answered when what they rest on is
// decided (H9). What it reads holds if its commit succeeds.

// sessionFate is how serving a session ended.
type sessionFate int

const (
	sessionEnded sessionFate = iota // the writer is free
	sessionCut                      // it is parked: the epoch must close
	sessionLost                     // the epoch is gone, and everything in it was seen to
)

// grant lets the sessions that wait begin. Nobody holds the writer now, and until they ask
// for something they hold nothing: the first to ask has it.
func (d *DB) grant() {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		s.asked[0].reply <- StepResult{State: s.state}
		s.asked, s.started, s.touched, s.shelved = nil, now, now, true
		d.shelf[s] = struct{}{}
	}
	d.sessions = nil
}

// startSession lets the session that has asked first have the writer, in the open epoch.
// stop says that it needs an epoch of its own.
func (d *DB) startSession(e *epoch) (stop bool) {
	d.grant()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.returning) == 0 {
		return false
	}
	s := d.returning[0]
	if s.opts.Modes != e.modes || e.rebuilt || d.full(e) || d.keepsWaiting(e, s) {
		return true
	}
	d.returning = d.returning[1:]
	d.holder, d.holding = s, s
	d.sessionTurn = false
	return false
}

// shelve takes the writer from a session that has seen nothing yet. If it has asked for
// something it is still the next.
func (d *DB) shelve(s *Session) {
	d.holder = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holding = nil
	switch {
	case s.gone.Load():
		s.failLocked(&AbortedError{Reason: AbortGone})
	case len(s.asked) > 0:
		d.returning = slices.Insert(d.returning, 0, s)
		d.sessionTurn = true
	default:
		s.shelveLocked()
	}
}

// shelveLocked puts a session aside that waits for nothing. Its next request brings it back.
func (s *Session) shelveLocked() {
	s.shelved = true
	s.db.shelf[s] = struct{}{}
}

// standUp opens the savepoint of a session and, if it was parked, repeats its work.
func (d *DB) standUp(s *Session) error {
	if !s.begun {
		d.clock = max(d.clock, d.time, d.cfg.Now().UnixMilli())
		s.begun, s.time, s.seed = true, d.clock, d.rand.Uint64()
		d.x.beginUnit()
	}
	if err := d.runInternal(d.save); err != nil {
		return err
	}
	d.x.schema, d.x.deferred = false, false
	s.live = true
	if len(s.done) == 0 {
		return nil
	}
	return d.repeatSession(s)
}

// repeatSession runs the session's statements again and compares. The log, a stop and an end
// of its client interrupt it.
func (d *DB) repeatSession(s *Session) (err error) {
	d.running = &runningUnit{gone: &s.gone}
	defer func() {
		if d.running.why != nil {
			err = d.running.why
		}
		d.running = nil
	}()
	d.w.SetNow(s.time)
	for i := range s.done {
		if d.urgent.Load() {
			return errUrgent
		}
		if err := d.repeatStatement(s.done[i], s.sums[i], s.seed, i); err != nil {
			return err
		}
	}
	durable.CrashPoint("session.resumed")
	return nil
}

// park undoes the session's work for now. It returns false if the epoch was lost with it.
func (d *DB) park(e *epoch, s *Session) bool {
	if !s.live {
		return true
	}
	s.live = false
	if !d.w.Autocommit() && d.undoUnit() == nil || d.rebuild(e) {
		durable.CrashPoint("session.parked")
		return true
	}
	d.undoEpoch(e, nil)
	return false
}

// undoWith undoes the epoch and the session's work in it.
func (d *DB) undoWith(e *epoch, s *Session) sessionFate {
	s.live = false
	d.undoEpoch(e, nil)
	return sessionLost
}

// endSession lets the writer go. What the session had done must be undone by the caller,
// or be part of the epoch.
func (d *DB) endSession(s *Session, err error) {
	s.live = false
	d.holder = nil
	d.mu.Lock()
	d.holding = nil
	s.over = err
	asked := s.asked
	s.asked = nil
	d.mu.Unlock()
	for _, r := range asked {
		r.reply <- StepResult{Err: err, Over: true}
	}
}

// abortSession ends the session that holds the writer. Its work must be undone already, or
// be undone with the epoch.
func (d *DB) abortSession(reason AbortReason, cause error) {
	if s := d.holder; s != nil {
		d.endSession(s, &AbortedError{Reason: reason, Cause: cause})
	}
}

// failSessions ends the session that holds the writer, which is parked, those that wait
// for it, and what was done ahead.
func (d *DB) failSessions(err error) {
	d.void()
	over := err
	if errors.Is(err, ErrNotLeading) {
		over = &AbortedError{Reason: AbortLeader}
	} else if errors.Is(err, ErrClosed) {
		over = &AbortedError{Reason: AbortClosed, Cause: err}
	}
	if s := d.holder; s != nil {
		d.endSession(s, over)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		s.failLocked(err)
	}
	for _, s := range d.returning {
		s.failLocked(over)
	}
	for s := range d.shelf {
		s.failLocked(over)
	}
	d.sessions, d.returning = nil, nil
	clear(d.shelf)
}

// failLocked ends a session that does not hold the writer.
func (s *Session) failLocked(err error) {
	for _, r := range s.asked {
		r.reply <- StepResult{Err: err, Over: true}
	}
	s.asked, s.over, s.shelved = nil, err, false
}

// serve lets the session that holds the writer work in the open epoch until it ends or
// the epoch must close.
func (d *DB) serve(e *epoch) sessionFate {
	s, served := d.holder, 0
	var quiet time.Time // since when its client has asked for nothing
	for {
		r, cut := d.nextRequest(e, s)
		now := time.Now()
		switch {
		case d.urgent.Load():
			d.again(s, r)
			if !s.begun {
				d.shelve(s)
			}
			return d.undoWith(e, s)
		case s.gone.Load():
			d.again(s, r)
			return d.giveUp(e, s, AbortGone)
		case d.late(s, r != nil, now) != 0:
			d.again(s, r)
			return d.giveUp(e, s, d.late(s, r != nil, now))
		case cut && (served > 0 || r == nil) || d.mustClose(e, e.first, now) || d.keepsWaiting(e, s) || served > 0 && d.cutEach.Load():
			d.again(s, r)
			if !s.begun {
				d.shelve(s)
				return sessionCut
			}
			return d.cutFor(e, s)
		case r == nil && !s.begun:
			d.shelve(s)
			return sessionEnded
		case r == nil:
			if quiet.IsZero() {
				quiet = now
			}
			until := d.serveUntil(e, s, quiet)
			if !until.After(now) && d.finishedWait(e) {
				return d.cutFor(e, s)
			}
			d.sleep(until)
			d.failWaiting(time.Now())
			continue
		}
		if !s.begun && r.kind != askRun {
			d.endSession(s, errSessionDone) // it has seen nothing and done nothing
			r.reply <- StepResult{State: s.state, Over: true}
			return sessionEnded
		}
		if !s.live && r.kind != askRollback { // what is undone already need not be repeated
			if err := d.standUp(s); err != nil {
				d.again(s, r)
				return d.cannotResume(e, s, err)
			}
		}
		served, quiet = served+1, time.Time{}
		if fate, done := d.handle(e, s, r); done {
			return fate
		}
	}
}

// cannotResume ends a session whose work could not be repeated.
func (d *DB) cannotResume(e *epoch, s *Session, err error) sessionFate {
	if errors.Is(err, errUrgent) {
		return d.undoWith(e, s)
	}
	s.live = true // some of its work may stand
	if s.gone.Load() {
		return d.giveUp(e, s, AbortGone)
	}
	d.cfg.Logger.Warn("a transaction could not be repeated", "db", d.Name(), "err", err)
	if !d.park(e, s) {
		d.abortSession(AbortRepeatable, err)
		return sessionLost
	}
	d.abortSession(AbortRepeatable, err)
	return sessionEnded
}

// giveUp ends the session whose work stands in the epoch.
func (d *DB) giveUp(e *epoch, s *Session, reason AbortReason) sessionFate {
	kept := d.park(e, s)
	d.abortSession(reason, nil)
	if !kept {
		return sessionLost
	}
	return sessionEnded
}

// cutFor parks the session so that the epoch can close.
func (d *DB) cutFor(e *epoch, s *Session) sessionFate {
	if !d.park(e, s) {
		return sessionLost
	}
	return sessionCut
}

// nextRequest takes what the client asks next. cut says that something else needs the
// owner outside a transaction. It gets it once the client has been served: the session's
// work may take longer to repeat than it is until the next wants the owner.
func (d *DB) nextRequest(e *epoch, s *Session) (r *sessionRequest, cut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	cut = e.base == nil && len(d.control) > 0 || len(d.log) > 0 || d.closing
	for len(s.asked) > 0 {
		r, s.asked = s.asked[0], s.asked[1:]
		if !r.canceled.Load() || r.kind != askRun {
			return r, cut
		}
		r.reply <- StepResult{State: s.state, Err: ErrCanceled}
	}
	return nil, cut
}

// again puts a request back that was taken too early, if there is one.
func (d *DB) again(s *Session, r *sessionRequest) {
	if r == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.asked = slices.Insert(s.asked, 0, r)
}

// handle carries a request out. done says that the session is not served any longer.
func (d *DB) handle(e *epoch, s *Session, r *sessionRequest) (fate sessionFate, done bool) {
	switch r.kind {
	case askRollback:
		return d.rollbackSession(e, s, r), true
	case askCommit:
		return d.commitSession(e, s, r)
	}
	return d.runSession(e, s, r)
}

// reply answers a statement.
func (d *DB) reply(s *Session, r *sessionRequest, err error) {
	now := time.Now()
	d.mu.Lock()
	s.touched = now
	d.mu.Unlock()
	r.res.State, r.res.Err = s.state, err
	r.reply <- r.res
}

// replyConfirmed answers a statement's error, which rests on committed state alone. A
// leader that was deposed without knowing it would judge by an old one (H9).
func (d *DB) replyConfirmed(e *epoch, s *Session, r *sessionRequest, err error) {
	if d.cfg.Confirm == nil {
		d.reply(s, r, err)
		return
	}
	now := time.Now()
	d.mu.Lock()
	s.touched = now
	d.mu.Unlock()
	r.res.State = s.state
	d.cfg.Confirm(e.term, func(ok bool) {
		if r.res.Err = err; !ok {
			r.res.Err = &AbortedError{Reason: AbortLeader}
			r.res.Over = true
			s.Abort()
		}
		r.reply <- r.res
	})
}

// rollbackSession ends the session. What its client has seen may rest on units that are
// not decided.
func (d *DB) rollbackSession(e *epoch, s *Session, r *sessionRequest) sessionFate {
	if !d.park(e, s) {
		r.reply <- StepResult{Err: &AbortedError{Reason: AbortLeader}, Over: true}
		d.abortSession(AbortLeader, nil)
		return sessionLost
	}
	d.endSession(s, errSessionDone)
	d.answerWith(e, s, r)
	return sessionEnded
}

var errSessionDone = errors.New("the transaction has ended")

// answerWith answers an end that changed nothing with the epoch it rests on.
func (d *DB) answerWith(e *epoch, s *Session, r *sessionRequest) {
	u := &Unit{failed: true, session: true}
	u.state.Store(unitTaken)
	state := s.state
	u.Done = func(u *Unit) {
		r.reply <- StepResult{State: state, Mark: u.Result.Mark, Err: sessionOutcome(u.Err), Over: true}
	}
	d.finished(e, u)
}

// sessionOutcome is the end of a session's unit.
func sessionOutcome(err error) error {
	if errors.Is(err, ErrNotLeading) {
		return &AbortedError{Reason: AbortLeader, Cause: err}
	}
	return err
}

// finished adds a unit to the epoch.
func (d *DB) finished(e *epoch, u *Unit) {
	if len(e.units) == 0 {
		e.first = time.Now()
	}
	e.units = append(e.units, u)
}

// commitSession makes the session a unit of the epoch.
func (d *DB) commitSession(e *epoch, s *Session, r *sessionRequest) (sessionFate, bool) {
	if len(s.done) == 0 {
		return d.rollbackSession(e, s, r), true
	}
	if _, v := d.memory.look(r.id); v != requestFresh || e.find(r.id) != nil {
		d.reply(s, r, ErrExpired)
		return sessionEnded, false
	}
	if len(e.units) > 0 && e.bytes+s.bytes > d.cfg.MaxEntryBytes {
		d.again(s, r)
		return d.cutFor(e, s), true
	}
	err := d.endUnit()
	if err != nil {
		fate, done := d.failedStatement(e, s, r, nil, err)
		return fate, done
	}
	u := &Unit{session: true, time: s.time, seed: s.seed, sums: s.sums}
	u.state.Store(unitTaken)
	u.Req.ID = r.id
	u.entry = wire.EntryUnit{ID: r.id, Lowest: r.lowest, Time: s.time, Session: true, Needs: d.x.unitNeeds(), Statements: s.done}
	if s.drew {
		u.entry.HasSeed, u.entry.Seed = true, s.seed
	}
	for i := range s.done {
		s.done[i].Rows = false // they were told, and nobody asks again
	}
	u.Result.Result.Outcome = s.done[len(s.done)-1].Outcome
	state := s.state
	u.Done = func(u *Unit) {
		r.reply <- StepResult{State: state, Mark: u.Result.Mark, Err: sessionOutcome(u.Err), Over: true}
	}
	d.endSession(s, errSessionDone)
	if r.id.Origin != 0 {
		e.byID[r.id] = u
	}
	d.finished(e, u)
	e.good++
	e.time = max(e.time, u.time)
	e.bytes += s.bytes
	e.cost += s.cost
	durable.CrashPoint("session.committing")
	return sessionEnded, true
}
