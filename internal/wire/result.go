package wire

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Column describes a result column. Its decoded strings are copies.
type Column struct{ Name, DeclType string }

// Rows is a bounded set of rows: N times len(Columns) encoded values. Results that follow one another in a message and have
// the same columns share Columns after decoding; Data aliases the message.
type Rows struct {
	Columns   []Column
	N         int
	Data      []byte
	Truncated bool // there were more rows than the limit on kept results allowed
}

// Result is the result of a unit: the last statement's outcome and the rows of the last statement that had any.
type Result struct {
	Outcome
	Rows *Rows
	Each []Outcome // of every statement, if the unit asked for them
}

// UnitResult answers a unit.
type UnitResult struct {
	Mark      Mark
	Result    Result
	Err       *Error
	Duplicate bool // answered from the memory of requests
}

// Size is an upper bound of the bytes that the result takes in a response.
func (r *UnitResult) Size() int {
	return unitOverhead + r.Result.Rows.size() + eachSize(r.Result.Each) + r.Err.size()
}

// Check reports what would make a decoder refuse the rows: their number must match their data.
func (r *Rows) Check() error {
	if r == nil {
		return nil
	}
	if err := checkLimit("columns", len(r.Columns), MaxColumns); err != nil {
		return err
	}
	if !r.sound() {
		return fmt.Errorf("wire: %d bytes are not %d rows of %d columns", len(r.Data), r.N, len(r.Columns))
	}
	return nil
}

// sound reports whether Data is exactly N rows. Without columns there can be no rows, else their number had no bound.
func (r *Rows) sound() bool {
	if len(r.Columns) == 0 {
		return r.N == 0 && len(r.Data) == 0
	}
	if r.N < 0 || r.N > len(r.Data)/len(r.Columns) {
		return false
	}
	return skipValues(r.Data, 0, r.N*len(r.Columns), false) == len(r.Data)
}

func (r *Rows) size() int {
	if r == nil {
		return 0
	}
	return statementOverhead + columnsSize(r.Columns) + len(r.Data)
}

func columnsSize(cs []Column) int {
	n := 5
	for i := range cs {
		n += 10 + len(cs[i].Name) + len(cs[i].DeclType)
	}
	return n
}

const minColumnBytes = 2

func appendColumns(b []byte, cs []Column) []byte {
	b = binary.AppendUvarint(b, uint64(len(cs)))
	for i := range cs {
		b = appendString(b, cs[i].Name)
		b = appendString(b, cs[i].DeclType)
	}
	return b
}

// readColumns copies all names in one piece, because columns outlive the message that brought them.
func (c *cursor) readColumns() []Column {
	n := c.count("columns", MaxColumns, minColumnBytes)
	if n == 0 {
		return nil
	}
	start, all := c.off, c.b
	for range 2 * n {
		c.bytes("column name bytes", MaxStatementBytes)
	}
	if c.err != nil {
		return nil
	}
	text := string(all[start:c.off])
	names := cursor{b: all, off: start}
	cs := make([]Column, n)
	for i := range cs {
		cs[i].Name = names.within(text, start)
		cs[i].DeclType = names.within(text, start)
	}
	return cs
}

// within reads a string that was read before, as a part of text, which is a copy of the input from start on.
func (c *cursor) within(text string, start int) string {
	n := int(c.uvarint())
	c.off += n
	return text[c.off-n-start : c.off-start]
}

const (
	rowsTruncated   = 1 << 0
	rowsSameColumns = 1 << 1 // the columns of the rows before it in the message
	rowsKnown       = 1<<2 - 1
)

// rowsCoder carries the columns of the rows last seen from one result to the next.
type rowsCoder struct {
	columns []Column
	any     bool
}

func (p *rowsCoder) append(b []byte, r *Rows) []byte {
	same := p.any && slices.Equal(p.columns, r.Columns)
	b = append(b, flagIf(r.Truncated, rowsTruncated)|flagIf(same, rowsSameColumns))
	if !same {
		b = appendColumns(b, r.Columns)
		p.columns, p.any = r.Columns, true
	}
	b = binary.AppendUvarint(b, uint64(r.N))
	return appendBytes(b, r.Data)
}

func (p *rowsCoder) read(c *cursor) *Rows {
	flags := c.flags(rowsKnown)
	if flags&rowsSameColumns == 0 {
		p.columns, p.any = c.readColumns(), true
	} else if !p.any {
		c.fail("columns refer to none before them")
	}
	n := c.uvarint()
	data := c.bytes("row bytes", MaxFrameBytes)
	if n > uint64(len(data)) {
		c.fail("more rows than bytes")
	}
	if c.err != nil {
		return nil
	}
	r := &Rows{Columns: p.columns, N: int(n), Data: data, Truncated: flags&rowsTruncated != 0}
	if !r.sound() {
		c.fail("rows do not match their number")
		return nil
	}
	return r
}

// Flags shared by results in responses and stored results.
const (
	resultSame      = 1 << 0 // the mark, or the origin, of the result before it
	resultAffected  = 1 << 1
	resultLastID    = 1 << 2
	resultRows      = 1 << 3
	resultErr       = 1 << 4 // responses only
	resultDuplicate = 1 << 5 // responses only
	resultLowest    = 1 << 6 // stored results only
	resultEach      = 1 << 7 // the outcomes of all statements follow
)

// minOutcomeBytes is what an outcome among all of a unit takes at least: two varints.
const minOutcomeBytes = 2

func eachSize(each []Outcome) int {
	if len(each) == 0 {
		return 0
	}
	return binary.MaxVarintLen32 + 2*binary.MaxVarintLen64*len(each)
}

