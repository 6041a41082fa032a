// Package sqlite is a thin typed binding over the SQLite that
// modernc.org/sqlite carries as Go code. It exposes what database/sql cannot:
// the tail of a script, the authorizer, pinned time and chance, pre-state,
// checkpoints, and SQLite's own file handles.
//
// A Conn and its Stmts belong to one goroutine at a time; only Conn.Interrupt
// may be called from any other. Callbacks given to a Conn run on the goroutine
// that uses it, must not use the Conn and must not panic.
package sqlite

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// Options says what kind of connection Open makes.
type Options struct {
	// ReadOnly sets query_only and never creates the file. The file itself is
	// opened for writing, because a reader of a WAL database has to be able to
	// recover it.
	ReadOnly bool
	// Create makes the file if it does not exist.
	Create bool
	// Memory opens a private database in memory; the path is ignored.
	Memory bool
	// Pinned makes the connection a function of what it is told: 'now' is
	// SetNow, random() and randomblob() follow SetSeed, 'localtime' and 'utc'
	// fail, and query plans do not depend on bound values.
	Pinned bool
	// BusyTimeout is how long a call waits for a lock; 0 is not at all.
	// Interrupt does not shorten the wait.
	BusyTimeout time.Duration
	// CacheBytes bounds the page cache; 0 is SQLite's default, 2 MB.
	CacheBytes int
}

// Conn is a connection. See the package comment for its concurrency.
type Conn struct {
	tls    *libc.TLS
	db     uintptr // sqlite3*, 0 once closed
	handle uintptr // key in the registry of callbacks
	filename,
	vfsName string
	pin *pinned // nil unless Options.Pinned

	// out is a small C struct for out parameters; text is where statements
	// are copied to be compiled.
	out     uintptr
	text    uintptr
	textCap int
	bounce  uintptr // File.ReadAt's buffer in C memory, made at first use

	stmts *Stmt // open statements, doubly linked

	authorize     func(Action) Verdict
	authInstalled bool
	progress      func() bool
	preupdate     func(Change)
	names         map[string]string // interned strings of callbacks, bounded

	extensions []*extension
	admit      func(collation string) bool
	called     bool  // some extension was, since ForgetCalls
	failure    error // of a collation, until a step reports it

	// mu keeps Interrupt from using a handle that Close is freeing.
	mu     sync.Mutex
	closed bool
}

// out's layout: two pointers or integers.
const (
	outA    = 0
	outB    = 8
	outSize = 16
)

const (
	maxStatementBytes       = 1 << 30 // lengths are int32 in C; SQLite's own limit is lower
	maxRetainedText         = 64 << 10
	maxInterned             = 1024
	exclusiveVFS            = "unix-excl"
	openFlags         int32 = lib.SQLITE_OPEN_READWRITE | lib.SQLITE_OPEN_NOMUTEX | lib.SQLITE_OPEN_EXRESCODE
)

// Open opens the database file at path. The file is locked against other
// processes where the platform has the unix-excl VFS. Defensive mode is on:
// switch it off with DBConfig(ConfigDefensive, false) around work that needs a
// writable schema.
func Open(path string, o Options) (*Conn, error) {
	path, err := openPath(path, o.Memory)
	if err != nil {
		return nil, err
	}
	c := &Conn{tls: libc.NewTLS()}
	if err := c.open(path, o); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Conn) open(path string, o Options) (err error) {
	if c.out, err = calloc(c.tls, outSize); err != nil {
		return err
	}
	if c.vfsName, err = baseVFS(c.tls); err != nil {
		return err
	}
	if o.Pinned {
		if c.pin, err = newPinned(c.tls, c.vfsName); err != nil {
			return err
		}
		c.vfsName = c.pin.name
	}
	flags := openFlags
	if (o.Create || o.Memory) && (!o.ReadOnly || o.Memory) {
		flags |= lib.SQLITE_OPEN_CREATE
	}
	if err := c.openHandle(path, flags); err != nil {
		return err
	}
	c.handle = callbacks.add(c)
	if !o.Memory {
		c.filename = gostring(lib.Xsqlite3_db_filename(c.tls, c.db, zMain))
	}
	return c.configure(o)
}

