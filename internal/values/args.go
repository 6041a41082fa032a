package values

import (
	"cmp"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mentasystems/colmena/internal/times"
	"github.com/mentasystems/colmena/internal/wire"
)

var errOut = errors.New("colmena: sql.Out is not supported: SQLite has no output parameters; return values with a query or RETURNING")

// Check is what a driver.NamedValueChecker answers. What it does not know goes to
// database/sql's own conversion, which also asks a driver.Valuer.
func Check(v *driver.NamedValue) error {
	switch v.Value.(type) {
	case nil, int64, float64, bool, []byte, string, time.Time:
		return nil
	case sql.Out, *sql.Out:
		return errOut
	}
	return driver.ErrSkip
}

// Encoder makes the arguments of statements, and keeps its buffer between them. The zero
// value is ready. It belongs to one goroutine at a time.
type Encoder struct{ buf wire.ArgsBuilder }

// keepArgBytes is the largest buffer for arguments that an idle connection keeps.
const keepArgBytes = 16 << 10

// Encode makes the arguments of a statement, in a slice of their own.
func (e *Encoder) Encode(f times.Format, args []driver.NamedValue) (wire.Args, error) {
	if len(args) == 0 {
		return nil, nil
	}
	byOrdinal := func(a, b driver.NamedValue) int { return cmp.Compare(a.Ordinal, b.Ordinal) }
	if !slices.IsSortedFunc(args, byOrdinal) {
		args = slices.Clone(args)
		slices.SortStableFunc(args, byOrdinal)
	}
	e.buf.Reset()
	for i := range args {
		v, err := encode(f, args[i].Value)
		if err != nil {
			return nil, err
		}
		e.buf.AddNamed(args[i].Name, v)
	}
	a := e.buf.Args()
	if len(a) > keepArgBytes {
		e.buf = wire.ArgsBuilder{}
	}
	return a, nil
}

// EncodeAny is Encode for arguments that database/sql has not seen: it converts them as
// database/sql does for a driver.
func (e *Encoder) EncodeAny(f times.Format, args []any) (wire.Args, error) {
	named := make([]driver.NamedValue, len(args))
	for i, a := range args {
		v := driver.NamedValue{Ordinal: i + 1, Value: a}
		if arg, ok := a.(sql.NamedArg); ok {
			v.Name, v.Value = arg.Name, arg.Value
		}
		err := Check(&v)
		if errors.Is(err, driver.ErrSkip) {
			v.Value, err = driver.DefaultParameterConverter.ConvertValue(v.Value)
		}
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		named[i] = v
	}
	return e.Encode(f, named)
}

// encode makes a value of an argument. It aliases the argument.
func encode(f times.Format, v driver.Value) (wire.Value, error) {
	switch v := v.(type) {
	case nil:
		return wire.Null(), nil
	case int64:
		return wire.Int(v), nil
	case float64:
		return wire.Float(v), nil
	case bool:
		if v {
			return wire.Int(1), nil
		}
		return wire.Int(0), nil
	case []byte:
		if v == nil {
			return wire.Null(), nil
		}
		return wire.Blob(v), nil
	case string:
		return wire.Text(v), nil
	case time.Time:
		text, integer, err := f.Store(v)
		switch {
		case err != nil:
			return wire.Value{}, err
		case f.IsInteger():
			return wire.Int(integer), nil
		}
		return wire.Text(text), nil
	}
	return wire.Value{}, fmt.Errorf("colmena: an argument of type %T cannot be stored", v)
}

// Ordinals are positional arguments in the form of named ones.
func Ordinals(args []driver.Value) []driver.NamedValue {
	named := make([]driver.NamedValue, len(args))
	for i, v := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	return named
}
