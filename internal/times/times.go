// Package times stores a time.Time as SQLite can keep it, a text or an integer, and reads
// it again. Both ways are pure.
package times

import (
	"fmt"
	"time"
)

// Format says how a time is stored. The zero value is no format.
type Format int

// The formats are those of the root's TimeFormat, in its order.
const (
	SQLite Format = iota + 1
	UTC
	RFC3339
	Unix // from here on integers
	UnixMilli
	UnixMicro
	UnixNano
)

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

// IsInteger reports whether times are stored as integers, and not as texts.
func (f Format) IsInteger() bool { return f >= Unix }

// Store is what stands for t: the integer if f IsInteger, else the text. It refuses a
// time that would not be read back as the same.
func (f Format) Store(t time.Time) (text string, integer int64, err error) {
	if f.IsInteger() {
		integer, err = f.integer(t)
	} else {
		text, err = f.text(t)
	}
	return text, integer, err
}

func (f Format) text(t time.Time) (string, error) {
	if f == UTC {
		t = t.UTC()
	} else if _, offset := t.Zone(); offset%60 != 0 || offset <= -24*3600 || offset >= 24*3600 {
		t = t.UTC() // the text has hours and minutes of the zone only
	}
	if y := t.Year(); y < 0 || y > 9999 {
		return "", fmt.Errorf("colmena: the time %v cannot be stored as text: its year has not four digits", t)
	}
	switch f {
	case UTC:
		return t.Format(layoutUTC), nil
	case RFC3339:
		return t.Format(time.RFC3339Nano), nil
	}
	return t.Format(layoutSQLite), nil
}

func (f Format) integer(t time.Time) (int64, error) {
	switch f {
	case UnixMilli, UnixMicro:
		if y := t.UTC().Year(); y < -200_000 || y > 200_000 {
			return 0, fmt.Errorf("colmena: the time %v cannot be stored: it is too far from 1970", t)
		}
		if f == UnixMilli {
			return t.UnixMilli(), nil
		}
		return t.UnixMicro(), nil
	case UnixNano:
		if t.Before(firstNano) || t.After(lastNano) {
			return 0, fmt.Errorf("colmena: the time %v cannot be stored as nanoseconds since 1970: it is too far from then", t)
		}
		return t.UnixNano(), nil
	}
	return t.Unix(), nil
}

// Read gives the time, in UTC, that an integer stands for. There is none if f stores
// texts.
func (f Format) Read(integer int64) (t time.Time, ok bool) {
	switch f {
	case Unix:
		return time.Unix(integer, 0).UTC(), true
	case UnixMilli:
		return time.UnixMilli(integer).UTC(), true
	case UnixMicro:
		return time.UnixMicro(integer).UTC(), true
	case UnixNano:
		return time.Unix(0, integer).UTC(), true
	}
	return t, false
}
