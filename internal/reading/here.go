package reading

import (
	"context"
	"errors"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// here runs a query on this node's file, as it is.
func (r *Reads) here(ctx context.Context, db, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	rd, err := r.reader(ctx, db)
	if err != nil {
		return nil, err
	}
	c, err := rd.Query(sql, args, pre)
	if err != nil {
		rd.Release()
		return nil, r.cfg.Error(err)
	}
	return &rows{Cursor: c, reads: r, own: rd}, nil
}

// reader takes a connection to the local file. While a copy is being installed it waits for the new one.
func (r *Reads) reader(ctx context.Context, db string) (*engine.Reader, error) {
	for {
		if r.closed() {
			return nil, r.cfg.Closed
		}
		watch := r.cfg.Databases.Watch()
		var rd *engine.Reader
		var err error
		d := r.cfg.Databases.Get(db)
		switch {
		case d == nil:
			rd, err = r.cfg.Empty.Reader(ctx)
		case d.Err() != nil && !r.cfg.MayPass(d.Err()):
			return nil, r.cfg.User(d.Err()) // it may have parted from the others
		default:
			rd, err = d.Reader(ctx)
		}
		if !errors.Is(err, engine.ErrClosed) {
			return rd, r.cfg.Error(err)
		}
		if err := r.cfg.Halted(); err != nil {
			return nil, err
		}
		select {
		case <-watch:
		case <-r.cfg.Done:
			return nil, r.cfg.Closed
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(r.cfg.Patience):
		}
	}
}

// Classify tells whether a statement string writes.
func (r *Reads) Classify(ctx context.Context, db string, m Mode, sql string) (engine.Class, error) {
	class, err := r.classify(ctx, db, sql)
	if err == nil {
		return class, nil
	}
	var refused *engine.RefusedError
	if errors.As(err, &refused) {
		return 0, r.cfg.User(err)
	}
	if sqltext.SeemsToWrite(sql) {
		return engine.ClassWrite, nil // the leader judges it
	}
	if errors.Is(err, r.cfg.ErrHalted) {
		return engine.ClassRead, nil // the leader can answer it
	}
	var of *sqlite.Error
	if !errors.As(err, &of) {
		return 0, r.cfg.Error(err)
	}
	// The schema here may lag behind.
	if err := r.Freshen(ctx, db, m); err != nil {
		return 0, err
	}
	class, err = r.classify(ctx, db, sql)
	return class, r.cfg.Error(err)
}

func (r *Reads) classify(ctx context.Context, db, sql string) (engine.Class, error) {
	rd, err := r.reader(ctx, db)
	if err != nil {
		return 0, err
	}
	defer rd.Release()
	return rd.Classify(sql)
}

// Snapshot pins this node's state, when it is as fresh as a mode asks.
func (r *Reads) Snapshot(ctx context.Context, db string, m Mode) (*Snapshot, error) {
	if err := r.Freshen(ctx, db, m); err != nil {
		return nil, err
	}
	rd, err := r.reader(ctx, db)
	if err != nil {
		return nil, err
	}
	rd.Use(context.Background()) // each query brings its own
	if err := rd.Begin(); err != nil {
		rd.Release()
		return nil, r.cfg.Error(err)
	}
	return &Snapshot{reads: r, reader: rd}, nil
}

// Snapshot is a stable view of one database. One goroutine at a time may use it. Its reader
// is given back when it is closed and no rows of it are open: a transaction that begins and
// ends as text may end before them.
type Snapshot struct {
	reads  *Reads
	reader *engine.Reader
	open   int // rows
	ended  bool
}

// Query runs a statement string that only reads.
func (s *Snapshot) Query(ctx context.Context, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	s.reader.Use(ctx)
	c, err := s.reader.Query(sql, args, pre)
	if err != nil {
		return nil, s.reads.cfg.Error(err)
	}
	s.open++
	return &rows{Cursor: c, reads: s.reads, shared: s.reader, of: s, ctx: ctx}, nil
}

// Close lets the state go.
func (s *Snapshot) Close() error {
	s.ended = true
	s.release()
	return nil
}

func (s *Snapshot) release() {
	if s.ended && s.open == 0 {
		s.reader.Release()
	}
}

// rows walks a query on this node's file. own is released at the end. A reader that is shared, by the queries of a snapshot, follows the context of
// the one that steps.
type rows struct {
	*engine.Cursor
	reads  *Reads
	own    *engine.Reader
	shared *engine.Reader
	of     *Snapshot // that shares it
	ctx    context.Context
}

func (l *rows) Next() (bool, error) {
	if l.shared != nil {
		l.shared.Use(l.ctx)
	}
	ok, err := l.Cursor.Next()
	if err != nil {
		err = l.reads.cfg.Error(err)
	}
	return ok, err
}

func (l *rows) Close() error {
	l.Cursor.Close()
	if l.own != nil {
		l.own.Release()
		l.own = nil
	}
	if s := l.of; s != nil {
		l.of = nil
		s.open--
		s.release()
	}
	return nil
}
