package engine

import (
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// epoch is an open SQLite transaction and the units in it. It is proposed as one
// entry, and committed when that entry comes back.
type epoch struct {
	seq      uint64
	term     uint64
	prev     wire.Mark
	modes    Modes
	first    time.Time // when the first of units finished
	units    []*Unit   // in the order they ran; failed ones too, for what their errors rest on (H9)
	good     int       // units that succeeded: the entry
	bytes    int
	byID     map[wire.RequestID]*Unit
	time     int64 // of the newest unit that succeeded
	proposed bool
	cost     time.Duration // that its units took
	rebuilt  bool          // its transaction was lost and its units were repeated
	carried  bool          // it began with what finished ahead, and has waited for a round trip already
	base     *epoch        // the proposed one that it stands on now
	closed   bool          // nothing more may stand on it
}

// runningUnit is what the progress callback needs to know of the unit that runs.
type runningUnit struct {
	canceled *atomic.Bool
	gone     *atomic.Bool // of its session, nil for a unit
	deadline time.Time
	epoch    *epoch // nil while a session is repeated
	started  time.Time
	why      error // set when the callback interrupted it
}

// Reasons for which a running statement is interrupted that are not the unit's own.
var (
	errUrgent = errors.New("engine: the log waits")
	errCut    = errors.New("engine: finished units wait for this one")
)

// cutAfter is how long a statement may run while finished units wait for it (H10).
const cutAfter = time.Millisecond

// maxRetries bounds how often a unit is run again because its epoch was undone.
const maxRetries = 16

// progressOps is how many virtual machine instructions pass between two looks at the
// deadline: some tens of microseconds.
const progressOps = 4000

// runEpoch forms one epoch from what finished ahead, or else from what waits, and proposes
// it. What does not fit goes back to the queue.
func (d *DB) runEpoch(units []*Unit) {
	e, err := d.open(d.nextModes(units))
	if err != nil {
		err = d.openFailure(err)
		d.failSessions(err)
		d.failAll(units, err)
		return
	}
	if e.carried = len(e.units) > 0; e.carried {
		if d.remembersAny(e) || !d.repeatUnits(e) {
			d.undoEpoch(e, units)
			return
		}
		e.first = time.Now()
		d.count.ahead.Add(uint64(len(e.units)))
	}
	if d.fill(e, units) != fillLost {
		d.propose(e)
	}
}

// filling is how the filling of an epoch ended.
type filling int

const (
	fillIdle filling = iota // nothing waits
	fillStop                // it must close
	fillLost                // it is gone, and everything in it was seen to
)

// fill runs what waits in an epoch, until nothing waits or it must close. A session that
// was parked works first; between sessions the units that wait run.
func (d *DB) fill(e *epoch, units []*Unit) filling {
	for {
		rest, stop := d.runUnits(e, units)
		d.requeue(rest)
		if d.epoch != e && d.ahead != e {
			return fillLost
		}
		if len(rest) > 0 && len(rest) == len(units) {
			d.sessionTurn = false // they had no turn: this epoch could not take the first of them
		}
		if d.holder == nil && !stop {
			stop = d.startSession(e)
		}
		if d.holder != nil {
			switch d.serve(e) {
			case sessionLost:
				return fillLost
			case sessionCut:
				stop = true
			}
		}
		if stop || d.windowEnded(e) {
			return fillStop
		}
		// One turn of the scheduler lets writers that were just answered queue up.
		runtime.Gosched()
		if e.base != nil && !d.wantsAhead() {
			return fillIdle
		}
		if units = d.nextUnits(); len(units) == 0 && !d.sessionsWait() {
			return fillIdle
		}
	}
}

// windowEnded reports whether the epoch has been open for long enough: since something
// in it finished, because a session may have taken its time before.
func (d *DB) windowEnded(e *epoch) bool {
	return e.base == nil && (d.cfg.BatchWindow < 0 || len(e.units) > 0 && time.Since(e.first) >= d.cfg.BatchWindow)
}

// nextModes are those of whatever comes first in the next epoch.
func (d *DB) nextModes(units []*Unit) Modes {
	switch {
	case d.ahead != nil:
		return d.ahead.modes
	case d.holder != nil:
		return d.holder.opts.Modes
	case len(units) > 0:
		return modesOf(&units[0].Req)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.returning) > 0 {
		return d.returning[0].opts.Modes
	}
	return d.modes
}

func modesOf(u *wire.Unit) Modes { return Modes{u.ForeignKeys, u.RecursiveTriggers} }

func (d *DB) sessionsWait() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sessions)+len(d.returning) > 0
}

