package colmena

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/mentasystems/colmena/internal/delivery"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// Errors of a node's life.
var (
	// ErrClosed: the node, or the handle, was closed.
	ErrClosed = errors.New("colmena: closed")
	// ErrReplicaHalted: this node's copy of the database has stopped, because it
	// could not apply an entry or computed something else than the leader. Its file
	// is kept. Status tells why.
	ErrReplicaHalted = errors.New("colmena: this replica has stopped")
)

// Errors of a write.
var (
	// ErrNoLeader: no leader was found within Config.LeaderWait, or before the
	// context ended. The write was not applied.
	ErrNoLeader = errors.New("colmena: no leader")
	// ErrOutcomeUnknown: the context ended while the write was on its way. It may
	// have been applied, once, or may still be.
	ErrOutcomeUnknown = errors.New("colmena: outcome unknown")
	// ErrNotApplied is what every error wraps that says: nothing happened, try again.
	ErrNotApplied = errors.New("colmena: not applied")
)

// Errors of a transaction.
var (
	// ErrTxAborted: the transaction has ended without its client's wish, and nothing of it
	// was applied. *TxAbortedError tells why.
	ErrTxAborted = errors.New("colmena: transaction aborted")
)

// TxAbortReason says why a transaction was aborted.
type TxAbortReason string

// Reasons of aborted transactions.
const (
	TxAbortLeader    TxAbortReason = "the leader changed"
	TxAbortIdle      TxAbortReason = "it was idle for longer than Config.TxIdleTimeout"
	TxAbortTime      TxAbortReason = "it was open for longer than Config.TxTimeout"
	TxAbortWait      TxAbortReason = "it waited for the writer for too long"
	TxAbortStatement TxAbortReason = "a statement rolled it back"
	TxAbortRepeat    TxAbortReason = "it could not be repeated as it had run"
)

// TxAbortedError ends a transaction, or, with TxAbortWait, a write that waited in vain for
// a transaction to end. Nothing was applied. errors.Is finds ErrTxAborted in it.
type TxAbortedError struct {
	Reason TxAbortReason
	Holder string // for TxAbortWait: who held the writer, for how long, and what it did last
	Err    error  // what else is known, may be nil
}

func (e *TxAbortedError) Error() string {
	s := "colmena: transaction aborted: " + string(e.Reason)
	if e.Reason == TxAbortWait {
		s = "colmena: not applied: " + string(e.Reason)
	}
	if e.Holder != "" {
		s += "; it is held by " + e.Holder
	}
	if e.Err != nil {
		s += ": " + strings.TrimPrefix(e.Err.Error(), "colmena: ")
	}
	return s
}

// Is reports whether target is ErrTxAborted, or ErrNotApplied.
func (e *TxAbortedError) Is(target error) bool {
	return target == ErrTxAborted || target == ErrNotApplied
}

// Unwrap returns Err.
func (e *TxAbortedError) Unwrap() error { return e.Err }

// Errors of a read.
var (
	// ErrStale: this node cannot prove that its state is as fresh as was asked for.
	ErrStale = errors.New("colmena: state is too old")
	// ErrNotCaughtUp: this node has not yet applied a write that it acknowledged
	// itself, or the index that was asked for, and a bounded wait did not help.
	ErrNotCaughtUp = errors.New("colmena: not caught up")
)

// Errors of AddVoter, AddNonvoter, DemoteVoter, RemoveNode and TransferLeadership. They
// are the same on every node, and say that no member was changed.
var (
	// ErrUnknownMember: the cluster has no node of that ID.
	ErrUnknownMember = errors.New("colmena: no such member")
	// ErrLastVoter: the node is the only one that votes, and can be neither removed
	// nor demoted.
	ErrLastVoter = errors.New("colmena: the last voter can be neither removed nor demoted")
	// ErrNoQuorum: too few of the voters that would remain are within reach to form a
	// majority. Bring them back first, or remove those that are down.
	ErrNoQuorum = errors.New("colmena: too few voters would remain within reach to form a majority")
	// ErrNoSuccessor: no other voter is there to take leadership over.
	ErrNoSuccessor = errors.New("colmena: no other voter is within reach to take over leadership")
)

// Errors of Forward.
var (
	// ErrNoHandler: the leader has no handler of that name. The request did nothing.
	ErrNoHandler = errors.New("colmena: no handler registered")
)

// SQLError is an error of SQLite, the same on the leader and on every other node.
// The statement was not applied.
type SQLError struct {
	Primary      int    // primary result code, 19 for a constraint
	ExtendedCode int    // extended result code, 2067 for UNIQUE
	Msg          string // SQLite's message
	SQL          string // the statement, possibly shortened
	Offset       int    // byte of SQL the error points at, -1 when unknown
}

// Error has the form of modernc.org/sqlite's own errors.
func (e *SQLError) Error() string {
	return (&sqlite.Error{Code: e.Primary, Extended: e.ExtendedCode, Msg: e.Msg}).Error()
}

// Code returns the extended result code.
func (e *SQLError) Code() int { return e.ExtendedCode }

func hasCode(err error, codes ...int) bool {
	var e *SQLError
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.ExtendedCode == c {
			return true
		}
	}
	return false
}

