package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// checkpointer moves pages from the write-ahead log into the database file, beside
// the writer. SQLite reuses the log only when all of it was moved and no reader needs
// it, which back-to-back epochs never let happen by themselves (H20): so the bulk is
// moved in the background, and the owner moves the rest in a gap between two epochs.
type checkpointer struct {
	d      *DB
	mu     sync.Mutex // guards conn, and keeps checkpoints and pins apart
	conn   *sqlite.Conn
	wake   chan struct{}
	done   chan struct{}
	finish chan struct{} // one slot: the owner should move the rest
	// commits counts since the log's size was last looked at; the owner's.
	commits int
}

// sizeEvery is how many commits pass between two looks at the log's size.
const sizeEvery = 16

// gateFactor times WALBytes is where new readers wait for the log to be reset.
const gateFactor = 4

func newCheckpointer(d *DB) (*checkpointer, error) {
	conn, err := sqlite.Open(d.cfg.Path, sqlite.Options{BusyTimeout: time.Second})
	if err != nil {
		return nil, err
	}
	if err := conn.Exec("PRAGMA wal_autocheckpoint=0; SELECT term FROM sqlite_colmena WHERE id=0"); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c := &checkpointer{d: d, conn: conn, wake: make(chan struct{}, 1), done: make(chan struct{}), finish: make(chan struct{}, 1)}
	go c.run()
	return c, nil
}

func (c *checkpointer) run() {
	defer close(c.done)
	for range c.wake {
		c.mu.Lock()
		_, _, err := c.conn.Checkpoint(sqlite.Passive)
		c.mu.Unlock()
		if err != nil {
			c.d.cfg.Logger.Warn("checkpoint", "db", c.d.cfg.Name, "err", err)
			continue
		}
		durable.CrashPoint("checkpoint.after-passive")
		select {
		case c.finish <- struct{}{}:
		default:
		}
	}
}

func (c *checkpointer) close() error {
	close(c.wake)
	<-c.done
	return c.conn.Close()
}

