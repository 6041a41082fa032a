package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// AbortReason says why a transaction has ended without its client's wish. They travel, and
// are never renumbered.
type AbortReason int32

// Reasons.
const (
	AbortLeader     AbortReason = iota + 1 // this node leads no more, or what the transaction stood on was undone
	AbortIdle                              // its client asked for nothing for longer than it may
	AbortTime                              // it was open for longer than it may be
	AbortWait                              // it, or a write, waited too long for the writer
	AbortStatement                         // a statement ended it: OR ROLLBACK, RAISE(ROLLBACK), a full disk
	AbortClosed                            // the node was closed
	AbortGone                              // its client has gone
	AbortRepeatable                        // it could not be repeated as it had run
)

var abortTexts = map[AbortReason]string{
	AbortLeader: "the leader changed", AbortIdle: "it was idle for too long", AbortTime: "it was open for too long",
	AbortWait: "the writer was held for too long", AbortStatement: "a statement rolled it back", AbortClosed: "the node was closed",
	AbortGone: "its client has gone", AbortRepeatable: "it could not be repeated",
}

// String tells the reason.
func (r AbortReason) String() string {
	if s := abortTexts[r]; s != "" {
		return s
	}
	return fmt.Sprintf("reason %d", int32(r))
}

// An AbortedError ends a transaction, or a write that waited for one. Nothing of it was
// applied.
type AbortedError struct {
	Reason AbortReason
	Holder string // who held the writer, for AbortWait
	Cause  error
}

func (e *AbortedError) Error() string {
	s := "the transaction was aborted: " + e.Reason.String()
	if e.Reason == AbortWait {
		s = "waited too long for the writer"
	}
	if e.Holder != "" {
		s += ", held by " + e.Holder
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

func (e *AbortedError) Unwrap() error { return e.Cause }

// ErrNotFound answers Unit.Req.Resolve: the request was not applied, and never will be.
var ErrNotFound = errors.New("the request was not applied")

// SessionOptions are what a session begins with.
type SessionOptions struct {
	Label string // who it is, for those who wait for it
	Modes Modes
	Pre   wire.PreState
}

// Modes are the pragmas that hold for a whole entry.
type Modes struct{ ForeignKeys, RecursiveTriggers bool }

// Session is an interactive transaction. Its client asks for one thing after another; the
// database's owner serves it while its epoch is open. Of all sessions one at a time holds
// the writer; the others wait in the order in which they came, and so do units. Its
// methods are for one goroutine at a time, except for Abort.
type Session struct {
	db      *DB
	opts    SessionOptions
	gone    atomic.Bool  // the client wants it to end
	thought atomic.Int64 // nanoseconds that the client took to ask when it asked last

	// Guarded by db.mu.
	asked   []*sessionRequest
	since   time.Time // when it asked: while it is returning, it waits since then
	over    error     // why it has ended
	started time.Time
	touched time.Time // when the client was last answered
	lastSQL string
	shelved bool // it has begun, asked for nothing, and holds nothing

	// Owned by the database's goroutine.
	begun bool // it has seen something
	live  bool // its work stands in the open transaction
	time  int64
	seed  uint64
	drew  bool // it drew from the generator
	state wire.PreState
	done  []wire.EntryStatement
	sums  []uint64 // of the rows that each returned
	bytes int
	cost  time.Duration // that its statements took
}

type sessionKind int

const (
	askBegin sessionKind = iota
	askRun
	askCommit
	askRollback
)

// sessionRequest is what a client waits for.
type sessionRequest struct {
	kind     sessionKind
	stmt     wire.Statement
	rest     string // of a string of several statements, what has not run yet
	pin      bool
	rows     bool
	id       wire.RequestID
	lowest   uint64
	deadline time.Time
	canceled atomic.Bool
	failed   *wire.PreState // what SQLite remembers of a change that failed
	res      StepResult
	reply    chan StepResult // one slot
}

// StepResult is what a statement of a session did.
type StepResult struct {
	State wire.PreState // what the connection remembers now
	Rows  *wire.Rows
	Mark  wire.Mark // of the entry, after a commit
	Err   error
	Over  bool // the session has ended
}

// Statement is a statement string of a session.
type Statement struct {
	wire.Statement
	Pin      bool
	WantRows bool
	Timeout  time.Duration // 0 none
}

// Begin waits for the writer and returns a session that holds it. Its errors are the
// context's, *AbortedError when it waited longer than Config.MaxWait, ErrNotLeading,
// ErrHalted and ErrClosed.
func (d *DB) Begin(ctx context.Context, o SessionOptions) (*Session, error) {
	s := &Session{db: d, opts: o, state: o.Pre}
	r := &sessionRequest{kind: askBegin, reply: make(chan StepResult, 1)}
	s.asked = []*sessionRequest{r}
	d.mu.Lock()
	switch {
	case d.closing:
		d.mu.Unlock()
		return nil, ErrClosed
	case !d.roomLocked():
		d.mu.Unlock()
		return nil, &TooLargeError{What: "the number of open transactions", Size: d.cfg.MaxSessions + 1, Most: d.cfg.MaxSessions}
	}
	d.sessions = append(d.sessions, s)
	d.mu.Unlock()
	d.signal()
	var late <-chan time.Time
	if d.cfg.MaxWait > 0 {
		timer := time.NewTimer(d.cfg.MaxWait)
		defer timer.Stop()
		late = timer.C
	}
	var err error
	select {
	case res := <-r.reply:
		return s, res.Err
	case <-ctx.Done():
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), ErrCanceled)
	case <-late:
		err = &AbortedError{Reason: AbortWait, Holder: d.holderText()}
	case <-d.stopped:
		err = ErrClosed
	}
	if !d.withdraw(s) {
		s.Abort()
	}
	return nil, err
}

