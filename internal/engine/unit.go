package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// Outcomes of a unit that are not SQL errors. The node makes the user's errors of them.
var (
	// ErrNotLeading: this node does not lead; the unit was not applied.
	ErrNotLeading = errors.New("this node leads no more")
	// ErrUnknown: leadership was lost after the unit was proposed. Submitting it
	// again with the same request ID, to a leader that has applied its log, tells.
	ErrUnknown = errors.New("leadership was lost before the outcome was known")
	// ErrExpired: the request ID is older than what the replicated memory holds.
	ErrExpired = errors.New("the request is too old to tell whether it was applied")
	// ErrHalted: this replica has stopped; see DB.Err.
	ErrHalted = errors.New("this replica has stopped")
	// ErrClosed: the database was closed.
	ErrClosed = errors.New("the database is closed")
	// ErrCanceled: the unit was withdrawn before it ran to its end; not applied.
	ErrCanceled = errors.New("canceled")
	// ErrTimeout: the unit ran longer than it may; not applied.
	ErrTimeout = errors.New("the statement took too long")
)

// fenced is the outcome that is remembered of a request that was asked for (Resolve) when
// it was not known. It takes the request's place, as a unit without statements, on every
// replica: whatever may still bring the request itself finds it taken, and an epoch that
// stands on an older mark cannot win any more.
var fenced = wire.Outcome{RowsAffected: -1}

// A TooLargeError says which bound a unit broke. The unit was not applied.
type TooLargeError struct {
	What       string
	Size, Most int
}

func (e *TooLargeError) Error() string {
	if e.Most == 0 {
		return e.What
	}
	return fmt.Sprintf("%s is larger than the limit: %d, at most %d", e.What, e.Size, e.Most)
}

const (
	unitQueued int32 = iota
	unitTaken        // the owner has it: it may be part of a proposed epoch
	unitDone
	unitCanceled
)

// Unit is what is atomic: one statement, or several that succeed or fail together.
// Done is called exactly once, from the database's goroutine, unless Cancel
// returned true; it must not block. After it Result and Err are final.
type Unit struct {
	Req    wire.Unit
	Done   func(*Unit)
	Result wire.UnitResult
	// Err is nil, one of the sentinels above, *sqlite.Error, *NonDeterministicError,
	// *RefusedError or *TooLargeError.
	Err error

	state    atomic.Int32
	canceled atomic.Bool
	deadline time.Time
	since    time.Time // when it was submitted

	// Owned by the database's goroutine.
	time    int64 // pinned time, unix milliseconds
	seed    uint64
	entry   wire.EntryUnit
	failed  bool     // Err is decided when what it rests on is (H9)
	ran     bool     // its statements have run, and it fails, if it does, by what they left
	follow  []*Unit  // the same request, sent again while this one was in flight
	session bool     // the end of a session: it cannot be run again
	sums    []uint64 // of the rows that each statement of a session returned
	alone   bool     // needs an epoch of its own (H5, H10)
	retries int
}

// Cancel withdraws a unit. It returns true if the unit had not been taken up: then
// it was not applied, and Done is not called. Otherwise a running statement is
// interrupted and Done tells.
func (u *Unit) Cancel() bool {
	if u.state.CompareAndSwap(unitQueued, unitCanceled) {
		return true
	}
	u.canceled.Store(true)
	return false
}

// take claims a unit for an answer, unless it was withdrawn.
func (u *Unit) take() bool {
	return u.state.CompareAndSwap(unitQueued, unitTaken) || u.state.Load() == unitTaken
}

func (d *DB) fail(u *Unit, err error) {
	u.Err = err
	d.finish(u)
}

// finish answers a unit, and those that are the same request. What only the first
// one's own deadline or withdrawal ended is run again for the next, and a fence takes the
// place of one that was found to fail.
func (d *DB) finish(u *Unit) {
	if u.state.Swap(unitDone) == unitDone {
		return
	}
	follow := u.follow
	u.follow = nil
	u.Done(u)
	own := errors.Is(u.Err, ErrTimeout) || errors.Is(u.Err, ErrCanceled)
	if own && len(follow) > 0 {
		d.requeue(follow)
		return
	}
	for _, f := range follow {
		if f.Req.Resolve && u.failed && !undecided(u.Err) {
			d.requeue([]*Unit{f})
			continue
		}
		f.Result, f.Err = u.Result, u.Err
		f.Result.Duplicate = true
		d.finish(f)
	}
}

// undecided reports whether an error says nothing of what the unit does where it is run.
func undecided(err error) bool {
	return errors.Is(err, ErrNotLeading) || errors.Is(err, ErrUnknown) || errors.Is(err, ErrHalted) || errors.Is(err, ErrClosed)
}

// Exec submits one unit and waits. When ctx ends first, the error is ctx's,
// joined with ErrUnknown if the unit may still be applied.
func (d *DB) Exec(ctx context.Context, req wire.Unit) (wire.UnitResult, error) {
	done := make(chan struct{})
	u := &Unit{Req: req, Done: func(*Unit) { close(done) }}
	d.Submit(u)
	select {
	case <-done:
		return u.Result, u.Err
	case <-ctx.Done():
	}
	canceled := fmt.Errorf("%w (%w)", context.Cause(ctx), ErrCanceled)
	if u.Cancel() {
		return wire.UnitResult{}, canceled
	}
	// An interrupted statement answers at once; a proposed one may take as long
	// as consensus does, and the caller does not wait for it.
	select {
	case <-done:
		if errors.Is(u.Err, ErrCanceled) {
			return wire.UnitResult{}, canceled
		}
		return u.Result, u.Err
	case <-time.After(CancelGrace):
		return wire.UnitResult{}, errors.Join(context.Cause(ctx), ErrUnknown)
	}
}

// CancelGrace is how long a canceled caller waits to learn that its statement
// was stopped rather than proposed.
const CancelGrace = 20 * time.Millisecond
