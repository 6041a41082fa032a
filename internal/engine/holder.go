package engine

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/wire"
)

// The owner's side of sessions. One session holds the writer; its work stands on top of
// the units that have finished in the open epoch, under the unit savepoint, and each of its
// statements ran under another one. Finished units must not wait for its client to think.
// So after a moment its work is undone (parked), the epoch is proposed with what has
// finished, and in the next epoch its statements run again, first of all and on the very
// state that they ran on before (resumed). Queries are answered from memory, so no cursor
// spans a cut (H8).
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

// waitLook is how often it is looked whether somebody has waited for a session too long.
const waitLook = 10 * time.Millisecond

// startSession lets the next session that waits have the writer, in the open epoch. stop
// says that one waits which needs an epoch of its own.
func (d *DB) startSession(e *epoch) (started, stop bool) {
	d.mu.Lock()
	if len(d.sessions) == 0 {
		d.mu.Unlock()
		return false, false
	}
	s := d.sessions[0]
	if s.opts.Modes != e.modes || e.rebuilt || d.full(e) {
		d.mu.Unlock()
		return false, true
	}
	d.sessions = d.sessions[1:]
	begin := s.asked[0]
	s.asked = nil
	s.started = time.Now()
	s.touched = s.started
	d.holder, d.holding = s, s
	d.mu.Unlock()
	d.clock = max(d.clock, d.time, d.cfg.Now().UnixMilli())
	s.time, s.seed = d.clock, d.rand.Uint64()
	d.x.beginUnit()
	if err := d.standUp(s); err != nil {
		d.endSession(s, err)
		begin.reply <- StepResult{Err: err, Over: true}
		return true, true
	}
	begin.reply <- StepResult{State: s.state}
	return true, false
}

