package wire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

// checkDecode holds what every decoder promises for any bytes, given without their checksum where the format has one: no panic, an
// error of the two kinds, memory in proportion to the input, and a value that survives another round trip.
func checkDecode(t *testing.T, f format, b []byte) {
	t.Helper()
	if f.summed {
		if err := f.empty().Decode(b); err != nil && !errors.Is(err, ErrCorrupt) && !isFormatError(err) {
			t.Fatalf("error of neither kind: %v", err)
		}
		b = appendSum(b[:len(b):len(b)], 0)
	}
	m := f.empty()
	err := m.Decode(b)
	checkFootprint(t, m, len(b))
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !isFormatError(err) {
			t.Fatalf("error of neither kind: %v", err)
		}
		return
	}
	again := m.Append(nil)
	m2 := f.empty()
	mustDecode(t, m2, again)
	mustEqual(t, m2, m)
}

func fuzzFormat(f *testing.F, name string) {
	format := formatNamed(name)
	for _, m := range []message{format.example(), format.empty()} {
		b := m.Append(nil)
		if format.summed {
			b = b[:len(b)-crcBytes]
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		checkDecode(t, format, b)
		if !bytes.Equal(b, before) {
			t.Fatal("decoding changed its input")
		}
	})
}

func FuzzDecodeEntry(f *testing.F)           { fuzzFormat(f, "entry") }
func FuzzDecodeStoredResults(f *testing.F)   { fuzzFormat(f, "stored-results") }
func FuzzDecodeHello(f *testing.F)           { fuzzFormat(f, "hello") }
func FuzzDecodeWriteRequest(f *testing.F)    { fuzzFormat(f, "write-request") }
func FuzzDecodeWriteResponse(f *testing.F)   { fuzzFormat(f, "write-response") }
func FuzzDecodeMarkRequest(f *testing.F)     { fuzzFormat(f, "mark-request") }
func FuzzDecodeMarkResponse(f *testing.F)    { fuzzFormat(f, "mark-response") }
func FuzzDecodeTermRequest(f *testing.F)     { fuzzFormat(f, "term-request") }
func FuzzDecodeTermResponse(f *testing.F)    { fuzzFormat(f, "term-response") }
func FuzzDecodeQueryRequest(f *testing.F)    { fuzzFormat(f, "query-request") }
func FuzzDecodeSessionRequest(f *testing.F)  { fuzzFormat(f, "session-request") }
func FuzzDecodeSessionResponse(f *testing.F) { fuzzFormat(f, "session-response") }
func FuzzDecodeRowsHeader(f *testing.F)      { fuzzFormat(f, "rows-header") }
func FuzzDecodeRowsChunk(f *testing.F)       { fuzzFormat(f, "rows-chunk") }

func FuzzEntryOwner(f *testing.F) {
	f.Add(exampleEntry().Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _, _, err := EntryOwner(b)
		if err != nil && !errors.Is(err, ErrCorrupt) && !isFormatError(err) {
			t.Fatalf("error of neither kind: %v", err)
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add([]byte(exampleArgs()))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := Args(b)
		bad := a.Check()
		r, err := a.Reader()
		var again ArgsBuilder
		type named struct {
			name string
			v    Value
		}
		var all []named
		for err == nil {
			name, v, ok, e := r.Next()
			if err = e; !ok {
				break
			}
			all = append(all, named{name, v})
			again.AddNamed(name, v)
		}
		if (bad == nil) != (err == nil) {
			t.Fatalf("Check says %v, the reader %v", bad, err)
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("not ErrCorrupt: %v", err)
			}
			return
		}
		r, err = again.Args().Reader()
		for i := range all {
			name, v, ok, e := r.Next()
			if err != nil || e != nil || !ok || !reflect.DeepEqual(all[i], named{name, v}) {
				t.Fatalf("argument %d: %q %v %v %v, want %v", i, name, v, ok, e, all[i])
			}
		}
	})
}

func FuzzReadValue(f *testing.F) {
	for _, v := range []Value{Null(), Int(-1), Int(1 << 40), Float(1), Text("text"), Blob(make([]byte, 20))} {
		f.Add(AppendValue(nil, v))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, rest, err := ReadValue(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("not ErrCorrupt: %v", err)
			}
			return
		}
		v2, rest2, err := ReadValue(append(AppendValue(nil, v), rest...))
		if err != nil || !reflect.DeepEqual(v, v2) || !bytes.Equal(rest, rest2) {
			t.Fatalf("%v and %d bytes, then %v and %d bytes, %v", v, len(rest), v2, len(rest2), err)
		}
	})
}
