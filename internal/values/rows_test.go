package values

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/times"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestEncodedRows(t *testing.T) {
	var data []byte
	for _, v := range []wire.Value{wire.Int(1), wire.Text("a"), wire.Null(), wire.Blob([]byte{7})} {
		data = wire.AppendValue(data, v)
	}
	e := Returned(&wire.Rows{Columns: []wire.Column{{Name: "x"}, {Name: "y"}}, N: 2, Data: data})
	for i := range 2 {
		if ok, err := e.Next(); !ok || err != nil {
			t.Fatalf("row %d: %v, %v", i, ok, err)
		}
	}
	if e.Value(0).Kind != wire.KindNull || e.Value(1).B[0] != 7 {
		t.Errorf("the second row is %+v, %+v", e.Value(0), e.Value(1))
	}
	if ok, err := e.Next(); ok || err != nil {
		t.Errorf("a third row: %v, %v", ok, err)
	}
	bad := Returned(&wire.Rows{Columns: []wire.Column{{Name: "x"}}, N: 1, Data: []byte{0xff}})
	if ok, err := bad.Next(); ok || err == nil {
		t.Errorf("garbage is a row: %v, %v", ok, err)
	}
}

// source is a result that fails behind its rows, if err is not nil, and counts how often
// it is closed.
type source struct {
	RowSource
	err    error
	closed int
}

func (s *source) Next() (bool, error) {
	if ok, err := s.RowSource.Next(); ok || err != nil {
		return ok, err
	}
	return false, s.err
}

func (s *source) Close() error {
	s.closed++
	return nil
}

func column(name, decl string) wire.Column { return wire.Column{Name: name, DeclType: decl} }

var settings = &Settings{Times: times.Unix}

func TestRowsAreThoseOfTheirSource(t *testing.T) {
	src := &source{RowSource: Fixed([]wire.Column{column("i", "INT"), column("r", "REAL"), column("s", "TEXT"), column("b", "BLOB"), column("at", "datetime"), column("n", "")},
		[][]wire.Value{
			{wire.Int(7), wire.Float(1.5), wire.Text("x"), wire.Blob([]byte{1}), wire.Text("2024-05-06"), wire.Null()},
			{wire.Text("y"), wire.Int(2), wire.Null(), wire.Blob(nil), wire.Int(60), wire.Text("not a time")},
			{wire.Null(), wire.Null(), wire.Null(), wire.Null(), wire.Text("not a time"), wire.Null()},
		})}
	r, err := NewRows(t.Context(), settings, src)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Columns(); !reflect.DeepEqual(got, []string{"i", "r", "s", "b", "at", "n"}) {
		t.Errorf("columns %q", got)
	}
	for i, want := range [][]driver.Value{
		{int64(7), 1.5, "x", []byte{1}, time.Date(2024, 5, 6, 0, 0, 0, 0, time.UTC), nil},
		{"y", int64(2), nil, []byte{}, time.Unix(60, 0).UTC(), "not a time"},
		{nil, nil, nil, nil, "not a time", nil},
	} {
		got := make([]driver.Value, 6)
		if err := r.Next(got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("row %d is %#v, %v; want %#v", i+1, got, err, want)
		}
	}
	for range 2 {
		if err := r.Next(make([]driver.Value, 6)); err != io.EOF {
			t.Errorf("behind the last row: %v", err)
		}
	}
	for range 2 {
		if err := r.Close(); err != nil || src.closed != 1 {
			t.Errorf("Close: %v, the source was closed %d times", err, src.closed)
		}
	}
}

func TestAnErrorOfTheFirstStepIsTheQuerys(t *testing.T) {
	broken := errors.New("broken")
	src := &source{RowSource: None, err: broken}
	if _, err := NewRows(t.Context(), settings, src); err != broken || src.closed != 1 {
		t.Errorf("%v, the source was closed %d times", err, src.closed)
	}
	src = &source{RowSource: Fixed([]wire.Column{column("a", "")}, [][]wire.Value{{wire.Int(1)}}), err: broken}
	r, err := NewRows(t.Context(), settings, src)
	if err != nil {
		t.Fatal(err)
	}
	dest := make([]driver.Value, 1)
	if err := r.Next(dest); err != nil || dest[0] != int64(1) {
		t.Errorf("the row before the error: %v, %v", dest, err)
	}
	if err := r.Next(dest); err != broken {
		t.Errorf("the error behind the row: %v", err)
	}
}

