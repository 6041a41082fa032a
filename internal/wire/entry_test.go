package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

const kvInsert = "INSERT INTO kv(k,v) VALUES(?,?)"

// kvUnits are units as a busy node proposes them: one instance, consecutive sequences, scattered keys, 100 bytes of text.
func kvUnits(n int) []EntryUnit {
	text := strings.Repeat("x", 100)
	units := make([]EntryUnit, n)
	var args ArgsBuilder
	for i := range units {
		key := int64(i) * 7919 * 104729 % (1 << 31)
		args.Reset()
		args.Add(Int(key))
		args.Add(Text(text))
		seq := uint64(1_000_000 + i)
		units[i] = EntryUnit{
			ID: RequestID{Origin: 4711, Seq: seq}, Lowest: seq - uint64(i), Time: 1700000000000 + int64(i%3),
			Statements: []EntryStatement{{SQL: kvInsert, Args: args.Args(), Outcome: Outcome{RowsAffected: 1, LastInsertID: key}}},
		}
	}
	return units
}

var kvHeader = EntryHeader{DB: 3, Prev: Mark{5, 123456}, Proposer: 1 << 60, Epoch: 1000, Engine: 1 << 61, Time: 1700000000000}

func encodeEntry(h EntryHeader, units []EntryUnit) []byte {
	var e EntryEncoder
	e.Begin(h)
	for i := range units {
		e.AppendUnit(&units[i])
	}
	return e.Finish()
}

func TestAnInsertCostsFewBytes(t *testing.T) {
	units := kvUnits(1000)
	var e EntryEncoder
	e.Begin(kvHeader)
	header := e.Len()
	var first, most, sum int
	for i := range units {
		before := e.Len()
		e.AppendUnit(&units[i])
		n := e.Len() - before - len(units[i].Statements[0].Args)
		if i == 0 {
			first = n - len(kvInsert)
			continue
		}
		most, sum = max(most, n), sum+n
	}
	t.Logf("entry %d bytes; unit beyond its argument bytes: first %d and its SQL, then %.1f on average, %d at most",
		header, first, float64(sum)/float64(len(units)-1), most)
	if most > 16 || first > 16 {
		t.Errorf("a unit takes %d bytes beyond its arguments (the first %d), more than 16", most, first)
	}
}

func TestRepeatedTextsAreStoredOnce(t *testing.T) {
	for _, distinct := range []int{1, 2, scanTexts, scanTexts + 1, 100, keepTexts + 10} {
		var units []EntryUnit
		for round := range 3 {
			for i := range distinct {
				units = append(units, EntryUnit{ID: RequestID{1, uint64(round*distinct + i)},
					Statements: []EntryStatement{{SQL: fmt.Sprintf("text number %06d", i)}, {SQL: fmt.Sprintf("text number %06d", i)}}})
			}
		}
		var e EntryEncoder
		for range 2 { // the table of the entry before must not shine through
			e.Begin(EntryHeader{})
			e.AppendUnit(&EntryUnit{Statements: []EntryStatement{{SQL: "something else first"}}})
			for i := range units {
				e.AppendUnit(&units[i])
			}
			b := e.Finish()
			if n := bytes.Count(b, []byte("text number")); n != distinct {
				t.Errorf("%d distinct texts are stored %d times", distinct, n)
			}
			var got Entry
			if err := DecodeEntry(b, &got); err != nil {
				t.Fatal(err)
			}
			mustEqual(t, &entryMessage{Entry{Units: got.Units[1:]}}, &entryMessage{Entry{Units: units}})
		}
		request := WriteRequest{DB: "main"}
		for i := range units {
			request.Units = append(request.Units, Unit{ID: units[i].ID, Statements: []Statement{{SQL: units[i].Statements[0].SQL}}})
		}
		b := request.Append(nil)
		if n := bytes.Count(b, []byte("text number")); n != distinct {
			t.Errorf("%d distinct texts are sent %d times", distinct, n)
		}
		var got WriteRequest
		mustDecode(t, &got, b)
		mustEqual(t, &got, &request)
	}
}

