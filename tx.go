package colmena

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// rowSource is a result that is read row by row.
type rowSource = values.RowSource

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
		return nil, &RefusedError{What: "a transaction inside a transaction", Advice: "end the one that this connection is in first"}
	}
	readOnly := opts.ReadOnly || c.o.readOnly
	switch level := sql.IsolationLevel(opts.Isolation); {
	case level == sql.LevelDefault, level == sql.LevelSerializable:
	case level == sql.LevelSnapshot && readOnly:
	default:
		return nil, &RefusedError{What: "the isolation level " + level.String(), Advice: "transactions are serializable: use LevelDefault or LevelSerializable, or LevelSnapshot with ReadOnly"}
	}
	if !readOnly {
		return nil, &RefusedError{What: "an interactive transaction", Advice: "this version has none yet: use Node.ExecMulti or a multi-statement string, which are atomic"}
	}
	snap, err := c.n.snapshot(ctx, c.db, c.n.readMode(ctx, &c.o))
	if err != nil {
		return nil, err
	}
	c.tx = &readTx{c: c, snap: snap}
	return c.tx, nil
}

// query runs a statement string on the snapshot, whose connection cannot write.
func (t *readTx) query(ctx context.Context, query string, args wire.Args) (rowSource, error) {
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
	err := t.c.endTx()
	if t.c.n.isClosed() {
		return ErrClosed
	}
	return err
}

// endTx lets go of the transaction that the connection is in, if it is in one.
func (c *conn) endTx() error {
	t := c.tx
	if t == nil {
		return nil
	}
	c.tx = nil
	return t.snap.Close()
}
