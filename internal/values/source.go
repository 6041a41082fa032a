// Package values stands between database/sql and the wire: arguments go in, encoded, and
// results come out, as rows of any source.
package values

import (
	"database/sql/driver"
	"fmt"

	"github.com/mentasystems/colmena/internal/wire"
)

// RowSource is a result that is read row by row, by one goroutine at a time. Its errors
// are the user's.
type RowSource interface {
	Columns() []wire.Column
	Next() (bool, error)    // false at the end
	Value(i int) wire.Value // a view, until the next Next
	Close() error
}

// Drain steps a result to its end, as Exec of a SELECT does, and closes it.
func Drain(src RowSource) error {
	for {
		ok, err := src.Next()
		if err != nil {
			_ = src.Close()
			return err // as it is: callers look at its type
		}
		if !ok {
			return src.Close()
		}
	}
}

// None is the result of a statement without one.
var None RowSource = none{}

type none struct{}

func (none) Columns() []wire.Column { return nil }
func (none) Next() (bool, error)    { return false, nil }
func (none) Value(int) wire.Value   { return wire.Value{} }
func (none) Close() error           { return nil }

// Fixed is a result whose rows are known.
func Fixed(columns []wire.Column, rows [][]wire.Value) RowSource {
	return &fixed{columns: columns, rows: rows}
}

type fixed struct {
	columns []wire.Column
	rows    [][]wire.Value
	at      int // rows returned so far
}

func (f *fixed) Columns() []wire.Column { return f.columns }
func (f *fixed) Value(i int) wire.Value { return f.rows[f.at-1][i] }
func (f *fixed) Close() error           { return nil }

func (f *fixed) Next() (bool, error) {
	if f.at == len(f.rows) {
		return false, nil
	}
	f.at++
	return true, nil
}

// Returned is the result that a write returned. It reads r's bytes where they are.
func Returned(r *wire.Rows) RowSource {
	return &returned{columns: r.Columns, left: r.N, data: r.Data}
}

type returned struct {
	columns []wire.Column
	left    int
	data    []byte
	row     []wire.Value
}

func (e *returned) Columns() []wire.Column { return e.columns }
func (e *returned) Value(i int) wire.Value { return e.row[i] }

func (e *returned) Next() (bool, error) {
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

func (e *returned) Close() error {
	e.left = 0
	return nil
}

// Result is a driver.Result with both counts, as SQLite's connection would tell them
// after the statement.
func Result(s wire.PreState) driver.Result {
	r := result(s)
	return &r
}

type result wire.PreState

func (r *result) LastInsertId() (int64, error) { return r.LastInsertID, nil }
func (r *result) RowsAffected() (int64, error) { return r.Changes, nil }