func (c *Conn) openHandle(path string, flags int32) error {
	zPath, err := cstr(c.tls, path)
	if err != nil {
		return err
	}
	defer cfree(c.tls, zPath)
	zVFS, err := cstr(c.tls, c.vfsName)
	if err != nil {
		return err
	}
	defer cfree(c.tls, zVFS)
	rc := lib.Xsqlite3_open_v2(c.tls, zPath, c.out+outA, flags, zVFS)
	c.db = *at[uintptr](c.out + outA) // set even when opening failed; Close frees it
	if rc != lib.SQLITE_OK {
		e := c.fail(rc, "")
		return fmt.Errorf("open %s: %w", path, e)
	}
	return nil
}

func (c *Conn) configure(o Options) error {
	if ms := o.BusyTimeout.Milliseconds(); o.BusyTimeout > 0 {
		if rc := lib.Xsqlite3_busy_timeout(c.tls, c.db, int32(min(max(ms, 1), 1<<30))); rc != lib.SQLITE_OK {
			return c.fail(rc, "")
		}
	}
	if err := c.DBConfig(ConfigDefensive, true); err != nil {
		return err
	}
	if err := c.DBConfig(ConfigLoadExtension, false); err != nil {
		return err
	}
	if c.pin != nil {
		if err := c.DBConfig(ConfigQPSG, true); err != nil {
			return err
		}
		if err := c.pin.overrideChance(c); err != nil {
			return err
		}
	}
	if o.CacheBytes > 0 {
		if err := c.Exec(fmt.Sprintf("PRAGMA cache_size=-%d", (o.CacheBytes+1023)/1024)); err != nil {
			return err
		}
	}
	if o.ReadOnly {
		return c.Exec("PRAGMA query_only=1")
	}
	return nil
}

// openPath is the name to give to sqlite3_open_v2 for path, which must not be
// read as anything but the name of a file.
func openPath(path string, memory bool) (string, error) {
	switch {
	case memory:
		return ":memory:", nil
	case path == "":
		return "", misuse("open: the path is empty")
	case strings.IndexByte(path, 0) >= 0:
		return "", misuse("open %q: the path contains a NUL byte", path)
	case strings.HasPrefix(path, ":") || strings.HasPrefix(path, "file:"):
		return "./" + path, nil
	}
	return path, nil
}

// Close finalizes the open statements, closes the file and frees everything
// the connection held. It is idempotent.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()

	for c.stmts != nil {
		_ = c.stmts.Finalize() // repeats the error of the statement's last step
	}
	var err error
	if c.db != 0 {
		if rc := lib.Xsqlite3_close_v2(c.tls, c.db); rc != lib.SQLITE_OK {
			err = c.fail(rc, "")
		}
		c.db = 0
	}
	if c.handle != 0 {
		callbacks.remove(c.handle)
	}
	if c.pin != nil {
		err = errors.Join(err, c.pin.free(c.tls))
	}
	for _, p := range []uintptr{c.out, c.text, c.bounce} {
		cfree(c.tls, p)
	}
	c.out, c.text, c.textCap, c.bounce = 0, 0, 0, 0
	c.tls.Close()
	return err
}

func errClosed() *Error { return misuse("the connection is closed") }

// Filename is the absolute path of the database file, "" in memory.
func (c *Conn) Filename() string { return c.filename }

// Interrupt makes the statement that is running fail with code Interrupt. It
// may be called from any goroutine and does nothing when no statement runs or
// the connection is closed.
func (c *Conn) Interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.db != 0 {
		lib.Xsqlite3_interrupt(c.tls, c.db) // stores one flag; does not use the tls
	}
}

