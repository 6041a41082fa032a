package colmena

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/interactive"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// rowSource is a result that is read row by row.
type rowSource = values.RowSource

// TxMode says how a read-write transaction runs.
type TxMode int

const (
	// TxInteractive, the default: statements run on the leader as they are sent, with
	// their results and errors at once, and see one another's writes.
	TxInteractive TxMode = iota + 1
	// TxBuffered collects statements, which must be writes, and sends them at Commit as one
	// atomic write. Nothing is held meanwhile. Queries are refused, and the counts of a
	// result are known after Commit.
	TxBuffered
)

// WithTxMode sets the mode of transactions that are begun under the context.
func WithTxMode(ctx context.Context, mode TxMode) context.Context {
	return context.WithValue(ctx, txModeKey{}, mode)
}

type txModeKey struct{}

// Buffered makes the handle's read-write transactions those of TxBuffered, unless their
// context says otherwise.
func Buffered() DBOption { return dbOption(func(o *dbOptions) { o.buffered = true }) }

// transaction is what a connection is in. It has ended when the connection is in it no more.
type transaction interface {
	driver.Tx
	run(ctx context.Context, kw sqltext.Keyword, query string, args wire.Args, wantRows bool) (rowSource, error)
	// drop lets go of it without a word.
	drop()
}

// Begin implements driver.Conn.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx implements driver.ConnBeginTx.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if c.tx != nil {
		return nil, controlError("cannot start a transaction within a transaction")
	}
	readOnly := opts.ReadOnly || c.o.readOnly
	switch level := sql.IsolationLevel(opts.Isolation); {
	case level == sql.LevelDefault, level == sql.LevelSerializable:
	case level == sql.LevelSnapshot && readOnly:
	default:
		return nil, &RefusedError{What: "the isolation level " + level.String(), Advice: "transactions are serializable: use LevelDefault or LevelSerializable, or LevelSnapshot with ReadOnly"}
	}
	if err := c.begin(ctx, readOnly); err != nil {
		return nil, err
	}
	return c.tx, nil
}

// begin puts the connection into a transaction.
func (c *conn) begin(ctx context.Context, readOnly bool) (err error) {
	c.follow()
	defer func() { c.seen = c.tx }()
	mode, _ := ctx.Value(txModeKey{}).(TxMode)
	switch {
	case readOnly || c.pragmas.QueryOnly:
		c.tx, err = c.beginRead(ctx)
	case mode == TxBuffered || mode == 0 && c.o.buffered:
		c.tx = &bufferedTx{c: c, pin: c.n.pins(ctx)}
	default:
		c.tx, err = c.beginWrite(ctx)
	}
	if err != nil || !c.pragmas.Deferred {
		return err
	}
	if t, ok := c.tx.(*writeTx); ok {
		_, err = t.run(ctx, sqltext.Write, "PRAGMA defer_foreign_keys=on", nil, false)
	}
	if err != nil {
		c.endTx()
	}
	return err
}

// follow notices that the transaction has ended in which the connection was.
func (c *conn) follow() {
	if c.seen != nil && c.seen != c.tx {
		c.pragmas.Deferred = false
	}
	c.seen = c.tx
}

// endTx lets go of the transaction that the connection is in, if it is in one.
func (c *conn) endTx() {
	if t := c.tx; t != nil {
		c.tx = nil
		t.drop()
	}
}

// writeTx is an interactive transaction.
type writeTx struct {
	c     *conn
	tx    interactive.Tx
	ended error // it has ended by itself, and its client knows
	// opened lists the savepoints, if the transaction was begun by SAVEPOINT: releasing the
	// first one commits.
	opened []string
	saved  bool
}

func (c *conn) beginWrite(ctx context.Context) (transaction, error) {
	tx, err := c.n.beginInteractive(ctx, c.db, engine.SessionOptions{
		Modes: engine.Modes{ForeignKeys: c.pragmas.ForeignKeys, RecursiveTriggers: c.pragmas.RecursiveTriggers}, Pre: c.pre})
	if err != nil {
		return nil, err
	}
	return &writeTx{c: c, tx: tx}, nil
}

