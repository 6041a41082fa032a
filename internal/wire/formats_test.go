package wire

import (
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
	"unsafe"
)

// message is any format, so that one test holds for all of them.
type message interface {
	Append(b []byte) []byte
	Decode(b []byte) error
}

type entryMessage struct{ Entry }

func (m *entryMessage) Append(b []byte) []byte {
	var e EntryEncoder
	e.Begin(m.EntryHeader)
	for i := range m.Units {
		e.AppendUnit(&m.Units[i])
	}
	return append(b, e.Finish()...)
}

func (m *entryMessage) Decode(b []byte) error { return DecodeEntry(b, &m.Entry) }

type storedMessage struct{ results []StoredResult }

func (m *storedMessage) Append(b []byte) []byte { return AppendStoredResults(b, m.results) }

func (m *storedMessage) Decode(b []byte) (err error) {
	m.results, err = DecodeStoredResults(b)
	return err
}

// format is one message format with a fixed example and a source of random ones.
type format struct {
	name    string
	summed  bool // ends in a checksum
	empty   func() message
	example func() message
	random  func(g *gen) message
}

var formats = []format{
	{"entry", true, func() message { return &entryMessage{} }, exampleEntry, (*gen).entry},
	{"stored-results", true, func() message { return &storedMessage{} }, exampleStored, (*gen).stored},
	{"hello", false, func() message { return &Hello{} }, exampleHello, (*gen).hello},
	{"write-request", false, func() message { return &WriteRequest{} }, exampleWriteRequest, (*gen).writeRequest},
	{"write-response", false, func() message { return &WriteResponse{} }, exampleWriteResponse, (*gen).writeResponse},
	{"entry-each", true, func() message { return &entryMessage{} }, func() message {
		m := exampleEntry().(*entryMessage)
		m.Units[1].WantEach = true
		return m
	}, (*gen).entry},
	{"entry-needs", true, func() message { return &entryMessage{} }, func() message {
		m := exampleEntry().(*entryMessage)
		m.Units[0].Needs, m.Units[2].Needs = "f same/1 v1\nc backwards 2\n", "f same/1 v1\nc backwards 2\n"
		return m
	}, (*gen).entry},
	{"stored-results-each", true, func() message { return &storedMessage{} }, func() message {
		m := exampleStored().(*storedMessage)
		m.results[1].Each = exampleEach()
		return m
	}, (*gen).stored},
	{"write-request-each", false, func() message { return &WriteRequest{} }, func() message {
		m := exampleWriteRequest().(*WriteRequest)
		m.Units[1].WantEach = true
		return m
	}, (*gen).writeRequest},
	{"write-response-each", false, func() message { return &WriteResponse{} }, func() message {
		m := exampleWriteResponse().(*WriteResponse)
		m.Results[1].Result.Each = exampleEach()
		return m
	}, (*gen).writeResponse},
	{"entry-session", true, func() message { return &entryMessage{} }, func() message {
		m := exampleEntry().(*entryMessage)
		m.RecursiveTriggers, m.Units[1].Session = true, true
		return m
	}, (*gen).entry},
	{"write-request-resolve", false, func() message { return &WriteRequest{} }, func() message {
		m := exampleWriteRequest().(*WriteRequest)
		m.Units[1].RecursiveTriggers, m.Units[2].Resolve = true, true
		return m
	}, (*gen).writeRequest},
	{"session-request", false, func() message { return &SessionRequest{} }, exampleSession, (*gen).sessionRequest},
	{"session-response", false, func() message { return &SessionResponse{} },
		func() message {
			return &SessionResponse{State: PreState{41, 1}, Rows: exampleRows(), Mark: Mark{7, 4711}, Err: exampleError(), Over: true}
		}, (*gen).sessionResponse},
	{"mark-request", false, func() message { return &MarkRequest{} },
		func() message { return &MarkRequest{DB: "main", Term: 7, Confirm: true} }, (*gen).markRequest},
	{"mark-response", false, func() message { return &MarkResponse{} },
		func() message {
			return &MarkResponse{Mark: Mark{7, 4711}, DBIncarnation: 12, Term: 8, Err: exampleError()}
		}, (*gen).markResponse},
	{"term-request", false, func() message { return &TermRequest{} },
		func() message { return &TermRequest{Term: 300} }, func(g *gen) message { return &TermRequest{Term: g.u64()} }},
	{"term-response", false, func() message { return &TermResponse{} },
		func() message { return &TermResponse{Term: 300, OK: true} },
		func(g *gen) message { return &TermResponse{Term: g.u64(), OK: g.bool()} }},
	{"query-request", false, func() message { return &QueryRequest{} }, exampleQuery, (*gen).query},
	{"rows-header", false, func() message { return &RowsHeader{} },
		func() message { return &RowsHeader{Columns: exampleRows().Columns, Err: exampleError()} }, (*gen).rowsHeader},
	{"rows-chunk", false, func() message { return &RowsChunk{} },
		func() message {
			return &RowsChunk{N: exampleRows().N, Data: exampleRows().Data, Last: true, Err: exampleError()}
		}, (*gen).rowsChunk},
}

