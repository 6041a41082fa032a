package engine

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/wire"
)

// readerPool keeps connections for reading. SQLite's page cache has one lock for the
// process, so few are active at a time to advantage; but a caller may hold one open
// while it asks with another, so there may be many.
type readerPool struct {
	cfg    Config
	tokens chan struct{}
	mu     sync.Mutex
	idle   []*Reader
	closed bool
	shut   chan struct{} // closed: new readers wait for it to be replaced by nil
	active int
}

func newReaderPool(cfg Config) *readerPool {
	return &readerPool{cfg: cfg, tokens: make(chan struct{}, cfg.MaxReaders)}
}

// Reader is a connection for reading, used by one goroutine at a time.
type Reader struct {
	pool *readerPool
	conn *sqlite.Conn
	x    *executor
	ctx  context.Context
	done <-chan struct{}
	// pinned says that a read transaction is open.
	pinned bool
}

// Empty is a database without a file: what is read before the first write.
type Empty struct{ pool *readerPool }

// NewEmpty returns a database that holds nothing. Close it. stop is Config.Stop.
func NewEmpty(stop <-chan struct{}, lib *Library) *Empty {
	return &Empty{newReaderPool(Config{Stop: stop, Library: lib}.withDefaults())}
}

// Reader takes a connection; Release it.
func (e *Empty) Reader(ctx context.Context) (*Reader, error) { return e.pool.acquire(ctx) }

// Close closes the connections that are not in use; the others close when released.
func (e *Empty) Close() { e.pool.close() }

// Reader takes a connection; Release it.
func (d *DB) Reader(ctx context.Context) (*Reader, error) { return d.readers.acquire(ctx) }

func (p *readerPool) acquire(ctx context.Context) (*Reader, error) {
	select {
	case p.tokens <- struct{}{}:
	default:
		late := time.NewTimer(p.cfg.ReaderWait)
		defer late.Stop()
		select {
		case p.tokens <- struct{}{}:
		case <-p.cfg.Stop:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late.C: // those who have one may be waiting for a second
			return nil, &TooLargeError{What: "the number of queries that are open on this database (close the rows of one before asking with another)", Size: p.cfg.MaxReaders + 1, Most: p.cfg.MaxReaders}
		}
	}
	r, err := p.take(ctx)
	if err != nil {
		<-p.tokens
		return nil, err
	}
	r.ctx, r.done = ctx, ctx.Done()
	return r, nil
}

func (p *readerPool) take(ctx context.Context) (*Reader, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		shut := p.shut
		if shut == nil {
			break
		}
		p.mu.Unlock()
		select {
		case <-shut:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	p.active++
	var r *Reader
	if n := len(p.idle); n > 0 {
		r, p.idle = p.idle[n-1], p.idle[:n-1]
	}
	p.mu.Unlock()
	if r != nil {
		return r, nil
	}
	r, err := p.open()
	if err != nil {
		p.mu.Lock()
		p.active--
		p.mu.Unlock()
	}
	return r, err
}

func (p *readerPool) open() (*Reader, error) {
	conn, err := sqlite.Open(p.cfg.Path, sqlite.Options{ReadOnly: true, Memory: p.cfg.Path == "", BusyTimeout: 5 * time.Second, CacheBytes: p.cfg.CacheBytes})
	if err != nil {
		return nil, err
	}
	// Without QPSG a statement is compiled again whenever its arguments change.
	if err := errors.Join(conn.DBConfig(sqlite.ConfigQPSG, true), conn.Exec("PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=OFF")); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	r := &Reader{pool: p, conn: conn, x: newExecutor(conn, true)}
	if err := r.x.use(p.cfg.Library); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	conn.SetProgress(progressOps, r.canceled)
	return r, nil
}

// Release gives the connection back. No cursor of it may be used after.
func (r *Reader) Release() {
	p := r.pool
	r.ctx, r.done = nil, nil
	r.end()
	p.mu.Lock()
	p.active--
	keep := !p.closed && len(p.idle) < p.cfg.ReadConns
	if keep {
		p.idle = append(p.idle, r)
	}
	p.mu.Unlock()
	<-p.tokens
	if !keep {
		r.close()
	}
}

func (r *Reader) close() {
	r.x.forget()
	_ = r.conn.Close()
}

func (p *readerPool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, r := range idle {
		r.close()
	}
}

// gate keeps new readers out and waits up to limit for those under way.
func (p *readerPool) gate(limit time.Duration) (open func()) {
	shut := make(chan struct{})
	p.mu.Lock()
	p.shut = shut
	p.mu.Unlock()
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		p.mu.Lock()
		n := p.active
		p.mu.Unlock()
		if n == 0 {
			break
		}
		time.Sleep(limit / 20)
	}
	return func() {
		p.mu.Lock()
		p.shut = nil
		p.mu.Unlock()
		close(shut)
	}
}

// Use sets the context that ends the reader's queries from now on.
func (r *Reader) Use(ctx context.Context) { r.ctx, r.done = ctx, ctx.Done() }

func (r *Reader) canceled() bool {
	select {
	case <-r.done:
		return true
	case <-r.pool.cfg.Stop:
		return true
	default:
		return false
	}
}

// Class says what a statement string does.
type Class int

// Classes of statement strings.
const (
	ClassEmpty Class = iota // blanks and comments
	ClassRead
	ClassWrite
)