func (t *writeTx) run(ctx context.Context, kw sqltext.Keyword, query string, args wire.Args, wantRows bool) (rowSource, error) {
	if t.ended != nil {
		return nil, t.ended
	}
	if kw == sqltext.None {
		return values.None, nil
	}
	st := engine.Statement{Statement: wire.Statement{SQL: query, Args: args}, Pin: t.c.n.pins(ctx), WantRows: wantRows}
	if err := st.Check(); err != nil {
		return nil, tooLarge(err)
	}
	res := t.tx.Run(ctx, st)
	if res.Err == nil || !res.Over { // without an answer there is none
		t.c.pre = res.State
	}
	if res.Err != nil {
		err := t.c.n.txStatementError(res.Err)
		if res.Over {
			t.tx.Abort()
			if t.ended = err; !errors.Is(err, ErrTxAborted) {
				t.ended = &TxAbortedError{Reason: TxAbortStatement, Err: err}
			}
		}
		return nil, err
	}
	if res.Rows == nil {
		return values.None, nil
	}
	return values.Returned(res.Rows), nil
}

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

// Commit implements driver.Tx.
func (t *writeTx) Commit() error {
	if t.c.tx != t {
		return controlError("cannot commit - no transaction is active")
	}
	err := t.commit()
	if t.c.tx == t { // a deferred constraint failed: SQLite would go on, and database/sql does not
		t.c.endTx()
	}
	return err
}

// commit ends the transaction, unless a deferred constraint keeps it open.
func (t *writeTx) commit() error {
	if t.ended != nil {
		t.c.tx = nil
		return t.ended
	}
	ctx := context.Background()
	if bound := t.c.n.resultBound(ctx); bound > 0 {
		short, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		ctx = short
	}
	over, err := t.c.n.commitInteractive(ctx, t.c.db, t.tx)
	if over {
		t.c.tx = nil
	}
	return err
}

// Rollback implements driver.Tx. Its error says that what the transaction had read rested
// on writes that were lost.
func (t *writeTx) Rollback() error {
	if t.c.tx != t {
		return controlError("cannot rollback - no transaction is active")
	}
	t.c.tx = nil
	if t.ended != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), rollbackPatience)
	defer cancel()
	res := t.tx.Rollback(ctx)
	if res.Err != nil && !res.Over {
		t.tx.Abort()
	}
	return t.c.n.txStatementError(res.Err)
}

// rollbackPatience bounds how long Rollback waits for the leader's word. Without it the
// leader ends the transaction all the same.
const rollbackPatience = 5 * time.Second

func (t *writeTx) drop() { t.tx.Abort() }

// control carries out a statement that begins or ends a transaction or savepoint.
func (c *conn) control(ctx context.Context, s sqltext.Control, query string) error {
	if c.tx == nil {
		return c.controlOutside(ctx, s, query)
	}
	switch s.Kind {
	case sqltext.Begin:
		return controlError("cannot start a transaction within a transaction")
	case sqltext.Commit:
		if t, ok := c.tx.(*writeTx); ok {
			return t.commit()
		}
		return c.tx.Commit()
	case sqltext.Rollback:
		return c.tx.Rollback()
	}
	t, ok := c.tx.(*writeTx)
	if !ok {
		_, err := c.tx.run(ctx, sqltext.Other, query, nil, false)
		return err
	}
	if s.Kind == sqltext.Release && t.saved && len(t.opened) > 0 && t.find(s.Name) == 0 {
		return t.commit()
	}
	if _, err := t.run(ctx, sqltext.Other, query, nil, false); err != nil {
		return err
	}
	t.note(s)
	return nil
}

func (c *conn) controlOutside(ctx context.Context, s sqltext.Control, query string) error {
	switch s.Kind {
	case sqltext.Commit:
		return controlError("cannot commit - no transaction is active")
	case sqltext.Rollback:
		return controlError("cannot rollback - no transaction is active")
	case sqltext.Release, sqltext.RollbackTo:
		return controlError("no such savepoint: " + s.Name)
	case sqltext.Begin:
		return c.begin(ctx, c.o.readOnly)
	}
	if err := c.begin(ctx, c.o.readOnly); err != nil {
		return err
	}
	t, ok := c.tx.(*writeTx)
	if !ok {
		c.endTx()
		return &RefusedError{What: "SAVEPOINT in a read-only or buffered transaction", Advice: "use an interactive one"}
	}
	if _, err := t.run(ctx, sqltext.Other, query, nil, false); err != nil {
		c.endTx()
		return err
	}
	t.saved = true
	t.note(s)
	return nil
}

