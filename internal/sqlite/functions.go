package sqlite

import (
	"fmt"
	"strings"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// Function is a scalar function written in Go. It must depend on nothing but its
// arguments, which are int64, float64, string, []byte or nil and its own to keep; its
// result is one of these or a bool.
type Function struct {
	Name string
	Args int // number of arguments, -1 any
	Func func(args []any) (any, error)
}

// Collation is an order of texts written in Go: Compare is negative, 0 or positive.
// It must depend on nothing but its arguments and be a total order.
type Collation struct {
	Name    string
	Compare func(a, b string) int
}

// extension is a function or collation of a connection. C finds it by the
// connection's handle and its place in the connection's list, which never shrinks:
// nothing in C memory has to be freed.
type extension struct {
	function  Function
	collation Collation
	active    bool // a collation that SQLite has now
	called    bool // since ForgetCalls
}

// maxExtensions is how many functions and collations a connection takes.
const (
	extensionBits = 9
	maxExtensions = 1 << extensionBits
)

var (
	fpFunction        = fp(functionC)
	fpCompare         = fp(compareC)
	fpCollationNeeded = fp(collationNeededC)
)

// CreateFunction adds a function for all statements compiled from now on. SQLite may
// use it wherever it uses its own: in indexes, generated columns, CHECK, triggers and
// views, also of a schema that is not trusted.
func (c *Conn) CreateFunction(f Function) error {
	switch {
	case c.db == 0:
		return errClosed()
	case f.Func == nil || len(c.extensions) >= maxExtensions:
		return misuse("function %q has no Func, or there are too many", f.Name)
	}
	z, err := cstr(c.tls, f.Name)
	if err != nil {
		return err
	}
	defer cfree(c.tls, z)
	rc := lib.Xsqlite3_create_function_v2(c.tls, c.db, z, int32(f.Args), lib.SQLITE_UTF8|lib.SQLITE_DETERMINISTIC|lib.SQLITE_INNOCUOUS,
		c.extensionKey(len(c.extensions)), fpFunction, 0, 0, 0)
	if rc != lib.SQLITE_OK {
		return c.fail(rc, "")
	}
	c.extensions = append(c.extensions, &extension{function: f})
	return nil
}

// OfferCollations gives SQLite each of the collations when the first statement needs
// it, if admit then says so; the statement fails as for an unknown collation if not.
// Statements that use one SQLite has already are compiled without a question: see
// WithdrawCollation. A nil admit admits all.
func (c *Conn) OfferCollations(list []Collation, admit func(name string) bool) error {
	if c.db == 0 {
		return errClosed()
	}
	for _, l := range list {
		if l.Compare == nil || len(c.extensions) >= maxExtensions {
			return misuse("collation %q has no Compare, or there are too many", l.Name)
		}
		c.extensions = append(c.extensions, &extension{collation: l})
	}
	c.admit = admit
	if rc := lib.Xsqlite3_collation_needed(c.tls, c.db, c.handle, fpCollationNeeded); rc != lib.SQLITE_OK {
		return c.fail(rc, "")
	}
	return nil
}

// ActiveCollations calls f with each collation that SQLite has been given.
func (c *Conn) ActiveCollations(f func(name string)) {
	for _, x := range c.extensions {
		if x.active {
			f(x.collation.Name)
		}
	}
}

// WithdrawCollation takes a collation from SQLite, until a statement needs it again
// and it is admitted. No statement may be running. All are compiled again.
func (c *Conn) WithdrawCollation(name string) error {
	for _, x := range c.extensions {
		if !x.active || !strings.EqualFold(x.collation.Name, name) {
			continue
		}
		if rc := c.createCollation(name, 0, 0); rc != lib.SQLITE_OK {
			return c.fail(rc, "")
		}
		x.active = false
	}
	return nil
}

// ForgetCalls begins anew to note which functions and collations are called.
func (c *Conn) ForgetCalls() {
	if !c.called {
		return
	}
	c.called = false
	for _, x := range c.extensions {
		x.called = false
	}
}

// Calls calls f with every function and collation that was called since ForgetCalls.
func (c *Conn) Calls(f func(name string, collation bool)) {
	if !c.called {
		return
	}
	for _, x := range c.extensions {
		switch {
		case !x.called:
		case x.function.Func != nil:
			f(x.function.Name, false)
		default:
			f(x.collation.Name, true)
		}
	}
}

func (c *Conn) extensionKey(i int) uintptr { return c.handle<<extensionBits | uintptr(i) }

func extensionOf(key uintptr) (*Conn, *extension) {
	c := callbacks.get(key >> extensionBits)
	x := c.extensions[key&(maxExtensions-1)]
	x.called, c.called = true, true
	return c, x
}

func (c *Conn) createCollation(name string, key, compare uintptr) int32 {
	z, err := cstr(c.tls, name)
	if err != nil {
		return lib.SQLITE_NOMEM
	}
	defer cfree(c.tls, z)
	return lib.Xsqlite3_create_collation_v2(c.tls, c.db, z, lib.SQLITE_UTF8, key, compare, 0)
}

func collationNeededC(_ *libc.TLS, h, _ uintptr, _ int32, zName uintptr) {
	c := callbacks.get(h)
	name := gostring(zName)
	for i, x := range c.extensions {
		if x.collation.Compare == nil || !strings.EqualFold(x.collation.Name, name) {
			continue
		}
		if c.admit == nil || c.admit(x.collation.Name) {
			x.active = c.createCollation(name, c.extensionKey(i), fpCompare) == lib.SQLITE_OK
		}
		return
	}
}

// compareC cannot fail; what a panicking Compare leaves behind is the error of the
// statement's step.
func compareC(_ *libc.TLS, key uintptr, na int32, a uintptr, nb int32, b uintptr) int32 {
	c, x := extensionOf(key)
	n, err := compareTexts(&x.collation, string(view(a, int(na))), string(view(b, int(nb))))
	if err != nil && c.failure == nil {
		c.failure = err
	}
	return n
}

func compareTexts(l *Collation, a, b string) (n int32, err error) {
	defer func() {
		if p := recover(); p != nil {
			n, err = 0, &Error{Code: Generic, Extended: Generic, Offset: -1, Msg: "SQL logic error: " + clip(fmt.Sprintf("collation %s panicked: %v", l.Name, p))}
		}
	}()
	switch v := l.Compare(a, b); {
	case v < 0:
		return -1, nil
	case v > 0:
		return 1, nil
	}
	return 0, nil
}

func functionC(tls *libc.TLS, ctx uintptr, argc int32, argv uintptr) {
	c, x := extensionOf(lib.Xsqlite3_user_data(tls, ctx))
	args := make([]any, argc)
	for i := range args {
		args[i] = argument(tls, *at[uintptr](argv + uintptr(i)*unsafe.Sizeof(argv)))
	}
	v, err := callFunction(&x.function, args)
	if err != nil {
		c.resultError(ctx, err)
		return
	}
	c.result(ctx, v)
}

func argument(tls *libc.TLS, p uintptr) any {
	switch v := valueOf(tls, p); v.Type {
	case TypeInt:
		return v.Int
	case TypeFloat:
		return v.Float
	case TypeText:
		return string(v.Bytes)
	case TypeBlob:
		return append([]byte{}, v.Bytes...)
	}
	return nil
}

func callFunction(f *Function, args []any) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = nil, fmt.Errorf("function %s panicked: %v", f.Name, p)
		}
	}()
	v, err = f.Func(args)
	if err != nil {
		return nil, fmt.Errorf("function %s: %w", f.Name, err)
	}
	switch v.(type) {
	case nil, bool, int64, float64, string, []byte:
		return v, nil
	}
	return nil, fmt.Errorf("function %s returned a %T: it may return int64, float64, bool, string, []byte or nil", f.Name, v)
}

