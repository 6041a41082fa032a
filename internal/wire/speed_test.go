//go:build !race

package wire

import (
	"strings"
	"testing"
)

func kvRequest(n int) *WriteRequest {
	r := &WriteRequest{DB: "main"}
	for _, u := range kvUnits(n) {
		r.Units = append(r.Units, Unit{ID: u.ID, Lowest: u.Lowest, WantRows: true, Timeout: 5000,
			Statements: []Statement{{SQL: u.Statements[0].SQL, Args: u.Statements[0].Args}}})
	}
	return r
}

func kvResponse(n int) *WriteResponse {
	r := &WriteResponse{Leader: "n1"}
	for _, u := range kvUnits(n) {
		r.Results = append(r.Results, UnitResult{Mark: Mark{5, 123457}, Result: Result{Outcome: u.Statements[0].Outcome}})
	}
	return r
}

func TestHotPathsDoNotAllocatePerUnit(t *testing.T) {
	const n = 200
	units := kvUnits(n)
	many := kvUnits(n) // more texts than are compared one by one
	for i := range many {
		many[i].Statements[0].SQL = kvInsert + strings.Repeat(" ", i%50)
	}
	var e EntryEncoder
	encode := func(units []EntryUnit) []byte {
		e.Begin(kvHeader)
		for i := range units {
			if !e.Fits(&units[i]) {
				t.Fatal("does not fit")
			}
			e.AppendUnit(&units[i])
		}
		return e.Finish()
	}
	entry := encode(units)
	var into Entry
	request, response := kvRequest(n), kvResponse(n)
	requestBytes, responseBytes := request.Append(nil), response.Append(nil)
	var intoRequest WriteRequest
	var intoResponse WriteResponse
	var args ArgsBuilder
	mark := (&MarkRequest{DB: "main", Term: 5}).Append(nil)
	var intoMark MarkRequest
	for name, c := range map[string]struct {
		most float64
		do   func()
	}{
		"encode entry":             {1, func() { encode(units) }},
		"encode entry, many texts": {1, func() { encode(many) }},
		"decode entry":             {0, func() { _ = DecodeEntry(entry, &into) }},
		"encode request":           {0, func() { requestBytes = request.Append(requestBytes[:0]) }},
		"decode request":           {0, func() { _ = intoRequest.Decode(requestBytes) }},
		"encode response":          {0, func() { responseBytes = response.Append(responseBytes[:0]) }},
		"decode response":          {0, func() { _ = intoResponse.Decode(responseBytes) }},
		"decode mark request":      {0, func() { _ = intoMark.Decode(mark) }},
		"peek":                     {0, func() { _, _, _, _, _ = EntryOwner(entry) }},
		"build arguments": {1, func() {
			args.Reset()
			args.Add(Int(1 << 40))
			args.AddNamed(":v", Text("some text of some length"))
			_ = args.Args()
		}},
		"read arguments": {0, func() {
			r, _ := units[0].Statements[0].Args.Reader()
			for {
				if _, _, ok, _ := r.Next(); !ok {
					return
				}
			}
		}},
	} {
		c.do()
		if got := testing.AllocsPerRun(20, c.do); got > c.most {
			t.Errorf("%s: %v allocations, at most %v are expected", name, got, c.most)
		}
	}
}

func perUnit(b *testing.B, units, bytes int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(units), "ns/unit")
	b.ReportMetric(float64(bytes)/float64(units), "bytes/unit")
	b.ReportAllocs()
}

const benchUnits = 128

func BenchmarkEncodeEntry(b *testing.B) {
	units := kvUnits(benchUnits)
	var e EntryEncoder
	n := 0
	for b.Loop() {
		e.Begin(kvHeader)
		for i := range units {
			e.AppendUnit(&units[i])
		}
		n = len(e.Finish())
	}
	perUnit(b, benchUnits, n)
}

func BenchmarkDecodeEntry(b *testing.B) {
	entry := encodeEntry(kvHeader, kvUnits(benchUnits))
	var into Entry
	for b.Loop() {
		if err := DecodeEntry(entry, &into); err != nil {
			b.Fatal(err)
		}
	}
	perUnit(b, benchUnits, len(entry))
}

func BenchmarkEncodeRequest(b *testing.B) {
	r := kvRequest(benchUnits)
	var buf []byte
	for b.Loop() {
		buf = r.Append(buf[:0])
	}
	perUnit(b, benchUnits, len(buf))
}

func BenchmarkDecodeRequest(b *testing.B) {
	buf := kvRequest(benchUnits).Append(nil)
	var into WriteRequest
	for b.Loop() {
		if err := into.Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
	perUnit(b, benchUnits, len(buf))
}

func BenchmarkDecodeResponse(b *testing.B) {
	buf := kvResponse(benchUnits).Append(nil)
	var into WriteResponse
	for b.Loop() {
		if err := into.Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
	perUnit(b, benchUnits, len(buf))
}
