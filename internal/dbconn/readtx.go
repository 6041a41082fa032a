package dbconn

import (
	"context"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// readTx is a read-only transaction.
type readTx struct {
	c    *conn
	ctx  context.Context // of its begin
	snap Snapshot
}

func (c *conn) beginRead(ctx context.Context) (transaction, error) {
	snap, err := c.host.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return &readTx{c: c, ctx: ctx, snap: snap}, nil
}

// run runs a statement string on the snapshot, whose connection cannot write.
func (t *readTx) run(ctx context.Context, kw sqltext.Keyword, query string, args wire.Args, _ bool) (values.RowSource, error) {
	class, err := t.c.class(ctx, kw, query, true) // the snapshot was taken; nobody need be asked again
	switch {
	case err != nil && t.c.errs.isSQL(err):
		// The snapshot may have what the newest state has not.
	case err != nil:
		return nil, err
	case class == engine.ClassEmpty:
		return values.None, nil
	case class == engine.ClassWrite:
		return nil, t.c.errs.writeInReadTx()
	}
	src, err := t.snap.Query(ctx, query, args, t.c.pre)
	if err != nil {
		return nil, t.c.errs.inReadTx(err)
	}
	return &txRows{src, t.c.errs}, nil
}

// txRows are rows of a read-only transaction.
type txRows struct {
	values.RowSource
	errs *Errors
}

func (r *txRows) Next() (bool, error) {
	ok, err := r.RowSource.Next()
	if err != nil {
		err = r.errs.inReadTx(err)
	}
	return ok, err
}

// inReadTx gives a write that only the snapshot's connection stopped the error that
// other writes get.
func (e *Errors) inReadTx(err error) error {
	if code, ok := e.Code(err); ok && code == sqlite.ReadOnly {
		return e.writeInReadTx()
	}
	return err
}

func (e *Errors) writeInReadTx() error {
	return e.Refused("a write in a read-only transaction", "write outside it")
}

// Commit implements driver.Tx.
func (t *readTx) Commit() error { return t.c.commitTx(t.ctx) }

// Rollback implements driver.Tx.
func (t *readTx) Rollback() error { return t.c.rollbackTx() }

func (t *readTx) commit(context.Context) error { return t.rollback() }

func (t *readTx) rollback() error {
	t.c.tx = nil
	err := t.snap.Close()
	if t.c.host.Closed() {
		return t.c.errs.Closed
	}
	return err
}

func (t *readTx) drop() { _ = t.snap.Close() }
