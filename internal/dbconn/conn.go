package dbconn

import (
	"context"
	"database/sql/driver"
	"errors"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/pragma"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// conn is a connection of a pool: the state that SQLite keeps per connection, and no
// SQLite connection of its own. database/sql uses it from one goroutine at a time.
type conn struct {
	*Connector
	closed  bool
	pragmas pragma.State
	pre     wire.PreState // of the next statement: what the last write left
	tx      transaction   // the transaction under way, nil outside
	seen    transaction   // ... when a statement was run last
	commits int           // writes and transactions that were committed
	args    values.Encoder
}

var (
	_ driver.ExecerContext      = (*conn)(nil)
	_ driver.QueryerContext     = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
	_ driver.SessionResetter    = (*conn)(nil)
	_ driver.Validator          = (*conn)(nil)
	_ driver.NamedValueChecker  = (*conn)(nil)
	_ driver.StmtExecContext    = (*stmt)(nil)
	_ driver.StmtQueryContext   = (*stmt)(nil)
)

// ready is asked before every statement. Nothing was sent yet, so a bare context error
// will do, and so will ErrBadConn.
func (c *conn) ready(ctx context.Context) error {
	if c.host.Closed() {
		return c.errs.Closed
	}
	if c.closed {
		return driver.ErrBadConn
	}
	return ctx.Err()
}

// Ping tells whether the node is open. It asks no other node.
func (c *conn) Ping(ctx context.Context) error { return c.ready(ctx) }

// ResetSession is called before the connection is used again. What SQLite keeps from
// one user of a pooled connection to the next, last_insert_rowid() and foreign_keys
// say, stays.
func (c *conn) ResetSession(context.Context) error {
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	return nil
}

// IsValid implements driver.Validator. It is called when the connection is given back to
// its pool: a transaction that was begun as text and not ended must not hold the writer
// for as long as nobody uses the connection.
func (c *conn) IsValid() bool {
	if c.tx != nil {
		c.endTx()
		c.cfg.Dropped()
	}
	return !c.closed && !c.host.Closed()
}

// Close implements driver.Conn.
func (c *conn) Close() error {
	c.endTx()
	c.closed = true
	return nil
}

// ExecContext implements driver.ExecerContext.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	src, err := c.run(ctx, query, args, false)
	if err != nil {
		return nil, err
	}
	if err := values.Drain(src); err != nil {
		return nil, err
	}
	if t, ok := c.tx.(*bufferedTx); ok {
		return t.result(), nil
	}
	s := c.pre
	if sqltext.LastKind(query) == sqltext.Schema {
		s.Changes = 0 // SQLite's own counter is stale
	}
	return values.Result(s), nil
}

// QueryContext implements driver.QueryerContext.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	src, err := c.run(ctx, query, args, true)
	if err != nil {
		return nil, err
	}
	return values.NewRows(ctx, &c.cfg.Values, src)
}

// CheckNamedValue implements driver.NamedValueChecker.
func (c *conn) CheckNamedValue(v *driver.NamedValue) error { return values.Check(v) }

// run runs a statement string where it belongs.
func (c *conn) run(ctx context.Context, query string, args []driver.NamedValue, wantRows bool) (values.RowSource, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if _, known := c.classes.Get(query); !known && sqltext.HasControl(query) {
		return c.runScript(ctx, query, args, wantRows)
	} else if !known && !wantRows {
		if body, tail := pragma.CutTail(query); tail != "" {
			return c.runAndSet(ctx, body, tail, args)
		}
	}
	return c.runPlain(ctx, query, args, wantRows)
}

// runAndSet runs a string and then, if it has succeeded, PRAGMAs that cannot fail.
func (c *conn) runAndSet(ctx context.Context, query, pragmas string, args []driver.NamedValue) (values.RowSource, error) {
	src, err := c.runPlain(ctx, query, args, false)
	if err == nil {
		err = values.Drain(src)
	}
	if err == nil {
		_, _, _, err = c.pragmas.Run(pragmas, c.tx != nil)
	}
	return values.None, err
}