// standUp opens the savepoint of a session and, if it was parked, repeats its work.
func (d *DB) standUp(s *Session) error {
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

// repeatSession runs the session's statements again and compares.
func (d *DB) repeatSession(s *Session) error {
	d.w.SetNow(s.time)
	for i := range s.done {
		if d.urgent.Load() {
			return errUrgent
		}
		rows, _, err := d.replaySessionStatement(&s.done[i], s.seed, i)
		if err != nil {
			return err
		}
		if rowsSum(rows) != s.sums[i] {
			return fmt.Errorf("statement %q returned other rows", abbreviate(s.done[i].SQL))
		}
	}
	return nil
}

// replaySessionStatement runs the i-th recorded statement of a session, as it ran first.
func (d *DB) replaySessionStatement(st *wire.EntryStatement, seed uint64, i int) (rows *wire.Rows, drew bool, err error) {
	own := kindOf(st.SQL, true) == kindSavepoint
	if !own {
		if err := d.runInternal(d.saveStatement); err != nil {
			return nil, false, err
		}
	}
	d.w.SetSeed(statementSeed(seed, i))
	d.w.SetPreState(st.Pre.LastInsertID, st.Pre.Changes)
	maxRows := 0
	if st.Rows {
		maxRows = wire.MaxEntryBytes
	}
	out, rows, err := d.x.run(st.SQL, st.Args, runOptions{trusted: true, rows: maxRows})
	if err != nil {
		return nil, false, err
	}
	if out != st.Outcome {
		return nil, false, &DivergedError{Detail: fmt.Sprintf("statement %q: rows affected and last insert ID are %v, recorded were %v", abbreviate(st.SQL), out, st.Outcome)}
	}
	drew = d.w.SeedUsed()
	return rows, drew, d.statementDone(own, st.SQL)
}

// statementDone ends a statement that ran, own if it is about a savepoint of the user's.
// SQLite tells a virtual table of a rollback only if it has written since it was
// connected; one that was connected anew, after a statement that failed, and then read,
// would go on with what it remembers of what was undone.
func (d *DB) statementDone(own bool, sql string) error {
	switch {
	case !own:
		return d.runInternal(d.releaseStatement)
	case d.virtual && strings.EqualFold(sqltext.FirstWord(sql), "ROLLBACK"):
		if err := d.resetSchema(); err != nil {
			_ = d.runInternal(d.rollback) // it cannot stay as it is
			return err
		}
	}
	return nil
}

// statementSeed is the seed of the i-th statement that a session's entry holds.
func statementSeed(seed uint64, i int) uint64 {
	x := seed + (uint64(i)+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

var sumSeed = maphash.MakeSeed()

func rowsSum(r *wire.Rows) uint64 {
	if r == nil {
		return 0
	}
	return maphash.Bytes(sumSeed, r.Data)
}

// park undoes the session's work for now. It returns false if the epoch was lost with it.
func (d *DB) park(e *epoch, s *Session) bool {
	if !s.live {
		return true
	}
	s.live = false
	if !d.w.Autocommit() && d.undoUnit() == nil || d.rebuild(e) {
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

// failSessions ends the session that holds the writer, which is parked, and those that
// wait for it.
func (d *DB) failSessions(err error) {
	if s := d.holder; s != nil {
		over := err
		if errors.Is(err, ErrNotLeading) {
			over = &AbortedError{Reason: AbortLeader}
		} else if errors.Is(err, ErrClosed) {
			over = &AbortedError{Reason: AbortClosed, Cause: err}
		}
		d.endSession(s, over)
	}
	d.mu.Lock()
	waiting := d.sessions
	d.sessions = nil
	var begins []*sessionRequest
	for _, s := range waiting {
		begins = append(begins, s.asked...)
		s.asked, s.over = nil, err
	}
	d.mu.Unlock()
	for _, r := range begins {
		r.reply <- StepResult{Err: err, Over: true}
	}
}

// serve lets the session that holds the writer work in the open epoch until it ends or
// the epoch must close.
func (d *DB) serve(e *epoch) sessionFate {
	s, served := d.holder, 0
	if !s.live {
		if err := d.standUp(s); err != nil {
			return d.cannotResume(e, s, err)
		}
	}
	for {
		r, cut := d.nextRequest(s)
		now := time.Now()
		switch {
		case d.urgent.Load():
			d.again(s, r)
			return d.undoWith(e, s)
		case s.gone.Load():
			d.again(s, r)
			return d.giveUp(e, s, AbortGone)
		case d.late(s, r, now) != 0:
			d.again(s, r)
			return d.giveUp(e, s, d.late(s, r, now))
		case cut || len(e.units) > 0 && now.Sub(e.first) > cutAfter || served > 0 && d.cutEach.Load():
			d.again(s, r)
			return d.cutFor(e, s)
		case r == nil:
			d.sleep(d.serveUntil(e, s))
			d.failWaiting(time.Now())
			continue
		}
		served++
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
	d.cfg.Logger.Warn("a transaction could not be repeated", "db", d.Name(), "err", err)
	s.live = true // some of its work may stand
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
// owner outside a transaction.
func (d *DB) nextRequest(s *Session) (r *sessionRequest, cut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.control) > 0 || len(d.log) > 0 || d.closing {
		return nil, true
	}
	for len(s.asked) > 0 {
		r, s.asked = s.asked[0], s.asked[1:]
		if !r.canceled.Load() || r.kind != askRun {
			return r, false
		}
		r.reply <- StepResult{State: s.state, Err: ErrCanceled}
	}
	return nil, false
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

// late tells why a session that was idle, or open, for too long must end; else 0.
func (d *DB) late(s *Session, r *sessionRequest, now time.Time) AbortReason {
	switch {
	case d.cfg.MaxSessionTime > 0 && now.Sub(s.started) > d.cfg.MaxSessionTime:
		return AbortTime
	case r == nil && d.cfg.MaxSessionIdle > 0 && now.Sub(s.touched) > d.cfg.MaxSessionIdle:
		return AbortIdle
	}
	return 0
}

// serveUntil is when a session that asks for nothing must be looked at again.
func (d *DB) serveUntil(e *epoch, s *Session) time.Time {
	until := d.sessionEnd(s)
	if len(e.units) > 0 {
		until = earlier(until, e.first.Add(cutAfter))
	}
	return until
}

// sessionEnd is when a session must end if nothing happens, or when those who wait for it
// must be looked at; zero never.
func (d *DB) sessionEnd(s *Session) (until time.Time) {
	if d.cfg.MaxSessionIdle > 0 {
		until = s.touched.Add(d.cfg.MaxSessionIdle)
	}
	if d.cfg.MaxSessionTime > 0 {
		until = earlier(until, s.started.Add(d.cfg.MaxSessionTime))
	}
	d.mu.Lock()
	waiting := len(d.units) > 0
	d.mu.Unlock()
	if waiting {
		until = earlier(until, time.Now().Add(waitLook))
	}
	return until
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// sleep waits for something to be queued, until a moment; zero for ever.
func (d *DB) sleep(until time.Time) {
	if until.IsZero() {
		<-d.wake
		return
	}
	left := time.Until(until)
	if left <= 0 {
		return
	}
	d.timer.Reset(left + time.Microsecond)
	select {
	case <-d.wake:
		d.timer.Stop()
	case <-d.timer.C:
	}
}

// failWaiting ends the wait of units that have waited for a session for too long.
func (d *DB) failWaiting(now time.Time) {
	if d.holder == nil {
		return
	}
	var late []*Unit
	d.mu.Lock()
	kept := d.units[:0]
	for _, u := range d.units {
		tooLong := d.cfg.MaxWait > 0 && now.Sub(u.since) > d.cfg.MaxWait
		if tooLong || !u.deadline.IsZero() && now.After(u.deadline) || u.canceled.Load() {
			late = append(late, u)
			d.queued -= u.Req.Size()
		} else {
			kept = append(kept, u)
		}
	}
	clear(d.units[len(kept):])
	d.units = kept
	d.mu.Unlock()
	if len(late) > 0 {
		d.failAll(late, &AbortedError{Reason: AbortWait, Holder: d.holderText()})
	}
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

// runSession runs a statement string, one statement after the other, as SQLite does in a
// transaction: those before one that fails stay.
func (d *DB) runSession(e *epoch, s *Session, r *sessionRequest) (fate sessionFate, done bool) {
	for r.rest != "" {
		tail, why, err := d.runStatement(e, s, r)
		if err == nil {
			r.rest = tail
			continue
		}
		return d.failedStatement(e, s, r, why, err)
	}
	d.reply(s, r, nil)
	return sessionEnded, false
}

// runStatement runs the first statement of what is left. why is set when the progress
// callback stopped it. A statement that fails is undone, if the transaction still stands.
func (d *DB) runStatement(e *epoch, s *Session, r *sessionRequest) (tail string, why, err error) {
	p, tail, err := d.prepareStatement(r)
	if err != nil || p == nil {
		return tail, nil, err
	}
	defer d.x.release(p)
	d.running = &runningUnit{canceled: &r.canceled, gone: &s.gone, deadline: r.deadline, epoch: e, started: time.Now()}
	defer func() {
		why, d.running = d.running.why, nil
		if err == nil || !isCode(err, sqlite.Interrupt) {
			why = nil
		}
	}()
	// The text decides first: CREATE … IF NOT EXISTS only reads when it was compiled where
	// there was nothing to do, and SQLite may compile it again as it runs.
	reads := mayRead(p.sql) && p.st.ReadOnly() && !p.defers
	if reads {
		return tail, nil, d.runQuery(s, r, p)
	}
	return tail, nil, d.runChange(s, r, p)
}

// prepareStatement compiles under the rules of a query, which may see what a write may
// not depend on, and again under those of a write if it is one.
func (d *DB) prepareStatement(r *sessionRequest) (p *prepared, tail string, err error) {
	x := d.x
	defer func() { x.policy.session, x.policy.reader = false, false }()
	x.policy.session = true
	if err := x.withdraw(); err != nil {
		return nil, "", err
	}
	o := runOptions{pin: r.pin}
	if mayRead(r.rest) {
		x.policy.reader = true
		p, tail, err = x.prepare(r.rest, o)
		if err == nil && (p == nil || p.st.ReadOnly()) {
			return p, tail, nil
		}
		if p != nil {
			x.discard(p)
		}
		x.policy.reader = false
	}
	p, tail, err = x.prepare(r.rest, o)
	return p, tail, x.explain(err)
}

// mayRead reports whether a statement could be one that only reads.
func mayRead(sql string) bool {
	switch strings.ToUpper(sqltext.FirstWord(sql)) {
	case "SELECT", "VALUES", "EXPLAIN", "PRAGMA", "WITH":
		return true
	}
	return false
}

// runQuery runs a statement that only reads. It sees the real time, and random numbers of
// its own: nobody repeats it.
func (d *DB) runQuery(s *Session, r *sessionRequest, p *prepared) error {
	d.w.SetNow(max(s.time, d.cfg.Now().UnixMilli()))
	d.w.SetSeed(d.rand.Uint64())
	d.w.SetPreState(s.state.LastInsertID, s.state.Changes)
	d.x.policy.reader, d.x.policy.session, d.x.policy.trusted = true, true, false
	defer func() { d.x.policy.reader, d.x.policy.session, d.x.policy.trusted = false, false, true }()
	maxRows := 0
	if r.rows {
		maxRows = d.cfg.MaxResult
	}
	_, rows, err := d.x.runOne(p, r.stmt.Args, maxRows)
	if err == nil && rows != nil {
		r.res.Rows = rows
	}
	return err
}

// runChange runs a statement that writes, and records what a replica needs to do the same.
func (d *DB) runChange(s *Session, r *sessionRequest, p *prepared) (err error) {
	own := p.kind == kindSavepoint
	sql := strings.Clone(p.sql)
	if err := d.roomInSession(s, sql, r.stmt.Args); err != nil {
		return err
	}
	schema, deferred := d.x.schema, d.x.deferred
	if !own {
		if err := d.runInternal(d.saveStatement); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			r.failed = &wire.PreState{LastInsertID: d.w.LastInsertRowID(), Changes: d.w.Changes()}
			d.undoStatement(own, schema, deferred)
		}
	}()
	i := len(s.done)
	d.maxRowID = false
	d.w.SetNow(s.time)
	d.w.SetSeed(statementSeed(s.seed, i))
	d.w.SetPreState(s.state.LastInsertID, s.state.Changes)
	maxRows := 0
	if r.rows {
		maxRows = d.cfg.MaxResult
	}
	d.x.policy.session, d.x.policy.trusted = true, false
	out, rows, err := d.x.runOne(p, r.stmt.Args, maxRows)
	d.x.policy.session, d.x.policy.trusted = false, true
	if err != nil {
		return d.x.explain(err)
	}
	if d.maxRowID {
		return &RefusedError{"the rowid 9223372036854775807", "after it SQLite would draw rowids at random, differently on every replica"}
	}
	s.drew = s.drew || d.w.SeedUsed()
	if err := d.statementDone(own, sql); err != nil {
		return err
	}
	es := wire.EntryStatement{SQL: sql, Args: append(wire.Args(nil), r.stmt.Args...), Pre: s.state, HasPre: true, Outcome: out, Rows: rows != nil}
	s.done, s.sums = append(s.done, es), append(s.sums, rowsSum(rows))
	s.bytes += es.Size()
	s.state.LastInsertID = out.LastInsertID
	if p.kind == kindRows {
		s.state.Changes = out.RowsAffected
	}
	if rows != nil {
		r.res.Rows = rows
	}
	return nil
}

// roomInSession keeps a transaction within what one entry takes.
func (d *DB) roomInSession(s *Session, sql string, args wire.Args) error {
	if len(s.done) >= wire.MaxUnitStatements {
		return &TooLargeError{What: "the transaction, in statements,", Size: len(s.done) + 1, Most: wire.MaxUnitStatements}
	}
	next := wire.EntryStatement{SQL: sql, Args: args}
	if n := s.bytes + next.Size(); n > maxSessionBytes {
		return &TooLargeError{What: "the transaction, in bytes of statements and arguments,", Size: n, Most: maxSessionBytes}
	}
	return nil
}

// maxSessionBytes leaves room in an entry for what else is in it.
const maxSessionBytes = wire.MaxEntryBytes - 1<<20

// undoStatement undoes a statement that failed, and has SQLite forget it, as it would have
// been had it never run (H6). Where it cannot, the transaction does not stand any more.
func (d *DB) undoStatement(own, schema, deferred bool) {
	changed := d.x.schema && !schema
	d.x.schema, d.x.deferred = schema, deferred
	if own || d.w.Autocommit() {
		return
	}
	err := d.runInternal(d.undoToStatement)
	if err == nil {
		err = d.runInternal(d.releaseStatement)
	}
	if err == nil && (changed || d.virtual) {
		err = d.resetSchema()
	}
	if err != nil && !d.w.Autocommit() {
		// It cannot stay as it is.
		_ = d.runInternal(d.rollback)
	}
}

// failedStatement decides what a statement's failure means. done says that the session is
// not served any longer, in this epoch or at all.
func (d *DB) failedStatement(e *epoch, s *Session, r *sessionRequest, why, err error) (fate sessionFate, done bool) {
	stands := !d.w.Autocommit()
	if !stands {
		s.live = false
	}
	if why == errUrgent {
		d.again(s, r)
		return d.undoWith(e, s), true
	}
	if !stands && !d.rebuild(e) {
		d.again(s, r)
		d.undoEpoch(e, nil)
		d.abortSession(AbortStatement, err)
		return sessionLost, true
	}
	if why == errCut || why == nil && len(e.units) > 0 && restsOnState(err) {
		// Those that have finished go first; then it runs on what is decided.
		d.again(s, r)
		return d.cutFor(e, s), true
	}
	if why != nil {
		err = why
	}
	if r.failed != nil {
		s.state = *r.failed
	}
	if stands {
		d.replyConfirmedIf(restsOnState(err), e, s, r, err)
		return sessionEnded, false
	}
	if why == nil {
		// The statement ended the transaction, as it would in SQLite.
		d.endSession(s, &AbortedError{Reason: AbortStatement, Cause: err})
		r.res.Over = true
		d.replyConfirmed(e, s, r, err)
		return sessionEnded, true
	}
	if again := d.standUp(s); again != nil {
		r.reply <- StepResult{Err: err, Over: true}
		return d.cannotResume(e, s, again), true
	}
	d.reply(s, r, err)
	return sessionEnded, false
}

func (d *DB) replyConfirmedIf(confirm bool, e *epoch, s *Session, r *sessionRequest, err error) {
	if confirm {
		d.replyConfirmed(e, s, r, err)
	} else {
		d.reply(s, r, err)
	}
}

// restsOnState reports whether an error could be another one on another state.
func restsOnState(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se)
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

var errSessionDone = errors.New("engine: the transaction has ended")

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
	if _, v := d.memory.look(r.id); v != requestFresh {
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
	u := &Unit{session: true, time: s.time}
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
	return sessionEnded, true
}