func formatNamed(name string) format {
	for _, f := range formats {
		if f.name == name {
			return f
		}
	}
	panic("no format " + name)
}

func exampleEach() []Outcome { return []Outcome{{1, 41}, {0, 41}, {200, math.MinInt64}} }

func exampleArgs() Args {
	var b ArgsBuilder
	b.Add(Null())
	b.Add(Int(-3))
	b.Add(Int(math.MinInt64))
	b.Add(Float(1.5))
	b.Add(Text("fourteen bytes"))
	b.AddNamed(":name", Text("a text of more than fourteen bytes"))
	b.Add(Blob([]byte{0, 1, 255}))
	b.Add(Blob(nil))
	return b.Args()
}

func exampleRows() *Rows {
	var data []byte
	for i := range int64(2) {
		data = AppendValue(data, Int(i*1000))
		data = AppendValue(data, Text("row"))
	}
	return &Rows{Columns: []Column{{"id", "INTEGER"}, {"v", ""}}, N: 2, Data: data, Truncated: true}
}

func exampleError() *Error {
	return &Error{Code: ErrSQL, Primary: 19, Extended: 2067, Offset: -1,
		Msg: "UNIQUE constraint failed: kv.k", SQL: "INSERT INTO kv(k,v) VALUES(?,?)", Detail: "unit 3"}
}

func exampleEntry() message {
	const insert = "INSERT INTO kv(k,v) VALUES(?,?)"
	return &entryMessage{Entry{
		EntryHeader: EntryHeader{DB: 12, Prev: Mark{7, 4711}, Proposer: 0x0123456789abcdef, Epoch: 99,
			Engine: 0xfedcba9876543210, Time: 1700000000123, ForeignKeys: true},
		Units: []EntryUnit{
			{ID: RequestID{5, 1000}, Lowest: 998, Time: 1700000000123, Statements: []EntryStatement{
				{SQL: insert, Args: exampleArgs(), Outcome: Outcome{1, 41}},
			}},
			{ID: RequestID{5, 1001}, Lowest: 1001, Time: 1700000000120, HasSeed: true, Seed: 42, Statements: []EntryStatement{
				{SQL: insert, Args: exampleArgs(), HasPre: true, Pre: PreState{41, 1}, Outcome: Outcome{1, 42}, Rows: true},
				{SQL: "DELETE FROM kv", Outcome: Outcome{1234, 42}},
			}},
			{ID: RequestID{6, 1}, Lowest: 0, Time: 1700000000123},
		},
	}}
}

func exampleStored() message {
	return &storedMessage{[]StoredResult{
		{ID: RequestID{5, 1000}, Lowest: 998, Outcome: Outcome{1, 41}},
		{ID: RequestID{5, 1001}, Lowest: 1001, Outcome: Outcome{7, 41}, Rows: exampleRows()},
		{ID: RequestID{6, 1}, Lowest: 1, Outcome: Outcome{0, 50}, Rows: exampleRows()},
	}}
}

func exampleHello() message {
	return &Hello{Purpose: PurposeRPC, ClusterID: "cluster", NodeID: "n1", Incarnation: "a1b2", Addr: "10.0.0.1:7000",
		WantNodeID: "n2", WantIncarnation: "c3d4", FormatMin: 1, FormatMax: 300, Engine: 0xfedcba9876543210}
}

func exampleWriteRequest() message {
	const insert = "INSERT INTO kv(k,v) VALUES(?,?)"
	return &WriteRequest{DB: "main", Units: []Unit{
		{ID: RequestID{5, 1000}, Lowest: 998, ForeignKeys: true, Pin: true, WantRows: true, HasPre: true, Pre: PreState{41, 1},
			Timeout: 5000, Statements: []Statement{{SQL: insert, Args: exampleArgs()}}},
		{ID: RequestID{5, 1001}, Lowest: 1001, Statements: []Statement{{SQL: insert}, {SQL: "DELETE FROM kv"}, {SQL: insert}}},
		{ID: RequestID{6, 1}},
	}}
}