// runPlain runs a string in which no transaction begins or ends.
func (c *conn) runPlain(ctx context.Context, query string, args []driver.NamedValue, wantRows bool) (values.RowSource, error) {
	c.follow()
	kw := sqltext.Other
	class, known := c.classes.Get(query)
	if !known {
		var answer *pragma.Answer
		var err error
		if query, kw, answer, err = c.pragmas.Run(query, c.tx != nil); err != nil {
			return nil, c.errs.refusedPragma(err)
		}
		if answer != nil {
			return values.Fixed(answer.Columns, answer.Rows), nil
		}
	}
	a, err := c.args.Encode(c.cfg.Values.Times, args)
	if err != nil {
		return nil, err
	}
	if c.tx != nil {
		if _, reading := c.tx.(*readTx); c.pragmas.QueryOnly && !reading {
			if err := c.onlyReads(ctx, kw, query); err != nil {
				return nil, err
			}
		}
		return c.tx.run(ctx, kw, query, a, wantRows)
	}
	if !known {
		if class, err = c.class(ctx, kw, query, false); err != nil {
			return nil, err
		}
	}
	if class == engine.ClassEmpty {
		return values.None, nil
	}
	c.pragmas.Deferred = false
	if class == engine.ClassWrite {
		return c.write(ctx, query, a, wantRows)
	}
	return c.host.Read(ctx, query, a, c.pre)
}

// class tells what a statement string does. A string that begins with a writing
// statement is judged by the leader, which has the schema it will run on; what begins
// otherwise is prepared here once. A string keeps its class whatever the schema becomes.
func (c *conn) class(ctx context.Context, kw sqltext.Keyword, query string, local bool) (engine.Class, error) {
	switch kw {
	case sqltext.None:
		return engine.ClassEmpty, nil
	case sqltext.Write:
		return engine.ClassWrite, nil
	}
	if class, ok := c.classes.Get(query); ok {
		return class, nil
	}
	class, err := c.host.Classify(ctx, query, local)
	if err == nil {
		c.classes.Put(query, class)
	}
	return class, err
}

// onlyReads refuses, in a transaction that may write, what does under PRAGMA query_only, and
// what cannot be judged because the transaction itself has made the schema for it.
func (c *conn) onlyReads(ctx context.Context, kw sqltext.Keyword, query string) error {
	class, err := c.class(ctx, kw, query, true)
	switch {
	case err != nil && c.errs.isSQL(err):
		return c.errs.queryOnly("a statement that does not compile outside its transaction (" + err.Error() + ")")
	case err != nil:
		return err
	case class == engine.ClassWrite:
		return c.errs.queryOnly("a write")
	}
	return nil
}

// write sends a statement string to the leader and remembers what it did.
func (c *conn) write(ctx context.Context, query string, args wire.Args, rows bool) (values.RowSource, error) {
	switch {
	case c.cfg.ReadOnly:
		return nil, c.errs.Refused("a write", "the handle was opened with ReadOnly(); open another one without it")
	case c.pragmas.QueryOnly:
		return nil, c.errs.queryOnly("a write")
	}
	res, err := c.host.Write(ctx, wire.Unit{
		ForeignKeys: c.pragmas.ForeignKeys, RecursiveTriggers: c.pragmas.RecursiveTriggers, Pin: c.host.Pins(ctx), WantRows: rows, Pre: c.pre, HasPre: c.pre != (wire.PreState{}),
		Statements: []wire.Statement{{SQL: query, Args: args}},
	})
	if err == nil || c.errs.isSQL(err) {
		c.pre.LastInsertID = res.Result.LastInsertID
		if err != nil || sqltext.LastKind(query) == sqltext.Rows {
			c.pre.Changes = res.Result.RowsAffected
		}
	}
	if err != nil {
		return nil, err
	}
	c.commits++
	switch r := res.Result.Rows; {
	case !rows || r == nil:
		return values.None, nil
	case r.Truncated:
		return nil, ErrRowsNotKept
	default:
		return values.Returned(r), nil
	}
}

// ErrRowsNotKept is not safe to retry: the write happened.
var ErrRowsNotKept = errors.New("colmena: the write was applied, but the rows it returned were more than the cluster keeps for an answer that has to be sent again: read them with a query")

// Prepare implements driver.Conn.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext reports what is wrong with a statement that begins as a read; the
// leader, whose schema counts, judges the others when they run.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if kw, _ := sqltext.FirstKeyword(query); kw == sqltext.Other && c.tx == nil && !sqltext.HasControl(query) {
		if _, err := c.class(ctx, kw, query, false); err != nil {
			return nil, err
		}
	}
	return &stmt{c: c, query: query}, nil
}

// stmt is a statement's text: prepared statements are kept where they run.
type stmt struct {
	c     *conn
	query string
}

// Close implements driver.Stmt.
func (s *stmt) Close() error { return nil }

// NumInput implements driver.Stmt: database/sql does not check the number of arguments.
func (s *stmt) NumInput() int { return -1 }

// ExecContext implements driver.StmtExecContext.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.c.ExecContext(ctx, s.query, args)
}

// QueryContext implements driver.StmtQueryContext.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.QueryContext(ctx, s.query, args)
}

// Exec implements driver.Stmt.
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), values.Ordinals(args))
}

// Query implements driver.Stmt.
func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), values.Ordinals(args))
}
