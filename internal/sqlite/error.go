package sqlite

import (
	"fmt"
	"strings"

	lib "modernc.org/sqlite/lib"
)

// Error is what SQLite said about a call that failed.
type Error struct {
	Code     int    // primary result code
	Extended int    // extended result code; equal to Code when there is no finer one
	Msg      string // "constraint failed: UNIQUE constraint failed: t.a", without the code
	SQL      string // text of the statement, "" when there was none
	Offset   int    // byte of SQL the error points at, -1 when unknown
}

// Error has the form of modernc.org/sqlite's own database/sql driver:
// "constraint failed: UNIQUE constraint failed: t.a (2067)".
func (e *Error) Error() string {
	if e.Extended == Busy {
		return fmt.Sprintf("%s (%d) (SQLITE_BUSY)", e.Msg, e.Extended)
	}
	return fmt.Sprintf("%s (%d)", e.Msg, e.Extended)
}

// Primary result codes.
const (
	OK         = lib.SQLITE_OK
	Generic    = lib.SQLITE_ERROR
	Internal   = lib.SQLITE_INTERNAL
	Perm       = lib.SQLITE_PERM
	Abort      = lib.SQLITE_ABORT
	Busy       = lib.SQLITE_BUSY
	Locked     = lib.SQLITE_LOCKED
	NoMem      = lib.SQLITE_NOMEM
	ReadOnly   = lib.SQLITE_READONLY
	Interrupt  = lib.SQLITE_INTERRUPT
	IOErr      = lib.SQLITE_IOERR
	Corrupt    = lib.SQLITE_CORRUPT
	NotFound   = lib.SQLITE_NOTFOUND
	Full       = lib.SQLITE_FULL
	CantOpen   = lib.SQLITE_CANTOPEN
	Protocol   = lib.SQLITE_PROTOCOL
	Schema     = lib.SQLITE_SCHEMA
	TooBig     = lib.SQLITE_TOOBIG
	Constraint = lib.SQLITE_CONSTRAINT
	Mismatch   = lib.SQLITE_MISMATCH
	Misuse     = lib.SQLITE_MISUSE
	NoLFS      = lib.SQLITE_NOLFS
	Auth       = lib.SQLITE_AUTH
	Format     = lib.SQLITE_FORMAT
	Range      = lib.SQLITE_RANGE
	NotADB     = lib.SQLITE_NOTADB
)

// Extended result codes that callers tell apart.
const (
	AbortRollback        = lib.SQLITE_ABORT_ROLLBACK
	BusyRecovery         = lib.SQLITE_BUSY_RECOVERY
	BusySnapshot         = lib.SQLITE_BUSY_SNAPSHOT
	ConstraintCheck      = lib.SQLITE_CONSTRAINT_CHECK
	ConstraintForeignKey = lib.SQLITE_CONSTRAINT_FOREIGNKEY
	ConstraintNotNull    = lib.SQLITE_CONSTRAINT_NOTNULL
	ConstraintPrimaryKey = lib.SQLITE_CONSTRAINT_PRIMARYKEY
	ConstraintRowID      = lib.SQLITE_CONSTRAINT_ROWID
	ConstraintTrigger    = lib.SQLITE_CONSTRAINT_TRIGGER
	ConstraintUnique     = lib.SQLITE_CONSTRAINT_UNIQUE
	IOErrNoMem           = lib.SQLITE_IOERR_NOMEM
	IOErrShortRead       = lib.SQLITE_IOERR_SHORT_READ
)

// fail describes the failure rc of the last call on the connection. It must
// run before any other call on it, which would replace the message.
func (c *Conn) fail(rc int32, sql string) *Error {
	e := &Error{Code: int(rc & 0xff), Extended: int(rc), SQL: strings.Clone(sql), Offset: -1}
	e.Msg = gostring(lib.Xsqlite3_errstr(c.tls, rc))
	if c.db == 0 {
		return e
	}
	if msg := gostring(lib.Xsqlite3_errmsg(c.tls, c.db)); msg != "" && msg != e.Msg {
		e.Msg += ": " + msg
	}
	e.Offset = int(lib.Xsqlite3_error_offset(c.tls, c.db))
	return e
}

// failCode is for failures of which the connection keeps no message of its own.
func (c *Conn) failCode(rc int32, what string) *Error {
	msg := gostring(lib.Xsqlite3_errstr(c.tls, rc))
	return &Error{Code: int(rc & 0xff), Extended: int(rc), Msg: what + ": " + msg, Offset: -1}
}

func misuse(format string, args ...any) *Error {
	return &Error{Code: Misuse, Extended: Misuse, Msg: "bad parameter or other API misuse: " + fmt.Sprintf(format, args...), Offset: -1}
}
