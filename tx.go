package colmena

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
)

// TxMode says how a read-write transaction runs.
type TxMode int

const (
	// TxInteractive, the default: statements run on the leader as they are sent, with
	// their results and errors at once, and see one another's writes.
	TxInteractive TxMode = iota + 1
	// TxBuffered collects statements, which must begin with a writing keyword, and sends them at
	// Commit as one atomic write: at most 63 MiB. Nothing is held meanwhile. Queries, savepoints
	// and WITH are refused, errors come at Commit, and the counts of a result are known after it.
	TxBuffered
)

// WithTxMode sets the mode of transactions that are begun under the context. One that does
// not exist gives a *RefusedError.
func WithTxMode(ctx context.Context, mode TxMode) context.Context {
	return context.WithValue(ctx, txModeKey{}, mode)
}

type txModeKey struct{}

// Buffered makes the handle's read-write transactions those of TxBuffered, unless their
// context says otherwise.
func Buffered() DBOption { return dbOption(func(o *dbOptions) { o.buffered = true }) }

// txStatementError makes the user's error of what a transaction met.
func (n *Node) txStatementError(err error) error {
	if err != nil && n.isClosed() {
		return errors.Join(ErrClosed, userError(err))
	}
	if errors.Is(err, engine.ErrCanceled) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return notApplied(err, "statement: %v", err)
	}
	return userError(err)
}

// InTx runs f in a transaction, which it commits if f returns nil and rolls back otherwise,
// also when f panics. When the transaction was aborted through no fault of f's, because
// the leader changed say, it is run again, until ctx ends or it has been tried 16 times: f
// must have no effects beside those of its tx. An error of f's that does not say so, a SQL
// error or that of a statement which took too long among them, is returned as it is; so is
// ErrOutcomeUnknown.
//
// Without an end of ctx that may take 16 times Config.TxWaitTimeout, or LeaderWait. In f only tx
// writes: a write through db would wait for f's own transaction, at every try.
func InTx(ctx context.Context, db *sql.DB, opts *sql.TxOptions, f func(*sql.Tx) error) error {
	for try := 1; ; try++ {
		err := inTx(ctx, db, opts, f)
		if err == nil || try == maxTxTries || ctx.Err() != nil || !mayRunAgain(err) {
			return err
		}
		timer := time.NewTimer(time.Duration(try) * txPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

const (
	maxTxTries = 16
	txPause    = 5 * time.Millisecond // times the number of tries
)

// mayRunAgain reports whether an error came of the state of the cluster and not of what the
// transaction did.
func mayRunAgain(err error) bool {
	var aborted *TxAbortedError
	switch {
	case errors.Is(err, ErrOutcomeUnknown), errors.Is(err, errPartly):
		return false
	case errors.As(err, &aborted):
		return aborted.Reason == TxAbortLeader || aborted.Reason == TxAbortWait || aborted.Reason == TxAbortRepeat
	case !errors.Is(err, ErrNoLeader) && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)):
		return false // a statement's own time was up, or Config.MaxStatementTime: it would be again
	}
	return (errors.Is(err, ErrNotApplied) || errors.Is(err, ErrNoLeader)) && !errors.Is(err, ErrClosed)
}

func inTx(ctx context.Context, db *sql.DB, opts *sql.TxOptions, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done { // f failed or panicked
			_ = tx.Rollback()
		}
	}()
	if err := f(tx); err != nil {
		return err
	}
	done = true
	return tx.Commit()
}