func TestRowsEndWithContextAndNode(t *testing.T) {
	one := func() RowSource { return Fixed([]wire.Column{column("a", "")}, [][]wire.Value{{wire.Int(1)}}) }
	ctx, cancel := context.WithCancel(t.Context())
	closed, errClosed := make(chan struct{}), errors.New("closed")
	s := &Settings{Times: times.SQLite, Closed: closed, ErrClosed: errClosed}
	r, err := NewRows(ctx, s, one())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := r.Next(make([]driver.Value, 1)); err != context.Canceled {
		t.Errorf("under a canceled context: %v", err)
	}
	close(closed)
	if err := r.Next(make([]driver.Value, 1)); err != errClosed {
		t.Errorf("when all is closed: %v", err)
	}
}

func TestColumnTypesFollowTheRow(t *testing.T) {
	decls := []string{"INT", "boolean", "timestamp", "VARCHAR(9)", "BLOB", "DOUBLE", "", "NUMERIC"}
	columns := make([]wire.Column, len(decls))
	for i, d := range decls {
		columns[i] = column(d, d)
	}
	integers := make([]wire.Value, len(decls))
	texts := make([]wire.Value, len(decls))
	for i := range decls {
		integers[i], texts[i] = wire.Int(1), wire.Text("x")
	}
	for _, c := range []struct {
		rows   [][]wire.Value
		types  []reflect.Type
		length bool
	}{
		{nil, []reflect.Type{typeInt, typeBool, typeMoment, typeText, typeBlob, typeFloat, typeAny, typeAny}, false},
		{[][]wire.Value{make([]wire.Value, len(decls))}, []reflect.Type{typeAny, typeAny, typeAny, typeAny, typeAny, typeAny, typeAny, typeAny}, false},
		{[][]wire.Value{integers}, []reflect.Type{typeInt, typeBool, typeMoment, typeInt, typeInt, typeInt, typeInt, typeInt}, false},
		{[][]wire.Value{texts}, []reflect.Type{typeText, typeText, typeText, typeText, typeText, typeText, typeText, typeText}, true},
	} {
		dr, err := NewRows(t.Context(), settings, Fixed(columns, c.rows))
		if err != nil {
			t.Fatal(err)
		}
		r := dr.(*rows)
		for i, d := range decls {
			if got := r.ColumnTypeScanType(i); got != c.types[i] {
				t.Errorf("%q on %+v scans to %v, want %v", d, c.rows, got, c.types[i])
			}
			if n, ok := r.ColumnTypeLength(i); ok != c.length || ok && n != math.MaxInt64 {
				t.Errorf("%q on %+v has the length %d, %v", d, c.rows, n, ok)
			}
		}
		if got := r.ColumnTypeDatabaseTypeName(3); got != "VARCHAR(9)" {
			t.Errorf("the type's name is %q", got)
		}
	}
}

func TestDrainStepsToTheEndAndCloses(t *testing.T) {
	broken := errors.New("broken")
	for _, want := range []error{nil, broken} {
		src := &source{RowSource: Fixed(nil, make([][]wire.Value, 3)), err: want}
		if err := Drain(src); err != want || src.closed != 1 || src.RowSource.(*fixed).at != 3 {
			t.Errorf("%v after %d rows, closed %d times", err, src.RowSource.(*fixed).at, src.closed)
		}
	}
	for range 2 {
		if err := Drain(None); err != nil {
			t.Error(err)
		}
	}
}

func TestResultHasBothCounts(t *testing.T) {
	r := Result(wire.PreState{LastInsertID: 7, Changes: 3})
	id, _ := r.LastInsertId()
	n, _ := r.RowsAffected()
	if id != 7 || n != 3 {
		t.Errorf("id %d, %d rows", id, n)
	}
}

// TestRowsOfFewColumnsAreOneAllocation: every query comes here.
func TestRowsOfFewColumnsAreOneAllocation(t *testing.T) {
	columns := []wire.Column{column("a", "INT"), column("b", "TEXT"), column("c", "BLOB"), column("d", "")}
	src := &returned{columns: columns}
	ctx, dest := t.Context(), make([]driver.Value, len(columns))
	if n := testing.AllocsPerRun(100, func() {
		r, _ := NewRows(ctx, settings, src)
		_ = r.Next(dest)
		_ = r.Close()
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