// roomLocked reports whether one more session may begin. Those that hold nothing are in
// nobody's way until there is no room: then the ones that are late make some.
func (d *DB) roomLocked() bool {
	full := func() bool { return len(d.sessions)+len(d.returning)+len(d.shelf) >= d.cfg.MaxSessions }
	if !full() {
		return true
	}
	now := time.Now()
	for s := range d.shelf {
		if reason := d.late(s, false, now); reason != 0 {
			delete(d.shelf, s)
			s.failLocked(&AbortedError{Reason: reason})
		}
	}
	return !full()
}

// withdraw takes a session out of the queue. It returns false if it has begun.
func (d *DB) withdraw(s *Session) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.sessions, s)
	if i < 0 {
		return false
	}
	d.sessions = slices.Delete(d.sessions, i, i+1)
	return true
}

// Run runs a statement string in the transaction. An error is the statement's own, and
// the transaction goes on, unless Over says that it has ended. When ctx ends the statement
// is stopped.
func (s *Session) Run(ctx context.Context, st Statement) StepResult {
	r := &sessionRequest{kind: askRun, stmt: st.Statement, rest: st.SQL, pin: st.Pin, rows: st.WantRows}
	limit := s.db.cfg.MaxUnitTime
	if st.Timeout > 0 && (limit < 0 || st.Timeout < limit) {
		limit = st.Timeout
	}
	if limit > 0 {
		r.deadline = time.Now().Add(limit)
	}
	return s.ask(ctx, r)
}

// Commit makes the transaction an entry under a request ID. When the error is ErrUnknown,
// a unit with Resolve and the same ID tells. On ErrExpired, and when a deferred constraint
// fails, the transaction is still open.
func (s *Session) Commit(ctx context.Context, id wire.RequestID, lowest uint64) StepResult {
	return s.ask(ctx, &sessionRequest{kind: askCommit, id: id, lowest: lowest})
}

// Rollback ends the transaction.
func (s *Session) Rollback(ctx context.Context) StepResult {
	return s.ask(ctx, &sessionRequest{kind: askRollback})
}

