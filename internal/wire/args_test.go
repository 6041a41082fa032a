package wire

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"
)

func TestValuesRoundTrip(t *testing.T) {
	g := newGen(t)
	values := []Value{Null(), Int(0), Int(7), Int(-7), Int(-8), Int(8), Int(math.MaxInt64), Int(math.MinInt64), Float(math.NaN()),
		Float(math.Copysign(0, -1)), {Kind: KindFloat, N: 0x7ff0000000000001}, Text(""), Text("14 bytes long."), Text("15 bytes long.."),
		Text("\xff\x00\xfe"), Blob([]byte{}), Blob(nil), Blob(make([]byte, 100_000))}
	for range 1000 {
		values = append(values, g.value())
	}
	var all []byte
	for _, v := range values {
		one := AppendValue(nil, v)
		got, rest, err := ReadValue(one)
		if err != nil || len(rest) != 0 || got.Kind != v.Kind || got.N != v.N || !bytes.Equal(got.B, v.B) {
			t.Fatalf("%v became %v, %d bytes left, %v", v, got, len(rest), err)
		}
		if (v.Kind == KindText || v.Kind == KindBlob) && got.B == nil {
			t.Fatal("an empty text or blob decodes as nil")
		}
		for n := range min(len(one), 50) {
			if _, _, err := ReadValue(one[:n:n]); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%d bytes of %v: %v", n, v, err)
			}
		}
		all = append(all, one...)
	}
	for i, v := range values {
		got, rest, err := ReadValue(all)
		if err != nil || got.Kind != v.Kind || got.N != v.N || !bytes.Equal(got.B, v.B) {
			t.Fatalf("value %d: %v became %v, %v", i, v, got, err)
		}
		all = rest
	}
	if Int(-5).Int64() != -5 || math.Float64bits(Float(-0.5).Float64()) != math.Float64bits(-0.5) || Text("é").String() != "é" {
		t.Error("accessors")
	}
}

func TestAValueCannotBeGrownIntoItsNeighbour(t *testing.T) {
	b := AppendValue(AppendValue(nil, Text("one")), Text("two"))
	v, rest, err := ReadValue(b)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(v.B, "overwritten"...)
	if v, _, err = ReadValue(rest); err != nil || v.String() != "two" {
		t.Error(v.String(), err)
	}
}

func TestAppendValueRefusesUnknownKinds(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a value that nobody can read was written")
		}
	}()
	AppendValue(nil, Value{Kind: 5})
}

func TestUnreadableValuesAreCorrupt(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":            {},
		"kind 5":             {5},
		"kind 7":             {7},
		"null with payload":  {0x10},
		"float with length":  {0x12, 0, 0, 0, 0, 0, 0, 0, 0},
		"short float":        {2, 0, 0, 0},
		"long integer":       {0xf1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1},
		"short text":         {0x53, 'a'},
		"length of 2^64-1":   {0xf3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1},
		"a name":             {0x08, 1, 'n'},
		"a name of no bytes": {0x08, 0},
	} {
		if _, _, err := ReadValue(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestArgsRoundTrip(t *testing.T) {
	type named struct {
		name string
		v    Value
	}
	g := newGen(t)
	b := NewArgs(4)
	for range 500 {
		b.Reset()
		var want []named
		for range g.r.IntN(6) {
			n := named{g.text(g.r.IntN(2) * 300), g.value()}
			want = append(want, n)
			b.AddNamed(n.name, n.v)
		}
		a := b.Args()
		if n, err := a.Len(); n != len(want) || err != nil || a.Check() != nil || (len(want) == 0) != (a == nil) {
			t.Fatal(n, err, a.Check())
		}
		r, err := a.Reader()
		if err != nil {
			t.Fatal(err)
		}
		var got []named
		for {
			name, v, ok, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			got = append(got, named{name, v})
		}
		same := slices.EqualFunc(got, want, func(g, w named) bool { // an empty text comes back empty, not nil
			return g.name == w.name && g.v.Kind == w.v.Kind && g.v.N == w.v.N && bytes.Equal(g.v.B, w.v.B)
		})
		if !same || r.Left() != 0 {
			t.Fatalf("%v became %v", want, got)
		}
		if n := len(a); n > 0 && a[:n-1].Check() == nil || Args(append([]byte(a), 0)).Check() == nil && n > 0 {
			t.Fatal("an argument list of another length is sound")
		}
		if got := b.Append([]byte("x")); string(got) != "x"+string(a) {
			t.Fatal("Append differs from Args")
		}
	}
}

func TestArgsOutliveTheirBuilder(t *testing.T) {
	var b ArgsBuilder
	b.Add(Text("first"))
	a := b.Args()
	b.Reset()
	b.Add(Text("other"))
	b.Args()
	r, err := a.Reader()
	if err != nil {
		t.Fatal(err)
	}
	if _, v, _, err := r.Next(); v.String() != "first" || err != nil {
		t.Error(v.String(), err)
	}
}

func TestUnreadableArgsAreCorrupt(t *testing.T) {
	for name, a := range map[string]Args{
		"bytes after no argument": {0, 0},
		"too few":                 {2, 0},
		"more than bytes":         {200, 1, 0},
		"bad count":               {0x80},
		"beyond the limit":        append(Args{0xff, 0xff, 0x01}, make([]byte, 32767)...),
		"short name":              {1, 0x08, 9, 'x'},
	} {
		if err := a.Check(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var limit *LimitError
	if _, err := append(Args{0xff, 0xff, 0x01}, make([]byte, 32767)...).Len(); !errors.As(err, &limit) || limit.Max != MaxArgs {
		t.Error(err)
	}
}
