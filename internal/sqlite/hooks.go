package sqlite

import (
	"slices"
	"sync"
	"sync/atomic"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// callbacks finds the connection a C callback is for. C carries an integer,
// never a Go pointer. Lookups take no lock: one may happen per row.
var callbacks registry

type registry struct {
	mu    sync.Mutex
	conns atomic.Pointer[[]*Conn] // handle-1 is the index; replaced, never written to
}

func (r *registry) add(c *Conn) uintptr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var conns []*Conn
	if p := r.conns.Load(); p != nil {
		conns = slices.Clone(*p)
	}
	i := slices.Index(conns, nil)
	if i < 0 {
		i = len(conns)
		conns = append(conns, nil)
	}
	conns[i] = c
	r.conns.Store(&conns)
	return uintptr(i + 1)
}

func (r *registry) remove(h uintptr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	conns := slices.Clone(*r.conns.Load())
	conns[h-1] = nil
	for len(conns) > 0 && conns[len(conns)-1] == nil {
		conns = conns[:len(conns)-1]
	}
	r.conns.Store(&conns)
}

func (r *registry) get(h uintptr) *Conn { return (*r.conns.Load())[h-1] }

var (
	fpAuthorize = fp(authorizeC)
	fpProgress  = fp(progressC)
	fpPreupdate = fp(preupdateC)
)

// Action is what an authorizer is asked about. The meaning of Arg1 and Arg2
// stands at the Action constants; Trigger is the innermost trigger or view on
// whose behalf it happens, "" for the statement itself.
type Action struct {
	Code                          int32
	Arg1, Arg2, Database, Trigger string
}

// SetAuthorizer has fn decide on every action of statements compiled from now
// on; nil allows everything. Statements that are already compiled are asked
// about only when SQLite compiles them again, by the function set at that time:
// replacing one function by another costs nothing and expires nothing. (The
// very first non-nil function expires the connection's open statements.)
func (c *Conn) SetAuthorizer(fn func(Action) Verdict) {
	c.authorize = fn
	if fn == nil || c.authInstalled || c.db == 0 {
		return
	}
	lib.Xsqlite3_set_authorizer(c.tls, c.db, fpAuthorize, c.handle)
	c.authInstalled = true
}

func authorizeC(_ *libc.TLS, h uintptr, code int32, z1, z2, zDatabase, zTrigger uintptr) int32 {
	c := callbacks.get(h)
	if c.authorize == nil {
		return lib.SQLITE_OK
	}
	return int32(c.authorize(Action{
		Code:     code,
		Arg1:     c.intern(z1),
		Arg2:     c.intern(z2),
		Database: c.intern(zDatabase),
		Trigger:  c.intern(zTrigger),
	}))
}

// intern is the string at p, without an allocation when it was seen before:
// callbacks repeat the names of a few tables and columns.
func (c *Conn) intern(p uintptr) string {
	b := cbytes(p)
	if len(b) == 0 {
		return ""
	}
	if s, ok := c.names[string(b)]; ok {
		return s
	}
	if len(c.names) >= maxInterned || c.names == nil {
		c.names = make(map[string]string)
	}
	s := string(b)
	c.names[s] = s
	return s
}

// SetProgress calls fn about every ops virtual machine operations of a running
// statement; true interrupts the statement. A nil fn or ops < 1 removes it.
func (c *Conn) SetProgress(ops int, fn func() bool) {
	if c.db == 0 {
		return
	}
	if fn == nil || ops < 1 {
		c.progress = nil
		lib.Xsqlite3_progress_handler(c.tls, c.db, 0, 0, 0)
		return
	}
	c.progress = fn
	lib.Xsqlite3_progress_handler(c.tls, c.db, int32(min(ops, 1<<30)), fpProgress, c.handle)
}

func progressC(_ *libc.TLS, h uintptr) int32 {
	if c := callbacks.get(h); c.progress != nil && c.progress() {
		return 1
	}
	return 0
}

