package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// checkpointer moves pages from the write-ahead log into the database file, beside
// the writer. SQLite starts the log over only when all of it was moved and no reader
// needs it, which back-to-back epochs never let happen by themselves (H20): so the bulk
// is moved in the background, and the owner moves the rest in a gap between two epochs.
type checkpointer struct {
	d *DB
	// slot holds a token while conn is free. Checkpoints, syncs and the making of pins
	// keep one another out; all who wait for it can be called off.
	slot chan struct{}
	conn *sqlite.Conn
	wake chan struct{} // one slot
	stop chan struct{}
	done chan struct{}
	// finish has one slot: the owner should move the rest.
	finish chan struct{}

	// The owner's.
	commits int       // since the log's size was last looked at
	gated   time.Time // when readers were last kept out
}

const (
	// sizeEvery is how many commits pass between two looks at the log's size.
	sizeEvery = 16
	// gateFactor times WALBytes is where new readers wait for the log to start over,
	// at most once in gatePause and for readerGate.
	gateFactor = 4
	gatePause  = time.Second
	readerGate = 20 * time.Millisecond
)

func newCheckpointer(d *DB) (*checkpointer, error) {
	conn, err := sqlite.Open(d.cfg.Path, sqlite.Options{BusyTimeout: time.Second})
	if err != nil {
		return nil, err
	}
	if err := conn.Exec("PRAGMA wal_autocheckpoint=0; SELECT term FROM sqlite_colmena WHERE id=0"); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c := &checkpointer{d: d, conn: conn, slot: make(chan struct{}, 1), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), finish: make(chan struct{}, 1)}
	c.slot <- struct{}{}
	go c.run()
	return c, nil
}

// lock waits for the connection.
func (c *checkpointer) lock(ctx context.Context) error {
	select {
	case <-c.stop:
		return ErrClosed
	default:
	}
	select {
	case <-c.slot:
		return nil
	case <-c.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *checkpointer) unlock() { c.slot <- struct{}{} }

func (c *checkpointer) run() {
	defer close(c.done)
	for {
		select {
		case <-c.stop:
			return
		case <-c.wake:
		}
		if c.lock(context.Background()) != nil {
			return
		}
		_, _, err := c.conn.Checkpoint(sqlite.Passive)
		c.unlock()
		if c.failed("checkpoint", err) {
			continue
		}
		c.d.count.checkpoints.Add(1)
		durable.CrashPoint("checkpoint.after-passive")
		select {
		case c.finish <- struct{}{}:
		default:
		}
	}
}

// failed reports an error. After an I/O error what was written may be lost without
// another word from the disk, so the replica must not go on to say that it is durable.
func (c *checkpointer) failed(what string, err error) bool {
	switch {
	case err == nil:
		return false
	case isCode(err, sqlite.IOErr) || isCode(err, sqlite.Corrupt):
		c.d.halt(fmt.Errorf("%s: %w", what, err))
	case !isCode(err, sqlite.Busy):
		c.d.cfg.Logger.Warn(what, "db", c.d.cfg.Name, "err", err)
	}
	return true
}

func (c *checkpointer) close() error {
	close(c.stop)
	<-c.done
	<-c.slot // whoever syncs or pins has ended
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

// walSize is the log's length. SQLite cuts it to WALBytes when it starts the log over.
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
	select {
	case <-c.slot:
	default:
		return // a copy is being pinned, or a sync runs
	}
	defer c.unlock()
	if c.walSize() > gateFactor*c.d.cfg.WALBytes && time.Since(c.gated) > gatePause {
		c.gated = time.Now()
		defer c.d.readers.gate(readerGate)()
	}
	_, _, err := c.d.w.Checkpoint(sqlite.Passive)
	c.failed("checkpoint", err)
}

// Sync makes the database file durable up to at least its present mark, without
// moving a page: it syncs the write-ahead log (H18).
func (d *DB) Sync() error {
	if err := d.Err(); err != nil {
		return err
	}
	c := d.check
	if err := c.lock(context.Background()); err != nil {
		return err
	}
	defer c.unlock()
	err := c.conn.SyncWAL()
	if err == nil {
		err = c.conn.SyncFile()
	}
	c.failed("sync", err)
	return err
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
	if err := d.check.lock(ctx); err != nil {
		return nil, err
	}
	defer d.check.unlock()
	var p *Pin
	var err error
	var claimed atomic.Bool // by the owner, to pin; or by the caller, to give up
	done := make(chan struct{})
	doErr := d.Do(ctx, func() {
		if claimed.CompareAndSwap(false, true) {
			p, err = d.pin()
			close(done)
		}
	})
	if doErr == nil {
		return p, err
	}
	if claimed.CompareAndSwap(false, true) {
		return nil, doErr
	}
	<-done
	if p != nil {
		p.Release()
	}
	return nil, errors.Join(doErr, err)
}

// pin runs on the owner, which holds no transaction; the caller keeps checkpoints out.
func (d *DB) pin() (_ *Pin, err error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
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
func Verify(path string) (m wire.Mark, incarnation uint64, err error) { return verify(path, nil) }

func verify(path string, lib *Library) (m wire.Mark, incarnation uint64, err error) {
	c, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return m, 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := lib.install(c, nil); err != nil {
		return m, 0, err
	}
	st, _, err := c.Prepare("PRAGMA quick_check(1)")
	if _, name := lacking(err); name != "" {
		return readMark(c)
	}
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