// A node that forwards may reuse the buffer that a unit's texts alias as soon as the unit is appended.
func TestTheEncoderCopiesWhatItIsGiven(t *testing.T) {
	var e EntryEncoder
	e.Begin(EntryHeader{})
	buffer := []byte("DELETE FROM a")
	for _, table := range "abab" {
		buffer[len(buffer)-1] = byte(table)
		e.AppendUnit(&EntryUnit{Statements: []EntryStatement{{SQL: aliasString(buffer)}}})
	}
	var got Entry
	if err := DecodeEntry(e.Finish(), &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"DELETE FROM a", "DELETE FROM b", "DELETE FROM a", "DELETE FROM b"} {
		if sql := got.Units[i].Statements[0].SQL; sql != want {
			t.Errorf("unit %d: %q, want %q", i, sql, want)
		}
	}
}

func TestAFinishedEntryIsTheCallers(t *testing.T) {
	units := kvUnits(3)
	var e EntryEncoder
	encode := func(h EntryHeader) []byte {
		e.Begin(h)
		for i := range units {
			e.AppendUnit(&units[i])
		}
		if e.Units() != 3 || e.Statements() != 3 {
			t.Errorf("%d units, %d statements", e.Units(), e.Statements())
		}
		want := e.Len()
		b := e.Finish()
		if len(b) != want || cap(b) > 2*want {
			t.Errorf("%d bytes of %d, Len said %d", len(b), cap(b), want)
		}
		return b
	}
	first := encode(kvHeader)
	kept := bytes.Clone(first)
	other := kvHeader
	other.Epoch = 7
	encode(other)
	if !bytes.Equal(first, kept) {
		t.Error("the next entry wrote into the one before")
	}
	e.Begin(EntryHeader{}) // an abandoned entry leaves nothing
	e.AppendUnit(&units[0])
	if !bytes.Equal(encode(kvHeader), kept) {
		t.Error("the same entry encodes differently after an abandoned one")
	}
}

func TestFinishGivesNothingThatCannotBeDecoded(t *testing.T) {
	ok := EntryUnit{Statements: []EntryStatement{{SQL: "ok"}}}
	for name, bad := range map[string]EntryUnit{
		"long statement": {Statements: []EntryStatement{{SQL: strings.Repeat("x", MaxStatementBytes+1)}}},
		"bad arguments":  {Statements: []EntryStatement{{SQL: "x", Args: Args{1, 7}}}},
		"statements":     {Statements: make([]EntryStatement, MaxUnitStatements+1)},
	} {
		var e EntryEncoder
		e.Begin(EntryHeader{})
		e.AppendUnit(&ok)
		e.AppendUnit(&bad)
		e.AppendUnit(&ok)
		if b := e.Finish(); b != nil || e.Err() == nil || bad.Check() == nil {
			t.Errorf("%s: %d bytes, Err %v, Check %v", name, len(b), e.Err(), bad.Check())
		}
		if e.Fits(&ok) {
			t.Errorf("%s: another unit fits the spoilt entry", name)
		}
		e.Begin(EntryHeader{})
		e.AppendUnit(&ok)
		if e.Finish() == nil {
			t.Errorf("%s spoilt the next entry: %v", name, e.Err())
		}
	}
	var e EntryEncoder
	if e.AppendUnit(&ok); e.Finish() != nil || !errors.Is(e.Err(), errNotBegun) {
		t.Error("an entry without Begin")
	}
	e.Begin(EntryHeader{})
	if e.Finish() == nil || e.Finish() != nil {
		t.Error("Finish must work once")
	}
}

func TestFitsStopsAtTheLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("works on messages as large as the limits")
	}
	var e EntryEncoder
	e.Begin(EntryHeader{})
	empty := EntryUnit{}
	for e.Fits(&empty) {
		e.AppendUnit(&empty)
	}
	if e.Units() != MaxUnits {
		t.Errorf("%d units", e.Units())
	}
	e.Begin(EntryHeader{})
	wide := EntryUnit{Statements: make([]EntryStatement, MaxUnitStatements)}
	for e.Fits(&wide) {
		e.AppendUnit(&wide)
	}
	if e.Statements() != MaxStatements {
		t.Errorf("%d statements", e.Statements())
	}
	var got Entry
	if err := DecodeEntry(e.Finish(), &got); err != nil {
		t.Error(err)
	}
	e.Begin(EntryHeader{})
	big := EntryUnit{Statements: []EntryStatement{{SQL: strings.Repeat("x", 5<<20)}}}
	for e.Fits(&big) && e.Units() < 20 { // the text repeats, so it counts once
		e.AppendUnit(&big)
	}
	if e.Units() != 20 || e.Len() > 6<<20 {
		t.Errorf("%d units in %d bytes", e.Units(), e.Len())
	}
	args := append(Args{1, byte(KindBlob) | inlineMore<<tagShift, 0x80, 0x80, 0x80, 0x05}, make([]byte, 5<<21)...) // 10 MiB
	big.Statements[0].Args = args
	for e.Fits(&big) {
		e.AppendUnit(&big)
	}
	if err := e.Err(); err != nil || e.Len() < MaxEntryBytes-11<<20 {
		t.Errorf("%d bytes, %v", e.Len(), err)
	}
	if e.AppendUnit(&big); e.Err() == nil || e.Finish() != nil {
		t.Error("an entry beyond MaxEntryBytes")
	}
}