// full reports whether an epoch takes no more.
func (d *DB) full(e *epoch) bool {
	return len(e.units) >= d.cfg.BatchMaxUnits || e.bytes >= d.cfg.MaxEntryBytes || e.base != nil && e.cost > aheadEpochCost
}

// open begins an epoch, of what finished ahead if there is something.
func (d *DB) open(modes Modes) (*epoch, error) {
	if err := d.setModes(modes); err != nil {
		return nil, err
	}
	if err := d.runInternal(d.begin); err != nil {
		return nil, err
	}
	d.epochs++
	e := d.ahead
	if e == nil {
		e = &epoch{modes: modes, byID: map[wire.RequestID]*Unit{}}
	}
	e.seq, e.term, e.prev = d.epochs, d.leading.Load(), d.Mark()
	d.epoch, d.ahead = e, nil
	return e, nil
}

// openFailure is what waiting units are told when no transaction can be begun.
// Nothing was applied; the disk decides whether this replica can go on.
func (d *DB) openFailure(err error) error {
	if d.w.Autocommit() {
		return err
	}
	d.halt(err)
	return d.Err()
}

// runUnits runs units into the epoch. It returns those not taken up, and whether
// the epoch must close.
func (d *DB) runUnits(e *epoch, units []*Unit) (rest []*Unit, stop bool) {
	for i, u := range units {
		if d.urgent.Load() {
			d.undoEpoch(e, units[i:])
			return nil, true
		}
		full := d.full(e) || e.rebuilt || i > 0 && d.cfg.BatchWindow > 0 && d.windowEnded(e) || e.base != nil && d.logWaits()
		if full || modesOf(&u.Req) != e.modes || u.alone && (e.good > 0 || e.base != nil) {
			return units[i:], true
		}
		if !d.admitUnit(e, u) {
			continue
		}
		switch d.runUnit(e, u) {
		case undone:
			d.undoEpoch(e, units[i:])
			return nil, true
		case cut:
			return units[i:], true
		}
		if u.alone && !u.failed {
			return units[i+1:], true
		}
	}
	return nil, false
}

// admitUnit takes a unit up unless it is withdrawn, answered from memory, or the
// same request is already in this epoch.
func (d *DB) admitUnit(e *epoch, u *Unit) bool {
	if !u.take() {
		return false
	}
	if u.canceled.Load() {
		d.fail(u, ErrCanceled)
		return false
	}
	if !u.deadline.IsZero() && time.Now().After(u.deadline) {
		d.fail(u, ErrTimeout)
		return false
	}
	if err := u.Req.Check(); err != nil {
		d.fail(u, &TooLargeError{What: err.Error()})
		return false
	}
	u.failed, u.Err = false, nil // of an epoch that was undone
	switch r, v := d.memory.look(u.Req.ID); v {
	case requestDuplicate:
		u.Result = wire.UnitResult{Mark: r.mark, Result: r.result, Duplicate: true}
		if r.result.Outcome == fenced {
			u.Err = ErrNotFound
		}
		d.finish(u)
		return false
	case requestExpired:
		d.fail(u, ErrExpired)
		return false
	}
	if u.Req.ID.Origin != 0 {
		if first := e.find(u.Req.ID); first != nil {
			first.follow = append(first.follow, u)
			return false
		}
		e.byID[u.Req.ID] = u
	}
	return true
}

type fate int

const (
	decided fate = iota // the unit is in the epoch, as a success or with its error
	undone              // the epoch's transaction is lost: the epoch must be undone
	cut                 // the unit must wait: the epoch closes without it
)

