package sqlite

import (
	"math"
	"strings"

	"modernc.org/libc"
	"modernc.org/libc/sys/types"
	lib "modernc.org/sqlite/lib"
)

// Stmt is a prepared statement. After Finalize or the connection's Close its
// methods return errors or zero values.
//
// SQLite compiles a statement again by itself, inside the first Step after a
// schema change. The description of the columns is therefore only certain
// after Step; what ColumnName and ColumnDeclType remember is dropped when a
// Step finds that this has happened.
type Stmt struct {
	c          *Conn
	p          uintptr // sqlite3_stmt*, 0 once finalized
	sql        string
	next, prev *Stmt // in Conn.stmts

	slots  []slot // memory of bound texts and blobs, by parameter
	params []string

	// active is set from the first Step until Reset: bound memory is in use.
	active    bool
	reprepare int32 // SQLite's count of automatic compilations at the last look
	columns   []column
}

// slot is C memory that holds the value bound to one parameter. Each parameter
// has its own, so rebinding one of them never moves another's value.
type slot struct {
	p   uintptr
	cap int
}

type column struct{ name, declType string }

const (
	minSlot = 32
	maxSlot = 64 << 10 // a larger slot is not kept for a smaller value
)

// Prepare compiles the first statement of sql and returns the rest of the
// text. A nil statement without an error means that there was nothing but
// white space and comments.
func (c *Conn) Prepare(sql string) (st *Stmt, tail string, err error) {
	return c.prepare(sql, lib.SQLITE_PREPARE_PERSISTENT)
}

func (c *Conn) prepare(sql string, flags uint32) (*Stmt, string, error) {
	switch {
	case c.db == 0:
		return nil, "", errClosed()
	case len(sql) > maxStatementBytes:
		return nil, "", &Error{Code: TooBig, Extended: TooBig, Msg: "string or blob too big: SQL text", Offset: -1}
	}
	if i := strings.IndexByte(sql, 0); i >= 0 {
		return nil, "", &Error{Code: Generic, Extended: Generic, SQL: strings.Clone(sql), Offset: i,
			Msg: "SQL logic error: the text of the statement contains a NUL byte"}
	}
	z, err := c.copyText(sql)
	if err != nil {
		return nil, "", err
	}
	// The terminator is counted, so that SQLite needs no copy of its own.
	rc := lib.Xsqlite3_prepare_v3(c.tls, c.db, z, int32(len(sql)+1), flags, c.out+outA, c.out+outB)
	p, end := *at[uintptr](c.out + outA), int(*at[uintptr](c.out + outB)-z)
	if rc != lib.SQLITE_OK {
		return nil, "", c.fail(rc, sql)
	}
	if c.failure != nil { // the planner compares texts too
		lib.Xsqlite3_finalize(c.tls, p)
		return nil, "", c.takeFailure()
	}
	if p == 0 {
		return nil, sql[end:], nil
	}
	st := &Stmt{c: c, p: p, sql: sql[:end], next: c.stmts}
	if c.stmts != nil {
		c.stmts.prev = st
	}
	c.stmts = st
	st.slots = make([]slot, lib.Xsqlite3_bind_parameter_count(c.tls, p))
	return st, sql[end:], nil
}

// copyText puts sql, terminated, where C can read it until the next copyText.
func (c *Conn) copyText(sql string) (uintptr, error) {
	need := len(sql) + 1
	if need > c.textCap || c.textCap > maxRetainedText && need <= maxRetainedText {
		n := max(1024, need)
		p := libc.Xmalloc(c.tls, types.Size_t(n))
		if p == 0 {
			return 0, c.failCode(lib.SQLITE_NOMEM, "SQL text")
		}
		cfree(c.tls, c.text)
		c.text, c.textCap = p, n
	}
	b := view(c.text, need)
	copy(b, sql)
	b[len(sql)] = 0
	return c.text, nil
}

