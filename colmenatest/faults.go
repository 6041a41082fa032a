package colmenatest

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/mentasystems/colmena"
)

// faults are errors that wait for a call to fail.
type faults struct {
	mu   sync.Mutex
	next []error // guarded by mu
}

func (f *faults) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = append(f.next, err)
}

// take returns the error of the present call, nil if none waits.
func (f *faults) take() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.next) == 0 {
		return nil
	}
	err := f.next[0]
	f.next = f.next[1:]
	return err
}

// left returns the errors that have met no call.
func (f *faults) left() []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.next
}

// connector opens connections to a database of a node, whichever process of it runs now.
type connector struct {
	node   func() *colmena.Node // nil while it is dead
	faults *faults
	name   string
	opts   []colmena.DBOption

	mu    sync.Mutex
	of    *colmena.Node    // whose connector inner is; guarded by mu
	inner driver.Connector // guarded by mu
}

var _ io.Closer = (*connector)(nil)

// Connect implements driver.Connector.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.current()
	if err != nil {
		return nil, err
	}
	opened, err := inner.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := opened.(fullConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("colmenatest: a connection is a %T, which lacks an interface of database/sql", opened), opened.Close())
	}
	return &conn{fullConn: full, faults: c.faults}, nil
}

func (c *connector) current() (driver.Connector, error) {
	node := c.node()
	if node == nil {
		return nil, colmena.ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of != node {
		inner, err := node.Connector(c.name, c.opts...)
		if err != nil {
			return nil, err
		}
		c.of, c.inner = node, inner
	}
	return c.inner, nil
}

// Driver implements driver.Connector.
func (c *connector) Driver() driver.Driver {
	if inner, err := c.current(); err == nil {
		return inner.Driver()
	}
	return noDriver{}
}

// Close is called by the pool's Close.
func (c *connector) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if closer, ok := c.inner.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// noDriver stands for the driver of a node that does not run.
type noDriver struct{}

func (noDriver) Open(string) (driver.Conn, error) { return nil, colmena.ErrClosed }

// fullConn is everything that database/sql asks a connection for.
type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// fullStmt is everything that database/sql asks of colmena's statements.
type fullStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// conn is a connection of the node's whose calls may be told to fail.
type conn struct {
	fullConn
	faults *faults
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.faults.take(); err != nil {
		return nil, err
	}
	return c.fullConn.ExecContext(ctx, query, args)
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.faults.take(); err != nil {
		return nil, err
	}
	return c.fullConn.QueryContext(ctx, query, args)
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.faults.take(); err != nil {
		return nil, err
	}
	return c.fullConn.BeginTx(ctx, opts)
}

// Begin implements driver.Conn.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// Prepare implements driver.Conn.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	prepared, err := c.fullConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	full, ok := prepared.(fullStmt)
	if !ok {
		return nil, errors.Join(fmt.Errorf("colmenatest: a statement is a %T, which lacks an interface of database/sql", prepared), prepared.Close())
	}
	return &stmt{fullStmt: full, faults: c.faults}, nil
}

// stmt is a prepared statement of the node's whose calls may be told to fail.
type stmt struct {
	fullStmt
	faults *faults
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.faults.take(); err != nil {
		return nil, err
	}
	return s.fullStmt.ExecContext(ctx, args)
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.faults.take(); err != nil {
		return nil, err
	}
	return s.fullStmt.QueryContext(ctx, args)
}
