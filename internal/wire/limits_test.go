package wire

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// Every limit is known to the sender's Check and to the decoder, and what is exactly at the limit passes both.
func TestLimitsHoldOnBothSides(t *testing.T) {
	if testing.Short() {
		t.Skip("works on messages as large as the limits")
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	args := func(n int) Args {
		var b ArgsBuilder
		for range n {
			b.Add(Null())
		}
		return b.Args()
	}
	query := func(sql string, a Args) message { return &QueryRequest{Statement: Statement{sql, a}} }
	statements := func(units, each int) message {
		r := &WriteRequest{Units: make([]Unit, units)}
		for i := range r.Units {
			r.Units[i].Statements = make([]Statement, each)
		}
		return r
	}
	columns := func(n int) message { return &RowsHeader{Columns: make([]Column, n)} }
	for _, c := range []struct {
		name     string
		at, over message
	}{
		{"MaxStatementBytes", query(long(MaxStatementBytes), nil), query(long(MaxStatementBytes+1), nil)},
		{"MaxStatementBytes with arguments", query(long(MaxStatementBytes-2), args(1)), query(long(MaxStatementBytes-1), args(1))},
		{"MaxArgs", query("", args(MaxArgs)), query("", args(MaxArgs+1))},
		{"MaxNameBytes of a query", &QueryRequest{DB: long(MaxNameBytes)}, &QueryRequest{DB: long(MaxNameBytes + 1)}},
		{"MaxNameBytes of a mark", &MarkRequest{DB: long(MaxNameBytes)}, &MarkRequest{DB: long(MaxNameBytes + 1)}},
		{"MaxNameBytes of a write", &WriteRequest{DB: long(MaxNameBytes)}, &WriteRequest{DB: long(MaxNameBytes + 1)}},
		{"MaxUnits", &WriteRequest{Units: make([]Unit, MaxUnits)}, &WriteRequest{Units: make([]Unit, MaxUnits+1)}},
		{"MaxUnitStatements", statements(1, MaxUnitStatements), statements(1, MaxUnitStatements+1)},
		{"MaxStatements", statements(MaxStatements/64, 64), statements(MaxStatements/64+1, 64)},
		{"MaxUnits of results", &WriteResponse{Results: make([]UnitResult, MaxUnits)}, &WriteResponse{Results: make([]UnitResult, MaxUnits+1)}},
		{"MaxAddrBytes of a leader", &WriteResponse{Leader: long(MaxAddrBytes)}, &WriteResponse{Leader: long(MaxAddrBytes + 1)}},
		{"MaxColumns", columns(MaxColumns), columns(MaxColumns + 1)},
		{"MaxIDBytes", &Hello{ClusterID: long(MaxIDBytes)}, &Hello{ClusterID: long(MaxIDBytes + 1)}},
		{"MaxIDBytes of the last", &Hello{WantIncarnation: long(MaxIDBytes)}, &Hello{WantIncarnation: long(MaxIDBytes + 1)}},
		{"MaxAddrBytes", &Hello{Addr: long(MaxAddrBytes)}, &Hello{Addr: long(MaxAddrBytes + 1)}},
	} {
		type checker interface{ Check() error }
		if err := c.at.(checker).Check(); err != nil {
			t.Errorf("%s: at the limit, Check says %v", c.name, err)
		}
		got := fresh(c.at)
		if err := got.Decode(c.at.Append(nil)); err != nil {
			t.Errorf("%s: at the limit, the decoder says %v", c.name, err)
		}
		var limit *LimitError
		if err := c.over.(checker).Check(); !errors.As(err, &limit) {
			t.Errorf("%s: over the limit, Check says %v", c.name, err)
		}
		if err := fresh(c.over).Decode(c.over.Append(nil)); !errors.As(err, &limit) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: over the limit, the decoder says %v", c.name, err)
		}
	}
}

func fresh(m message) message {
	for _, f := range formats {
		if e := f.empty(); sameType(e, m) {
			return e
		}
	}
	panic("no such format")
}

func sameType(a, b message) bool { return a.Append(nil)[0] == b.Append(nil)[0] }

func TestFramesBeyondTheirLimitAreRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("works on messages as large as the limits")
	}
	for name, maxBytes := range map[string]int{"entry": MaxEntryBytes, "rows-chunk": MaxFrameBytes, "hello": MaxHelloBytes} {
		f := formatNamed(name)
		b := append(f.example().Append(nil), make([]byte, maxBytes)...)
		var limit *LimitError
		if err := f.empty().Decode(b); !errors.As(err, &limit) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSendersLearnOfOversizedMessages(t *testing.T) {
	if testing.Short() {
		t.Skip("works on messages as large as the limits")
	}
	sql := strings.Repeat("x", MaxStatementBytes)
	var limit *LimitError
	four := make([]Statement, 4)
	entryFour := make([]EntryStatement, 4)
	for i := range four {
		four[i].SQL, entryFour[i].SQL = sql, sql
	}
	data := bytes.Repeat(AppendValue(nil, Null()), 40<<20)
	rows := &Rows{Columns: make([]Column, 1), N: len(data), Data: data}
	for name, err := range map[string]error{
		"unit":        (&Unit{Statements: four}).Check(),
		"entry unit":  (&EntryUnit{Statements: entryFour}).Check(),
		"request":     (&WriteRequest{Units: []Unit{{Statements: four[:3]}, {Statements: four[:3]}}}).Check(),
		"response":    (&WriteResponse{Results: []UnitResult{{Result: Result{Rows: rows}}, {Result: Result{Rows: rows}}}}).Check(),
		"error's SQL": (&WriteResponse{Results: []UnitResult{{Err: &Error{SQL: sql + "x"}}}}).Check(),
		"stored":      CheckStoredResults([]StoredResult{{Rows: rows}, {Rows: rows}}),
		"many stored": CheckStoredResults(make([]StoredResult, MaxUnits+1)),
		"columns":     (&Rows{Columns: make([]Column, MaxColumns+1)}).Check(),
		"chunk":       (&RowsChunk{N: 1, Data: make([]byte, MaxFrameBytes)}).Check(),
	} {
		if !errors.As(err, &limit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckStoredResults([]StoredResult{{Rows: rows}}); err != nil {
		t.Error(err)
	}
}

func TestRowsMustMatchTheirNumber(t *testing.T) {
	two := AppendValue(AppendValue(nil, Int(1)), Int(2))
	named := appendValue(nil, "name", Int(1))
	for name, r := range map[string]*Rows{
		"too few":      {Columns: make([]Column, 2), N: 2, Data: two},
		"too many":     {Columns: make([]Column, 1), N: 1, Data: two},
		"negative":     {Columns: make([]Column, 1), N: -1, Data: two},
		"no columns":   {N: 1, Data: two},
		"named values": {Columns: make([]Column, 1), N: 1, Data: named},
		"not values":   {Columns: make([]Column, 1), N: 1, Data: []byte{7}},
	} {
		if err := r.Check(); err == nil {
			t.Errorf("%s: passes Check", name)
		}
		b := AppendStoredResults(nil, []StoredResult{{Rows: r}})
		if _, err := DecodeStoredResults(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&RowsChunk{N: 3, Data: two}).Check(); err == nil {
		t.Error("a chunk of more rows than bytes passes Check")
	}
}

// Size must never be less than what is really taken, for the extreme values too.
func TestSizesAreUpperBounds(t *testing.T) {
	g := newGen(t)
	for range 2000 {
		entry := g.entry().(*entryMessage)
		var e EntryEncoder
		e.Begin(entry.EntryHeader)
		if e.Len() > headerOverhead {
			t.Fatalf("a header of %d bytes", e.Len())
		}
		for i := range entry.Units {
			before := e.Len()
			e.AppendUnit(&entry.Units[i])
			if n := e.Len() - before; n > entry.Units[i].Size() {
				t.Fatalf("%d bytes, Size says %d", n, entry.Units[i].Size())
			}
		}
		request := g.writeRequest().(*WriteRequest)
		size := headerOverhead
		for i := range request.Units {
			size += request.Units[i].Size()
		}
		if n := len(request.Append(nil)); n > size {
			t.Fatalf("%d bytes, the sizes say %d", n, size)
		}
		response := g.writeResponse().(*WriteResponse)
		size = headerOverhead
		for i := range response.Results {
			size += response.Results[i].Size()
		}
		if n := len(response.Append(nil)); n > size {
			t.Fatalf("%d bytes, the sizes say %d", n, size)
		}
		stored := g.stored().(*storedMessage)
		size = headerOverhead
		for i := range stored.results {
			size += stored.results[i].Size()
		}
		if n := len(stored.Append(nil)); n > size {
			t.Fatalf("%d bytes, the sizes say %d", n, size)
		}
	}
}
