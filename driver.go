package colmena

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/pragma"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/times"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// DBOption is an option of OpenDB and Connector. A ConsistencyLevel and a TimeFormat
// are options themselves.
type DBOption interface{ applyDB(*dbOptions) }

// dbOptions are the settings of one handle.
type dbOptions struct {
	level        ConsistencyLevel // 0: the node's
	maxStaleness time.Duration    // 0: no bound
	foreignKeys  bool
	buffered     bool
	readOnly     bool
	timeFormat   TimeFormat
}

type dbOption func(*dbOptions)

func (f dbOption) applyDB(o *dbOptions) { f(o) }

// ForeignKeys sets what PRAGMA foreign_keys is when a connection of the handle is
// opened. Default off, as in SQLite.
func ForeignKeys(on bool) DBOption {
	return dbOption(func(o *dbOptions) { o.foreignKeys = on })
}

// ReadOnly makes the handle refuse every write with a *RefusedError, and every
// transaction of it read-only.
func ReadOnly() DBOption { return dbOption(func(o *dbOptions) { o.readOnly = true }) }

// MaxStaleness makes the handle's reads like those under WithMaxStaleness, unless their
// context says otherwise. 0 is no bound.
func MaxStaleness(d time.Duration) DBOption {
	return dbOption(func(o *dbOptions) { o.maxStaleness = d })
}

// TimeFormat says how a handle stores a time.Time that is passed as an argument. It is a
// DBOption. Reading does not depend on it: a text in a column declared DATE, DATETIME or
// TIMESTAMP is parsed in every form that SQLite's date functions, this package and the
// modernc.org/sqlite driver write; one that is no time stays a string.
type TimeFormat int

const (
	// TimeFormatSQLite, the default, is "2006-01-02 15:04:05.999999999-07:00": the time
	// with its zone, as SQLite's date functions read it.
	TimeFormatSQLite TimeFormat = iota + 1
	// TimeFormatUTC is "2006-01-02 15:04:05.999999999" in UTC, which sorts by time and
	// compares with CURRENT_TIMESTAMP and datetime().
	TimeFormatUTC
	// TimeFormatRFC3339 is "2006-01-02T15:04:05.999999999Z07:00".
	TimeFormatRFC3339
	// TimeFormatUnix and the following store an integer, in whole seconds, milliseconds,
	// microseconds or nanoseconds since 1970; what is finer is cut off. An integer in a
	// column declared DATE, DATETIME or TIMESTAMP is then read as such a time, in UTC.
	TimeFormatUnix
	TimeFormatUnixMilli
	TimeFormatUnixMicro
	TimeFormatUnixNano
)

func (f TimeFormat) applyDB(o *dbOptions) { o.timeFormat = f }

// A pool that was closed, the node's own by the node, answers by itself with an error
// that database/sql does not export. ErrClosed is that error, so that errors.Is finds
// it whoever answers.
func init() {
	db := sql.OpenDB(&connector{})
	_ = db.Close()
	if err := db.PingContext(context.Background()); err != nil {
		ErrClosed = err
	}
}

// maxIdleConns is high because a connection of the pool is a few words of memory.
const maxIdleConns = 64

// DB returns the handle on the default database. It belongs to the node: closing it
// only lets go of it, and a later DB returns a fresh one; Close of the node closes it.
func (n *Node) DB() *sql.DB {
	n.defaultMu.Lock()
	defer n.defaultMu.Unlock()
	if n.defaultDB != nil {
		return n.defaultDB
	}
	c := newConnector(n, DefaultDatabase, dbOptions{timeFormat: TimeFormatSQLite})
	db := openPool(c)
	c.detach = func() {
		n.defaultMu.Lock()
		defer n.defaultMu.Unlock()
		if n.defaultDB == db && !n.isClosed() {
			n.defaultDB = nil
		}
	}
	n.defaultDB = db
	if n.isClosed() {
		c.detach = nil
		_ = db.Close()
	}
	return db
}

// closeDefault closes the handle that belongs to the node. The node is closed already.
func (n *Node) closeDefault() {
	n.defaultMu.Lock()
	db := n.defaultDB
	n.defaultMu.Unlock()
	if db != nil {
		_ = db.Close()
	}
}

