package times

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestTextsReadAsTimes(t *testing.T) {
	utc := func(y int, mo time.Month, d, h, mi, s, ns int) time.Time {
		return time.Date(y, mo, d, h, mi, s, ns, time.UTC)
	}
	for text, want := range map[string]time.Time{
		"2024-02-29":                                  utc(2024, 2, 29, 0, 0, 0, 0),
		"2024-05-06 07:08":                            utc(2024, 5, 6, 7, 8, 0, 0),
		"2024-05-06T07:08Z":                           utc(2024, 5, 6, 7, 8, 0, 0),
		"2024-05-06 07:08+01:00":                      utc(2024, 5, 6, 6, 8, 0, 0),
		"2024-05-06 07:08:09":                         utc(2024, 5, 6, 7, 8, 9, 0),
		"2024-05-06T07:08:09Z":                        utc(2024, 5, 6, 7, 8, 9, 0),
		"2024-05-06 07:08:09.5":                       utc(2024, 5, 6, 7, 8, 9, 500_000_000),
		"2024-05-06 07:08:09.123456789+00:00":         utc(2024, 5, 6, 7, 8, 9, 123456789),
		"2024-05-06 07:08:09.1234567891":              utc(2024, 5, 6, 7, 8, 9, 123456789),
		"2024-05-06T07:08:09.123-05:30":               utc(2024, 5, 6, 12, 38, 9, 123_000_000),
		"2024-05-06 07:08:09 +02:00":                  utc(2024, 5, 6, 5, 8, 9, 0),
		"2024-05-06 7:08:09":                          utc(2024, 5, 6, 7, 8, 9, 0),
		"2024-05-06 07:08:09,25":                      utc(2024, 5, 6, 7, 8, 9, 250_000_000),
		"0001-01-01 00:00:00+00:00":                   utc(1, 1, 1, 0, 0, 0, 0),
		"2024-05-06 07:08:09.5 +0200 CEST m=+0.00123": utc(2024, 5, 6, 5, 8, 9, 500_000_000),
		"2024-05-06 07:08:09 +0000 UTC":               utc(2024, 5, 6, 7, 8, 9, 0),
		"2024-05-06 07:08:09.000000001 -0300 -03":     utc(2024, 5, 6, 10, 8, 9, 1),
	} {
		if got, ok := Parse([]byte(text)); !ok || !got.Equal(want) {
			t.Errorf("%q is read as %v, %v; want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "now", "2023-02-29", "2024-13-01", "2024-05-06 24:00:00", "2024-05-06 07:60", "2024-05-06 07:08:09.",
		"2024-05-06 07:08:09+25:00", "2024-05-06x", "20240506", "12345", "2024-05-06 07:08:09 and more", strings.Repeat("9", 500), "-001-01-01"} {
		if got, ok := Parse([]byte(text)); ok {
			t.Errorf("%q is read as the time %v", text, got)
		}
	}
}

// TestStoredTimesComeBack stores times in every format and reads them.
func TestStoredTimesComeBack(t *testing.T) {
	berlin := time.FixedZone("CEST", 2*3600)
	lmt := time.FixedZone("LMT", -7*3600-52*60-58) // a zone with seconds
	for f, precision := range map[Format]time.Duration{
		SQLite: 1, UTC: 1, RFC3339: 1,
		Unix: time.Second, UnixMilli: time.Millisecond, UnixMicro: time.Microsecond, UnixNano: 1,
	} {
		for _, want := range []time.Time{time.Now(), time.Unix(0, 0), time.Unix(-1, 5), time.Date(2024, 2, 29, 23, 59, 59, 999_999_999, berlin),
			time.Date(1880, 1, 1, 0, 0, 0, 0, lmt), {}, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)} {
			text, integer, err := f.Store(want)
			if err != nil {
				if f == UnixNano && (want.Year() < 1678 || want.Year() > 2262) {
					continue
				}
				t.Errorf("format %d: %v: %v", f, want, err)
				continue
			}
			got, ok := f.Read(integer)
			if !f.IsInteger() {
				got, ok = Parse([]byte(text))
			}
			if want := want.Add(-time.Duration(want.Nanosecond()) % precision); !ok || !got.Equal(want) {
				t.Errorf("format %d: %v is stored as %q, %d and read as %v", f, want, text, integer, got)
			}
		}
	}
}

func TestTimesThatWouldNotComeBackAreRefused(t *testing.T) {
	for f, moments := range map[Format][]time.Time{
		SQLite:    {time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)},
		UTC:       {time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -7200))},
		RFC3339:   {time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
		UnixMicro: {time.Unix(math.MaxInt64/1000, 0)},
		UnixNano:  {{}, time.Unix(1<<40, 0)},
	} {
		for _, m := range moments {
			if text, integer, err := f.Store(m); err == nil {
				t.Errorf("format %d stores %v as %q, %d", f, m, text, integer)
			}
		}
	}
}

// FuzzParseTime holds the parser to time.Parse: what the common layouts take is taken,
// with the same result, and what is taken is a time that can be stored.
func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2024-02-29", "2024-05-06 07:08", "2024-05-06T07:08:09.123456789-05:30", "2024-05-06 07:08:09 +0000 UTC", "2024-05-06 7:08:09,5Z",
		"0000-01-01 00:00:00+00:00", "2024-05-06 07:08:09.5 +0200 CEST m=+0.1", "2024-05-06 07:08:09 +23:59"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := Parse([]byte(s))
		for _, layout := range oddLayouts {
			want, err := time.Parse(layout, strings.TrimSuffix(s, "Z"))
			if err != nil || len(s) > maxTimeText {
				continue
			}
			if !ok || !got.Equal(want) {
				t.Fatalf("%q is read as %v, %v; time.Parse reads %v", s, got, ok, want)
			}
			break
		}
		if !ok || got.Year() < 0 || got.Year() > 9999 || got.UTC().Year() < 0 || got.UTC().Year() > 9999 {
			return
		}
		text, _, err := SQLite.Store(got)
		if err != nil {
			t.Fatalf("%q is read as %v, which cannot be stored: %v", s, got, err)
		}
		if again, ok := Parse([]byte(text)); !ok || !again.Equal(got) {
			t.Fatalf("%q is read as %v, stored as %q and read as %v", s, got, text, again)
		}
	})
}
