package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// EntryHeader says what an entry stands on and who proposed it.
type EntryHeader struct {
	DB              uint64 // incarnation of the database; 0 is the system database
	Prev            Mark   // the database's previous entry
	Proposer, Epoch uint64 // random nonce of the proposing process and its epoch counter
	Engine          uint64 // engine fingerprint of the proposer
	Time            int64  // unix milliseconds, the base of the units' times
	ForeignKeys     bool   // PRAGMA foreign_keys for the whole entry

	RecursiveTriggers bool // PRAGMA recursive_triggers for the whole entry
}

// EntryUnit is a unit of work with what its statements saw and did.
type EntryUnit struct {
	ID         RequestID
	Lowest     uint64 // lowest outstanding sequence of that origin
	Time       int64  // unix milliseconds
	Seed       uint64
	HasSeed    bool   // the unit drew from the random generator; without it Seed is not stored
	WantEach   bool   // the outcomes of all statements belong to the result
	Session    bool   // an interactive transaction: each statement has a savepoint and a seed of its own
	Needs      string // the application's functions and collations it used, with versions; aliases the entry's bytes after decoding
	Statements []EntryStatement
}

// EntryStatement is one statement, the state it ran on and its outcome.
type EntryStatement struct {
	SQL     string // aliases the entry's bytes after decoding
	Args    Args   // aliases the entry's bytes after decoding
	Pre     PreState
	HasPre  bool // without it Pre is not stored
	Outcome Outcome
	Rows    bool // the statement's rows (RETURNING) belong to the result
}

// Entry is the replicated entry. The zero value is ready to be decoded into.
type Entry struct {
	EntryHeader
	Units []EntryUnit

	statements []EntryStatement // backs the units' Statements
	texts      []string
}

// Reset forgets everything that aliases decoded bytes, so that an Entry kept for reuse does not keep them alive.
func (e *Entry) Reset() {
	clear(e.Units[:cap(e.Units)])
	clear(e.statements[:cap(e.statements)])
	clear(e.texts[:cap(e.texts)])
	e.EntryHeader, e.Units, e.statements, e.texts = EntryHeader{}, e.Units[:0], e.statements[:0], e.texts[:0]
}

// The layout of an entry:
//
//	'E' version
//	uvarint DB, Prev.Term, Prev.Index; 8 bytes Proposer; uvarint Epoch; 8 bytes Engine; varint Time; flags
//	4 bytes number of units, 4 bytes number of statements of all units
//	units: flags; [uvarint Origin]; varint Seq; [varint Lowest]; [varint Time]; [8 bytes Seed]; [text reference Needs]; [uvarint statements]
//	  statements: flags; text reference; [uvarint length, Args]; [varint Pre.LastInsertID, varint Pre.Changes];
//	    [varint RowsAffected]; [varint LastInsertID]
//	4 bytes CRC-32C
//
// Seq is the difference to the unit before it, Lowest to Seq, Time to the header's, LastInsertID to the statement before it.
// Differences wrap around, so every value is representable.
const (
	headerForeignKeys = 1 << 0
	headerRecursive   = 1 << 1

	unitSeed       = 1 << 0
	unitOne        = 1 << 1 // one statement, no number follows
	unitLowest     = 1 << 2
	unitSameOrigin = 1 << 3
	unitTime       = 1 << 4
	unitEach       = 1 << 5
	unitNeeds      = 1 << 6
	unitSession    = 1 << 7
	unitKnown      = 1<<8 - 1

	statementArgs     = 1 << 0
	statementPre      = 1 << 1
	statementRows     = 1 << 2
	statementOneRow   = 1 << 3 // one row affected, no number follows
	statementAffected = 1 << 4
	statementLastID   = 1 << 5
	statementKnown    = 1<<6 - 1

	minUnitBytes      = 3 // flags, sequence, and a number of statements or a statement
	minStatementBytes = 2 // flags, text reference
)

// EntryEncoder builds an entry unit by unit. The zero value is usable after Begin. It copies all it is given.
type EntryEncoder struct {
	buf        []byte // kept from entry to entry
	begun      bool
	counts     int // offset of the two numbers that Finish fills in
	units      int
	statements int
	time       int64
	prev       RequestID
	lastID     int64
	texts      textTable
	err        error
}