// Abort ends the transaction for a client that has gone. It waits for nothing.
func (s *Session) Abort() {
	s.gone.Store(true)
	d := s.db
	d.mu.Lock()
	if s.shelved || d.unqueueLocked(s) {
		delete(d.shelf, s)
		s.failLocked(&AbortedError{Reason: AbortGone})
	}
	d.mu.Unlock()
	d.signal()
}

// unqueueLocked takes a session out of those that wait for the writer, and reports whether
// it was one. It has seen nothing, and what it asked for has not run.
func (d *DB) unqueueLocked(s *Session) bool {
	i := slices.Index(d.returning, s)
	if i < 0 {
		return false
	}
	d.returning = slices.Delete(d.returning, i, i+1)
	return true
}

// callOff ends the wait for the writer of a request that was canceled. The transaction goes
// on. It returns false if it does not wait.
func (s *Session) callOff(r *sessionRequest) bool {
	d := s.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(s.asked) != 1 || s.asked[0] != r || !d.unqueueLocked(s) {
		return false
	}
	s.asked = nil
	s.shelveLocked()
	return true
}

func (s *Session) ask(ctx context.Context, r *sessionRequest) StepResult {
	r.reply = make(chan StepResult, 1)
	d := s.db
	d.mu.Lock()
	if s.over != nil {
		err := s.over
		d.mu.Unlock()
		return StepResult{Err: err, Over: true}
	}
	if s.shelved {
		s.shelved = false
		delete(d.shelf, s)
		if r.kind != askRun { // it has seen nothing and done nothing, and needs nothing to end
			s.over = errSessionDone
			d.mu.Unlock()
			return StepResult{State: s.state, Over: true}
		}
		d.returning = append(d.returning, s)
	}
	s.asked, s.since = append(s.asked, r), time.Now()
	s.thought.Store(int64(s.since.Sub(s.touched)))
	if r.kind == askRun {
		s.lastSQL = r.stmt.SQL
	}
	d.mu.Unlock()
	d.signal()
	select {
	case res := <-r.reply:
		return res
	case <-d.stopped:
		return s.lastWord(r, ErrClosed)
	case <-ctx.Done():
	}
	// A statement that runs is stopped at once; what waits for consensus may take as
	// long as that does.
	r.canceled.Store(true)
	if s.callOff(r) {
		return StepResult{State: s.state, Err: fmt.Errorf("%w (%w)", context.Cause(ctx), ErrCanceled)}
	}
	d.signal()
	timer := time.NewTimer(CancelGrace)
	defer timer.Stop()
	select {
	case res := <-r.reply:
		if errors.Is(res.Err, ErrCanceled) {
			res.Err = fmt.Errorf("%w (%w)", context.Cause(ctx), ErrCanceled)
		}
		return res
	case <-d.stopped:
		return s.lastWord(r, ErrClosed)
	case <-timer.C:
	}
	err := fmt.Errorf("%w (%w)", context.Cause(ctx), ErrCanceled)
	if r.kind == askCommit {
		err = errors.Join(context.Cause(ctx), ErrUnknown)
	}
	// It may still be carried out, so nobody may build on what was before it.
	s.Abort()
	return s.lastWord(r, err)
}

// lastWord is an answer that has come meanwhile, or err.
func (s *Session) lastWord(r *sessionRequest, err error) StepResult {
	select {
	case res := <-r.reply:
		return res
	default:
		return StepResult{Err: err, Over: true}
	}
}

// holderText tells who holds the writer now, for those who wait in vain.
func (d *DB) holderText() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.holding
	if s == nil {
		return ""
	}
	now := time.Now()
	text := fmt.Sprintf("a transaction of %s, open for %v, idle for %v", s.opts.Label, now.Sub(s.started).Round(time.Millisecond), now.Sub(s.touched).Round(time.Millisecond))
	if s.lastSQL != "" {
		text += fmt.Sprintf(", last statement %q", abbreviate(s.lastSQL))
	}
	return text
}