// Exec runs every statement of a script that takes no arguments and discards
// their rows. It stops at the first error.
func (c *Conn) Exec(sql string) error {
	for sql != "" {
		st, tail, err := c.prepare(sql, 0)
		if err != nil {
			return err
		}
		sql = tail
		if st == nil {
			continue
		}
		row := true
		for row && err == nil {
			row, err = st.Step()
		}
		if ferr := st.Finalize(); err == nil {
			err = ferr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Autocommit reports that no transaction is open.
func (c *Conn) Autocommit() bool {
	return c.db == 0 || lib.Xsqlite3_get_autocommit(c.tls, c.db) != 0
}

// Changes is the number of rows the last completed INSERT, UPDATE or DELETE
// changed directly. Other statements leave it as it was.
func (c *Conn) Changes() int64 {
	if c.db == 0 {
		return 0
	}
	return lib.Xsqlite3_changes64(c.tls, c.db)
}

// TotalChanges is the number of rows changed since the connection was opened,
// triggers and foreign key actions included.
func (c *Conn) TotalChanges() int64 {
	if c.db == 0 {
		return 0
	}
	return lib.Xsqlite3_total_changes64(c.tls, c.db)
}

// LastInsertRowID is the rowid of the last successful INSERT.
func (c *Conn) LastInsertRowID() int64 {
	if c.db == 0 {
		return 0
	}
	return lib.Xsqlite3_last_insert_rowid(c.tls, c.db)
}

// SetPreState sets what last_insert_rowid() and changes() return until a
// statement changes them.
func (c *Conn) SetPreState(lastInsertRowID, changes int64) {
	if c.db == 0 {
		return
	}
	lib.Xsqlite3_set_last_insert_rowid(c.tls, c.db, lastInsertRowID)
	at[lib.Tsqlite3](c.db).FnChange = changes
}

// SetTotalChanges sets what total_changes() counts on from.
func (c *Conn) SetTotalChanges(n int64) {
	if c.db != 0 {
		at[lib.Tsqlite3](c.db).FnTotalChange = n
	}
}

// DeferredForeignKeys reports whether a COMMIT of the open transaction would fail for a
// deferred foreign key. As SQLite does, it adds two counts and asks whether the sum is zero:
// each can be below it, because a row that was orphaned before foreign keys were enforced
// takes one away when it goes or finds a parent. SQLITE_DBSTATUS_DEFERRED_FKS asks whether
// one of them is above it.
func (c *Conn) DeferredForeignKeys() (bool, error) {
	if c.db == 0 {
		return false, errClosed()
	}
	db := at[lib.Tsqlite3](c.db)
	return db.FnDeferredCons+db.FnDeferredImmCons != 0, nil
}

// Checkpoint copies frames of the WAL into the database file. walFrames is the
// length of the WAL, backfilled how much of it the file holds now; both are -1
// when the database is not in WAL mode. With code Busy the two are still valid.
func (c *Conn) Checkpoint(mode CheckpointMode) (walFrames, backfilled int, err error) {
	if c.db == 0 {
		return 0, 0, errClosed()
	}
	*at[int32](c.out + outA), *at[int32](c.out + outB) = -1, -1
	rc := lib.Xsqlite3_wal_checkpoint_v2(c.tls, c.db, zMain, int32(mode), c.out+outA, c.out+outB)
	walFrames, backfilled = int(*at[int32](c.out + outA)), int(*at[int32](c.out + outB))
	if rc != lib.SQLITE_OK {
		return walFrames, backfilled, c.fail(rc, "")
	}
	return walFrames, backfilled, nil
}

// Limit sets one of the Limit constants and returns what it was. A negative
// value changes nothing; -1 is returned for an unknown limit.
func (c *Conn) Limit(id, value int) (prev int) {
	if c.db == 0 {
		return -1
	}
	return int(lib.Xsqlite3_limit(c.tls, c.db, int32(id), int32(min(value, 1<<31-1))))
}

// DBConfig turns one of the Config constants on or off.
func (c *Conn) DBConfig(op int32, on bool) error {
	if c.db == 0 {
		return errClosed()
	}
	var v int32
	if on {
		v = 1
	}
	const vaSlot = 8 // every variadic argument takes 8 bytes on all targets
	bp := c.tls.Alloc(2 * vaSlot)
	defer c.tls.Free(2 * vaSlot)
	if rc := lib.Xsqlite3_db_config(c.tls, c.db, op, libc.VaList(bp, v, uintptr(0))); rc != lib.SQLITE_OK {
		return c.failCode(rc, fmt.Sprintf("database configuration %d", op))
	}
	return nil
}

// ReleaseMemory gives back what the connection's caches do not need.
func (c *Conn) ReleaseMemory() {
	if c.db != 0 {
		lib.Xsqlite3_db_release_memory(c.tls, c.db)
	}
}

// baseVFS is the name of the VFS to open files with: the one that keeps other
// processes out where there is one, else the platform's default.
func baseVFS(tls *libc.TLS) (string, error) {
	if rc := lib.Xsqlite3_initialize(tls); rc != lib.SQLITE_OK {
		return "", &Error{Code: int(rc & 0xff), Extended: int(rc), Msg: "sqlite does not initialize", Offset: -1}
	}
	z, err := cstr(tls, exclusiveVFS)
	if err != nil {
		return "", err
	}
	defer cfree(tls, z)
	p := lib.Xsqlite3_vfs_find(tls, z)
	if p == 0 {
		p = lib.Xsqlite3_vfs_find(tls, 0)
	}
	if p == 0 {
		return "", misuse("no VFS is registered")
	}
	return gostring(at[lib.Tsqlite3_vfs](p).FzName), nil
}