func exampleWriteResponse() message {
	return &WriteResponse{Leader: "n1", Results: []UnitResult{
		{Mark: Mark{7, 4712}, Result: Result{Outcome: Outcome{1, 41}}},
		{Mark: Mark{7, 4712}, Result: Result{Outcome: Outcome{3, 41}, Rows: exampleRows()}},
		{Mark: Mark{7, 4600}, Result: Result{Rows: exampleRows()}, Duplicate: true},
		{Err: exampleError()},
	}}
}

func exampleQuery() message {
	return &QueryRequest{DB: "main", Level: 2, Statement: Statement{SQL: "SELECT * FROM kv WHERE k=?", Args: exampleArgs()},
		HasPre: true, Pre: PreState{41, 1}, Timeout: 5000}
}

func exampleSession() message {
	return &SessionRequest{Kind: SessionRun, DB: "main", Label: "node n2", ForeignKeys: true, Pin: true, Pre: PreState{41, 1},
		ID: RequestID{5, 1002}, Lowest: 998, Timeout: 5000, Statement: Statement{SQL: "SELECT * FROM kv WHERE k=?", Args: exampleArgs()}}
}

// view is what a message says, without what it keeps for reuse.
func view(m message) any {
	switch m := m.(type) {
	case *entryMessage:
		return [2]any{m.EntryHeader, append([]EntryUnit(nil), m.Units...)}
	case *WriteRequest:
		return [2]any{m.DB, append([]Unit(nil), m.Units...)}
	case *WriteResponse:
		return [2]any{m.Leader, append([]UnitResult(nil), m.Results...)}
	case *storedMessage:
		return append([]StoredResult(nil), m.results...)
	}
	return m
}

func mustEqual(t *testing.T, got, want message) {
	t.Helper()
	if !reflect.DeepEqual(view(got), view(want)) {
		t.Fatalf("decoded\n%+v\nwant\n%+v", view(got), view(want))
	}
}

func mustDecode(t *testing.T, m message, b []byte) {
	t.Helper()
	if err := m.Decode(b); err != nil {
		t.Fatalf("decode %T: %v", m, err)
	}
}

func isFormatError(err error) bool {
	var fe *FormatError
	return errors.As(err, &fe)
}

// footprint is how many bytes a message allocated beside its input.
func footprint(m message) int {
	size := func(n int, of uintptr) int { return n * int(of) }
	rows := func(r *Rows) int {
		if r == nil {
			return 0
		}
		n := int(unsafe.Sizeof(*r))
		for _, c := range r.Columns {
			n += int(unsafe.Sizeof(c)) + len(c.Name) + len(c.DeclType)
		}
		return n
	}
	switch m := m.(type) {
	case *entryMessage:
		return size(cap(m.Units), unsafe.Sizeof(EntryUnit{})) + size(cap(m.statements), unsafe.Sizeof(EntryStatement{})) +
			size(cap(m.texts), unsafe.Sizeof(""))
	case *WriteRequest:
		return size(cap(m.Units), unsafe.Sizeof(Unit{})) + size(cap(m.statements), unsafe.Sizeof(Statement{})) +
			size(cap(m.texts), unsafe.Sizeof(""))
	case *WriteResponse:
		n := size(cap(m.Results), unsafe.Sizeof(UnitResult{}))
		var shared *Column
		for _, r := range m.Results {
			n += size(cap(r.Result.Each), unsafe.Sizeof(Outcome{}))
			if r.Result.Rows != nil {
				if first := unsafe.SliceData(r.Result.Rows.Columns); first != shared {
					n, shared = n+rows(r.Result.Rows), first
				}
			}
		}
		return n
	case *storedMessage:
		n := size(cap(m.results), unsafe.Sizeof(StoredResult{}))
		var shared *Column
		for _, r := range m.results {
			n += size(cap(r.Each), unsafe.Sizeof(Outcome{}))
			if r.Rows != nil {
				if first := unsafe.SliceData(r.Rows.Columns); first != shared {
					n, shared = n+rows(r.Rows), first
				}
			}
		}
		return n
	case *SessionResponse:
		return rows(m.Rows)
	case *RowsHeader:
		return rows(&Rows{Columns: m.Columns})
	}
	return 0
}

// footprintPerByte bounds footprint: a unit of three bytes takes less than 128, a statement of two less than 96.
const footprintPerByte = 96

func checkFootprint(t *testing.T, m message, input int) {
	t.Helper()
	if got := footprint(m); got > footprintPerByte*input+1024 {
		t.Fatalf("%T decoded from %d bytes takes %d", m, input, got)
	}
}

var seedFlag = flag.Uint64("wire.seed", 0, "seed of the random tests, 0 takes the time")

