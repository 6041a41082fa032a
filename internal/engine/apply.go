package engine

import (
	"errors"
	"fmt"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// A DivergedError says that this replica computed something else than the leader
// did for the same entry.
type DivergedError struct {
	Mark   wire.Mark
	Detail string
	// Proposer and Here are the fingerprints of the engine that ran the entry first and
	// of this one. Where they differ that may be all there is to it (H12).
	Proposer, Here uint64
}

func (e *DivergedError) Error() string {
	s := fmt.Sprintf("entry %v gave another result here than on the leader: %s", e.Mark, e.Detail)
	if e.Proposer != e.Here {
		s += fmt.Sprintf("; the leader ran another engine (fingerprint %016x, here %016x): another version of SQLite or another kind of processor; have all nodes run the same build", e.Proposer, e.Here)
	}
	return s
}

// A GapError says that an entry stands on one this file does not hold (H2, H3).
type GapError struct {
	Entry, Prev, Have wire.Mark
}

func (e *GapError) Error() string {
	return fmt.Sprintf("entry %v stands on %v, but the database file is at %v: the file and the log do not belong together; take a fresh copy from the cluster", e.Entry, e.Prev, e.Have)
}

// maxApplyBytes bounds how much is replayed in one SQLite transaction.
const maxApplyBytes = 8 << 20

// replayTx is the transaction in which a follower replays several entries.
type replayTx struct {
	open  bool
	modes Modes
	mark  wire.Mark
	bytes int
	done  []replayed
	drop  uint64
}

// replayed is kept for those who watch the applied entries.
type replayed struct {
	mark  wire.Mark
	entry *wire.Entry
}

// consume takes in what the node delivered, in order. When the database ends meanwhile
// it stops between two entries.
func (d *DB) consume(items []logItem) {
	d.fold()
	tx := replayTx{mark: d.Mark()}
	passed := uint64(0)
	for i := range items {
		it := &items[i]
		if d.halted.Load() != nil {
			d.discard(items[i:])
			return
		}
		if d.ending.Load() {
			for k := range items[i:] {
				items[i+k].dropped()
			}
			break
		}
		if it.kind != itemEntry {
			d.commitReplay(&tx)
		}
		switch it.kind {
		case itemEntry:
			d.take(&tx, it)
			passed = it.mark.Index
		case itemLead:
			d.leading.Store(it.mark.Term)
		case itemStepDown:
			d.stepDown()
		case itemProposal:
			d.proposalFailed(it.epoch, it.err)
		case itemDrain:
			it.drained <- nil
		}
	}
	d.commitReplay(&tx)
	if passed != 0 && d.halted.Load() == nil {
		d.passed.Store(passed)
		d.tellPassed(passed)
	}
}

// tellPassed says that every entry up to index was dealt with.
func (d *DB) tellPassed(index uint64) {
	if d.cfg.Passed != nil {
		d.cfg.Passed(index)
	}
}

func (d *DB) discard(items []logItem) {
	for _, it := range items {
		it.dropped()
	}
	if e := d.epoch; e != nil {
		d.abandon(e)
		d.answer(e, ErrUnknown)
	}
	d.failSessions(d.Err())
}

// stepDown undoes an epoch that was not proposed. One that was is decided by its
// entry or by the end of its proposal.
func (d *DB) stepDown() {
	d.leading.Store(0)
	if e := d.epoch; e != nil && !e.proposed {
		d.abandon(e)
		d.answer(e, ErrNotLeading)
	}
	d.failSessions(ErrNotLeading)
}

// take applies one entry, or finds why it must not be applied.
func (d *DB) take(tx *replayTx, it *logItem) {
	db, proposer, seq, prev, err := wire.EntryOwner(it.data)
	if err != nil {
		d.stop(tx, fmt.Errorf("entry %v cannot be read: %w", it.mark, err))
		return
	}
	if db != d.cfg.Incarnation {
		d.stop(tx, fmt.Errorf("entry %v belongs to another database", it.mark))
		return
	}
	have := d.Mark()
	if tx.open {
		have = tx.mark
	}
	e := d.epoch
	own := e != nil && e.proposed && proposer == d.cfg.Proposer && seq == e.seq
	apply, err := judgeEntry(it.mark, prev, have)
	switch {
	case err != nil:
		d.stop(tx, err)
	case !apply && own:
		// The entry came too late: another one was applied since (H1). Nothing of it
		// happened, so its units may run again.
		d.undoEpoch(e, nil)
	case !apply:
		if !tx.open { // otherwise it is told with those before it
			d.tellPassed(it.mark.Index)
		}
	case own:
		d.commitOwn(e, it.mark)
	default:
		d.replayEntry(tx, it)
	}
}

// judgeEntry decides what an entry is to a file that stands at have: to be applied,
// to be passed over, or proof that file and log do not belong together.
func judgeEntry(entry, prev, have wire.Mark) (apply bool, err error) {
	switch {
	case entry.Index == have.Index && entry.Term != have.Term,
		entry.Index < have.Index && entry.Term > have.Term:
		return false, &GapError{entry, prev, have} // the file followed another history (H3)
	case entry.Index <= have.Index:
		return false, nil // the file holds it
	case prev == have:
		return true, nil
	case prev.Index < have.Index:
		return false, nil // a stale epoch, a no-op on every replica (H1)
	}
	return false, &GapError{entry, prev, have} // the file lacks what it stands on (H2)
}

func (d *DB) stop(tx *replayTx, err error) {
	tx.open = false
	_ = d.rollbackOpen()
	d.halt(err)
	if e := d.epoch; e != nil {
		d.epoch = nil
		d.proposed.Store(0)
		d.answer(e, ErrUnknown)
	}
	d.failSessions(d.Err())
}

// replayEntry runs another leader's entry. What is open here is void.
func (d *DB) replayEntry(tx *replayTx, it *logItem) {
	if e := d.epoch; e != nil {
		d.abandon(e)
		// The entry advances the mark past what the epoch stands on, so the epoch can
		// never be applied, proposed or not: its units may run again.
		d.answer(e, ErrNotLeading)
	}
	d.void()
	d.abortSession(AbortLeader, nil)
	if err := wire.DecodeEntry(it.data, &d.entry); err != nil {
		d.stop(tx, fmt.Errorf("entry %v cannot be read: %w", it.mark, err))
		return
	}
	if tx.open && (tx.modes != entryModes(&d.entry) || tx.bytes > maxApplyBytes) {
		d.commitReplay(tx)
		if d.halted.Load() != nil {
			return
		}
	}
	if err := d.replayUnits(tx, it.mark); err != nil {
		d.stop(tx, replayFailure(it.mark, d.entry.Engine, err))
		return
	}
	tx.mark = it.mark
	tx.bytes += len(it.data)
	d.time = max(d.time, d.entry.Time)
	switch {
	case d.cfg.Watch:
		e := d.entry
		d.entry = wire.Entry{} // watchers may keep it
		tx.done = append(tx.done, replayed{it.mark, &e})
	case d.cfg.Applied != nil:
		tx.done = append(tx.done, replayed{it.mark, nil})
	}
}

func entryModes(e *wire.Entry) Modes { return Modes{e.ForeignKeys, e.RecursiveTriggers} }

func (d *DB) replayUnits(tx *replayTx, mark wire.Mark) error {
	if !tx.open {
		if err := d.setModes(entryModes(&d.entry)); err != nil {
			return err
		}
		if err := d.runInternal(d.begin); err != nil {
			return err
		}
		tx.open, tx.modes, tx.bytes = true, entryModes(&d.entry), 0
	}
	var stored []wire.StoredResult
	for i := range d.entry.Units {
		u := &d.entry.Units[i]
		if _, v := d.memory.look(u.ID); v != requestFresh {
			return &DivergedError{Detail: fmt.Sprintf("unit %v was applied before", u.ID)}
		}
		if err := d.cfg.Library.check(u.Needs); err != nil {
			return err
		}
		// FTS5 writes out what it gathered at every savepoint, so its shadow tables are
		// those of the leader only if a unit begins and ends here as it does there (H6).
		if err := d.runInternal(d.save); err != nil {
			return err
		}
		d.x.schema, d.x.deferred = false, false
		rows, err := d.replay(u)
		if err != nil {
			return err
		}
		if err := d.runInternal(d.release); err != nil {
			return err
		}
		if err := d.settle(); err != nil {
			return err
		}
		if u.ID.Origin != 0 {
			stored = append(stored, storedResult(u, rows))
		}
	}
	return d.writeEpoch(mark, stored, &tx.drop)
}

// replay runs a recorded unit and compares every outcome with the recorded one.
func (d *DB) replay(u *wire.EntryUnit) (*wire.Rows, error) {
	d.w.SetNow(u.Time)
	if u.Session {
		return nil, d.replaySession(u)
	}
	d.w.SetSeed(u.Seed)
	d.w.SetPreState(0, 0)
	var last *wire.Rows
	for i := range u.Statements {
		s := &u.Statements[i]
		if s.HasPre {
			d.w.SetPreState(s.Pre.LastInsertID, s.Pre.Changes)
		}
		maxRows := 0
		if s.Rows {
			maxRows = wire.MaxEntryBytes
		}
		out, rows, err := d.x.run(s.SQL, s.Args, runOptions{trusted: true, rows: maxRows})
		if err != nil {
			return nil, err
		}
		if out != s.Outcome {
			return nil, &DivergedError{Detail: fmt.Sprintf("statement %q: rows affected and last insert ID are %v, recorded were %v", abbreviate(s.SQL), out, s.Outcome)}
		}
		if rows != nil {
			last = rows
		}
	}
	if d.w.SeedUsed() && !u.HasSeed {
		return nil, &DivergedError{Detail: fmt.Sprintf("unit %v drew a random number here only", u.ID)}
	}
	return last, nil
}

// replaySession is replay for the unit of an interactive transaction. Its rows were told
// when its statements ran, and nobody asks for them again.
func (d *DB) replaySession(u *wire.EntryUnit) error {
	for i := range u.Statements {
		_, drew, err := d.replaySessionStatement(&u.Statements[i], u.Seed, i)
		if err != nil {
			return err
		}
		if drew && !u.HasSeed {
			return &DivergedError{Detail: fmt.Sprintf("unit %v drew a random number here only", u.ID)}
		}
	}
	return nil
}

// replayFailure tells a local failure from a divergence. Both stop the replica; a
// statement that succeeded on the leader and fails here for a reason of its own
// means that the replicas have parted.
func replayFailure(mark wire.Mark, proposer uint64, err error) error {
	var div *DivergedError
	if errors.As(err, &div) {
		div.Mark, div.Proposer, div.Here = mark, proposer, sqlite.Fingerprint()
		return div
	}
	if kind, name := lacking(err); name != "" {
		// The leader had it, so it is this node that lacks it.
		return fmt.Errorf("entry %v could not be applied: %w: %w", mark, &LackError{Kind: kind, Name: name, Want: name}, err)
	}
	var se *sqlite.Error
	if errors.As(err, &se) {
		switch se.Code {
		case sqlite.Full, sqlite.IOErr, sqlite.NoMem, sqlite.CantOpen, sqlite.Busy, sqlite.Locked, sqlite.Interrupt, sqlite.ReadOnly, sqlite.Corrupt, sqlite.NotADB, sqlite.Protocol:
			return fmt.Errorf("entry %v could not be applied: %w", mark, err)
		}
		return &DivergedError{Mark: mark, Detail: err.Error(), Proposer: proposer, Here: sqlite.Fingerprint()}
	}
	return fmt.Errorf("entry %v could not be applied: %w", mark, err)
}

// commitReplay commits what was replayed, with the mark in the same transaction.
func (d *DB) commitReplay(tx *replayTx) {
	if !tx.open || d.halted.Load() != nil {
		return
	}
	durable.CrashPoint("apply.before-commit")
	if err := d.writeMark(tx.mark, tx.drop); err != nil {
		d.stop(tx, fmt.Errorf("entry %v could not be applied: %w", tx.mark, err))
		return
	}
	if err := d.commitFile(); err != nil {
		d.stop(tx, fmt.Errorf("entry %v could not be committed: %w", tx.mark, err))
		return
	}
	durable.CrashPoint("apply.after-commit")
	tx.open, tx.drop = false, 0
	d.touched = false
	d.publish(tx.mark)
	for _, r := range tx.done {
		d.cfg.Applied(r.mark, r.entry)
	}
	tx.done = nil
	d.check.note()
}

// commitFile commits an entry's effects and mark.
func (d *DB) commitFile() error {
	if d.failCommit.Load() {
		return &sqlite.Error{Code: sqlite.Full, Extended: sqlite.Full, Msg: "database or disk is full", Offset: -1}
	}
	return d.runInternal(d.commit)
}

// commitOwn commits the open epoch: its entry came back from the log. A failure
// here is this replica's alone, the cluster has the entry; the writers are told so,
// and the replica stops until it has replayed it (H14).
func (d *DB) commitOwn(e *epoch, mark wire.Mark) {
	var stored []wire.StoredResult
	for _, u := range e.units {
		u.Result.Mark = mark
		if !u.failed && u.Req.ID.Origin != 0 {
			stored = append(stored, storedResult(&u.entry, u.Result.Result.Rows))
		}
	}
	durable.CrashPoint("commit.before")
	d.time = max(d.time, e.time)
	var drop uint64
	var err error
	if d.w.Autocommit() {
		err = errors.New("its transaction does not stand any more")
	}
	if err == nil {
		err = d.writeEpoch(mark, stored, &drop)
	}
	if err == nil {
		err = d.writeMark(mark, drop)
	}
	if err == nil {
		err = d.commitFile()
	}
	durable.CrashPoint("commit.after")
	d.epoch = nil
	d.proposed.Store(0)
	d.touched = false
	if err != nil {
		_ = d.rollbackOpen()
		d.halt(fmt.Errorf("entry %v could not be committed: %w", mark, err))
	} else {
		d.count.epochs.Add(1)
		d.count.units.Add(uint64(e.good))
		d.publish(mark)
		switch {
		case d.cfg.Watch:
			d.cfg.Applied(mark, e.asEntry(d))
		case d.cfg.Applied != nil:
			d.cfg.Applied(mark, nil)
		}
	}
	d.answer(e, nil)
	if err == nil {
		d.check.note()
	}
}

// asEntry gives watchers the epoch in the form a follower would decode.
func (e *epoch) asEntry(d *DB) *wire.Entry {
	en := &wire.Entry{EntryHeader: wire.EntryHeader{DB: d.cfg.Incarnation, Prev: e.prev, Proposer: d.cfg.Proposer, Epoch: e.seq, Time: e.time, ForeignKeys: e.modes.ForeignKeys, RecursiveTriggers: e.modes.RecursiveTriggers}}
	for _, u := range e.units {
		if !u.failed {
			en.Units = append(en.Units, u.entry)
		}
	}
	return en
}

func storedResult(u *wire.EntryUnit, rows *wire.Rows) wire.StoredResult {
	r := wire.StoredResult{ID: u.ID, Lowest: u.Lowest}
	if r.Outcome = fenced; len(u.Statements) > 0 {
		r.Outcome = u.Statements[len(u.Statements)-1].Outcome
	}
	if u.WantEach {
		for i := range u.Statements {
			r.Each = append(r.Each, u.Statements[i].Outcome)
		}
	}
	if rows != nil {
		if len(rows.Data) > maxRememberedRows {
			rows = &wire.Rows{Columns: rows.Columns, Truncated: true}
		}
		r.Rows = rows
	}
	return r
}

func abbreviate(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