// find is the place of the innermost savepoint of a name, -1 if there is none.
func (t *writeTx) find(name string) int {
	for i := len(t.opened) - 1; i >= 0; i-- {
		if strings.EqualFold(t.opened[i], name) {
			return i
		}
	}
	return -1
}

// note follows what a statement did to the savepoints.
func (t *writeTx) note(s sqltext.Control) {
	if !t.saved {
		return
	}
	i := t.find(s.Name)
	switch {
	case s.Kind == sqltext.Savepoint:
		t.opened = append(t.opened, s.Name)
	case i < 0:
	case s.Kind == sqltext.Release:
		t.opened = t.opened[:i]
	case s.Kind == sqltext.RollbackTo:
		t.opened = t.opened[:i+1]
	}
}

// controlError is what SQLite says of a misplaced BEGIN or COMMIT.
func controlError(msg string) error {
	return &SQLError{Primary: sqlite.Generic, ExtendedCode: sqlite.Generic, Msg: "SQL logic error: " + msg, Offset: -1}
}

// bufferedTx collects statements.
type bufferedTx struct {
	c     *conn
	pin   bool
	stmts []wire.Statement
	done  *[]wire.Outcome // of the statements, once they are committed
	size  int
}

func (t *bufferedTx) run(_ context.Context, kw sqltext.Keyword, query string, args wire.Args, wantRows bool) (rowSource, error) {
	switch {
	case kw == sqltext.None:
		return values.None, nil
	case wantRows:
		return nil, &RefusedError{What: "a query in a buffered transaction", Advice: "query outside it, or use an interactive transaction"}
	case kw != sqltext.Write:
		return nil, &RefusedError{What: "a statement that does not begin with a writing keyword, in a buffered transaction", Advice: "use an interactive transaction"}
	}
	st := wire.Statement{SQL: strings.Clone(query), Args: append(wire.Args(nil), args...)}
	if err := st.Check(); err != nil {
		return nil, tooLarge(err)
	}
	// As wire.Unit.Check, which looks at all of them, will at the end.
	one := wire.Unit{Statements: []wire.Statement{st}}
	n := t.size + one.Size() - new(wire.Unit).Size()
	if n > maxBufferedBytes || len(t.stmts) >= wire.MaxUnitStatements {
		return nil, &LimitError{Msg: fmt.Sprintf("too large: a buffered transaction of %d statements and %d bytes, the limits are %d and %d", len(t.stmts)+1, n, wire.MaxUnitStatements, maxBufferedBytes)}
	}
	t.size = n
	t.stmts = append(t.stmts, st)
	if t.done == nil {
		t.done = new([]wire.Outcome)
	}
	return values.None, nil
}

// maxBufferedBytes leaves room in an entry for what else is in it.
const maxBufferedBytes = wire.MaxEntryBytes - 1<<20

// result is that of the newest statement.
func (t *bufferedTx) result() driver.Result { return &bufferedResult{t.done, len(t.stmts) - 1} }

type bufferedResult struct {
	done *[]wire.Outcome
	i    int
}

var errNotCommitted = errors.New("colmena: the counts of a statement in a buffered transaction are not known before it is committed")

func (r *bufferedResult) outcome() (wire.Outcome, error) {
	if r.done == nil || r.i >= len(*r.done) {
		return wire.Outcome{}, errNotCommitted
	}
	return (*r.done)[r.i], nil
}

func (r *bufferedResult) LastInsertId() (int64, error) {
	o, err := r.outcome()
	return o.LastInsertID, err
}

func (r *bufferedResult) RowsAffected() (int64, error) {
	o, err := r.outcome()
	return o.RowsAffected, err
}