// runUnit runs one unit under a savepoint and adds it to the epoch, as a success or
// as an error of its own. If that ended the epoch's transaction the epoch is rebuilt.
func (d *DB) runUnit(e *epoch, u *Unit) fate {
	d.clock = max(d.clock, d.time, d.cfg.Now().UnixMilli())
	u.time, u.seed = d.clock, d.rand.Uint64()
	u.failed, u.Err = false, nil
	why, err := d.attempt(e, u)
	if err == nil {
		d.finished(e, u)
		e.good++
		e.time = max(e.time, u.time)
		e.bytes += u.Req.Size() + u.Result.Size()
		return decided
	}
	after := wire.Outcome{LastInsertID: d.w.LastInsertRowID(), RowsAffected: d.w.Changes()}
	if u.ran {
		after.RowsAffected = 0 // a statement that cannot be committed has changed nothing
	}
	intact := !d.w.Autocommit() && d.undoUnit() == nil
	if why == errUrgent || !intact && !d.rebuild(e) {
		return undone
	}
	if why == errCut {
		// The finished ones are not held up: they go first, this one by itself.
		u.alone = e.base == nil
		delete(e.byID, u.Req.ID)
		return cut
	}
	if why != nil {
		err = why
	}
	u.failed, u.Err = true, err
	u.Result = wire.UnitResult{Result: wire.Result{Outcome: after}}
	d.finished(e, u)
	return decided
}

// attempt runs a unit's statements. why is set when the progress callback stopped it.
func (d *DB) attempt(e *epoch, u *Unit) (why, err error) {
	if err := d.runInternal(d.save); err != nil {
		return nil, err
	}
	d.running = &runningUnit{canceled: &u.canceled, deadline: u.deadline, epoch: e, started: time.Now()}
	d.x.schema, d.x.deferred = false, false
	err = d.runStatements(u)
	u.ran = err == nil
	e.cost += time.Since(d.running.started)
	why, d.running = d.running.why, nil
	if err == nil {
		err = d.endUnit()
	}
	if err == nil {
		return nil, nil
	}
	if !isCode(err, sqlite.Interrupt) {
		why = nil
	}
	return why, err
}

// runStatements runs the unit and records what a replica needs to do the same.
func (d *DB) runStatements(u *Unit) error {
	req := &u.Req
	d.maxRowID = false
	d.x.beginUnit()
	d.w.SetNow(u.time)
	d.w.SetSeed(u.seed)
	d.w.SetPreState(req.Pre.LastInsertID, req.Pre.Changes)
	u.entry.ID, u.entry.Lowest, u.entry.Time, u.entry.WantEach = req.ID, req.Lowest, u.time, req.WantEach
	u.entry.Statements = u.entry.Statements[:0]
	u.Result = wire.UnitResult{}
	maxRows := 0
	if req.WantRows {
		maxRows = d.cfg.MaxResult
	}
	if req.Resolve {
		u.Result.Result.Outcome = fenced
		return nil
	}
	for i := range req.Statements {
		s := &req.Statements[i]
		out, rows, err := d.x.run(s.SQL, s.Args, runOptions{pin: req.Pin, rows: maxRows})
		if err != nil {
			return err
		}
		if d.maxRowID {
			return &RefusedError{"the rowid 9223372036854775807", "after it SQLite would draw rowids at random, differently on every replica"}
		}
		es := wire.EntryStatement{SQL: s.SQL, Args: s.Args, Outcome: out, Rows: rows != nil}
		if i == 0 && req.Pre != (wire.PreState{}) {
			es.Pre, es.HasPre = req.Pre, true
		}
		u.entry.Statements = append(u.entry.Statements, es)
		u.Result.Result.Outcome = out
		if req.WantEach {
			u.Result.Result.Each = append(u.Result.Result.Each, out)
		}
		if rows != nil {
			u.Result.Result.Rows = rows
		}
	}
	u.entry.Needs = d.x.unitNeeds()
	u.entry.HasSeed, u.entry.Seed = d.w.SeedUsed(), 0
	if u.entry.HasSeed {
		u.entry.Seed = u.seed
	}
	return nil
}