// gen makes random values, extreme ones often.
type gen struct{ r *rand.Rand }

func newGen(t *testing.T) *gen {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed: -wire.seed=%d", seed)
	return &gen{rand.New(rand.NewPCG(seed, 1))}
}

func (g *gen) bool() bool { return g.r.IntN(2) == 0 }

func (g *gen) u64() uint64 {
	switch g.r.IntN(6) {
	case 0:
		return 0
	case 1:
		return math.MaxUint64 - uint64(g.r.IntN(2))
	case 2:
		return g.r.Uint64()
	case 3:
		return math.MaxInt64 + uint64(g.r.IntN(3)) - 1
	}
	return uint64(g.r.IntN(300))
}

func (g *gen) i64() int64 { return int64(g.u64()) * int64(1-2*g.r.IntN(2)) }

// near is usually close to v, as sequences and times are.
func (g *gen) near(v uint64) uint64 {
	if g.r.IntN(4) == 0 {
		return g.u64()
	}
	return v + uint64(g.r.IntN(5)) - 2
}

func (g *gen) bytes(limit int) []byte {
	b := make([]byte, g.r.IntN(limit+1))
	for i := range b {
		b[i] = byte(g.r.Uint32())
	}
	return b
}

// text is any bytes, invalid UTF-8 and zeros too.
func (g *gen) text(limit int) string { return string(g.bytes(limit)) }

func (g *gen) sql() string {
	if g.bool() {
		return "statement " + string(rune('a'+g.r.IntN(20)))
	}
	return g.text(40)
}

func (g *gen) value() Value {
	switch g.r.IntN(6) {
	case 0:
		return Null()
	case 1:
		return Int(g.i64())
	case 2:
		return Float([]float64{math.NaN(), math.Copysign(0, -1), 0, math.Inf(1), math.Inf(-1), math.MaxFloat64,
			math.SmallestNonzeroFloat64, g.r.NormFloat64()}[g.r.IntN(8)])
	case 3:
		return Value{Kind: KindFloat, N: g.r.Uint64()} // any bits, signalling NaNs too
	case 4:
		return Text(g.text(40))
	}
	return Blob(g.bytes(40))
}

func (g *gen) args() Args {
	var b ArgsBuilder
	for range g.r.IntN(5) {
		if g.r.IntN(4) == 0 {
			b.AddNamed(g.text(10), g.value())
		} else {
			b.Add(g.value())
		}
	}
	return b.Args()
}

func (g *gen) pre(has bool) PreState {
	if !has {
		return PreState{}
	}
	return PreState{g.i64(), g.i64()}
}

func (g *gen) outcome() Outcome {
	if g.bool() {
		return Outcome{int64(g.r.IntN(3)), int64(g.r.IntN(100))}
	}
	return Outcome{g.i64(), g.i64()}
}

func (g *gen) each() []Outcome {
	var each []Outcome
	for range max(0, g.r.IntN(8)-4) {
		each = append(each, g.outcome())
	}
	return each
}

func (g *gen) columns() []Column {
	var cs []Column
	for range g.r.IntN(4) {
		cs = append(cs, Column{g.text(10), g.text(5)})
	}
	return cs
}

func (g *gen) rows() *Rows {
	if g.bool() {
		return nil
	}
	r := &Rows{Columns: g.columns(), Data: []byte{}, Truncated: g.bool()}
	if g.bool() {
		r.Columns = []Column{{"id", "INTEGER"}}
	}
	if len(r.Columns) == 0 {
		return r
	}
	r.N = g.r.IntN(4)
	for range r.N * len(r.Columns) {
		r.Data = AppendValue(r.Data, g.value())
	}
	return r
}

func (g *gen) error() *Error {
	if g.bool() {
		return nil
	}
	return &Error{Code: ErrorCode(g.r.IntN(256)), Primary: int32(g.r.Uint32()), Extended: int32(g.r.Uint32()),
		Offset: int32(g.r.Uint32()), Msg: g.text(30), SQL: g.text(30), Detail: g.text(30)}
}

func (g *gen) entry() message {
	m := &entryMessage{Entry{EntryHeader: EntryHeader{DB: g.u64(), Prev: Mark{g.u64(), g.u64()}, Proposer: g.u64(), Epoch: g.u64(),
		Engine: g.u64(), Time: g.i64(), ForeignKeys: g.bool(), RecursiveTriggers: g.bool()}}}
	id := RequestID{g.u64(), g.u64()}
	for range g.r.IntN(8) {
		id = RequestID{g.near(id.Origin), g.near(id.Seq)}
		u := EntryUnit{ID: id, Lowest: g.near(id.Seq), Time: int64(g.near(uint64(m.Time))), HasSeed: g.bool(), WantEach: g.bool(), Session: g.bool()}
		if u.HasSeed {
			u.Seed = g.u64()
		}
		if g.bool() {
			u.Needs = g.text(30)
		}
		for range g.r.IntN(4) {
			s := EntryStatement{SQL: g.sql(), Args: g.args(), HasPre: g.bool(), Outcome: g.outcome(), Rows: g.bool()}
			s.Pre = g.pre(s.HasPre)
			u.Statements = append(u.Statements, s)
		}
		m.Units = append(m.Units, u)
	}
	return m
}

