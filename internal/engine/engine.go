// Package engine is one replicated database: an SQLite file, the goroutine that owns
// its writer connection, and the readers beside it.
//
// On the leader the owner forms epochs. It takes the units that wait, opens an SQLite
// transaction, runs each unit under a savepoint, proposes one entry with those that
// succeeded, and commits when the entry comes back from the log. While an epoch is on
// its round trip the next one queues up. On a follower the owner replays entries. Both
// run statements through the same executor, on a connection whose clock and generator
// are pinned, so that a statement computes the same on every replica.
//
// Everything that touches the writer connection happens on the owner's goroutine; the
// log, the units and the commands reach it through queues. So there is no hand-off of
// the connection between the log's goroutine and a writer's, and nothing to deadlock.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// Defaults of Config.
const (
	DefaultBatchWindow    = time.Millisecond
	DefaultBatchMaxUnits  = 4096
	DefaultMaxEntryBytes  = 8 << 20
	DefaultMaxResult      = 8 << 20
	DefaultMaxQueued      = 65536
	DefaultMaxQueuedBytes = 64 << 20
	DefaultMaxLogQueue    = 64 << 20
	DefaultMaxUnitTime    = 30 * time.Second
	DefaultWALBytes       = 16 << 20
	DefaultMaxWait        = 10 * time.Second
	DefaultMaxSessionIdle = 15 * time.Second
	DefaultMaxSessionTime = time.Minute
	DefaultMaxSessions    = 4096
)

// Config is what a database needs from the node.
type Config struct {
	Path        string
	Name        string
	Incarnation uint64 // index of the entry that created the database; 0 is the system database
	Proposer    uint64 // random nonce of this process, names whose epoch an entry is

	// Propose hands an entry to the log and reports, once, how that ended: nil when
	// it was committed and handed to Deliver, an error otherwise. ProposalLost says
	// whether after err the entry can still be committed. It must not block.
	Propose      func(data []byte, done func(error))
	ProposalLost func(err error) bool
	// Confirm, if not nil, has the term confirmed by a majority and reports, once. It
	// must not block.
	Confirm func(term uint64, done func(ok bool))
	// Halt is called once, from the owner's goroutine, when this replica must not go
	// on: it would skip an entry or has parted from the others.
	Halt func(error)
	// Applied is called after each entry was committed, from the owner's goroutine. It
	// must not block. The entry is nil unless Watch is set.
	Applied func(wire.Mark, *wire.Entry)
	Watch   bool
	// Passed, if not nil, is called with the index up to which every entry was dealt
	// with: applied, or passed over, which Applied does not tell of. It must not block.
	Passed func(index uint64)
	// Library is what the application adds to SQL, nil nothing.
	Library *Library
	// Stop, when closed, ends the queries that run; they give ErrClosed. Close alone
	// lets them go on, for a copy may take this database's place. A Deliver that waits
	// for room then ends the database, because its log is long and the node closes.
	Stop   <-chan struct{}
	Now    func() time.Time // wall clock, default time.Now
	Logger *slog.Logger

	BatchWindow    time.Duration // how long an epoch may stay open while more units arrive
	BatchMaxUnits  int
	MaxEntryBytes  int
	MaxResult      int           // bytes of RETURNING rows held for one unit
	MaxUnitTime    time.Duration // how long one unit may run
	MaxWait        time.Duration // how long a unit or a session waits for a session that holds the writer
	MaxSessionIdle time.Duration // how long a session may ask for nothing
	MaxSessionTime time.Duration // how long a session may be open
	MaxSessions    int           // sessions open
	MaxQueued      int           // units waiting
	MaxQueuedBytes int           // and their bytes
	MaxLogQueue    int           // bytes of entries delivered and not applied
	ReadConns      int           // idle reader connections kept
	MaxReaders     int           // reader connections at once
	ReaderWait     time.Duration // how long one is waited for
	WALBytes       int64         // the write-ahead log is checkpointed beyond this
	CacheBytes     int           // page cache of each connection
}