func TestALookAtAnEntry(t *testing.T) {
	b := encodeEntry(kvHeader, kvUnits(2))
	kind, v, err := EntryKind(b)
	if kind != MsgEntry || v != 1 || err != nil {
		t.Error(kind, v, err)
	}
	db, proposer, epoch, prev, err := EntryOwner(b)
	if db != kvHeader.DB || proposer != kvHeader.Proposer || epoch != kvHeader.Epoch || prev != kvHeader.Prev || err != nil {
		t.Error(db, proposer, epoch, prev, err)
	}
	if _, _, _, _, err := EntryOwner(b[:10]); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	if _, _, err := EntryKind(b[:1]); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	b[1] = 2
	if _, _, _, _, err := EntryOwner(b); !isFormatError(err) {
		t.Error(err)
	}
}

// The numbers in an entry's head must be those of its units, and references must point backwards.
func TestInconsistentEntriesAreCorrupt(t *testing.T) {
	var e EntryEncoder
	e.Begin(EntryHeader{})
	counts := e.counts
	e.AppendUnit(&EntryUnit{Statements: []EntryStatement{{SQL: "a"}, {SQL: "a"}}})
	e.AppendUnit(&EntryUnit{Statements: []EntryStatement{{SQL: "a"}}})
	sound := e.Finish()
	for name, damage := range map[string]func(b []byte){
		"fewer units":        func(b []byte) { b[counts]-- },
		"more units":         func(b []byte) { b[counts]++ },
		"fewer statements":   func(b []byte) { b[counts+4]-- },
		"more statements":    func(b []byte) { b[counts+4]++ },
		"header flag":        func(b []byte) { b[counts-1] = 0x80 },
		"statement flag":     func(b []byte) { b[counts+11] |= 0x80 },
		"forward reference":  func(b []byte) { b[counts+16] = 2 },
		"text beyond bounds": func(b []byte) { b[counts+13] = 100 },
	} {
		b := bytes.Clone(sound)
		damage(b)
		b = appendSum(b[:len(b)-crcBytes], 0)
		var into Entry
		if err := DecodeEntry(b, &into); !errors.Is(err, ErrCorrupt) || len(into.Units) != 0 {
			t.Errorf("%s: %v, %d units", name, err, len(into.Units))
		}
	}
	b := append(bytes.Clone(sound[:len(sound)-crcBytes]), make([]byte, crcBytes)...)
	binary.LittleEndian.PutUint32(b[len(b)-crcBytes:], 12345)
	if err := DecodeEntry(b, new(Entry)); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

func TestResetForgetsTheInput(t *testing.T) {
	var e Entry
	if err := DecodeEntry(encodeEntry(kvHeader, kvUnits(10)), &e); err != nil {
		t.Fatal(err)
	}
	e.Reset()
	for _, u := range e.Units[:cap(e.Units)] {
		if u.Statements != nil {
			t.Fatal("a unit is left")
		}
	}
	for _, s := range e.statements[:cap(e.statements)] {
		if s.SQL != "" || s.Args != nil {
			t.Fatal("a statement is left")
		}
	}
	var r WriteRequest
	mustDecode(t, &r, exampleWriteRequest().Append(nil))
	r.Reset()
	if len(r.Units) != 0 || r.DB != "" || r.statements[:cap(r.statements)][0].SQL != "" {
		t.Error("a request is left")
	}
}