// OpenDB returns a new pool of connections to a database, which the caller closes. The
// database is made by the first write to it. A name has 1 to 64 of the characters a-z,
// 0-9, '_' and '-'; "" stands for DefaultDatabase. A connection holds no file of its
// own and costs next to nothing.
func (n *Node) OpenDB(name string, opts ...DBOption) (*sql.DB, error) {
	c, err := n.Connector(name, opts...)
	if err != nil {
		return nil, err
	}
	return openPool(c), nil
}

func openPool(c driver.Connector) *sql.DB {
	db := sql.OpenDB(c)
	db.SetMaxIdleConns(maxIdleConns)
	return db
}

// Connector is OpenDB for those who wrap a driver, for tracing say, and call sql.OpenDB
// themselves.
func (n *Node) Connector(name string, opts ...DBOption) (driver.Connector, error) {
	if n.isClosed() {
		return nil, ErrClosed
	}
	name, err := checkName(name)
	if err != nil {
		return nil, err
	}
	o := dbOptions{timeFormat: TimeFormatSQLite}
	for _, opt := range opts {
		opt.applyDB(&o)
	}
	var errs []error
	if o.level < 0 || o.level > Strong {
		errs = append(errs, fmt.Errorf("colmena: OpenDB %q: consistency level %d is not a level", name, o.level))
	}
	if o.maxStaleness < 0 {
		errs = append(errs, fmt.Errorf("colmena: OpenDB %q: MaxStaleness %v is negative", name, o.maxStaleness))
	}
	if o.timeFormat < TimeFormatSQLite || o.timeFormat > TimeFormatUnixNano {
		errs = append(errs, fmt.Errorf("colmena: OpenDB %q: time format %d does not exist", name, o.timeFormat))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return newConnector(n, name, o), nil
}

// connector makes connections, and holds what those of one pool share.
type connector struct {
	n       *Node
	db      string
	o       dbOptions
	values  values.Settings
	classes sqltext.Memo[engine.Class]
	detach  func() // called when the pool is closed, may be nil
}

func newConnector(n *Node, db string, o dbOptions) *connector {
	return &connector{n: n, db: db, o: o, values: values.Settings{Times: times.Format(o.timeFormat), Closed: n.done, ErrClosed: ErrClosed}}
}

// Connect implements driver.Connector.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	if c.n.isClosed() {
		return nil, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &conn{connector: c, pragmas: pragma.State{ForeignKeys: c.o.foreignKeys}}, nil
}

// Driver implements driver.Connector.
func (c *connector) Driver() driver.Driver { return handleDriver{} }

// Close is called by the pool's Close.
func (c *connector) Close() error {
	if c.detach != nil {
		c.detach()
	}
	return nil
}

type handleDriver struct{}

func (handleDriver) Open(string) (driver.Conn, error) {
	return nil, errors.New("colmena: a database is opened with Node.OpenDB, not by a data source name")
}

// conn is a connection of a pool: the state that SQLite keeps per connection, and no
// SQLite connection of its own. database/sql uses it from one goroutine at a time.
type conn struct {
	*connector
	closed  bool
	pragmas pragma.State
	pre     wire.PreState // of the next statement: what the last write left
	tx      transaction   // the transaction under way, nil outside
	seen    transaction   // ... when a statement was run last
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
	if c.n.isClosed() {
		return ErrClosed
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
	c.endTx()
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	return nil
}

// IsValid implements driver.Validator.
func (c *conn) IsValid() bool { return !c.closed && !c.n.isClosed() }

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
	return values.NewRows(ctx, &c.values, src)
}

// CheckNamedValue implements driver.NamedValueChecker.
func (c *conn) CheckNamedValue(v *driver.NamedValue) error { return values.Check(v) }

// run runs a statement string where it belongs.
func (c *conn) run(ctx context.Context, query string, args []driver.NamedValue, wantRows bool) (rowSource, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if _, known := c.classes.Get(query); !known && sqltext.HasControl(query) {
		return c.runScript(ctx, query, args, wantRows)
	}
	return c.runPlain(ctx, query, args, wantRows)
}

// runScript runs a string in which transactions begin or end, statement by statement. Its
// rows are those of the last statement that has any.
func (c *conn) runScript(ctx context.Context, query string, args []driver.NamedValue, wantRows bool) (last rowSource, err error) {
	last = values.None
	for query != "" {
		var first string
		first, query = sqltext.Split(query)
		if s, ok := sqltext.ParseControl(first); ok {
			if err := c.control(ctx, s, first); err != nil {
				return nil, errors.Join(err, last.Close())
			}
			continue
		}
		if kw, _ := sqltext.FirstKeyword(first); kw == sqltext.None {
			continue
		}
		if err := values.Drain(last); err != nil {
			return nil, err
		}
		if last, err = c.runPlain(ctx, first, args, wantRows); err != nil {
			return nil, err
		}
	}
	return last, nil
}

