package colmena

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// rowSource is a result that is read row by row, by one goroutine at a time. Its errors
// are the user's.
type rowSource interface {
	Columns() []wire.Column
	Next() (bool, error)    // false at the end
	Value(i int) wire.Value // a view, until the next Next
	Close() error
}

// rows implements driver.Rows. The first row is fetched when the query starts: an error
// of its first step is the query's, and the columns' types can be told.
type rows struct {
	n       *Node
	src     rowSource
	done    <-chan struct{} // the query's context
	ctx     context.Context
	format  TimeFormat
	names   []string
	few     [4]string // backs names if it has room
	columns []wire.Column
	times   []bool // columns declared as times; nil if there are none
	live    bool   // the source is on a row
	fetched bool   // ... which Next has not returned yet
	ended   bool
	closed  bool
}

var (
	_ driver.RowsColumnTypeDatabaseTypeName = (*rows)(nil)
	_ driver.RowsColumnTypeLength           = (*rows)(nil)
	_ driver.RowsColumnTypeNullable         = (*rows)(nil)
	_ driver.RowsColumnTypePrecisionScale   = (*rows)(nil)
	_ driver.RowsColumnTypeScanType         = (*rows)(nil)
)

// newRows takes the source over: it is closed when the rows are, or at once on an error.
func newRows(ctx context.Context, c *conn, src rowSource) (driver.Rows, error) {
	r := &rows{n: c.n, src: src, ctx: ctx, done: ctx.Done(), format: c.o.timeFormat, columns: src.Columns()}
	if r.names = r.few[:0]; len(r.columns) > len(r.few) {
		r.names = make([]string, 0, len(r.columns))
	}
	for i := range r.columns {
		r.names = append(r.names, r.columns[i].Name)
		if isTimeType(r.columns[i].DeclType) {
			if r.times == nil {
				r.times = make([]bool, len(r.columns))
			}
			r.times[i] = true
		}
	}
	if err := r.step(); err != nil {
		_ = src.Close()
		return nil, err
	}
	r.fetched = r.live
	return r, nil
}

func (r *rows) step() (err error) {
	if r.ended {
		return nil
	}
	r.live, err = r.src.Next()
	r.ended = err != nil || !r.live
	return err
}

// Columns implements driver.Rows.
func (r *rows) Columns() []string { return r.names }

// Close implements driver.Rows.
func (r *rows) Close() error {
	if r.closed {
		return nil
	}
	r.closed, r.ended, r.live = true, true, false
	return r.src.Close()
}

// Next implements driver.Rows.
func (r *rows) Next(dest []driver.Value) error {
	select {
	case <-r.n.done:
		return ErrClosed
	default:
	}
	select {
	case <-r.done:
		return r.ctx.Err()
	default:
	}
	if !r.fetched {
		if err := r.step(); err != nil {
			return err
		}
	}
	r.fetched = false
	if !r.live {
		return io.EOF
	}
	for i := range dest {
		v := r.src.Value(i)
		if r.times != nil && r.times[i] {
			dest[i] = r.format.read(v)
		} else {
			dest[i] = plainValue(v)
		}
	}
	return nil
}

// plainValue is a value as database/sql knows it, in memory of its own.
func plainValue(v wire.Value) driver.Value {
	switch v.Kind {
	case wire.KindInt:
		return v.Int64()
	case wire.KindFloat:
		return v.Float64()
	case wire.KindText:
		return string(v.B)
	case wire.KindBlob:
		return append(make([]byte, 0, len(v.B)), v.B...)
	}
	return nil
}

// isTimeType tells the declared types whose texts are read as times. It allocates
// nothing.
func isTimeType(decl string) bool {
	switch len(decl) {
	case len("DATE"):
		return strings.EqualFold(decl, "DATE")
	case len("DATETIME"):
		return strings.EqualFold(decl, "DATETIME")
	case len("TIMESTAMP"):
		return strings.EqualFold(decl, "TIMESTAMP")
	}
	return false
}