// sqlCode is the primary result code of the error of SQLite in err.
func sqlCode(err error) (primary int, ok bool) {
	var e *SQLError
	if ok = errors.As(err, &e); ok {
		primary = e.Primary
	}
	return primary, ok
}

// IsUnique reports whether err is a violated UNIQUE or PRIMARY KEY constraint.
func IsUnique(err error) bool {
	return hasCode(err, sqlite.ConstraintUnique, sqlite.ConstraintPrimaryKey, sqlite.ConstraintRowID)
}

// IsForeignKey reports whether err is a violated FOREIGN KEY constraint.
func IsForeignKey(err error) bool { return hasCode(err, sqlite.ConstraintForeignKey) }

// IsNotNull reports whether err is a violated NOT NULL constraint.
func IsNotNull(err error) bool { return hasCode(err, sqlite.ConstraintNotNull) }

// IsCheck reports whether err is a violated CHECK constraint.
func IsCheck(err error) bool { return hasCode(err, sqlite.ConstraintCheck) }

// NonDeterministicError refuses a write whose own text calls a function that would
// give another value on another node. Pass the value as a parameter, or set Pin, by
// Config.NonDeterministic or WithNonDeterministic. Nothing was applied.
type NonDeterministicError struct {
	Function string // as SQLite names it
	Offset   int    // byte of the statement's text
	SQL      string
}

func (e *NonDeterministicError) Error() string {
	return fmt.Sprintf("colmena: the statement calls %s at byte %d, whose value would differ between nodes: pass the value as a parameter, or allow it with NonDeterministic: Pin", e.Function, e.Offset)
}

// RefusedError refuses what a replicated database cannot give, or what would set one
// replica apart from the others. Nothing was applied.
type RefusedError struct {
	What   string // what was refused
	Advice string // what to do instead
}

func (e *RefusedError) Error() string {
	return "colmena: " + e.What + " is refused: " + e.Advice
}

// LimitError says which bound was exceeded. Nothing was applied.
type LimitError struct{ Msg string }

func (e *LimitError) Error() string { return "colmena: " + e.Msg }

// SafeToRetry reports whether a write that returned err was certainly not applied, so
// that doing it again cannot do it twice. It is false for ErrOutcomeUnknown, for nil,
// and for errors that are not colmena's. A bare context error, which database/sql
// returns before a connection was used, is safe; colmena's own wrap the context's
// error together with what is known of the outcome. It is false too for a statement string
// with a BEGIN or COMMIT of its own of which a part was committed before another failed.
// Of a string that fails in a transaction, what stands before the failure stays in the
// transaction, as in SQLite: roll back to a savepoint, or altogether, to do it again.
//
// One bare context error is not safe, and nothing tells it from the others: that of reading
// the rows of INSERT ... RETURNING, when the context ends after the query has returned.
func SafeToRetry(err error) bool {
	switch {
	case err == nil, errors.Is(err, ErrOutcomeUnknown), errors.Is(err, errPartly):
		return false
	case errors.Is(err, ErrNotApplied), errors.Is(err, ErrNoLeader), errors.Is(err, ErrNoHandler), errors.Is(err, driver.ErrBadConn):
		return true
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return true
	}
	var se *SQLError
	var nd *NonDeterministicError
	var re *RefusedError
	var le *LimitError
	var fe *FunctionNotReadyError
	return errors.As(err, &fe) || errors.As(err, &se) || errors.As(err, &nd) || errors.As(err, &re) || errors.As(err, &le)
}

// outcomeError is an error of a write that says what is known of it.
type outcomeError struct {
	msg  string
	is   []error
	code wire.ErrorCode // that it travelled with, 0 if it was made here
}

func (e *outcomeError) Error() string   { return e.msg }
func (e *outcomeError) Unwrap() []error { return e.is }

func notApplied(cause error, format string, args ...any) error {
	return &outcomeError{"colmena: " + fmt.Sprintf(format, args...) + "; the write was not applied", []error{ErrNotApplied, cause}, 0}
}

// errPartly is in the error of a statement string with a BEGIN or COMMIT of its own, which
// is not atomic, when a part of it had been committed before another failed.
var errPartly = errors.New("colmena: applied in part")

func partlyApplied(err error) error {
	return &outcomeError{err.Error() + "; what stands before that in the statement string was committed", []error{errPartly, err}, 0}
}

// outcomeUnknown keeps of its cause only what promises nothing: that the question what
// became of a write was not answered, for want of a leader say, must not look like the
// word that the write was not applied.
func outcomeUnknown(cause error, format string, args ...any) error {
	is := []error{ErrOutcomeUnknown}
	for _, e := range []error{context.Canceled, context.DeadlineExceeded, ErrClosed, ErrReplicaHalted} {
		if errors.Is(cause, e) {
			is = append(is, e)
		}
	}
	return &outcomeError{"colmena: " + fmt.Sprintf(format, args...) + delivery.UnknownEnding, is, 0}
}

// userError makes the user's error of one that travelled or came from the engine. One that
// is the user's already, and says that the outcome is unknown, stays that: what lies in it
// may say something else of another attempt.
func userError(err error) error {
	if errors.Is(err, ErrOutcomeUnknown) {
		return err
	}
	var w *wire.Error
	if errors.As(err, &w) {
		return errorFromWire(w)
	}
	return errorFromWire(errorToWire(err))
}
