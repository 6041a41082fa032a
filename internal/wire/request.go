package wire

import "encoding/binary"

// Statement is a statement to run. Both fields alias the message they were decoded from.
type Statement struct {
	SQL  string
	Args Args
}

// Unit is a unit of work to run: its statements succeed or fail together.
type Unit struct {
	ID          RequestID
	Lowest      uint64 // lowest outstanding sequence of that origin
	ForeignKeys bool
	// RecursiveTriggers is the PRAGMA of that name.
	RecursiveTriggers bool
	// Resolve asks what became of the request. If it is not known, an entry takes its place, so that it never will be.
	Resolve    bool
	Pin        bool // non-deterministic values are pinned, not refused
	WantRows   bool
	WantEach   bool // the outcomes of all statements belong to the result
	Pre        PreState
	HasPre     bool  // without it Pre is not sent
	Timeout    int64 // milliseconds left, 0 none
	Statements []Statement
}

// WriteRequest asks the leader to run units on a database.
type WriteRequest struct {
	DB    string
	Units []Unit

	statements []Statement // backs the units' Statements after decoding
	texts      []string
}

// Reset forgets everything that aliases a decoded message, so that a WriteRequest kept for reuse does not keep it alive.
func (r *WriteRequest) Reset() {
	clear(r.Units[:cap(r.Units)])
	clear(r.statements[:cap(r.statements)])
	clear(r.texts[:cap(r.texts)])
	r.DB, r.Units, r.statements, r.texts = "", r.Units[:0], r.statements[:0], r.texts[:0]
}

// Flags of a unit in a request, a uvarint: those of a usual unit fit its first byte.
const (
	requestSameOrigin = 1 << iota
	requestOne        // one statement, no number follows
	requestLowest
	requestForeignKeys
	requestWantRows
	requestTimeout
	requestPre
	requestPin
	requestEach
	requestRecursive
	requestResolve
	requestEnd
)

const (
	minRequestUnitBytes      = 3 // flags, sequence, and a number of statements or a statement
	minRequestStatementBytes = 2 // text reference, length of the arguments
)

// Append appends the encoded request to b. Repeated SQL texts are stored once.
func (r *WriteRequest) Append(b []byte) []byte {
	statements := 0
	for i := range r.Units {
		statements += len(r.Units[i].Statements)
	}
	b = append(b, MsgWriteRequest, version)
	b = appendString(b, r.DB)
	b = binary.AppendUvarint(b, uint64(len(r.Units)))
	b = binary.AppendUvarint(b, uint64(statements))
	texts := textTables.Get().(*textTable)
	var prev RequestID
	for i := range r.Units {
		u := &r.Units[i]
		b = u.append(b, prev)
		prev = u.ID
		for j := range u.Statements {
			b = texts.appendText(b, u.Statements[j].SQL)
			b = appendBytes(b, u.Statements[j].Args)
		}
	}
	texts.reset()
	textTables.Put(texts)
	return b
}

// append appends all of the unit but its statements.
func (u *Unit) append(b []byte, prev RequestID) []byte {
	flags := uint64(0)
	set := func(is bool, bit uint64) {
		if is {
			flags |= bit
		}
	}
	set(u.ID.Origin == prev.Origin, requestSameOrigin)
	set(len(u.Statements) == 1, requestOne)
	set(u.Lowest != u.ID.Seq, requestLowest)
	set(u.ForeignKeys, requestForeignKeys)
	set(u.WantRows, requestWantRows)
	set(u.Timeout != 0, requestTimeout)
	set(u.HasPre, requestPre)
	set(u.Pin, requestPin)
	set(u.WantEach, requestEach)
	set(u.RecursiveTriggers, requestRecursive)
	set(u.Resolve, requestResolve)
	b = binary.AppendUvarint(b, flags)
	if flags&requestSameOrigin == 0 {
		b = binary.AppendUvarint(b, u.ID.Origin)
		prev.Seq = 0
	}
	b = binary.AppendVarint(b, int64(u.ID.Seq-prev.Seq))
	if flags&requestLowest != 0 {
		b = binary.AppendVarint(b, int64(u.ID.Seq-u.Lowest))
	}
	if flags&requestTimeout != 0 {
		b = binary.AppendVarint(b, u.Timeout)
	}
	if flags&requestPre != 0 {
		b = appendPre(b, u.Pre)
	}
	if flags&requestOne == 0 {
		b = binary.AppendUvarint(b, uint64(len(u.Statements)))
	}
	return b
}

func appendPre(b []byte, p PreState) []byte {
	b = binary.AppendVarint(b, p.LastInsertID)
	return binary.AppendVarint(b, p.Changes)
}

// Decode decodes a request and reuses r's slices, so no unit of the request decoded before may still be in use. SQL texts and
// arguments alias b; DB does not. After an error r has no units.
func (r *WriteRequest) Decode(b []byte) error {
	r.Units = r.Units[:0]
	c, err := open(b, MsgWriteRequest, MaxFrameBytes)
	if err != nil {
		return err
	}
	r.DB = c.sameOrCopy(r.DB, "database name bytes", MaxNameBytes)
	units := c.count("units in a request", MaxUnits, minRequestUnitBytes)
	statements := c.count("statements in a request", MaxStatements, minRequestStatementBytes)
	if c.err != nil {
		return c.err
	}
	r.Units = resize(r.Units, units)
	r.statements = resize(r.statements, statements)
	r.texts = r.texts[:0]
	c.requestUnits(r)
	if err := c.end(); err != nil {
		r.Units = r.Units[:0]
		return err
	}
	return nil
}

func (c *cursor) requestUnits(r *WriteRequest) {
	free := r.statements
	var prev RequestID
	for i := range r.Units {
		u := &r.Units[i]
		n := c.requestUnit(u, prev)
		prev = u.ID
		if n > len(free) {
			c.fail("more statements than announced")
		}
		if c.err != nil {
			return
		}
		u.Statements, free = carve(free, n)
		for j := range u.Statements {
			s := &u.Statements[j]
			s.SQL = c.readText(&r.texts)
			s.Args = c.readArgs(s.SQL)
		}
	}
	if len(free) != 0 {
		c.fail("fewer statements than announced")
	}
}

// requestUnit decodes all of a unit but its statements, whose number it returns.
func (c *cursor) requestUnit(u *Unit, prev RequestID) (statements int) {
	flags := c.uvarint()
	if flags >= requestEnd {
		c.fail("unknown flags")
		return 0
	}
	if flags&requestSameOrigin == 0 {
		prev = RequestID{Origin: c.uvarint()}
	}
	prev.Seq += uint64(c.varint())
	u.ID, u.Lowest, u.Timeout, u.Pre = prev, prev.Seq, 0, PreState{}
	if flags&requestLowest != 0 {
		u.Lowest -= uint64(c.varint())
	}
	if flags&requestTimeout != 0 {
		u.Timeout = c.varint()
	}
	if u.HasPre = flags&requestPre != 0; u.HasPre {
		u.Pre = c.readPre()
	}
	u.ForeignKeys = flags&requestForeignKeys != 0
	u.WantRows = flags&requestWantRows != 0
	u.Pin = flags&requestPin != 0
	u.WantEach = flags&requestEach != 0
	u.RecursiveTriggers = flags&requestRecursive != 0
	u.Resolve = flags&requestResolve != 0
	if flags&requestOne != 0 {
		return 1
	}
	return c.count("statements in a unit", MaxUnitStatements, minRequestStatementBytes)
}

func (c *cursor) readPre() PreState {
	return PreState{LastInsertID: c.varint(), Changes: c.varint()}
}
