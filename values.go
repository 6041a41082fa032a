package colmena

import (
	"cmp"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// TimeFormat says how a handle stores a time.Time that is passed as an argument. It is a
// DBOption. Reading does not depend on it: a text in a column declared DATE, DATETIME or
// TIMESTAMP is parsed in every form that SQLite's date functions, this package and the
// modernc.org/sqlite driver write; one that is no time stays a string.
type TimeFormat int

const (
	// TimeFormatSQLite, the default, is "2006-01-02 15:04:05.999999999-07:00": the time
	// with its zone, as SQLite's date functions read it.
	TimeFormatSQLite TimeFormat = iota + 1
	// TimeFormatUTC is "2006-01-02 15:04:05.999999999" in UTC, which sorts by time and
	// compares with CURRENT_TIMESTAMP and datetime().
	TimeFormatUTC
	// TimeFormatRFC3339 is "2006-01-02T15:04:05.999999999Z07:00".
	TimeFormatRFC3339
	// TimeFormatUnix and the following store an integer, in whole seconds, milliseconds,
	// microseconds or nanoseconds since 1970; what is finer is cut off. An integer in a
	// column declared DATE, DATETIME or TIMESTAMP is then read as such a time, in UTC.
	TimeFormatUnix
	TimeFormatUnixMilli
	TimeFormatUnixMicro
	TimeFormatUnixNano
)

func (f TimeFormat) applyDB(o *dbOptions) { o.timeFormat = f }

const (
	layoutSQLite = "2006-01-02 15:04:05.999999999-07:00"
	layoutUTC    = "2006-01-02 15:04:05.999999999"
	layoutString = "2006-01-02 15:04:05.999999999 -0700 MST" // of time.Time.String
)

// Times that nanoseconds since 1970 can tell.
var (
	firstNano = time.Unix(0, -1<<63)
	lastNano  = time.Unix(0, 1<<63-1)
)

// store is the value that stands for t. It refuses a time that would not be read back
// as the same.
func (f TimeFormat) store(t time.Time) (wire.Value, error) {
	if f < TimeFormatUnix {
		if f == TimeFormatUTC {
			t = t.UTC()
		} else if _, offset := t.Zone(); offset%60 != 0 || offset <= -24*3600 || offset >= 24*3600 {
			t = t.UTC() // the text has hours and minutes of the zone only
		}
		if y := t.Year(); y < 0 || y > 9999 {
			return wire.Value{}, fmt.Errorf("colmena: the time %v cannot be stored as text: its year has not four digits", t)
		}
	}
	switch f {
	case TimeFormatUTC:
		return wire.Text(t.Format(layoutUTC)), nil
	case TimeFormatRFC3339:
		return wire.Text(t.Format(time.RFC3339Nano)), nil
	case TimeFormatUnix:
		return wire.Int(t.Unix()), nil
	case TimeFormatUnixMilli, TimeFormatUnixMicro:
		if y := t.UTC().Year(); y < -200_000 || y > 200_000 {
			return wire.Value{}, fmt.Errorf("colmena: the time %v cannot be stored: it is too far from 1970", t)
		}
		if f == TimeFormatUnixMilli {
			return wire.Int(t.UnixMilli()), nil
		}
		return wire.Int(t.UnixMicro()), nil
	case TimeFormatUnixNano:
		if t.Before(firstNano) || t.After(lastNano) {
			return wire.Value{}, fmt.Errorf("colmena: the time %v cannot be stored as nanoseconds since 1970: it is too far from then", t)
		}
		return wire.Int(t.UnixNano()), nil
	}
	return wire.Text(t.Format(layoutSQLite)), nil
}

// read gives a value of a column that is declared as a time.
func (f TimeFormat) read(v wire.Value) driver.Value {
	switch v.Kind {
	case wire.KindText:
		if t, ok := parseTime(v.B); ok {
			return t
		}
	case wire.KindInt:
		switch f {
		case TimeFormatUnix:
			return time.Unix(v.Int64(), 0).UTC()
		case TimeFormatUnixMilli:
			return time.UnixMilli(v.Int64()).UTC()
		case TimeFormatUnixMicro:
			return time.UnixMicro(v.Int64()).UTC()
		case TimeFormatUnixNano:
			return time.Unix(0, v.Int64()).UTC()
		}
	}
	return plainValue(v)
}

// oddLayouts are what is read beside the form that scanTime knows: numbers that
// time.Parse takes with one digit, and a comma for a point.
var oddLayouts = [...]string{
	"2006-01-02 15:04:05.999999999-07:00",
	"2006-01-02T15:04:05.999999999-07:00",
	"2006-01-02 15:04:05.999999999",
	"2006-01-02T15:04:05.999999999",
	"2006-01-02 15:04",
	"2006-01-02T15:04",
	"2006-01-02",
}

// maxTimeText bounds what is tried as a time: the longest form is that of
// time.Time.String with a reading of the monotonic clock.
const maxTimeText = 128

// parseTime reads a text as a time. Without a zone it is UTC.
func parseTime(b []byte) (time.Time, bool) {
	if t, ok := scanTime(b); ok {
		return t, true
	}
	if len(b) > maxTimeText || len(b) < len("2006-01-02") || !digits(b, 1) && b[0] > ' ' {
		return time.Time{}, false
	}
	s := string(b)
	whole := s
	if i := strings.Index(s, "m="); i > 0 {
		whole = s[:i]
	}
	if t, err := time.Parse(layoutString, strings.TrimSpace(whole)); err == nil {
		return t, true
	}
	s, _ = strings.CutSuffix(s, "Z")
	for _, layout := range oddLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// scanTime reads the form that SQLite documents for its date functions:
//
//	YYYY-MM-DD[(T| )HH:MM[:SS[.fraction]][blanks][Z|(+|-)HH:MM]]
func scanTime(b []byte) (t time.Time, ok bool) {
	if len(b) < 10 || !digits(b, 4) || b[4] != '-' || !digits(b[5:], 2) || b[7] != '-' || !digits(b[8:], 2) {
		return t, false
	}
	year, month, day := number(b[:4]), number(b[5:7]), number(b[8:10])
	if month < 1 || month > 12 || day < 1 || day > daysIn(month, year) {
		return t, false
	}
	b = b[10:]
	if len(b) == 0 {
		return time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC), true
	}
	if len(b) < 6 || b[0] != ' ' && b[0] != 'T' || !digits(b[1:], 2) || b[3] != ':' || !digits(b[4:], 2) {
		return t, false
	}
	hour, minute, second, nanos := number(b[1:3]), number(b[4:6]), 0, 0
	b = b[6:]
	if len(b) >= 3 && b[0] == ':' && digits(b[1:], 2) {
		second = number(b[1:3])
		b = b[3:]
		if nanos, b, ok = fraction(b); !ok {
			return t, false
		}
	}
	if hour > 23 || minute > 59 || second > 59 {
		return t, false
	}
	zone, ok := scanZone(b)
	if !ok {
		return t, false
	}
	t = time.Date(year, time.Month(month), day, hour, minute, second, nanos, time.UTC)
	if zone == 0 {
		return t, true
	}
	t = t.Add(-time.Duration(zone) * time.Second)
	if local := t.In(time.Local); zoneOffset(local) == zone {
		return local, true
	}
	return t.In(time.FixedZone("", zone)), true
}

// fraction reads the fraction of a second, if there is one, as nanoseconds.
func fraction(b []byte) (nanos int, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '.' {
		return 0, b, true
	}
	i, unit := 1, 100_000_000
	for ; i < len(b) && digits(b[i:], 1); i++ {
		nanos += int(b[i]-'0') * unit
		unit /= 10
	}
	return nanos, b[i:], i > 1
}

// scanZone reads what follows the time of day, to the end, as seconds east of UTC.
func scanZone(b []byte) (int, bool) {
	for len(b) > 1 && b[0] == ' ' {
		b = b[1:]
	}
	if len(b) == 0 || len(b) == 1 && (b[0] == 'Z' || b[0] == 'z') {
		return 0, true
	}
	if len(b) != 6 || b[0] != '+' && b[0] != '-' || !digits(b[1:], 2) || b[3] != ':' || !digits(b[4:], 2) {
		return 0, false
	}
	h, m := number(b[1:3]), number(b[4:6])
	if h > 23 || m > 59 {
		return 0, false
	}
	offset := h*3600 + m*60
	if b[0] == '-' {
		offset = -offset
	}
	return offset, true
}

func zoneOffset(t time.Time) int {
	_, offset := t.Zone()
	return offset
}

func daysIn(month, year int) int {
	if month == 2 && year%4 == 0 && (year%100 != 0 || year%400 == 0) {
		return 29
	}
	return [...]int{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}[month-1]
}

// digits reports whether b begins with n digits.
func digits(b []byte, n int) bool {
	if len(b) < n {
		return false
	}
	for _, c := range b[:n] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func number(b []byte) (n int) {
	for _, c := range b {
		n = 10*n + int(c-'0')
	}
	return n
}

var errOut = errors.New("colmena: sql.Out is not supported: SQLite has no output parameters; return values with a query or RETURNING")

// CheckNamedValue implements driver.NamedValueChecker. What it does not know goes to
// database/sql's own conversion, which also asks a driver.Valuer.
func (c *conn) CheckNamedValue(v *driver.NamedValue) error {
	switch v.Value.(type) {
	case nil, int64, float64, bool, []byte, string, time.Time:
		return nil
	case sql.Out, *sql.Out:
		return errOut
	}
	return driver.ErrSkip
}

// encode makes the arguments of a statement.
func (c *conn) encode(args []driver.NamedValue) (wire.Args, error) {
	if len(args) == 0 {
		return nil, nil
	}
	byOrdinal := func(a, b driver.NamedValue) int { return cmp.Compare(a.Ordinal, b.Ordinal) }
	if !slices.IsSortedFunc(args, byOrdinal) {
		args = slices.Clone(args)
		slices.SortStableFunc(args, byOrdinal)
	}
	c.args.Reset()
	for i := range args {
		v, err := c.value(args[i].Value)
		if err != nil {
			return nil, err
		}
		c.args.AddNamed(args[i].Name, v)
	}
	a := c.args.Args()
	if len(a) > keepArgBytes {
		c.args = wire.ArgsBuilder{}
	}
	return a, nil
}

// keepArgBytes is the largest buffer for arguments that an idle connection keeps.
const keepArgBytes = 16 << 10

func (c *conn) value(v driver.Value) (wire.Value, error) {
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
		return c.o.timeFormat.store(v)
	}
	return wire.Value{}, fmt.Errorf("colmena: an argument of type %T cannot be stored", v)
}