// keepEntryBuffer is the largest buffer that an encoder keeps for the next entry.
const keepEntryBuffer = 1 << 20

var errNotBegun = errors.New("wire: the entry encoder was used without Begin")

// Begin starts an entry and drops what was appended before it.
func (e *EntryEncoder) Begin(h EntryHeader) {
	e.begun = true
	if cap(e.buf) > keepEntryBuffer {
		e.buf = nil
	}
	e.texts.reset()
	e.units, e.statements, e.err = 0, 0, nil
	e.time, e.prev, e.lastID = h.Time, RequestID{}, 0

	b := append(e.buf[:0], MsgEntry, version)
	b = binary.AppendUvarint(b, h.DB)
	b = binary.AppendUvarint(b, h.Prev.Term)
	b = binary.AppendUvarint(b, h.Prev.Index)
	b = binary.LittleEndian.AppendUint64(b, h.Proposer)
	b = binary.AppendUvarint(b, h.Epoch)
	b = binary.LittleEndian.AppendUint64(b, h.Engine)
	b = binary.AppendVarint(b, h.Time)
	b = append(b, flagIf(h.ForeignKeys, headerForeignKeys)|flagIf(h.RecursiveTriggers, headerRecursive))
	e.counts = len(b)
	e.buf = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}

// Fits reports whether the entry stays within its limits with u in it. A unit that passes Check fits an entry without units;
// nothing fits an entry that is spoilt.
func (e *EntryEncoder) Fits(u *EntryUnit) bool {
	if e.state() != nil || e.units >= MaxUnits || len(u.Statements) > MaxStatements-e.statements {
		return false
	}
	room := MaxEntryBytes - e.Len() - unitOverhead - len(u.Needs)
	for i := range u.Statements {
		s := &u.Statements[i]
		room -= statementOverhead + len(s.Args)
		if e.texts.find(s.SQL) < 0 {
			room -= len(s.SQL)
		}
	}
	return room >= 0
}

// AppendUnit appends a unit. An SQL text that the entry holds already is stored as a reference. A unit that a decoder would
// refuse spoils the entry; see Err. Check and Fits tell beforehand.
func (e *EntryEncoder) AppendUnit(u *EntryUnit) {
	if e.err = e.state(); e.err != nil {
		return
	}
	if e.err = checkLimit("statements in a unit", len(u.Statements), MaxUnitStatements); e.err != nil {
		return
	}
	flags := flagIf(u.HasSeed, unitSeed) |
		flagIf(len(u.Statements) == 1, unitOne) |
		flagIf(u.Lowest != u.ID.Seq, unitLowest) |
		flagIf(u.ID.Origin == e.prev.Origin, unitSameOrigin) |
		flagIf(u.Time != e.time, unitTime) |
		flagIf(u.WantEach, unitEach) |
		flagIf(u.Session, unitSession) |
		flagIf(u.Needs != "", unitNeeds)
	if e.err = checkLimit("bytes of needed functions", len(u.Needs), MaxNeedsBytes); e.err != nil {
		return
	}
	b := append(e.buf, flags)
	if flags&unitSameOrigin == 0 {
		b = binary.AppendUvarint(b, u.ID.Origin)
		e.prev.Seq = 0 // another instance counts for itself
	}
	b = binary.AppendVarint(b, int64(u.ID.Seq-e.prev.Seq))
	if flags&unitLowest != 0 {
		b = binary.AppendVarint(b, int64(u.ID.Seq-u.Lowest))
	}
	if flags&unitTime != 0 {
		b = binary.AppendVarint(b, u.Time-e.time)
	}
	if flags&unitSeed != 0 {
		b = binary.LittleEndian.AppendUint64(b, u.Seed)
	}
	if flags&unitNeeds != 0 {
		b = e.texts.appendText(b, u.Needs)
	}
	if flags&unitOne == 0 {
		b = binary.AppendUvarint(b, uint64(len(u.Statements)))
	}
	e.buf, e.prev = b, u.ID
	e.units++
	e.statements += len(u.Statements)
	for i := range u.Statements {
		if e.err = e.appendStatement(&u.Statements[i]); e.err != nil {
			return
		}
	}
}

