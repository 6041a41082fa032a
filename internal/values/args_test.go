package values

import (
	"bytes"
	"database/sql"
	"database/sql/driver"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/times"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestArgumentsAreEncoded(t *testing.T) {
	var e Encoder
	args, err := e.Encode(times.SQLite, []driver.NamedValue{
		{Ordinal: 3, Name: "x", Value: "text"}, {Ordinal: 1, Value: int64(-5)}, {Ordinal: 2, Value: 2.5}, {Ordinal: 4, Value: true},
		{Ordinal: 5, Value: []byte{}}, {Ordinal: 6, Value: []byte(nil)}, {Ordinal: 7, Value: nil}, {Ordinal: 8, Value: time.Unix(0, 0).UTC()},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		name string
		v    wire.Value
	}{{"", wire.Int(-5)}, {"", wire.Float(2.5)}, {"x", wire.Text("text")}, {"", wire.Int(1)}, {"", wire.Blob(nil)}, {"", wire.Null()}, {"", wire.Null()},
		{"", wire.Text("1970-01-01 00:00:00+00:00")}}
	r, err := args.Reader()
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range want {
		name, v, ok, err := r.Next()
		if err != nil || !ok || name != w.name || v.Kind != w.v.Kind || v.N != w.v.N || !bytes.Equal(v.B, w.v.B) {
			t.Errorf("argument %d is %q %+v, %v, %v; want %+v", i, name, v, ok, err, w)
		}
	}
	if _, err := e.Encode(times.SQLite, []driver.NamedValue{{Ordinal: 1, Value: struct{}{}}}); err == nil {
		t.Error("a struct is encoded")
	}
	var out int
	if err := Check(&driver.NamedValue{Value: sql.Out{Dest: &out}}); err == nil || err == driver.ErrSkip {
		t.Errorf("sql.Out is checked with %v", err)
	}
}

// TestTimesAreReadAsTheyWereEncoded stores a time in every format and reads it from a
// column that is declared as one.
func TestTimesAreReadAsTheyWereEncoded(t *testing.T) {
	moment := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	for f := times.SQLite; f <= times.UnixNano; f++ {
		v, err := encode(f, moment)
		if err != nil || (v.Kind == wire.KindInt) != f.IsInteger() {
			t.Fatalf("format %d: %+v, %v", f, v, err)
		}
		if got, ok := timeValue(f, v).(time.Time); !ok || !got.Equal(moment) {
			t.Errorf("format %d: %v is encoded as %+v and read as %v", f, moment, v, got)
		}
	}
	if _, err := encode(times.SQLite, moment.AddDate(10000, 0, 0)); err == nil {
		t.Error("a year of five digits is encoded")
	}
}

func TestAnyArgumentsAreConvertedAsByDatabaseSQL(t *testing.T) {
	var e Encoder
	first, err := e.EncodeAny(times.Unix, []any{int8(-3), sql.Named("b", sql.NullString{}), sql.NullString{String: "x", Valid: true}, time.Unix(5, 0)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.EncodeAny(times.Unix, []any{"overwrites nothing", 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	r, err := first.Reader()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		name string
		v    wire.Value
	}{{"", wire.Int(-3)}, {"b", wire.Null()}, {"", wire.Text("x")}, {"", wire.Int(5)}} {
		name, v, ok, err := r.Next()
		if err != nil || !ok || name != want.name || v.Kind != want.v.Kind || v.N != want.v.N || !bytes.Equal(v.B, want.v.B) {
			t.Errorf("argument %d is %q %+v, %v, %v; want %+v", i+1, name, v, ok, err, want)
		}
	}
	if _, err := e.EncodeAny(times.SQLite, []any{1, make(chan int)}); err == nil || !strings.HasPrefix(err.Error(), "argument 2: ") {
		t.Errorf("a channel is encoded: %v", err)
	}
	if _, err := e.EncodeAny(times.SQLite, []any{sql.Out{}}); err == nil || !strings.Contains(err.Error(), errOut.Error()) {
		t.Errorf("sql.Out is encoded: %v", err)
	}
}

func TestAnIdleEncoderKeepsNoLargeBuffer(t *testing.T) {
	var e Encoder
	if _, err := e.Encode(times.SQLite, []driver.NamedValue{{Ordinal: 1, Value: strings.Repeat("x", keepArgBytes+1)}}); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(20, func() { _ = e.buf.Args() }); n != 0 { // an empty builder gives nil
		t.Errorf("the buffer is kept")
	}
}

// TestEncodingAllocatesItsResultAlone: every statement with arguments comes here.
func TestEncodingAllocatesItsResultAlone(t *testing.T) {
	var e Encoder
	args := []driver.NamedValue{{Ordinal: 1, Value: int64(1 << 40)}, {Ordinal: 2, Value: "text"}, {Ordinal: 3, Value: 2.5}}
	if n := testing.AllocsPerRun(100, func() { _, _ = e.Encode(times.SQLite, args) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