func (c Config) withDefaults() Config {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.BatchWindow == 0 {
		c.BatchWindow = DefaultBatchWindow
	}
	if c.MaxUnitTime == 0 {
		c.MaxUnitTime = DefaultMaxUnitTime
	}
	dur := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	dur(&c.MaxWait, DefaultMaxWait)
	dur(&c.MaxSessionIdle, DefaultMaxSessionIdle)
	dur(&c.MaxSessionTime, DefaultMaxSessionTime)
	def(&c.MaxSessions, DefaultMaxSessions)
	if c.WALBytes == 0 {
		c.WALBytes = DefaultWALBytes
	}
	def(&c.BatchMaxUnits, DefaultBatchMaxUnits)
	def(&c.MaxEntryBytes, DefaultMaxEntryBytes)
	def(&c.MaxResult, DefaultMaxResult)
	def(&c.MaxQueued, DefaultMaxQueued)
	def(&c.MaxQueuedBytes, DefaultMaxQueuedBytes)
	def(&c.MaxLogQueue, DefaultMaxLogQueue)
	def(&c.ReadConns, max(2, runtime.GOMAXPROCS(0)))
	def(&c.MaxReaders, 256)
	dur(&c.ReaderWait, 10*time.Second)
	def(&c.CacheBytes, 16<<20)
	return c
}

// DB is one database of a node. Its methods are safe for concurrent use.
type DB struct {
	cfg Config

	mu        sync.Mutex // guards the queues
	units     []*Unit
	queued    int                   // bytes of units
	swept     time.Time             // when units that were withdrawn were last taken out of a full queue
	sessions  []*Session            // that wait for the writer
	returning []*Session            // that wait for it again, with their first request
	shelf     map[*Session]struct{} // that have begun and asked for nothing yet
	holding   *Session              // that holds it, for those who ask
	log       []logItem
	logBytes  int
	control   []func()
	closing   bool
	closed    bool          // Close has been here
	logRoom   chan struct{} // closed and replaced when log shrinks
	wake      chan struct{} // one slot: something was queued
	stopped   chan struct{} // closed when the owner has ended

	name      atomic.Pointer[string]
	count     counters
	delivered atomic.Uint64 // index of the last entry taken in
	passed    atomic.Uint64 // and of the last one dealt with
	leading   atomic.Uint64 // term in which this node may open epochs, 0 none
	ending    atomic.Bool   // as closing, for the owner between two entries
	urgent    atomic.Bool   // the owner should stop a running statement: the log or a stop waits
	halted    atomic.Pointer[haltError]
	mark      atomic.Pointer[wire.Mark]
	// proposed is the epoch whose entry may come back, 0 none.
	proposed atomic.Uint64
	// failCommit makes the next commit fail as a full disk would: for tests.
	failCommit atomic.Bool
	// cutEach parks the session between any two of its statements: for tests.
	cutEach atomic.Bool
	// passParked lets units run while a session is parked, a mistake: for tests of tests.
	passParked atomic.Bool

	waitMu  sync.Mutex
	waiters []markWaiter

	readers *readerPool
	check   *checkpointer

	// The rest belongs to the owner.
	w                *sqlite.Conn
	x                *executor
	begin            *sqlite.Stmt
	commit           *sqlite.Stmt
	rollback         *sqlite.Stmt
	save             *sqlite.Stmt
	release          *sqlite.Stmt
	undo             *sqlite.Stmt
	saveStatement    *sqlite.Stmt
	releaseStatement *sqlite.Stmt
	undoToStatement  *sqlite.Stmt
	saveAhead        *sqlite.Stmt
	releaseAhead     *sqlite.Stmt
	undoAhead        *sqlite.Stmt
	setMark          *sqlite.Stmt
	setEpoch         *sqlite.Stmt
	delEpoch         *sqlite.Stmt
	memory           *requestMemory
	time             int64    // newest replicated time, unix milliseconds
	clock            int64    // newest time given to a unit, decided or not
	virtual          bool     // there are virtual tables
	touched          bool     // the open transaction changed the schema or the planner's statistics
	modes            Modes    // as set on the connection
	holder           *Session // that holds the writer
	sessionTurn      bool     // a session that waits comes before more units
	timer            *time.Timer
	epoch            *epoch // that is open, or proposed
	ahead            *epoch // that stands on it, or is to be repeated
	epochs           uint64
	running          *runningUnit
	maxRowID         bool // a row was given the last rowid there is
	buf              []byte
	entry            wire.Entry // scratch for replay
	rand             *rand.ChaCha8
}