func (e *EntryEncoder) appendStatement(s *EntryStatement) error {
	if err := checkStatement(s.SQL, s.Args); err != nil {
		return err
	}
	affected := s.Outcome.RowsAffected
	flags := flagIf(len(s.Args) != 0, statementArgs) |
		flagIf(s.HasPre, statementPre) |
		flagIf(s.Rows, statementRows) |
		flagIf(affected == 1, statementOneRow) |
		flagIf(affected != 0 && affected != 1, statementAffected) |
		flagIf(s.Outcome.LastInsertID != e.lastID, statementLastID)
	b := append(e.buf, flags)
	b = e.texts.appendText(b, s.SQL)
	if flags&statementArgs != 0 {
		b = appendBytes(b, s.Args)
	}
	if flags&statementPre != 0 {
		b = binary.AppendVarint(b, s.Pre.LastInsertID-e.lastID)
		b = binary.AppendVarint(b, s.Pre.Changes)
	}
	if flags&statementAffected != 0 {
		b = binary.AppendVarint(b, affected)
	}
	if flags&statementLastID != 0 {
		b = binary.AppendVarint(b, s.Outcome.LastInsertID-e.lastID)
		e.lastID = s.Outcome.LastInsertID
	}
	e.buf = b
	return nil
}

func (e *EntryEncoder) state() error {
	if e.err == nil && !e.begun {
		return errNotBegun
	}
	return e.err
}

// Len is the length of what Finish would return now.
func (e *EntryEncoder) Len() int { return len(e.buf) + crcBytes }

// Units is the number of units appended since Begin.
func (e *EntryEncoder) Units() int { return e.units }

// Statements is the number of statements of those units.
func (e *EntryEncoder) Statements() int { return e.statements }

// Err is the first limit that was overrun since Begin, nil for an entry that every decoder takes.
func (e *EntryEncoder) Err() error {
	if err := e.state(); err != nil {
		return err
	}
	if err := checkLimit("units in an entry", e.units, MaxUnits); err != nil {
		return err
	}
	if err := checkLimit("statements in an entry", e.statements, MaxStatements); err != nil {
		return err
	}
	return checkLimit("entry bytes", e.Len(), MaxEntryBytes)
}

// Finish returns the complete entry in a slice of its own, which the caller owns. The encoder needs Begin before the next unit.
// It returns nil if Err is not nil: an entry that no replica can decode would stop them all.
func (e *EntryEncoder) Finish() []byte {
	if e.Err() != nil {
		return nil
	}
	binary.LittleEndian.PutUint32(e.buf[e.counts:], uint32(e.units))
	binary.LittleEndian.PutUint32(e.buf[e.counts+4:], uint32(e.statements))
	e.buf = appendSum(e.buf, 0)
	// Entries stay in memory for a while, in raft's cache, so they get no more than they need.
	b := bytes.Clone(e.buf)
	e.texts.reset()
	e.begun, e.units, e.statements = false, 0, 0
	e.buf = e.buf[:0]
	if cap(e.buf) > keepEntryBuffer {
		e.buf = nil
	}
	return b
}

// EntryKind is a cheap look at the first two bytes of an entry; it does not say that the rest is sound.
func EntryKind(b []byte) (kind byte, version uint8, err error) {
	if len(b) < 2 {
		return 0, 0, ErrCorrupt
	}
	return b[0], b[1], nil
}

// EntryOwner is a cheap look at an entry's header. It checks neither the checksum nor the units.
func EntryOwner(b []byte) (db, proposer, epoch uint64, prev Mark, err error) {
	c, err := open(b, MsgEntry, MaxEntryBytes)
	if err != nil {
		return 0, 0, 0, Mark{}, err
	}
	var h EntryHeader
	c.entryHeader(&h)
	if c.err != nil {
		return 0, 0, 0, Mark{}, c.err
	}
	return h.DB, h.Proposer, h.Epoch, h.Prev, nil
}

