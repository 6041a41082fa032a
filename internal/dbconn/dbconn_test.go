package dbconn

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/times"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errClosed  = errors.New("closed")
	errAborted = errors.New("aborted")
	errPartly  = errors.New("a part was committed")
	errLost    = errors.New("the write was lost")
)

type refused struct{ what, advice string }

func (r *refused) Error() string { return r.what + ": " + r.advice }

// host is a database of its own, which commits what it proposes.
type host struct {
	t        *testing.T
	db       *engine.DB
	closed   atomic.Bool
	buffers  bool
	lose     bool // writes and commits fail
	hang     bool // and hang until their context ends
	detached int
	dropped  atomic.Int32
}

func newHost(t *testing.T) *host {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := engine.Create(path, "db", 7); err != nil {
		t.Fatal(err)
	}
	type proposal struct {
		data []byte
		done func(error)
	}
	h, log, stop, ended := &host{t: t}, make(chan proposal, 16), make(chan struct{}), make(chan struct{})
	db, err := engine.Open(engine.Config{Path: path, Name: "db", Incarnation: 7, Proposer: 1, Stop: stop,
		Propose: func(data []byte, done func(error)) { log <- proposal{data, done} }, ProposalLost: func(error) bool { return false },
		Halt: func(err error) { t.Errorf("the database halted: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	h.db = db
	go func() {
		defer close(ended)
		for index := uint64(1); ; index++ {
			select {
			case p := <-log:
				db.Deliver(wire.Mark{Term: 1, Index: index}, p.data)
				p.done(nil)
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-ended
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	db.Lead(1)
	return h
}

func (h *host) Closed() bool                          { return h.closed.Load() }
func (h *host) Pins(context.Context) bool             { return false }
func (h *host) Buffers(context.Context) (bool, error) { return h.buffers, nil }

func (h *host) Write(ctx context.Context, u wire.Unit) (wire.UnitResult, error) {
	if h.lose {
		return wire.UnitResult{}, h.lost(ctx)
	}
	return h.db.Exec(ctx, u)
}

// lost is the error of what is lost.
func (h *host) lost(ctx context.Context) error {
	if !h.hang {
		return errLost
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Second):
		return errLost
	}
}

// cursor is a query that gives its reader back.
type cursor struct {
	*engine.Cursor
	reader *engine.Reader
}

func (c *cursor) Close() error {
	c.Cursor.Close()
	if c.reader != nil {
		c.reader.Release()
		c.reader = nil
	}
	return nil
}

func (h *host) Read(ctx context.Context, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	r, err := h.db.Reader(ctx)
	if err != nil {
		return nil, err
	}
	c, err := r.Query(sql, args, pre)
	if err != nil {
		r.Release()
		return nil, err
	}
	return &cursor{c, r}, nil
}

func (h *host) Classify(ctx context.Context, sql string, _ bool) (engine.Class, error) {
	r, err := h.db.Reader(ctx)
	if err != nil {
		return 0, err
	}
	defer r.Release()
	return r.Classify(sql)
}

// view is a snapshot of the database.
type view struct{ *engine.Reader }

func (v view) Query(_ context.Context, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	c, err := v.Reader.Query(sql, args, pre)
	if err != nil {
		return nil, err
	}
	return &cursor{Cursor: c}, nil
}

func (v view) Close() error {
	v.Release()
	return nil
}

func (h *host) Snapshot(context.Context) (Snapshot, error) {
	r, err := h.db.Reader(context.Background())
	if err != nil {
		return nil, err
	}
	return view{r}, r.Begin()
}

func (h *host) Begin(ctx context.Context, o engine.SessionOptions) (Session, error) {
	s, err := h.db.Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (h *host) Commit(ctx context.Context, s Session) (over bool, err error) {
	if h.lose {
		s.Abort()
		return true, h.lost(ctx)
	}
	res := s.Commit(ctx, wire.RequestID{}, 0)
	return res.Err == nil || res.Over, res.Err
}

// errs leaves the engine's errors as they are.
func (h *host) errs() Errors {
	same := func(err error) error { return err }
	return Errors{
		Closed: errClosed, Aborted: errAborted, Statement: same, TooLarge: same,
		RolledBack: func(err error) error { return errors.Join(errAborted, err) },
		Partly:     func(err error) error { return errors.Join(errPartly, err) },
		Refused:    func(what, advice string) error { return &refused{what, advice} },
		SQL:        func(code int, msg string) error { return &sqlite.Error{Code: code, Extended: code, Msg: msg} },
		Limit:      func(msg string) error { return errors.New(msg) },
		Code: func(err error) (int, bool) {
			var e *sqlite.Error
			if !errors.As(err, &e) {
				return 0, false
			}
			return e.Code, true
		}}
}

// open is a pool on the database.
func (h *host) open(set func(*Config)) *sql.DB {
	h.t.Helper()
	cfg := Config{Host: h, Values: values.Settings{Times: times.SQLite, ErrClosed: errClosed}, Detach: func() { h.detached++ }, Dropped: func() { h.dropped.Add(1) }, Errors: h.errs()}
	if set != nil {
		set(&cfg)
	}
	db := sql.OpenDB(New(cfg))
	h.t.Cleanup(func() { _ = db.Close() })
	return db
}

// client is a connection of a pool whose statements are expected to succeed, or to fail.
type client struct {
	*sql.Conn
	t   *testing.T
	ctx context.Context
}

func connect(t *testing.T, db *sql.DB) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	c, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{c, t, ctx}
}

func (c *client) exec(queries ...string) {
	c.t.Helper()
	for _, q := range queries {
		if _, err := c.ExecContext(c.ctx, q); err != nil {
			c.t.Fatalf("%s: %v", q, err)
		}
	}
}

func (c *client) fails(query string) error {
	c.t.Helper()
	_, err := c.ExecContext(c.ctx, query)
	if err == nil {
		c.t.Fatalf("%s succeeds", query)
	}
	return err
}

func (c *client) number(query string) (k int) {
	c.t.Helper()
	if err := c.QueryRowContext(c.ctx, query).Scan(&k); err != nil {
		c.t.Fatalf("%s: %v", query, err)
	}
	return k
}