type markWaiter struct {
	index uint64
	done  chan struct{}
}

// Open opens a database file and starts its owner. The file must exist; see Create.
func Open(cfg Config) (*DB, error) {
	d := &DB{cfg: cfg.withDefaults(), wake: make(chan struct{}, 1), logRoom: make(chan struct{}), stopped: make(chan struct{})}
	d.rand = newRand()
	d.shelf = map[*Session]struct{}{}
	d.timer = time.NewTimer(time.Hour)
	d.timer.Stop()
	d.Rename(cfg.Name)
	if err := d.openWriter(); err != nil {
		return nil, fmt.Errorf("database %q: %w", cfg.Name, err)
	}
	d.readers = newReaderPool(d.cfg)
	check, err := newCheckpointer(d)
	if err != nil {
		d.readers.close()
		return nil, errors.Join(fmt.Errorf("database %q: %w", cfg.Name, err), d.closeWriter())
	}
	d.check = check
	go d.own()
	return d, nil
}

// Name and Incarnation identify the database in the cluster.
func (d *DB) Name() string        { return *d.name.Load() }
func (d *DB) Incarnation() uint64 { return d.cfg.Incarnation }

// Rename gives the database another name. Its file states none, so nothing else changes.
func (d *DB) Rename(name string) { d.name.Store(&name) }

// Mark is the term and index of the last entry applied and committed here.
func (d *DB) Mark() wire.Mark { return *d.mark.Load() }

// Err tells why this replica has stopped, nil while it goes on.
func (d *DB) Err() error {
	if h := d.halted.Load(); h != nil {
		return h
	}
	return nil
}

// Submit queues a unit. Its Done tells the outcome, possibly before Submit returns.
func (d *DB) Submit(units ...*Unit) {
	now, size := time.Now(), 0
	for _, u := range units {
		u.since = now
		size += u.Req.Size()
		limit := d.cfg.MaxUnitTime
		if t := time.Duration(u.Req.Timeout) * time.Millisecond; t > 0 && (limit < 0 || t < limit) {
			limit = t
		}
		if limit > 0 {
			u.deadline = now.Add(limit)
		}
	}
	d.mu.Lock()
	err := d.queueLocked(units, size)
	d.mu.Unlock()
	if err != nil {
		d.failAll(units, err)
		return
	}
	d.signal()
}

// sweepPause is how often a full queue is looked through.
const sweepPause = time.Millisecond

// queueLocked takes units in if there is room for them, or those that were withdrawn make some.
func (d *DB) queueLocked(units []*Unit, size int) error {
	room := func() error {
		switch {
		case len(d.units)+len(units) > d.cfg.MaxQueued:
			return &TooLargeError{What: "the queue of waiting writes", Size: len(d.units) + len(units), Most: d.cfg.MaxQueued}
		case d.queued > 0 && d.queued+size > d.cfg.MaxQueuedBytes:
			return &TooLargeError{What: "the queue of waiting writes, in bytes,", Size: d.queued + size, Most: d.cfg.MaxQueuedBytes}
		}
		return nil
	}
	if d.closing {
		return ErrClosed
	}
	if now := time.Now(); room() != nil && now.Sub(d.swept) > sweepPause {
		d.swept = now
		d.units = slices.DeleteFunc(d.units, func(u *Unit) bool {
			if u.state.Load() != unitCanceled {
				return false
			}
			d.queued -= u.Req.Size()
			return true
		})
	}
	if err := room(); err != nil {
		return err
	}
	d.units = append(d.units, units...)
	d.queued += size
	return nil
}

// Lead lets the owner open epochs, once everything delivered before is applied. The
// caller has seen a barrier of this term come back from the log.
func (d *DB) Lead(term uint64) {
	d.enqueue(logItem{kind: itemLead, mark: wire.Mark{Term: term}})
}

// StepDown makes the owner roll back what is open and refuse units until Lead.
func (d *DB) StepDown() {
	d.leading.Store(0)
	d.enqueue(logItem{kind: itemStepDown})
}