func (c *cursor) entryHeader(h *EntryHeader) {
	h.DB = c.uvarint()
	h.Prev = Mark{Term: c.uvarint(), Index: c.uvarint()}
	h.Proposer = c.fixed64()
	h.Epoch = c.uvarint()
	h.Engine = c.fixed64()
	h.Time = c.varint()
	flags := c.flags(headerForeignKeys | headerRecursive)
	h.ForeignKeys, h.RecursiveTriggers = flags&headerForeignKeys != 0, flags&headerRecursive != 0
}

// DecodeEntry decodes an entry into into, whose slices it reuses. SQL texts and arguments alias b, which must not be modified
// while they are in use. The errors are ErrCorrupt and *FormatError; after one, into has no units.
func DecodeEntry(b []byte, into *Entry) error {
	into.Units = into.Units[:0]
	c, err := openSummed(b, MsgEntry, MaxEntryBytes)
	if err != nil {
		return err
	}
	c.entryHeader(&into.EntryHeader)
	units := c.bounded(uint64(c.fixed32()), "units in an entry", MaxUnits, 1)
	statements := c.bounded(uint64(c.fixed32()), "statements in an entry", MaxStatements, minStatementBytes)
	if units > c.left()/minUnitBytes {
		c.fail("more units than bytes")
	}
	if c.err != nil {
		return c.err
	}
	into.Units = resize(into.Units, units)
	into.statements = resize(into.statements, statements)
	into.texts = into.texts[:0]
	c.entryUnits(into)
	if err := c.end(); err != nil {
		into.Units = into.Units[:0]
		return err
	}
	return nil
}

func (c *cursor) entryUnits(e *Entry) {
	free := e.statements
	var prev RequestID
	var lastID int64
	for i := range e.Units {
		u := &e.Units[i]
		flags := c.flags(unitKnown)
		if flags&unitSameOrigin == 0 {
			prev = RequestID{Origin: c.uvarint()}
		}
		prev.Seq += uint64(c.varint())
		u.ID, u.Lowest, u.Time, u.Seed = prev, prev.Seq, e.Time, 0
		if flags&unitLowest != 0 {
			u.Lowest -= uint64(c.varint())
		}
		if flags&unitTime != 0 {
			u.Time += c.varint()
		}
		u.WantEach, u.Session = flags&unitEach != 0, flags&unitSession != 0
		if u.HasSeed = flags&unitSeed != 0; u.HasSeed {
			u.Seed = c.fixed64()
		}
		if u.Needs = ""; flags&unitNeeds != 0 {
			u.Needs = c.readText(&e.texts)
			if len(u.Needs) > MaxNeedsBytes {
				c.fail("more needed functions than a unit can have")
			}
		}
		n := 1
		if flags&unitOne == 0 {
			n = c.count("statements in a unit", MaxUnitStatements, minStatementBytes)
		}
		if n > len(free) {
			c.fail("more statements than announced")
		}
		if c.err != nil {
			return
		}
		u.Statements, free = carve(free, n)
		for j := range u.Statements {
			lastID = c.entryStatement(&u.Statements[j], lastID, &e.texts)
		}
	}
	if len(free) != 0 {
		c.fail("fewer statements than announced")
	}
}

// carve takes n elements off s. None is nil, so that a decoded value equals the encoded one.
func carve[T any](s []T, n int) (taken, rest []T) {
	if n == 0 {
		return nil, s
	}
	return s[:n:n], s[n:]
}

// entryStatement decodes a statement that follows one whose last insert ID was lastID, and returns its own.
func (c *cursor) entryStatement(s *EntryStatement, lastID int64, texts *[]string) int64 {
	flags := c.flags(statementKnown)
	s.SQL = c.readText(texts)
	s.Args = nil
	if flags&statementArgs != 0 {
		s.Args = c.readArgs(s.SQL)
	}
	s.Pre = PreState{}
	if s.HasPre = flags&statementPre != 0; s.HasPre {
		s.Pre.LastInsertID = lastID + c.varint()
		s.Pre.Changes = c.varint()
	}
	s.Outcome.RowsAffected = int64(flags & statementOneRow / statementOneRow)
	if flags&statementAffected != 0 {
		s.Outcome.RowsAffected = c.varint()
	}
	if flags&statementLastID != 0 {
		lastID += c.varint()
	}
	s.Outcome.LastInsertID = lastID
	s.Rows = flags&statementRows != 0
	return lastID
}
