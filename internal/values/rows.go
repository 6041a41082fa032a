package values

import (
	"context"
	"database/sql/driver"
	"io"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/times"
	"github.com/mentasystems/colmena/internal/wire"
)

// Settings are what the rows of one handle share.
type Settings struct {
	Times     times.Format    // how integers in columns declared as times are read
	Closed    <-chan struct{} // closed: rows end, with ErrClosed
	ErrClosed error
}

// rows implements driver.Rows. The first row is fetched when the query starts: an error
// of its first step is the query's, and the columns' types can be told.
type rows struct {
	set     *Settings
	src     RowSource
	done    <-chan struct{} // the query's context
	ctx     context.Context
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

// NewRows takes the source over: it is closed when the rows are, or at once on an error.
func NewRows(ctx context.Context, s *Settings, src RowSource) (driver.Rows, error) {
	r := &rows{set: s, src: src, ctx: ctx, done: ctx.Done(), columns: src.Columns()}
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
	case <-r.set.Closed:
		return r.set.ErrClosed
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
			dest[i] = timeValue(r.set.Times, v)
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

// timeValue gives a value of a column that is declared as a time.
func timeValue(f times.Format, v wire.Value) driver.Value {
	switch v.Kind {
	case wire.KindText:
		if t, ok := times.Parse(v.B); ok {
			return t
		}
	case wire.KindInt:
		if t, ok := f.Read(v.Int64()); ok {
			return t
		}
	}
	return plainValue(v)
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