// appendEach appends the outcomes of all statements, each last insert ID as the difference to the one before it.
func appendEach(b []byte, each []Outcome) []byte {
	b = binary.AppendUvarint(b, uint64(len(each)))
	var lastID int64
	for _, o := range each {
		b = binary.AppendVarint(b, o.RowsAffected)
		b = binary.AppendVarint(b, o.LastInsertID-lastID)
		lastID = o.LastInsertID
	}
	return b
}

func (c *cursor) readEach() []Outcome {
	n := c.count("outcomes in a result", MaxUnitStatements, minOutcomeBytes)
	if n == 0 {
		c.fail("outcomes are announced and there are none")
		return nil
	}
	each := make([]Outcome, n)
	var lastID int64
	for i := range each {
		each[i].RowsAffected = c.varint()
		lastID += c.varint()
		each[i].LastInsertID = lastID
	}
	return each
}

// WriteResponse answers a WriteRequest, one result per unit and in its order.
type WriteResponse struct {
	Results []UnitResult
	Leader  string // whom to ask, if this node does not lead
}

// Check reports what would make a decoder refuse the response.
func (r *WriteResponse) Check() error {
	if err := checkLimit("leader bytes", len(r.Leader), MaxAddrBytes); err != nil {
		return err
	}
	if err := checkLimit("results in a response", len(r.Results), MaxUnits); err != nil {
		return err
	}
	size := headerOverhead + len(r.Leader)
	for i := range r.Results {
		u := &r.Results[i]
		if err := u.Result.Rows.Check(); err != nil {
			return err
		}
		if err := checkLimit("outcomes in a result", len(u.Result.Each), MaxUnitStatements); err != nil {
			return err
		}
		if u.Err != nil {
			if err := checkLimit("statement bytes in an error", len(u.Err.SQL), MaxStatementBytes); err != nil {
				return err
			}
		}
		size += u.Size()
	}
	return checkLimit("response bytes", size, MaxFrameBytes)
}

// Append appends the encoded response to b.
func (r *WriteResponse) Append(b []byte) []byte {
	b = append(b, MsgWriteResponse, version)
	b = appendString(b, r.Leader)
	b = binary.AppendUvarint(b, uint64(len(r.Results)))
	var mark Mark
	var lastID int64
	var rows rowsCoder
	for i := range r.Results {
		u := &r.Results[i]
		b = append(b, flagIf(u.Mark == mark, resultSame)|
			flagIf(u.Result.RowsAffected != 0, resultAffected)|
			flagIf(u.Result.LastInsertID != lastID, resultLastID)|
			flagIf(u.Result.Rows != nil, resultRows)|
			flagIf(u.Err != nil, resultErr)|
			flagIf(u.Duplicate, resultDuplicate)|
			flagIf(len(u.Result.Each) != 0, resultEach))
		if u.Mark != mark {
			mark = u.Mark
			b = binary.AppendUvarint(b, mark.Term)
			b = binary.AppendUvarint(b, mark.Index)
		}
		b, lastID = appendOutcome(b, u.Result.Outcome, lastID)
		if u.Result.Rows != nil {
			b = rows.append(b, u.Result.Rows)
		}
		if len(u.Result.Each) != 0 {
			b = appendEach(b, u.Result.Each)
		}
		if u.Err != nil {
			b = appendError(b, u.Err)
		}
	}
	return b
}

func appendOutcome(b []byte, o Outcome, lastID int64) ([]byte, int64) {
	if o.RowsAffected != 0 {
		b = binary.AppendVarint(b, o.RowsAffected)
	}
	if o.LastInsertID != lastID {
		b = binary.AppendVarint(b, o.LastInsertID-lastID)
	}
	return b, o.LastInsertID
}

func (c *cursor) readOutcome(flags byte, lastID int64) (o Outcome) {
	o.LastInsertID = lastID
	if flags&resultAffected != 0 {
		o.RowsAffected = c.varint()
	}
	if flags&resultLastID != 0 {
		o.LastInsertID += c.varint()
	}
	return o
}

// Decode decodes a response and reuses r.Results; Rows and Err are new ones. Data of rows aliases b. After an error r has no
// results.
func (r *WriteResponse) Decode(b []byte) error {
	r.Results = r.Results[:0]
	c, err := open(b, MsgWriteResponse, MaxFrameBytes)
	if err != nil {
		return err
	}
	r.Leader = c.sameOrCopy(r.Leader, "leader bytes", MaxAddrBytes)
	r.Results = resize(r.Results, c.count("results in a response", MaxUnits, 1))
	var mark Mark
	var lastID int64
	var rows rowsCoder
	for i := range r.Results {
		flags := c.flags(resultSame | resultAffected | resultLastID | resultRows | resultErr | resultDuplicate | resultEach)
		if flags&resultSame == 0 {
			mark = Mark{Term: c.uvarint(), Index: c.uvarint()}
		}
		u := &r.Results[i]
		*u = UnitResult{Mark: mark, Duplicate: flags&resultDuplicate != 0}
		u.Result.Outcome = c.readOutcome(flags, lastID)
		lastID = u.Result.LastInsertID
		if flags&resultRows != 0 {
			u.Result.Rows = rows.read(&c)
		}
		if flags&resultEach != 0 {
			u.Result.Each = c.readEach()
		}
		if flags&resultErr != 0 {
			u.Err = c.readError()
		}
		if c.err != nil {
			break
		}
	}
	if err := c.end(); err != nil {
		r.Results = r.Results[:0]
		return err
	}
	return nil
}