// endUnit checks what SQLite would only check at the outer COMMIT (H4) and releases
// the unit's savepoint.
func (d *DB) endUnit() error {
	violated, err := d.w.DeferredForeignKeys()
	if err != nil {
		return err
	}
	if violated {
		return &sqlite.Error{Code: sqlite.Constraint, Extended: sqlite.ConstraintForeignKey, Msg: "constraint failed: FOREIGN KEY constraint failed", Offset: -1}
	}
	if d.x.schema {
		if err := d.checkSchema(); err != nil {
			return err
		}
	}
	if err := d.runInternal(d.release); err != nil {
		return err
	}
	return d.settle()
}

// settle makes the connection's memory what the file says, after a unit that changed
// the schema or the planner's statistics: plans must not depend on how long ago a
// replica was started (H6). It also takes back what a unit set for itself.
func (d *DB) settle() error {
	if d.x.deferred {
		if err := d.w.Exec("PRAGMA defer_foreign_keys=OFF"); err != nil {
			return err
		}
	}
	var err error
	if d.x.schema {
		d.touched = true
		err = d.resetSchema()
	}
	d.x.schema, d.x.deferred = false, false
	return err
}

// resetSchema has SQLite read schema and statistics again, and connect virtual tables
// anew.
func (d *DB) resetSchema() error {
	d.x.policy.trusted = true
	if err := d.w.Exec("PRAGMA writable_schema=RESET"); err != nil {
		return err
	}
	return d.findVirtual()
}

// findVirtual notes whether there are virtual tables.
func (d *DB) findVirtual() error {
	d.virtual = false
	_, rows, err := d.x.run("SELECT 1 FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL%' LIMIT 1", nil, runOptions{trusted: true, rows: 1 << 10})
	if err == nil && rows != nil {
		d.virtual = rows.N > 0
	}
	return err
}

// forgetUndone follows a rollback: what was undone may live on in the connection's
// memory, as a schema, as statistics, or in a virtual table's own settings (H6).
func (d *DB) forgetUndone(schema bool) error {
	d.x.schema = d.x.schema || schema || d.virtual
	return d.settle()
}

// checkSchema refuses what the authorizer is not asked about: a foreign key on the
// internal table, which would let a user's row keep the replica from moving on.
func (d *DB) checkSchema() error {
	_, rows, err := d.x.run(sqlInternalReferences, nil, runOptions{trusted: true, rows: 1 << 20})
	if err != nil {
		return err
	}
	if rows != nil && rows.N > 0 {
		return &RefusedError{"a foreign key on " + internalTable, "it holds the replica's own position"}
	}
	return nil
}

const sqlInternalReferences = `SELECT 1 FROM sqlite_schema AS s, pragma_foreign_key_list(s.name) AS f WHERE s.type = 'table' AND f."table" = 'sqlite_colmena' COLLATE NOCASE LIMIT 1`

func (d *DB) undoUnit() error {
	if err := d.runInternal(d.undo); err != nil {
		return err
	}
	if err := d.runInternal(d.release); err != nil {
		return err
	}
	return d.forgetUndone(false)
}

// progress is asked by SQLite every progressOps instructions of the writer.
func (d *DB) progress() bool {
	r := d.running
	if r == nil || r.why != nil {
		return r != nil
	}
	now := time.Now()
	switch {
	case d.urgent.Load():
		r.why = errUrgent
	case r.gone != nil && r.gone.Load():
		r.why = ErrCanceled
	case r.epoch == nil:
		return false
	case r.canceled.Load():
		r.why = ErrCanceled
	case !r.deadline.IsZero() && now.After(r.deadline):
		r.why = ErrTimeout
	case d.mustClose(r.epoch, r.started, now):
		r.why = errCut
	default:
		return false
	}
	return true
}

// find returns a unit of the epoch, or of the one that it stands on.
func (e *epoch) find(id wire.RequestID) *Unit {
	if u := e.byID[id]; u != nil || e.base == nil {
		return u
	}
	return e.base.byID[id]
}

func isCode(err error, code int) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code == code
}