// runPlain runs a string in which no transaction begins or ends.
func (c *conn) runPlain(ctx context.Context, query string, args []driver.NamedValue, wantRows bool) (rowSource, error) {
	c.follow()
	kw := sqltext.Other
	class, known := c.classes.Get(query)
	if !known {
		var answer *pragma.Answer
		var err error
		if query, kw, answer, err = c.pragmas.Run(query, c.tx != nil); err != nil {
			return nil, refusedPragma(err)
		}
		if answer != nil {
			return values.Fixed(answer.Columns, answer.Rows), nil
		}
	}
	a, err := c.args.Encode(c.values.Times, args)
	if err != nil {
		return nil, err
	}
	if c.tx != nil {
		return c.tx.run(ctx, kw, query, a, wantRows)
	}
	m := c.n.readMode(ctx, &c.o)
	if !known {
		if class, err = c.class(ctx, m, kw, query); err != nil {
			return nil, err
		}
	}
	if class == engine.ClassEmpty {
		return values.None, nil
	}
	c.pragmas.Deferred = false
	switch class {
	case engine.ClassWrite:
		return c.write(ctx, query, a, wantRows)
	}
	return c.n.read(ctx, c.db, m, query, a, c.pre)
}

// refusedPragma makes the user's error of a PRAGMA that was refused.
func refusedPragma(err error) error {
	var r *pragma.RefusedError
	if errors.As(err, &r) {
		return &RefusedError{What: r.What, Advice: r.Advice}
	}
	return err
}

// class tells what a statement string does. A string that begins with a writing
// statement is judged by the leader, which has the schema it will run on; what begins
// otherwise is prepared here once. A string keeps its class whatever the schema becomes.
func (c *conn) class(ctx context.Context, m readMode, kw sqltext.Keyword, query string) (engine.Class, error) {
	switch kw {
	case sqltext.None:
		return engine.ClassEmpty, nil
	case sqltext.Write:
		return engine.ClassWrite, nil
	}
	if class, ok := c.classes.Get(query); ok {
		return class, nil
	}
	class, err := c.n.classify(ctx, c.db, m, query)
	if err == nil {
		c.classes.Put(query, class)
	}
	return class, err
}

func isSQLError(err error) bool {
	var e *SQLError
	return errors.As(err, &e)
}

// write sends a statement string to the leader and remembers what it did.
func (c *conn) write(ctx context.Context, query string, args wire.Args, rows bool) (rowSource, error) {
	switch {
	case c.o.readOnly:
		return nil, &RefusedError{What: "a write", Advice: "the handle was opened with ReadOnly(); open another one without it"}
	case c.pragmas.QueryOnly:
		return nil, &RefusedError{What: "a write", Advice: "PRAGMA query_only is on for this connection; set it to off"}
	}
	res, err := c.n.write(ctx, c.db, wire.Unit{
		ForeignKeys: c.pragmas.ForeignKeys, RecursiveTriggers: c.pragmas.RecursiveTriggers, Pin: c.n.pins(ctx), WantRows: rows, Pre: c.pre, HasPre: c.pre != (wire.PreState{}),
		Statements: []wire.Statement{{SQL: query, Args: args}},
	})
	if err == nil || isSQLError(err) {
		c.pre.LastInsertID = res.Result.LastInsertID
		if err != nil || sqltext.LastKind(query) == sqltext.Rows {
			c.pre.Changes = res.Result.RowsAffected
		}
	}
	if err != nil {
		return nil, err
	}
	switch r := res.Result.Rows; {
	case !rows || r == nil:
		return values.None, nil
	case r.Truncated:
		return nil, errRowsNotKept
	default:
		return values.Returned(r), nil
	}
}

// errRowsNotKept is not safe to retry: the write happened.
var errRowsNotKept = errors.New("colmena: the write was applied, but the rows it returned were more than the cluster keeps for an answer that has to be sent again: read them with a query")

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
		if _, err := c.class(ctx, c.n.readMode(ctx, &c.o), kw, query); err != nil {
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