// note is called by the owner after each commit, with no transaction open.
func (c *checkpointer) note() {
	select {
	case <-c.finish:
		c.finishLog()
	default:
	}
	if c.commits++; c.commits < sizeEvery {
		return
	}
	c.commits = 0
	if c.walSize() > c.d.cfg.WALBytes {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (c *checkpointer) walSize() int64 {
	f := c.d.w.WALFile()
	if f == nil {
		return 0
	}
	n, err := f.Size()
	if err != nil {
		return 0
	}
	return n
}

// finishLog moves what was committed since the background checkpoint began, so that
// the next epoch starts the log over. Beyond a size new readers wait for that.
func (c *checkpointer) finishLog() {
	if !c.mu.TryLock() {
		return // a copy is being pinned
	}
	defer c.mu.Unlock()
	if c.walSize() > gateFactor*c.d.cfg.WALBytes {
		defer c.d.readers.gate(readerGate)()
	}
	if _, _, err := c.d.w.Checkpoint(sqlite.Passive); err != nil {
		c.d.cfg.Logger.Warn("checkpoint", "db", c.d.cfg.Name, "err", err)
	}
}

// readerGate is how long the gate waits for readers that are under way.
const readerGate = 20 * time.Millisecond

// Sync makes the database file durable up to at least its present mark, without
// moving a page: it syncs the write-ahead log (H18).
func (d *DB) Sync() error {
	if err := d.Err(); err != nil {
		return err
	}
	d.check.mu.Lock()
	defer d.check.mu.Unlock()
	if err := d.check.conn.SyncWAL(); err != nil {
		return err
	}
	return d.check.conn.SyncFile()
}

// Pin is a frozen view of the files for copying: the main file and the log up to
// the pinned frame. Writers go on; only checkpoints wait.
type Pin struct {
	Mark      wire.Mark
	conn      *sqlite.Conn
	main, wal *sqlite.File
	mainSize  int64
	walSize   int64
	once      sync.Once
}

// Pin freezes the database for copying. A copy of the main file and of the log, made
// while the pin is held, is a consistent state at Mark or later, page for page: no
// checkpoint passes the pinned reader, and no log it reads from is started over.
func (d *DB) Pin(ctx context.Context) (*Pin, error) {
	var p *Pin
	var err error
	if doErr := d.Do(ctx, func() {
		if ctx.Err() == nil {
			p, err = d.pin()
		}
	}); doErr != nil {
		return nil, doErr
	}
	return p, err
}

func (d *DB) pin() (_ *Pin, err error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	d.check.mu.Lock()
	defer d.check.mu.Unlock()
	// A reader of a log that was moved entirely would not hold on to it. So there is
	// one frame that was not moved: the mark, written as it stands.
	if err := d.touch(); err != nil {
		return nil, err
	}
	conn, err := sqlite.Open(d.cfg.Path, sqlite.Options{ReadOnly: true, BusyTimeout: time.Second})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.Exec("BEGIN"); err != nil {
		return nil, err
	}
	p := &Pin{conn: conn}
	if p.Mark, _, err = readMark(conn); err != nil {
		return nil, err
	}
	if p.main, p.wal = conn.MainFile(), conn.WALFile(); p.main == nil || p.wal == nil {
		return nil, fmt.Errorf("database %q: no write-ahead log to pin", d.cfg.Name)
	}
	if p.mainSize, err = p.main.Size(); err != nil {
		return nil, err
	}
	p.walSize, err = p.wal.Size()
	return p, err
}

func (d *DB) touch() error {
	if err := d.runInternal(d.begin); err != nil {
		return err
	}
	err := d.writeMark(d.Mark(), 0)
	if err == nil {
		err = d.runInternal(d.commit)
	}
	if err != nil {
		return errors.Join(err, d.rollbackOpen())
	}
	return nil
}

// Sizes are the bytes of the two parts of the copy.
func (p *Pin) Sizes() (main, wal int64) { return p.mainSize, p.walSize }

// CopyMain and CopyWAL copy the parts to a local file.
func (p *Pin) CopyMain(ctx context.Context, dst *os.File) error {
	return copyFile(ctx, dst, p.main, p.mainSize)
}

func (p *Pin) CopyWAL(ctx context.Context, dst *os.File) error {
	return copyFile(ctx, dst, p.wal, p.walSize)
}

// copyStep is how much is copied between two looks at the context.
const copyStep = 64 << 20

func copyFile(ctx context.Context, dst *os.File, src *sqlite.File, size int64) error {
	for off := int64(0); off < size; off += copyStep {
		if err := ctx.Err(); err != nil {
			return err
		}
		want := min(copyStep, size-off)
		var n int64
		var err error
		if fd, ok := src.Fd(); ok {
			n, err = durable.CopyFd(dst, fd, off, want)
		} else {
			n, err = durable.CopyReaderAt(dst, src, off, want)
		}
		if err == nil && n < want {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("copy database file: %w", err)
		}
	}
	return nil
}

// Release ends the pin. It is idempotent.
func (p *Pin) Release() {
	p.once.Do(func() {
		_ = p.conn.Exec("COMMIT")
		_ = p.conn.Close()
	})
}

// Fold moves the write-ahead log of a copied database into its main file and removes it.
func Fold(path string) error {
	c, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return err
	}
	_, _, err = readMark(c)
	if err == nil {
		_, _, err = c.Checkpoint(sqlite.Truncate)
	}
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	if st, err := os.Stat(path + "-wal"); err == nil && st.Size() > 0 {
		return fmt.Errorf("%s: the write-ahead log could not be folded in", path)
	}
	_ = os.Remove(path + "-wal")
	return nil
}

// Verify opens a received file, has SQLite look it through, and returns what it states.
func Verify(path string) (m wire.Mark, incarnation uint64, err error) {
	c, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return m, 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	st, _, err := c.Prepare("PRAGMA quick_check(1)")
	if err != nil {
		return m, 0, err
	}
	defer st.Finalize()
	if row, err := st.Step(); err != nil || !row || st.ColumnText(0) != "ok" {
		return m, 0, errors.Join(err, fmt.Errorf("%s is damaged: %s", path, st.ColumnText(0)))
	}
	if err := st.Reset(); err != nil {
		return m, 0, err
	}
	return readMark(c)
}