// Commit implements driver.Tx.
func (t *bufferedTx) Commit() error {
	if t.c.tx != t {
		return controlError("cannot commit - no transaction is active")
	}
	t.c.tx = nil
	if len(t.stmts) == 0 {
		return nil
	}
	c := t.c
	res, err := c.n.write(context.Background(), c.db, wire.Unit{
		ForeignKeys: c.pragmas.ForeignKeys, RecursiveTriggers: c.pragmas.RecursiveTriggers, Pin: t.pin, WantEach: true,
		Pre: c.pre, HasPre: c.pre != (wire.PreState{}), Statements: t.stmts})
	if err != nil {
		return err
	}
	*t.done = res.Result.Each
	c.pre = wire.PreState{LastInsertID: res.Result.LastInsertID, Changes: res.Result.RowsAffected}
	return nil
}

// Rollback implements driver.Tx.
func (t *bufferedTx) Rollback() error {
	if t.c.tx != t {
		return controlError("cannot rollback - no transaction is active")
	}
	t.c.tx = nil
	return nil
}

func (t *bufferedTx) drop() {}

// readSnapshot is a stable view of one database.
type readSnapshot interface {
	Query(ctx context.Context, sql string, args wire.Args, pre wire.PreState) (rowSource, error)
	Close() error
}

// readTx is a read-only transaction.
type readTx struct {
	c    *conn
	snap readSnapshot
}

var errWriteInReadTx = &RefusedError{What: "a write in a read-only transaction", Advice: "write outside it"}

func (c *conn) beginRead(ctx context.Context) (transaction, error) {
	snap, err := c.n.snapshot(ctx, c.db, c.n.readMode(ctx, &c.o))
	if err != nil {
		return nil, err
	}
	return &readTx{c: c, snap: snap}, nil
}

// run runs a statement string on the snapshot, whose connection cannot write.
func (t *readTx) run(ctx context.Context, kw sqltext.Keyword, query string, args wire.Args, _ bool) (rowSource, error) {
	class, err := t.c.class(ctx, readMode{level: None}, kw, query) // the snapshot was taken; nobody need be asked again
	switch {
	case err != nil && isSQLError(err):
		// The snapshot may have what the newest state has not.
	case err != nil:
		return nil, err
	case class == engine.ClassEmpty:
		return values.None, nil
	case class == engine.ClassWrite:
		return nil, errWriteInReadTx
	}
	src, err := t.snap.Query(ctx, query, args, t.c.pre)
	if err != nil {
		return nil, txError(err)
	}
	return &txRows{src}, nil
}

// txRows are rows of a read-only transaction.
type txRows struct{ rowSource }

func (r *txRows) Next() (bool, error) {
	ok, err := r.rowSource.Next()
	return ok, txError(err)
}

// txError gives a write that only the snapshot's connection stopped the error that
// other writes get.
func txError(err error) error {
	var e *SQLError
	if errors.As(err, &e) && e.Primary == sqlite.ReadOnly {
		return errWriteInReadTx
	}
	return err
}

// Commit implements driver.Tx.
func (t *readTx) Commit() error { return t.end() }

// Rollback implements driver.Tx.
func (t *readTx) Rollback() error { return t.end() }

func (t *readTx) end() error {
	if t.c.tx != t {
		return sql.ErrTxDone
	}
	t.c.tx = nil
	err := t.snap.Close()
	if t.c.n.isClosed() {
		return ErrClosed
	}
	return err
}

func (t *readTx) drop() { _ = t.snap.Close() }

// InTx runs f in a transaction, which it commits if f returns nil and rolls back otherwise,
// also when f panics. When the transaction was aborted through no fault of f's, because
// the leader changed say, it is run again, until ctx ends or it has been tried 16 times: f
// must have no effects beside those of its tx. An error of f's that does not say so, a SQL
// error among them, is returned as it is; so is ErrOutcomeUnknown.
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
	case errors.Is(err, ErrOutcomeUnknown):
		return false
	case errors.As(err, &aborted):
		return aborted.Reason == TxAbortLeader || aborted.Reason == TxAbortWait || aborted.Reason == TxAbortRepeat
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