func (g *gen) stored() message {
	m := &storedMessage{}
	id := RequestID{g.u64(), g.u64()}
	for range g.r.IntN(8) {
		id = RequestID{g.near(id.Origin), g.near(id.Seq)}
		m.results = append(m.results, StoredResult{ID: id, Lowest: g.near(id.Seq), Outcome: g.outcome(), Rows: g.rows(), Each: g.each()})
	}
	return m
}

func (g *gen) hello() message {
	return &Hello{Purpose: uint8(g.r.IntN(256)), ClusterID: g.text(MaxIDBytes), NodeID: g.text(MaxIDBytes), Incarnation: g.text(5),
		Addr: g.text(MaxAddrBytes), WantNodeID: g.text(5), WantIncarnation: g.text(5), FormatMin: uint16(g.r.Uint32()),
		FormatMax: uint16(g.r.Uint32()), Engine: g.u64()}
}

func (g *gen) writeRequest() message {
	m := &WriteRequest{DB: g.text(MaxNameBytes)}
	id := RequestID{g.u64(), g.u64()}
	for range g.r.IntN(8) {
		id = RequestID{g.near(id.Origin), g.near(id.Seq)}
		u := Unit{ID: id, Lowest: g.near(id.Seq), ForeignKeys: g.bool(), Pin: g.bool(), WantRows: g.bool(), WantEach: g.bool(), HasPre: g.bool(),
			Timeout: g.i64(), RecursiveTriggers: g.bool(), Resolve: g.bool()}
		u.Pre = g.pre(u.HasPre)
		for range g.r.IntN(4) {
			u.Statements = append(u.Statements, Statement{SQL: g.sql(), Args: g.args()})
		}
		m.Units = append(m.Units, u)
	}
	return m
}

func (g *gen) writeResponse() message {
	m := &WriteResponse{Leader: g.text(20)}
	mark := Mark{g.u64(), g.u64()}
	for range g.r.IntN(8) {
		if g.bool() {
			mark = Mark{g.u64(), g.near(mark.Index)}
		}
		m.Results = append(m.Results, UnitResult{Mark: mark, Result: Result{g.outcome(), g.rows(), g.each()}, Err: g.error(), Duplicate: g.bool()})
	}
	return m
}

func (g *gen) markRequest() message {
	return &MarkRequest{DB: g.text(MaxNameBytes), Term: g.u64(), Confirm: g.bool()}
}

func (g *gen) markResponse() message {
	return &MarkResponse{Mark: Mark{g.u64(), g.u64()}, DBIncarnation: g.u64(), Term: g.u64(), Err: g.error()}
}

func (g *gen) query() message {
	m := &QueryRequest{DB: g.text(MaxNameBytes), Level: uint8(g.r.IntN(256)), Statement: Statement{g.sql(), g.args()},
		HasPre: g.bool(), Timeout: g.i64()}
	m.Pre = g.pre(m.HasPre)
	return m
}

func (g *gen) sessionRequest() message {
	return &SessionRequest{Kind: uint8(g.r.IntN(256)), DB: g.text(MaxNameBytes), Label: g.text(20), ForeignKeys: g.bool(), RecursiveTriggers: g.bool(),
		Pin: g.bool(), WantRows: g.bool(), Pre: g.pre(true), ID: RequestID{g.u64(), g.u64()}, Lowest: g.u64(), Timeout: g.i64(),
		Statement: Statement{g.sql(), g.args()}}
}

func (g *gen) sessionResponse() message {
	return &SessionResponse{State: g.pre(true), Rows: g.rows(), Mark: Mark{g.u64(), g.u64()}, Err: g.error(), Over: g.bool()}
}

func (g *gen) rowsHeader() message { return &RowsHeader{Columns: g.columns(), Err: g.error()} }

func (g *gen) rowsChunk() message {
	m := &RowsChunk{Data: []byte{}, Last: g.bool(), Err: g.error()}
	if r := g.rows(); r != nil {
		m.N, m.Data = r.N, r.Data
	}
	return m
}