// Finalize frees the statement. It returns no error for a statement whose last
// Step failed: that error was returned by Step.
func (s *Stmt) Finalize() error {
	if s.p == 0 {
		return nil
	}
	_ = s.reset() // so that finalizing does not repeat the error of the last step
	rc := lib.Xsqlite3_finalize(s.c.tls, s.p)
	s.p = 0
	for i := range s.slots {
		cfree(s.c.tls, s.slots[i].p)
		s.slots[i] = slot{}
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		s.c.stmts = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	s.next, s.prev = nil, nil
	if rc != lib.SQLITE_OK {
		return s.c.fail(rc, s.sql)
	}
	return nil
}

// SQL is the text of this statement alone, leading white space included.
func (s *Stmt) SQL() string { return s.sql }

// ReadOnly is sqlite3_stmt_readonly: true also for BEGIN, COMMIT, SAVEPOINT,
// ATTACH and some PRAGMAs.
func (s *Stmt) ReadOnly() bool {
	return s.p != 0 && lib.Xsqlite3_stmt_readonly(s.c.tls, s.p) != 0
}

// IsExplain reports EXPLAIN and EXPLAIN QUERY PLAN.
func (s *Stmt) IsExplain() bool {
	return s.p != 0 && lib.Xsqlite3_stmt_isexplain(s.c.tls, s.p) != 0
}

// Busy reports that the statement has been stepped and neither ran to its end
// nor was reset.
func (s *Stmt) Busy() bool {
	return s.p != 0 && lib.Xsqlite3_stmt_busy(s.c.tls, s.p) != 0
}

// ParamCount is the largest parameter index.
func (s *Stmt) ParamCount() int { return len(s.slots) }

// ParamName is the name of parameter i, counted from 1, with its prefix, or ""
// for one without a name.
func (s *Stmt) ParamName(i int) string {
	s.loadParams()
	if i < 1 || i > len(s.params) {
		return ""
	}
	return s.params[i-1]
}

// ParamIndex is the index of the parameter called name, prefix included, or 0.
func (s *Stmt) ParamIndex(name string) int {
	s.loadParams()
	if name == "" {
		return 0
	}
	for i, p := range s.params {
		if p == name {
			return i + 1
		}
	}
	return 0
}

func (s *Stmt) loadParams() {
	if s.params != nil || s.p == 0 || len(s.slots) == 0 {
		return
	}
	s.params = make([]string, len(s.slots))
	for i := range s.params {
		s.params[i] = gostring(lib.Xsqlite3_bind_parameter_name(s.c.tls, s.p, int32(i+1)))
	}
}

// bindable refuses what would change a value in use: SQLite refuses it too,
// but only after the slot's memory would have been overwritten.
func (s *Stmt) bindable(i int) error {
	switch {
	case s.p == 0:
		return misuse("the statement is finalized")
	case s.active:
		return misuse("a parameter is bound to a statement that was stepped and not reset")
	case i < 1 || i > len(s.slots):
		return &Error{Code: Range, Extended: Range, Msg: "column index out of range", SQL: s.sql, Offset: -1}
	}
	return nil
}

func (s *Stmt) bound(rc int32) error {
	if rc != lib.SQLITE_OK {
		return s.c.fail(rc, s.sql)
	}
	return nil
}

// BindNull binds NULL to parameter i, counted from 1.
func (s *Stmt) BindNull(i int) error {
	if err := s.bindable(i); err != nil {
		return err
	}
	return s.bound(lib.Xsqlite3_bind_null(s.c.tls, s.p, int32(i)))
}

// BindInt64 binds an integer to parameter i, counted from 1.
func (s *Stmt) BindInt64(i int, v int64) error {
	if err := s.bindable(i); err != nil {
		return err
	}
	return s.bound(lib.Xsqlite3_bind_int64(s.c.tls, s.p, int32(i), v))
}

// BindFloat64 binds a float to parameter i, counted from 1. SQLite turns NaN
// into NULL.
func (s *Stmt) BindFloat64(i int, v float64) error {
	if err := s.bindable(i); err != nil {
		return err
	}
	return s.bound(lib.Xsqlite3_bind_double(s.c.tls, s.p, int32(i), v))
}

// BindText binds a copy of b as text to parameter i, counted from 1. The bytes
// are not checked to be UTF-8.
func (s *Stmt) BindText(i int, b []byte) error {
	p, err := s.fill(i, b)
	if err != nil {
		return err
	}
	return s.bound(lib.Xsqlite3_bind_text64(s.c.tls, s.p, int32(i), p, uint64(len(b)), 0, lib.SQLITE_UTF8))
}

// BindBlob binds a copy of b as a blob to parameter i, counted from 1. A nil
// or empty b is an empty blob, not NULL.
func (s *Stmt) BindBlob(i int, b []byte) error {
	p, err := s.fill(i, b)
	if err != nil {
		return err
	}
	return s.bound(lib.Xsqlite3_bind_blob64(s.c.tls, s.p, int32(i), p, uint64(len(b)), 0))
}

// fill copies b into the parameter's slot. What was bound before may point
// there: SQLite never reads it again, it only drops the reference.
func (s *Stmt) fill(i int, b []byte) (uintptr, error) {
	if err := s.bindable(i); err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return zEmpty, nil
	}
	if len(b) > maxStatementBytes {
		return 0, &Error{Code: TooBig, Extended: TooBig, Msg: "string or blob too big", SQL: s.sql, Offset: -1}
	}
	sl := &s.slots[i-1]
	if len(b) > sl.cap || sl.cap > maxSlot && len(b) <= maxSlot {
		n := len(b)
		if n <= maxSlot {
			n = max(minSlot, n+n/2)
		}
		p := libc.Xmalloc(s.c.tls, types.Size_t(n))
		if p == 0 {
			return 0, s.c.failCode(lib.SQLITE_NOMEM, "bound value")
		}
		// The old value stays bound until the caller binds the new one, which
		// it does next; if SQLite refuses that, the old reference must not
		// outlive its memory.
		lib.Xsqlite3_bind_null(s.c.tls, s.p, int32(i))
		cfree(s.c.tls, sl.p)
		sl.p, sl.cap = p, n
	}
	copy(view(sl.p, len(b)), b)
	return sl.p, nil
}

