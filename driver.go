package colmena

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/dbconn"
	"github.com/mentasystems/colmena/internal/engine"
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
//
// A time that its format cannot hold is an error: in a text one whose year has not four
// digits, in nanoseconds one that is more than 292 years from 1970, the zero Time among them.
// One whose zone is not of whole minutes is stored in UTC.
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
	db := sql.OpenDB(dbconn.New(dbconn.Config{}))
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
	var db *sql.DB
	detach := func() {
		n.defaultMu.Lock()
		defer n.defaultMu.Unlock()
		if n.defaultDB == db && !n.isClosed() {
			n.defaultDB = nil
		}
	}
	closed := n.isClosed() // if not, closeDefault comes later
	if closed {
		detach = nil
	}
	db = openPool(n.connector(DefaultDatabase, dbOptions{timeFormat: TimeFormatSQLite}, detach))
	n.defaultDB = db
	if closed {
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
// 0-9, '_' and '-'; "" stands for DefaultDatabase. A cluster holds at most 1024: the write
// that would make one more is refused with a *LimitError. A connection holds no file of its
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
	return n.connector(name, o, nil), nil
}

func (n *Node) connector(db string, o dbOptions, detach func()) driver.Connector {
	h := &handle{n: n, db: db, o: o}
	return dbconn.New(dbconn.Config{
		Host: h, Values: values.Settings{Times: times.Format(o.timeFormat), Closed: n.done, ErrClosed: ErrClosed},
		ForeignKeys: o.foreignKeys, ReadOnly: o.readOnly, Detach: detach,
		Dropped: func() {
			n.log.Warn("a transaction was rolled back because its connection went back to the pool before it had ended: begin it with DB.BeginTx, or on a sql.Conn that is kept until the end", "db", db)
		},
		Errors: dbconn.Errors{
			Closed: ErrClosed, Aborted: ErrTxAborted, Statement: n.txStatementError, TooLarge: tooLarge, Code: sqlCode,
			Refused: func(what, advice string) error { return &RefusedError{What: what, Advice: advice} },
			SQL: func(code int, msg string) error {
				return &SQLError{Primary: code, ExtendedCode: code, Msg: msg, Offset: -1}
			},
			Limit:      func(msg string) error { return &LimitError{Msg: msg} },
			RolledBack: func(err error) error { return &TxAbortedError{Reason: TxAbortStatement, Err: err} },
			Partly:     partlyApplied,
		},
	})
}

// handle is a node as the connections of one pool see it.
type handle struct {
	n  *Node
	db string
	o  dbOptions
}

func (h *handle) Closed() bool                  { return h.n.isClosed() }
func (h *handle) Pins(ctx context.Context) bool { return h.n.pins(ctx) }

func (h *handle) Buffers(ctx context.Context) (bool, error) {
	mode, _ := ctx.Value(txModeKey{}).(TxMode)
	if mode < 0 || mode > TxBuffered {
		return false, &RefusedError{What: fmt.Sprintf("transaction mode %d", mode), Advice: "it is TxInteractive or TxBuffered"}
	}
	return mode == TxBuffered || mode == 0 && h.o.buffered, nil
}

func (h *handle) Write(ctx context.Context, u wire.Unit) (wire.UnitResult, error) {
	return h.n.write(ctx, h.db, u)
}

func (h *handle) Read(ctx context.Context, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	m, err := h.n.readMode(ctx, &h.o)
	if err != nil {
		return nil, err
	}
	return h.n.read(ctx, h.db, m, sql, args, pre)
}

func (h *handle) Classify(ctx context.Context, sql string, local bool) (engine.Class, error) {
	m := readMode{level: None}
	if !local {
		var err error
		if m, err = h.n.readMode(ctx, &h.o); err != nil {
			return 0, err
		}
	}
	return h.n.reads.Classify(ctx, h.db, m.asks(), sql)
}

func (h *handle) Snapshot(ctx context.Context) (dbconn.Snapshot, error) {
	m, err := h.n.readMode(ctx, &h.o)
	if err != nil {
		return nil, err
	}
	s, err := h.n.reads.Snapshot(ctx, h.db, m.asks())
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (h *handle) Begin(ctx context.Context, o engine.SessionOptions) (dbconn.Session, error) {
	return h.n.beginInteractive(ctx, h.db, o)
}

func (h *handle) Commit(ctx context.Context, s dbconn.Session) (over bool, err error) {
	return h.n.commitInteractive(ctx, h.db, s)
}
