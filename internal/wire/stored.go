package wire

import "encoding/binary"

// StoredResult is what the replicated memory of requests keeps of a unit.
type StoredResult struct {
	ID      RequestID
	Lowest  uint64 // lowest outstanding sequence of that origin when the unit ran
	Outcome Outcome
	Rows    *Rows
	Each    []Outcome // of every statement, if the unit asked for them
}

const minStoredBytes = 2 // flags, sequence

// Size is an upper bound of the bytes that the result takes in a blob.
func (r *StoredResult) Size() int { return unitOverhead + r.Rows.size() + eachSize(r.Each) }

// CheckStoredResults reports what would make DecodeStoredResults refuse the blob.
func CheckStoredResults(rs []StoredResult) error {
	if err := checkLimit("stored results", len(rs), MaxUnits); err != nil {
		return err
	}
	size := headerOverhead
	for i := range rs {
		if err := rs[i].Rows.Check(); err != nil {
			return err
		}
		if err := checkLimit("outcomes in a result", len(rs[i].Each), MaxUnitStatements); err != nil {
			return err
		}
		size += rs[i].Size()
	}
	return checkLimit("bytes of stored results", size, MaxFrameBytes)
}

// AppendStoredResults appends the blob of one epoch's results to b.
func AppendStoredResults(b []byte, rs []StoredResult) []byte {
	start := len(b)
	b = append(b, MsgStoredResults, version)
	b = binary.AppendUvarint(b, uint64(len(rs)))
	var prev RequestID
	var lastID int64
	var rows rowsCoder
	for i := range rs {
		r := &rs[i]
		same := r.ID.Origin == prev.Origin
		b = append(b, flagIf(same, resultSame)|
			flagIf(r.Outcome.RowsAffected != 0, resultAffected)|
			flagIf(r.Outcome.LastInsertID != lastID, resultLastID)|
			flagIf(r.Rows != nil, resultRows)|
			flagIf(r.Lowest != r.ID.Seq, resultLowest)|
			flagIf(len(r.Each) != 0, resultEach))
		if !same {
			b = binary.AppendUvarint(b, r.ID.Origin)
			prev.Seq = 0
		}
		b = binary.AppendVarint(b, int64(r.ID.Seq-prev.Seq))
		prev = r.ID
		if r.Lowest != r.ID.Seq {
			b = binary.AppendVarint(b, int64(r.ID.Seq-r.Lowest))
		}
		b, lastID = appendOutcome(b, r.Outcome, lastID)
		if r.Rows != nil {
			b = rows.append(b, r.Rows)
		}
		if len(r.Each) != 0 {
			b = appendEach(b, r.Each)
		}
	}
	return appendSum(b, start)
}

// DecodeStoredResults decodes such a blob. Data of rows aliases b.
func DecodeStoredResults(b []byte) ([]StoredResult, error) {
	c, err := openSummed(b, MsgStoredResults, MaxFrameBytes)
	if err != nil {
		return nil, err
	}
	rs := make([]StoredResult, c.count("stored results", MaxUnits, minStoredBytes))
	var prev RequestID
	var lastID int64
	var rows rowsCoder
	for i := range rs {
		flags := c.flags(resultSame | resultAffected | resultLastID | resultRows | resultLowest | resultEach)
		if flags&resultSame == 0 {
			prev = RequestID{Origin: c.uvarint()}
		}
		prev.Seq += uint64(c.varint())
		r := &rs[i]
		r.ID, r.Lowest = prev, prev.Seq
		if flags&resultLowest != 0 {
			r.Lowest -= uint64(c.varint())
		}
		r.Outcome = c.readOutcome(flags, lastID)
		lastID = r.Outcome.LastInsertID
		if flags&resultRows != 0 {
			r.Rows = rows.read(&c)
		}
		if flags&resultEach != 0 {
			r.Each = c.readEach()
		}
		if c.err != nil {
			return nil, c.err
		}
	}
	if err := c.end(); err != nil {
		return nil, err
	}
	return rs, nil
}
