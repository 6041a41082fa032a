package dbconn

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// transaction is what a connection is in. It has ended when the connection is in it no more.
type transaction interface {
	driver.Tx
	run(ctx context.Context, kw sqltext.Keyword, query string, args wire.Args, wantRows bool) (values.RowSource, error)
	// commit is Commit under a context, and may leave the transaction open, as SQLite's
	// COMMIT may.
	commit(ctx context.Context) error
	rollback() error
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
		return nil, c.errs.control("cannot start a transaction within a transaction")
	}
	readOnly := opts.ReadOnly || c.cfg.ReadOnly
	// Weaker levels than what is given hold as well.
	if level := sql.IsolationLevel(opts.Isolation); level < sql.LevelDefault || level > sql.LevelSerializable {
		return nil, c.errs.Refused("the isolation level "+level.String(), "transactions are serializable: use LevelDefault or LevelSerializable")
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
	buffers, err := c.host.Buffers(ctx)
	switch {
	case err != nil:
	case readOnly || c.pragmas.QueryOnly:
		c.tx, err = c.beginRead(ctx)
	case buffers:
		c.tx = &bufferedTx{c: c, ctx: ctx, pin: c.host.Pins(ctx)}
	default:
		c.tx, err = c.beginWrite(ctx)
	}
	if err != nil || !c.pragmas.Deferred {
		return err
	}
	if _, ok := c.tx.(*readTx); !ok {
		_, err = c.tx.run(ctx, sqltext.Write, "PRAGMA defer_foreign_keys=on", nil, false)
	}
	if t, ok := c.tx.(*bufferedTx); ok {
		t.own = len(t.stmts)
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
	ctx   context.Context // of its begin, which database/sql has in use until the end
	tx    Session
	ended error // it has ended by itself, and its client knows
	// opened lists the savepoints, if the transaction was begun by SAVEPOINT: releasing the
	// first one commits.
	opened []string
	saved  bool
}

func (c *conn) beginWrite(ctx context.Context) (transaction, error) {
	tx, err := c.host.Begin(ctx, engine.SessionOptions{
		Modes: engine.Modes{ForeignKeys: c.pragmas.ForeignKeys, RecursiveTriggers: c.pragmas.RecursiveTriggers}, Pre: c.pre})
	if err != nil {
		return nil, err
	}
	return &writeTx{c: c, ctx: ctx, tx: tx}, nil
}

func (t *writeTx) run(ctx context.Context, kw sqltext.Keyword, query string, args wire.Args, wantRows bool) (values.RowSource, error) {
	if t.ended != nil {
		return nil, t.ended
	}
	if kw == sqltext.None {
		return values.None, nil
	}
	st := engine.Statement{Statement: wire.Statement{SQL: query, Args: args}, Pin: t.c.host.Pins(ctx), WantRows: wantRows}
	if err := st.Check(); err != nil {
		return nil, t.c.errs.TooLarge(err)
	}
	res := t.tx.Run(ctx, st)
	if res.Err == nil || !res.Over { // without an answer there is none
		t.c.pre = res.State
	}
	if res.Err != nil {
		err := t.c.errs.Statement(res.Err)
		aborted := errors.Is(err, t.c.errs.Aborted) // not over if it waited in vain for another to end, but its client is told that it is
		if res.Over || aborted {
			t.tx.Abort()
			if t.ended = err; !aborted {
				t.ended = t.c.errs.RolledBack(err)
			}
		}
		return nil, err
	}
	if res.Rows == nil {
		return values.None, nil
	}
	return values.Returned(res.Rows), nil
}

// commitTx commits for a sql.Tx whatever transaction the connection is in: a statement may have
// ended the one that it began, and have begun another. SQLite's drivers send COMMIT.
func (c *conn) commitTx(ctx context.Context) error {
	if c.tx == nil {
		return c.noTx("commit")
	}
	err := c.tx.commit(ctx)
	c.endTx() // if a deferred constraint failed: SQLite would go on, and database/sql does not
	return err
}

// rollbackTx is commitTx for ROLLBACK.
func (c *conn) rollbackTx() error {
	if c.tx == nil {
		return c.noTx("rollback")
	}
	return c.tx.rollback()
}

func (c *conn) noTx(what string) error {
	if c.host.Closed() {
		return c.errs.Closed
	}
	return c.errs.control("cannot " + what + " - no transaction is active")
}

// Commit implements driver.Tx.
func (t *writeTx) Commit() error { return t.c.commitTx(t.ctx) }

// commit ends the transaction, unless a deferred constraint keeps it open.
func (t *writeTx) commit(ctx context.Context) error {
	if t.ended != nil {
		t.c.tx = nil
		return t.ended
	}
	over, err := t.c.host.Commit(ctx, t.tx)
	if over {
		t.c.tx = nil
	}
	if err == nil {
		t.c.commits++
	}
	return err
}

// Rollback implements driver.Tx.
func (t *writeTx) Rollback() error { return t.c.rollbackTx() }

// rollback's error says that what the transaction had read rested on writes that were lost.
func (t *writeTx) rollback() error {
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
	return t.c.errs.Statement(res.Err)
}

// rollbackPatience bounds how long Rollback waits for the leader's word. Without it the
// leader ends the transaction all the same.
const rollbackPatience = 5 * time.Second

func (t *writeTx) drop() { t.tx.Abort() }