// ColumnTypeDatabaseTypeName is the declared type in upper case, "" for an expression.
func (r *rows) ColumnTypeDatabaseTypeName(i int) string {
	return strings.ToUpper(r.columns[i].DeclType)
}

// ColumnTypeLength is unlimited for texts and blobs, by the current or first row.
func (r *rows) ColumnTypeLength(i int) (int64, bool) {
	if !r.live {
		return 0, false
	}
	switch r.src.Value(i).Kind {
	case wire.KindText, wire.KindBlob:
		return math.MaxInt64, true
	}
	return 0, false
}

// ColumnTypeNullable says that any column may be null: SQLite does not tell.
func (r *rows) ColumnTypeNullable(int) (nullable, ok bool) { return true, true }

// ColumnTypePrecisionScale does not apply to SQLite.
func (r *rows) ColumnTypePrecisionScale(int) (precision, scale int64, ok bool) { return 0, 0, false }

var (
	typeAny    = reflect.TypeFor[any]()
	typeInt    = reflect.TypeFor[int64]()
	typeFloat  = reflect.TypeFor[float64]()
	typeText   = reflect.TypeFor[string]()
	typeBlob   = reflect.TypeFor[[]byte]()
	typeBool   = reflect.TypeFor[bool]()
	typeMoment = reflect.TypeFor[time.Time]()
)

// ColumnTypeScanType follows the value of the current or first row, as every row of
// SQLite has types of its own. It is never nil: any can take a NULL and whatever the
// later rows hold; and without a row the declared type decides.
func (r *rows) ColumnTypeScanType(i int) reflect.Type {
	decl := r.ColumnTypeDatabaseTypeName(i)
	if !r.live {
		return declaredScanType(decl)
	}
	switch r.src.Value(i).Kind {
	case wire.KindInt:
		switch decl {
		case "BOOLEAN":
			return typeBool
		case "DATE", "DATETIME", "TIME", "TIMESTAMP":
			return typeMoment
		}
		return typeInt
	case wire.KindFloat:
		return typeFloat
	case wire.KindText:
		return typeText
	case wire.KindBlob:
		return typeBlob
	}
	return typeAny
}

// declaredScanType follows SQLite's rules for the affinity of a declared type.
func declaredScanType(decl string) reflect.Type {
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(decl, p) {
				return true
			}
		}
		return false
	}
	switch {
	case decl == "":
		return typeAny
	case decl == "BOOLEAN":
		return typeBool
	case isTimeType(decl):
		return typeMoment
	case has("INT"):
		return typeInt
	case has("CHAR", "CLOB", "TEXT"):
		return typeText
	case has("BLOB"):
		return typeBlob
	case has("REAL", "FLOA", "DOUB"):
		return typeFloat
	}
	return typeAny
}

// encodedRows are the rows that a write returned.
type encodedRows struct {
	columns []wire.Column
	left    int
	data    []byte
	row     []wire.Value
}

func (e *encodedRows) Columns() []wire.Column { return e.columns }
func (e *encodedRows) Value(i int) wire.Value { return e.row[i] }

func (e *encodedRows) Next() (bool, error) {
	if e.left == 0 {
		return false, nil
	}
	if e.row == nil {
		e.row = make([]wire.Value, len(e.columns))
	}
	var err error
	for i := range e.row {
		if e.row[i], e.data, err = wire.ReadValue(e.data); err != nil {
			return false, fmt.Errorf("colmena: the rows that a write returned: %w", err)
		}
	}
	e.left--
	return true, nil
}

func (e *encodedRows) Close() error {
	e.left = 0
	return nil
}

// fixedRows are the answer of a statement that acts on the connection; the zero value is
// that of a statement without a result.
type fixedRows struct {
	columns []wire.Column
	values  [][]wire.Value
	at      int // rows returned so far
}

func (f *fixedRows) Columns() []wire.Column { return f.columns }
func (f *fixedRows) Value(i int) wire.Value { return f.values[f.at-1][i] }
func (f *fixedRows) Close() error           { return nil }

func (f *fixedRows) Next() (bool, error) {
	if f.at == len(f.values) {
		return false, nil
	}
	f.at++
	return true, nil
}