// SetPreupdate calls fn before each row change, also those of triggers,
// foreign key actions, REPLACE and the tables behind virtual tables; not for
// the schema. A later abort may undo a change that was reported. Nil removes.
func (c *Conn) SetPreupdate(fn func(Change)) {
	if c.db == 0 {
		return
	}
	c.preupdate = fn
	if fn == nil {
		lib.Xsqlite3_preupdate_hook(c.tls, c.db, 0, 0)
		return
	}
	lib.Xsqlite3_preupdate_hook(c.tls, c.db, fpPreupdate, c.handle)
}

// Change is a row about to change. Its methods work during the callback only.
type Change struct {
	Op, Table          string // Op is OpInsert, OpUpdate or OpDelete
	Database           string // "main", "temp" or an attached database
	OldRowID, NewRowID int64  // meaningless for a WITHOUT ROWID table

	c *Conn
}

func preupdateC(_ *libc.TLS, h, _ uintptr, op int32, zDatabase, zTable uintptr, oldRowID, newRowID int64) {
	c := callbacks.get(h)
	if c.preupdate == nil {
		return
	}
	ch := Change{Database: c.intern(zDatabase), Table: c.intern(zTable), OldRowID: oldRowID, NewRowID: newRowID, c: c}
	switch op {
	case lib.SQLITE_INSERT:
		ch.Op = OpInsert
	case lib.SQLITE_UPDATE:
		ch.Op = OpUpdate
	case lib.SQLITE_DELETE:
		ch.Op = OpDelete
	}
	c.preupdate(ch)
}

// Columns is the number of columns of the row.
func (ch Change) Columns() int { return int(lib.Xsqlite3_preupdate_count(ch.c.tls, ch.c.db)) }

// Depth is 0 for a change the statement makes itself, 1 for one of a trigger
// or foreign key action it fires, and so on.
func (ch Change) Depth() int { return int(lib.Xsqlite3_preupdate_depth(ch.c.tls, ch.c.db)) }

// Old is the value of column i, counted from 0, before an update or delete.
func (ch Change) Old(i int) (Value, error) {
	rc := lib.Xsqlite3_preupdate_old(ch.c.tls, ch.c.db, int32(i), ch.c.out+outA)
	return ch.value(rc)
}

// New is the value of column i, counted from 0, after an insert or update.
func (ch Change) New(i int) (Value, error) {
	rc := lib.Xsqlite3_preupdate_new(ch.c.tls, ch.c.db, int32(i), ch.c.out+outA)
	return ch.value(rc)
}

func (ch Change) value(rc int32) (Value, error) {
	if rc != lib.SQLITE_OK {
		return Value{Type: TypeNull}, ch.c.failCode(rc, "value of a changed row")
	}
	return valueOf(ch.c.tls, *at[uintptr](ch.c.out + outA)), nil
}

// Value is one value of a changed row. Bytes is valid during the callback only.
type Value struct {
	Type  Type
	Int   int64
	Float float64
	Bytes []byte // of a text or blob
}

func valueOf(tls *libc.TLS, p uintptr) Value {
	v := Value{Type: TypeNull}
	if p == 0 {
		return v
	}
	switch v.Type = Type(lib.Xsqlite3_value_type(tls, p)); v.Type {
	case TypeInt:
		v.Int = lib.Xsqlite3_value_int64(tls, p)
	case TypeFloat:
		v.Float = lib.Xsqlite3_value_double(tls, p)
	case TypeText:
		z := lib.Xsqlite3_value_text(tls, p)
		v.Bytes = view(z, int(lib.Xsqlite3_value_bytes(tls, p)))
	case TypeBlob:
		z := lib.Xsqlite3_value_blob(tls, p)
		v.Bytes = view(z, int(lib.Xsqlite3_value_bytes(tls, p)))
	}
	return v
}