// ClearBindings sets all parameters to NULL and gives back the memory of large
// values. It may only be called on a statement that is reset.
func (s *Stmt) ClearBindings() error {
	switch {
	case s.p == 0:
		return misuse("the statement is finalized")
	case s.active:
		return misuse("parameters are cleared on a statement that was stepped and not reset")
	}
	lib.Xsqlite3_clear_bindings(s.c.tls, s.p)
	for i := range s.slots {
		if s.slots[i].cap > maxSlot {
			cfree(s.c.tls, s.slots[i].p)
			s.slots[i] = slot{}
		}
	}
	return nil
}

// Step runs the statement to its next row; false without an error is the end.
// After an error the statement is reset; after the end it has to be Reset
// before a parameter can be bound again. When a collation panicked the step fails, but
// what the statement changed meanwhile is not undone: roll back.
func (s *Stmt) Step() (row bool, err error) {
	if s.p == 0 {
		return false, misuse("the statement is finalized")
	}
	rc := lib.Xsqlite3_step(s.c.tls, s.p)
	if !s.active {
		s.active = true
		s.noticeReprepare()
	}
	if s.c.failure != nil {
		_ = s.reset()
		return false, s.c.takeFailure()
	}
	switch rc {
	case lib.SQLITE_ROW:
		return true, nil
	case lib.SQLITE_DONE:
		return false, nil
	}
	e := s.c.fail(rc, s.sql)
	_ = s.reset() // repeats the error
	return false, e
}