// Leading is the term in which this database takes writes, 0 when it does not.
func (d *DB) Leading() uint64 { return d.leading.Load() }

// Deliver hands a committed entry to the database, in log order. It blocks while
// more bytes wait than MaxLogQueue, unless the replica has halted: then the entry is
// dropped, to be read from the log again (H27). It reports whether the entry was taken.
func (d *DB) Deliver(mark wire.Mark, data []byte) bool {
	return d.enqueue(logItem{kind: itemEntry, mark: mark, data: data})
}

// Drain waits until everything delivered so far is applied.
func (d *DB) Drain(ctx context.Context) error {
	done := make(chan error, 1)
	d.enqueue(logItem{kind: itemDrain, drained: done})
	select {
	case err := <-done:
		if halted := d.Err(); halted != nil {
			return halted
		}
		return err
	case <-d.stopped:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Settle waits until every entry delivered so far is applied or passed over. Unlike
// Drain it does not wait for a unit that runs when there is none. Of a database that
// ends it cannot be said.
func (d *DB) Settle(ctx context.Context) error {
	if d.ending.Load() {
		return ErrClosed // it may have been handed more than it took
	}
	at := d.delivered.Load()
	for d.Mark().Index < at && d.passed.Load() < at {
		short, cancel := context.WithTimeout(ctx, settleLook)
		err := d.WaitMark(short, at)
		cancel()
		if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
			return err
		}
	}
	return nil
}

// settleLook is how often Settle looks whether an entry was passed over, which a mark
// does not tell.
const settleLook = 5 * time.Millisecond

// WaitMark waits until the entry at index, or a later one, is applied here.
func (d *DB) WaitMark(ctx context.Context, index uint64) error {
	if d.mark.Load().Index >= index {
		return nil
	}
	w := markWaiter{index, make(chan struct{})}
	d.waitMu.Lock()
	if d.mark.Load().Index >= index {
		d.waitMu.Unlock()
		return nil
	}
	if err := d.Err(); err != nil { // halt wakes those who wait already
		d.waitMu.Unlock()
		return err
	}
	d.waiters = append(d.waiters, w)
	d.waitMu.Unlock()
	select {
	case <-w.done:
		if d.mark.Load().Index >= index {
			return nil
		}
		return d.Err()
	case <-d.stopped:
		return ErrClosed
	case <-ctx.Done():
		d.waitMu.Lock()
		for i := range d.waiters {
			if d.waiters[i].done == w.done {
				d.waiters = append(d.waiters[:i], d.waiters[i+1:]...)
				break
			}
		}
		d.waitMu.Unlock()
		return ctx.Err()
	}
}

func (d *DB) publish(m wire.Mark) {
	d.waitMu.Lock()
	defer d.waitMu.Unlock()
	d.mark.Store(&m)
	kept := d.waiters[:0]
	for _, w := range d.waiters {
		if w.index <= m.Index || d.halted.Load() != nil {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	clear(d.waiters[len(kept):])
	d.waiters = kept
}

// Do runs fn on the owner's goroutine between epochs, with no transaction open.
func (d *DB) Do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	d.mu.Lock()
	if d.closing {
		d.mu.Unlock()
		return ErrClosed
	}
	d.control = append(d.control, func() { defer close(done); fn() })
	d.mu.Unlock()
	d.signal()
	select {
	case <-done:
		return nil
	case <-d.stopped:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop begins to end the owner and does not wait for it: nothing more is taken in, and
// of what was the owner finishes the entry that it replays. The rest is read from the
// log again when the file is opened. Close follows.
func (d *DB) Stop() {
	d.mu.Lock()
	d.closing = true
	d.ending.Store(true)
	d.urgent.Store(true)
	d.mu.Unlock()
	d.signal()
}

// Close ends the owner, as Stop does: what was not proposed was not applied, what was
// proposed has an unknown outcome. It waits for the owner and closes every connection;
// readers still held close when they are released.
func (d *DB) Close() error {
	d.Stop()
	<-d.stopped
	d.mu.Lock()
	already := d.closed
	d.closed = true
	d.mu.Unlock()
	if already {
		return nil
	}
	d.readers.close()
	return errors.Join(d.check.close(), d.closeWriter())
}

func (d *DB) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}
