package sqlite

import (
	"io"
	"strings"
	"unsafe"

	"modernc.org/libc"
	"modernc.org/libc/sys/types"
	lib "modernc.org/sqlite/lib"
)

// File is one of the files SQLite itself has open. Opening a live database a
// second time and closing it again would drop SQLite's POSIX locks; reading
// through SQLite's own handle does not.
//
// Its methods look the handle up each time, so a File never points at freed
// memory. They use the connection and belong to its goroutine; only the
// descriptor that Fd returns may be used elsewhere, while the connection is
// open and, for the WAL, stays in WAL mode.
type File struct {
	c  *Conn
	op int32
}

const bounceBytes = 64 << 10

// MainFile is the database file, nil when there is none.
func (c *Conn) MainFile() *File { return c.file(lib.SQLITE_FCNTL_FILE_POINTER) }

// WALFile is the write-ahead log. It is nil until the connection has read from
// a database in WAL mode.
func (c *Conn) WALFile() *File { return c.file(lib.SQLITE_FCNTL_JOURNAL_POINTER) }

func (c *Conn) file(op int32) *File {
	f := &File{c: c, op: op}
	if p, _ := f.handle(); p == 0 {
		return nil
	}
	return f
}

// handle is the sqlite3_file and its methods, 0 and nil if it is not open.
func (f *File) handle() (uintptr, *lib.Tsqlite3_io_methods) {
	p, m := f.c.fileHandle(f.op)
	if p == 0 || f.op == lib.SQLITE_FCNTL_FILE_POINTER {
		return p, m
	}
	// Outside WAL mode the answer is the rollback journal, which may be no
	// file of the operating system at all. Those share the way they are read
	// with the database file; only then does the handle have a path.
	if mp, main := f.c.fileHandle(lib.SQLITE_FCNTL_FILE_POINTER); mp == 0 || main.FxRead != m.FxRead {
		return 0, nil
	}
	if !strings.HasSuffix(filePath(p), "-wal") {
		return 0, nil
	}
	return p, m
}

func (c *Conn) fileHandle(op int32) (uintptr, *lib.Tsqlite3_io_methods) {
	if c.db == 0 {
		return 0, nil
	}
	*at[uintptr](c.out + outA) = 0
	if rc := lib.Xsqlite3_file_control(c.tls, c.db, zMain, op, c.out+outA); rc != lib.SQLITE_OK {
		return 0, nil
	}
	p := *at[uintptr](c.out + outA)
	if p == 0 {
		return 0, nil
	}
	methods := at[lib.Tsqlite3_file](p).FpMethods
	if methods == 0 {
		return 0, nil
	}
	return p, at[lib.Tsqlite3_io_methods](methods)
}

func (f *File) errGone() error { return misuse("the file is not open any more") }

// Size is the length of the file in bytes.
func (f *File) Size() (int64, error) {
	p, m := f.handle()
	if p == 0 {
		return 0, f.errGone()
	}
	return f.size(p, m)
}

func (f *File) size(p uintptr, m *lib.Tsqlite3_io_methods) (int64, error) {
	out := f.c.out + outA
	fileSize := *(*func(*libc.TLS, uintptr, uintptr) int32)(unsafe.Pointer(&struct{ uintptr }{m.FxFileSize}))
	if rc := fileSize(f.c.tls, p, out); rc != lib.SQLITE_OK {
		return 0, f.c.failCode(rc, "file size")
	}
	return *at[int64](out), nil
}

// ReadAt reads as io.ReaderAt does.
func (f *File) ReadAt(b []byte, off int64) (n int, err error) {
	p, m := f.handle()
	if p == 0 {
		return 0, f.errGone()
	}
	if off < 0 {
		return 0, misuse("read at offset %d", off)
	}
	size, err := f.size(p, m)
	if err != nil {
		return 0, err
	}
	want := b[:min(int64(len(b)), max(0, size-off))]
	for n < len(want) {
		k, err := f.readChunk(p, m, want[n:], off+int64(n))
		n += k
		if err != nil {
			return n, err
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// readChunk reads through C memory: a slice on a goroutine's stack may move
// while C code fills it.
func (f *File) readChunk(p uintptr, m *lib.Tsqlite3_io_methods, b []byte, off int64) (int, error) {
	c := f.c
	if c.bounce == 0 {
		if c.bounce = libc.Xmalloc(c.tls, types.Size_t(bounceBytes)); c.bounce == 0 {
			return 0, c.failCode(lib.SQLITE_NOMEM, "read buffer")
		}
	}
	n := min(len(b), bounceBytes)
	read := *(*func(*libc.TLS, uintptr, uintptr, int32, int64) int32)(unsafe.Pointer(&struct{ uintptr }{m.FxRead}))
	switch rc := read(c.tls, p, c.bounce, int32(n), off); rc {
	case lib.SQLITE_OK:
		return copy(b, view(c.bounce, n)), nil
	case lib.SQLITE_IOERR_SHORT_READ: // cut off since its size was asked for
		return 0, io.ErrUnexpectedEOF
	default:
		return 0, c.failCode(rc, "read")
	}
}

func (f *File) sync() error {
	p, m := f.handle()
	if p == 0 {
		return nil
	}
	sync := *(*func(*libc.TLS, uintptr, int32) int32)(unsafe.Pointer(&struct{ uintptr }{m.FxSync}))
	// FULL asks macOS for F_FULLFSYNC; elsewhere it is fsync.
	if rc := sync(f.c.tls, p, lib.SQLITE_SYNC_FULL); rc != lib.SQLITE_OK {
		return f.c.failCode(rc, "sync")
	}
	return nil
}

// SyncWAL makes the write-ahead log durable, and its directory entry when this
// handle created it. It does nothing when no log is open.
func (c *Conn) SyncWAL() error {
	if c.db == 0 {
		return errClosed()
	}
	return (&File{c: c, op: lib.SQLITE_FCNTL_JOURNAL_POINTER}).sync()
}

// SyncFile makes the database file durable. It does nothing in memory.
func (c *Conn) SyncFile() error {
	if c.db == 0 {
		return errClosed()
	}
	return (&File{c: c, op: lib.SQLITE_FCNTL_FILE_POINTER}).sync()
}