// Classify prepares a statement string and tells whether any statement of it writes.
// A statement that cannot be prepared here, on a schema that may lag, is an error,
// unless one before it writes.
func (r *Reader) Classify(sql string) (Class, error) {
	class := ClassEmpty
	for rest := sql; rest != ""; {
		p, tail, err := r.prepare(rest)
		if err != nil {
			return class, r.wrap(err)
		}
		if p != nil {
			class = ClassRead
			write := !p.st.ReadOnly() && !p.st.IsExplain()
			r.x.release(p)
			if write {
				return ClassWrite, nil
			}
		}
		rest = tail
	}
	return class, nil
}

// Query runs a statement string that only reads. The cursor is that of its last
// statement; those before it run to their end.
func (r *Reader) Query(sql string, args wire.Args, pre wire.PreState) (_ *Cursor, err error) {
	r.conn.SetPreState(pre.LastInsertID, pre.Changes)
	var last *prepared
	for rest := sql; rest != ""; {
		p, tail, err := r.prepare(rest)
		if err != nil {
			r.drop(last)
			return nil, r.wrap(err)
		}
		rest = tail
		if p == nil {
			continue
		}
		if err := r.finish(last); err != nil {
			r.x.release(p)
			return nil, err
		}
		last = p
		p.held = true
		if err := bind(p.st, args); err != nil {
			r.drop(last)
			return nil, err
		}
	}
	c := &Cursor{r: r, p: last}
	if last != nil {
		// SQLite compiles a kept statement again when it is stepped, if the schema has
		// changed; only then are its columns those of the rows.
		if c.row, err = c.step(); err != nil {
			r.drop(last)
			return nil, err
		}
		c.stepped = true
	}
	return c, nil
}

// prepare is the executor's, on the newest schema. SQLite looks whether the schema has
// changed when a statement opens a transaction; EXPLAIN and many a PRAGMA open none, and
// what it says is wrong with a statement comes before.
func (r *Reader) prepare(sql string) (*prepared, string, error) {
	if r.x.cache[sql] == nil {
		if err := r.refreshFor(sql); err != nil {
			return nil, "", err
		}
	}
	p, tail, err := r.x.prepare(sql, runOptions{})
	if err == nil || !isCode(err, sqlite.Generic) {
		return p, tail, err
	}
	if err := r.refresh(); err != nil {
		return nil, "", err
	}
	return r.x.prepare(sql, runOptions{})
}

// refreshFor refreshes the schema for texts that SQLite answers from memory.
func (r *Reader) refreshFor(sql string) error {
	kw, at := sqltext.FirstKeyword(sql)
	switch {
	case kw == sqltext.Other && strings.EqualFold(sqltext.FirstWord(sql[at:]), "EXPLAIN"):
		return r.refresh()
	case kw != sqltext.PRAGMA:
		return nil
	}
	if p, _, _ := sqltext.ParsePragma(sql[at:]); p.Name == "integrity_check" || p.Name == "quick_check" {
		// FTS5 would check what others have written by what it remembers of its index.
		r.x.policy.trusted = true
		return r.conn.Exec("PRAGMA writable_schema=RESET")
	}
	return r.refresh()
}

func (r *Reader) refresh() error {
	_, _, err := r.x.run("SELECT 1 FROM sqlite_schema LIMIT 1", nil, runOptions{trusted: true})
	return err
}

// finish steps a statement that is not the last to its end.
func (r *Reader) finish(p *prepared) error {
	if p == nil {
		return nil
	}
	defer r.drop(p)
	r.x.policy.running = true
	for {
		row, err := p.st.Step()
		if err != nil || !row {
			return r.wrap(err)
		}
	}
}

func (r *Reader) drop(p *prepared) {
	if p == nil {
		return
	}
	_ = p.st.Reset()
	_ = p.st.ClearBindings()
	r.x.release(p)
}

// wrap makes an interrupt the error of the context, or of the node that closes.
func (r *Reader) wrap(err error) error {
	switch {
	case err == nil || !isCode(err, sqlite.Interrupt):
		return err
	case r.ctx != nil && r.ctx.Err() != nil:
		return r.ctx.Err()
	}
	return ErrClosed
}

// Cursor walks the rows of a query.
type Cursor struct {
	r       *Reader
	p       *prepared
	stepped bool // to the first row, or the end, which Next has not told yet
	row     bool // ... and there was one
}

// Columns describes the result; it is nil for a string without a statement.
func (c *Cursor) Columns() []wire.Column {
	if c.p == nil {
		return nil
	}
	return columns(c.p.st)
}

// Next steps to the next row.
func (c *Cursor) Next() (bool, error) {
	switch {
	case c.p == nil:
		return false, nil
	case c.stepped:
		c.stepped = false
		return c.row, nil
	}
	return c.step()
}

func (c *Cursor) step() (bool, error) {
	c.r.x.policy.running = true
	row, err := c.p.st.Step()
	return row, c.r.wrap(err)
}

// Value views a column of the current row, until the next step.
func (c *Cursor) Value(i int) wire.Value { return columnValue(c.p.st, i) }

// AppendRow encodes the current row.
func (c *Cursor) AppendRow(b []byte) []byte { return appendRow(b, c.p.st) }

// Close ends the query. The reader may be used again.
func (c *Cursor) Close() {
	c.r.drop(c.p)
	c.p = nil
}
