package engine

import (
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/wire"
)

// How the statements of a session are run: first as its client sent them, and again as they
// are recorded, when the session is resumed and on the other replicas.

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
	durable.CrashPoint("session.ran")
	d.reply(s, r, nil)
	return sessionEnded, false
}

// runStatement runs the first statement of what is left. why is set when the progress
// callback stopped it. A statement that fails is undone, if the transaction still stands.
func (d *DB) runStatement(e *epoch, s *Session, r *sessionRequest) (tail string, why, err error) {
	r.failed = nil // of an attempt that was cut
	p, tail, err := d.prepareStatement(r)
	if err != nil || p == nil {
		return tail, nil, err
	}
	defer d.x.release(p)
	d.running = &runningUnit{canceled: &r.canceled, gone: &s.gone, deadline: r.deadline, epoch: e, started: time.Now()}
	defer func() {
		s.cost += time.Since(d.running.started)
		why, d.running = d.running.why, nil
		if err == nil || !isCode(err, sqlite.Interrupt) {
			why = nil
		}
	}()
	// The text decides first: CREATE … IF NOT EXISTS only reads when it was compiled where
	// there was nothing to do, and SQLite may compile it again as it runs.
	if mayRead(p.sql) && p.st.ReadOnly() && !p.defers {
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
	defer func() {
		d.x.policy.reader, d.x.policy.session, d.x.policy.trusted = false, false, true
		d.x.conn.ForgetCalls() // those of the session's changes are noted with each
	}()
	maxRows := 0
	if r.rows {
		maxRows = d.cfg.MaxResult
	}
	_, rows, err := d.x.runOne(p, r.stmt.Args, maxRows)
	if !p.st.ReadOnly() {
		_ = d.runInternal(d.rollback) // compiled again as it ran, it has written, and nothing has recorded that
		return &RefusedError{"a statement that became a write while it ran", "run the transaction again"}
	}
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
		if p.defers {
			_ = d.runInternal(d.rollback) // it has acted as it was compiled, and no entry will say so
		}
		return err
	}
	schema, deferred := d.x.schema, d.x.deferred
	d.x.schema = false
	if !own {
		if err := d.runInternal(d.saveStatement); err != nil {
			return err
		}
	}
	defer func() {
		changed := d.x.schema
		d.x.schema = changed || schema
		if err != nil {
			r.failed = &wire.PreState{LastInsertID: d.w.LastInsertRowID(), Changes: d.w.Changes()}
			d.undoStatement(own, changed, schema, deferred)
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
	if !own {
		if err := d.runInternal(d.releaseStatement); err != nil {
			return err
		}
	}
	if err := d.readAnew(p.kind, sql, schema); err != nil {
		_ = d.runInternal(d.rollback) // it cannot stay as it is
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
func (d *DB) undoStatement(own, changed, schema, deferred bool) {
	if own || d.w.Autocommit() {
		return
	}
	d.x.schema, d.x.deferred = schema, deferred
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
	if why == errCut || why == nil && (len(e.units) > 0 || e.base != nil) && restsOnState(err) {
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
		fate = d.cannotResume(e, s, again)
		r.res.Over = d.holder != s // if only the log wants the owner it is parked, and goes on
		d.reply(s, r, err)
		return fate, true
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
	var big *TooLargeError
	var no *RefusedError
	return errors.As(err, &se) || errors.As(err, &big) || errors.As(err, &no)
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
	if !own {
		if err := d.runInternal(d.releaseStatement); err != nil {
			return nil, false, err
		}
	}
	return rows, drew, d.readAnew(kindOf(st.SQL, true), st.SQL, d.x.schema)
}

// repeatStatement runs the i-th statement of a session again, where it was told of, and
// compares what it returns.
func (d *DB) repeatStatement(st wire.EntryStatement, sum, seed uint64, i int) error {
	st.Rows = sum != 0
	rows, _, err := d.replaySessionStatement(&st, seed, i)
	if err == nil && rowsSum(rows) != sum {
		err = fmt.Errorf("statement %q returned other rows", abbreviate(st.SQL))
	}
	return err
}

// readAnew follows a session's statement that changed the schema or the statistics, or took
// such a change back: from then on what is in memory is what the file says, on a replica
// that runs the statements once and on a leader that had others fail between them (H6).
// SQLite itself keeps the statistics of a table that was dropped, and those of an ANALYZE
// that was taken back.
func (d *DB) readAnew(k kind, sql string, schema bool) error {
	back := k == kindSavepoint && strings.EqualFold(sqltext.FirstWord(sql), "ROLLBACK") && (schema || d.virtual)
	if k != kindSchema && !back {
		return nil
	}
	return d.resetSchema()
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