// noticeReprepare drops what is known of the columns if SQLite compiled the
// statement again, which it does in the first step after a reset only.
func (s *Stmt) noticeReprepare() {
	n := lib.Xsqlite3_stmt_status(s.c.tls, s.p, lib.SQLITE_STMTSTATUS_REPREPARE, 0)
	if n != s.reprepare {
		s.reprepare, s.columns = n, nil
	}
}

// Reset makes the statement ready to be bound and run again; bound values
// stay. It ends an unfinished run, whose error, if any, Step has returned.
func (s *Stmt) Reset() error {
	if s.p == 0 {
		return misuse("the statement is finalized")
	}
	if rc := s.reset(); rc != lib.SQLITE_OK {
		return s.c.fail(rc, s.sql)
	}
	return nil
}

func (s *Stmt) reset() int32 {
	s.active = false
	return lib.Xsqlite3_reset(s.c.tls, s.p)
}

// ColumnCount is the number of columns of a row, 0 for a statement that
// returns none.
func (s *Stmt) ColumnCount() int {
	if s.p == 0 {
		return 0
	}
	return int(lib.Xsqlite3_column_count(s.c.tls, s.p))
}

// ColumnName is the name of column i, counted from 0.
func (s *Stmt) ColumnName(i int) string { return s.column(i).name }

// ColumnDeclType is the declared type of the table column that result column
// i, counted from 0, comes from; "" for an expression.
func (s *Stmt) ColumnDeclType(i int) string { return s.column(i).declType }

func (s *Stmt) column(i int) column {
	if s.columns == nil && s.p != 0 {
		n := s.ColumnCount()
		s.columns = make([]column, n)
		for j := range s.columns {
			s.columns[j] = column{
				name:     gostring(lib.Xsqlite3_column_name(s.c.tls, s.p, int32(j))),
				declType: gostring(lib.Xsqlite3_column_decltype(s.c.tls, s.p, int32(j))),
			}
		}
	}
	if i < 0 || i >= len(s.columns) {
		return column{}
	}
	return s.columns[i]
}

// ColumnType is the storage class of column i of the current row.
func (s *Stmt) ColumnType(i int) Type {
	if !s.columnOK(i) {
		return TypeNull
	}
	return Type(lib.Xsqlite3_column_type(s.c.tls, s.p, int32(i)))
}

// ColumnInt64 is column i of the current row as an integer.
func (s *Stmt) ColumnInt64(i int) int64 {
	if !s.columnOK(i) {
		return 0
	}
	return lib.Xsqlite3_column_int64(s.c.tls, s.p, int32(i))
}

// ColumnFloat64 is column i of the current row as a float.
func (s *Stmt) ColumnFloat64(i int) float64 {
	if !s.columnOK(i) {
		return 0
	}
	return lib.Xsqlite3_column_double(s.c.tls, s.p, int32(i))
}

// ColumnBytes is a text or blob column of the current row. The bytes are
// SQLite's own: they are valid until the next Step, Reset or Finalize and must
// not be written to. It is nil for an empty value and for NULL, which
// ColumnType tells apart; numbers come as text.
func (s *Stmt) ColumnBytes(i int) []byte {
	if !s.columnOK(i) {
		return nil
	}
	tls, p, n := s.c.tls, s.p, int32(i)
	var data uintptr
	if lib.Xsqlite3_column_type(tls, p, n) == lib.SQLITE_BLOB {
		data = lib.Xsqlite3_column_blob(tls, p, n)
	} else {
		data = lib.Xsqlite3_column_text(tls, p, n) // also converts a UTF-16 database's text
	}
	return view(data, int(lib.Xsqlite3_column_bytes(tls, p, n)))
}

// ColumnText is a copy of column i of the current row as text.
func (s *Stmt) ColumnText(i int) string { return string(s.ColumnBytes(i)) }

// columnOK guards against a finalized statement and an index that C cannot
// hold. SQLite itself answers NULL for a column that does not exist.
func (s *Stmt) columnOK(i int) bool { return s.p != 0 && i >= 0 && i <= math.MaxInt32 }
