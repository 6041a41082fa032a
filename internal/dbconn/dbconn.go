// Package dbconn is the connection of a pool of database/sql: what SQLite keeps per
// connection, its transactions of every kind, and BEGIN, COMMIT and SAVEPOINT sent as text.
// What a connection cannot do by itself, reading and writing, a Host does for it.
package dbconn

import (
	"context"
	"database/sql/driver"
	"errors"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/pragma"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// Host runs statements on the database of one handle, as fresh and as the handle and the
// context ask. It is called from several goroutines at once. Its errors are the user's, but
// for those of a Session.
type Host interface {
	Closed() bool                              // the node is
	Pins(ctx context.Context) bool             // a write's own calls of the clock and of random() are pinned, not refused
	Buffers(ctx context.Context) (bool, error) // a transaction collects its statements, and sends them when it is committed

	// Write makes a unit happen exactly once.
	Write(ctx context.Context, u wire.Unit) (wire.UnitResult, error)
	// Read runs a statement string that only reads.
	Read(ctx context.Context, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error)
	// Classify tells what a statement string does; local has nobody asked how fresh the
	// schema is on which that is found out.
	Classify(ctx context.Context, sql string, local bool) (engine.Class, error)
	Snapshot(ctx context.Context) (Snapshot, error)
	Begin(ctx context.Context, o engine.SessionOptions) (Session, error)
	// Commit commits a session exactly once. over is false if a constraint keeps it open.
	Commit(ctx context.Context, s Session) (over bool, err error)
}

// Session is an interactive transaction, wherever it runs. Its Commit is for the Host.
type Session interface {
	Run(ctx context.Context, st engine.Statement) engine.StepResult
	Commit(ctx context.Context, id wire.RequestID, lowest uint64) engine.StepResult
	Rollback(ctx context.Context) engine.StepResult
	Abort()
}

// Snapshot is a stable view of one database.
type Snapshot interface {
	Query(ctx context.Context, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error)
	Close() error
}

// Errors are what the user finds in errors, and the makers of those.
type Errors struct {
	Closed, Aborted error // Aborted is in the error of every transaction that ended without its client's wish

	Refused func(what, advice string) error
	SQL     func(code int, msg string) error // one as SQLite's own
	Limit   func(msg string) error
	// Statement makes the user's error of one that a session met, RolledBack that of a
	// transaction which such an error has ended, TooLarge that of a *wire.LimitError.
	Statement, RolledBack, TooLarge func(error) error
	// Partly makes the error of a statement string that failed when a part of it had been
	// committed.
	Partly func(error) error
	// Code is the primary code of the user's error of SQLite, if there is one in err.
	Code func(err error) (primary int, ok bool)
}

// Config is what the connections of one handle have in common.
type Config struct {
	Host   Host
	Errors Errors
	Values values.Settings
	// ForeignKeys is what PRAGMA foreign_keys is at first. ReadOnly refuses writes.
	ForeignKeys, ReadOnly bool
	Detach                func() // called when the pool is closed, may be nil
	// Dropped is told when a transaction was rolled back because its connection went back to
	// the pool.
	Dropped func()
}

// Connector makes connections, and holds what those of one pool share.
type Connector struct {
	host    Host
	cfg     Config
	errs    *Errors
	classes sqltext.Memo[engine.Class]
}

// New returns the connector of one pool.
func New(cfg Config) *Connector {
	c := &Connector{host: cfg.Host, cfg: cfg}
	c.errs = &c.cfg.Errors
	return c
}

// Connect implements driver.Connector.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	if c.host.Closed() {
		return nil, c.errs.Closed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &conn{Connector: c, pragmas: pragma.State{ForeignKeys: c.cfg.ForeignKeys}}, nil
}

// Driver implements driver.Connector.
func (c *Connector) Driver() driver.Driver { return handleDriver{} }

// Close is called by the pool's Close.
func (c *Connector) Close() error {
	if c.cfg.Detach != nil {
		c.cfg.Detach()
	}
	return nil
}

type handleDriver struct{}

func (handleDriver) Open(string) (driver.Conn, error) {
	return nil, errors.New("colmena: a database is opened with Node.OpenDB, not by a data source name")
}

// control is what SQLite says of a misplaced BEGIN or COMMIT.
func (e *Errors) control(msg string) error { return e.SQL(sqlite.Generic, "SQL logic error: "+msg) }

func (e *Errors) queryOnly(what string) error {
	return e.Refused(what, "PRAGMA query_only is on for this connection; set it to off")
}

// refusedPragma makes the user's error of a PRAGMA that was refused.
func (e *Errors) refusedPragma(err error) error {
	var r *pragma.RefusedError
	if errors.As(err, &r) {
		return e.Refused(r.What, r.Advice)
	}
	return err
}

func (e *Errors) isSQL(err error) bool {
	_, ok := e.Code(err)
	return ok
}
