package times

import (
	"strings"
	"time"
)

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

// Parse reads a text as a time. Without a zone it is UTC.
func Parse(b []byte) (time.Time, bool) {
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