func (c *Conn) result(ctx uintptr, v any) {
	switch v := v.(type) {
	case bool:
		n := int64(0)
		if v {
			n = 1
		}
		lib.Xsqlite3_result_int64(c.tls, ctx, n)
	case int64:
		lib.Xsqlite3_result_int64(c.tls, ctx, v)
	case float64:
		lib.Xsqlite3_result_double(c.tls, ctx, v) // NaN becomes NULL
	case string:
		if p := c.resultBytes(ctx, v); p != 0 {
			lib.Xsqlite3_result_text64(c.tls, ctx, p, uint64(len(v)), fpFree, lib.SQLITE_UTF8)
		}
	case []byte:
		if v == nil {
			lib.Xsqlite3_result_null(c.tls, ctx)
		} else if p := c.resultBytes(ctx, string(v)); p != 0 {
			lib.Xsqlite3_result_blob64(c.tls, ctx, p, uint64(len(v)), fpFree)
		}
	default:
		lib.Xsqlite3_result_null(c.tls, ctx)
	}
}

// resultBytes copies a result to memory that SQLite frees; 0 if an error was set.
func (c *Conn) resultBytes(ctx uintptr, s string) uintptr {
	if len(s) > int(lib.Xsqlite3_limit(c.tls, c.db, lib.SQLITE_LIMIT_LENGTH, -1)) {
		lib.Xsqlite3_result_error_toobig(c.tls, ctx)
		return 0
	}
	p := lib.Xsqlite3_malloc64(c.tls, uint64(max(1, len(s))))
	if p == 0 {
		lib.Xsqlite3_result_error_nomem(c.tls, ctx)
		return 0
	}
	copy(view(p, len(s)), s)
	return p
}

func (c *Conn) resultError(ctx uintptr, err error) {
	msg := clip(err.Error())
	z, nomem := cstr(c.tls, msg)
	if nomem != nil {
		lib.Xsqlite3_result_error_nomem(c.tls, ctx)
		return
	}
	lib.Xsqlite3_result_error(c.tls, ctx, z, int32(len(msg))) // copies
	cfree(c.tls, z)
}

// maxExtensionError is how much of an error's text is kept.
const maxExtensionError = 1024

func clip(s string) string {
	if len(s) > maxExtensionError {
		s = strings.ToValidUTF8(s[:maxExtensionError], "") + "..."
	}
	return strings.ReplaceAll(s, "\x00", "")
}

// takeFailure is the error a collation left behind, which the step reports.
func (c *Conn) takeFailure() error {
	err := c.failure
	c.failure = nil
	return err
}

// BuiltIn lists the names, in lower case, of SQLite's functions and collations.
func BuiltIn() (functions, collations map[string]bool, err error) {
	c, err := Open("", Options{Memory: true})
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = c.Close() }() // a database in memory leaves nothing behind
	functions, err = c.listNames("SELECT DISTINCT lower(name) FROM pragma_function_list")
	if err != nil {
		return nil, nil, err
	}
	collations, err = c.listNames("SELECT lower(name) FROM pragma_collation_list")
	return functions, collations, err
}

func (c *Conn) listNames(sql string) (map[string]bool, error) {
	st, _, err := c.Prepare(sql)
	if err != nil {
		return nil, err
	}
	defer st.Finalize()
	names := map[string]bool{}
	for {
		row, err := st.Step()
		if err != nil || !row {
			return names, err
		}
		names[st.ColumnText(0)] = true
	}
}
