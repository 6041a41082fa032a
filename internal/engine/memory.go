package engine

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/mentasystems/colmena/internal/wire"
)

// Bounds of the request memory of one database. They are part of the replicated
// state machine: changing one changes what a replica remembers, so it needs a new
// entry version.
const (
	maxRememberedUnits   = 16384
	maxRememberedBytes   = 8 << 20
	maxRememberedOrigins = 64
	// maxRememberedRows is how many bytes of RETURNING rows one unit may keep. A
	// larger result is delivered once and not remembered.
	maxRememberedRows = 64 << 10
)

// requestMemory is the part of the replicated state that makes a write happen
// exactly once (H15): the results of units whose origin has not yet said that it
// knows them. It is a deterministic function of the applied entries; every replica
// holds the same one, and the database file holds what is needed to rebuild it.
type requestMemory struct {
	origins   map[uint64]*originMemory
	epochs    []rememberedEpoch // oldest first
	units     int
	bytes     int
	forgotten uint64 // an unknown origin at or below this is refused
}

type originMemory struct {
	lowest  uint64 // everything below was acknowledged by the origin
	horizon uint64 // results below this may have been dropped while outstanding
	last    uint64 // index of the last entry that held a unit of this origin
	results map[uint64]rememberedResult
}

type rememberedResult struct {
	mark   wire.Mark
	result wire.Result
}

type rememberedEpoch struct {
	index uint64
	ids   []wire.RequestID
	bytes int
}

type verdict int

const (
	requestFresh verdict = iota
	requestDuplicate
	requestExpired
)

func newRequestMemory() *requestMemory {
	return &requestMemory{origins: map[uint64]*originMemory{}}
}

// look tells whether a unit is new, was applied before, or is too old to tell.
// Origin 0 asks for no memory.
func (m *requestMemory) look(id wire.RequestID) (rememberedResult, verdict) {
	if id.Origin == 0 {
		return rememberedResult{}, requestFresh
	}
	o := m.origins[id.Origin]
	if o == nil {
		if id.Origin <= m.forgotten {
			return rememberedResult{}, requestExpired
		}
		return rememberedResult{}, requestFresh
	}
	if r, ok := o.results[id.Seq]; ok {
		return r, requestDuplicate
	}
	if id.Seq < o.lowest || id.Seq < o.horizon {
		return rememberedResult{}, requestExpired
	}
	return rememberedResult{}, requestFresh
}

// remember takes in the units of one applied entry and returns the index up to
// which stored epochs are no longer needed (0: none).
func (m *requestMemory) remember(mark wire.Mark, rs []wire.StoredResult, size int) (dropThrough uint64) {
	e := rememberedEpoch{index: mark.Index, bytes: size}
	for i := range rs {
		r := &rs[i]
		if r.ID.Origin == 0 {
			continue
		}
		o := m.origins[r.ID.Origin]
		if o == nil {
			o = &originMemory{results: map[uint64]rememberedResult{}}
			m.origins[r.ID.Origin] = o
		}
		o.lowest = max(o.lowest, r.Lowest)
		o.last = mark.Index
		o.results[r.ID.Seq] = rememberedResult{mark: mark, result: wire.Result{Outcome: r.Outcome, Rows: r.Rows, Each: r.Each}}
		e.ids = append(e.ids, r.ID)
	}
	if len(e.ids) > 0 {
		m.epochs = append(m.epochs, e)
		m.units += len(e.ids)
		m.bytes += e.bytes
	}
	return m.trim()
}

// trim drops what was acknowledged and what exceeds the bounds, oldest first.
func (m *requestMemory) trim() (dropThrough uint64) {
	n := 0
	for n < len(m.epochs) {
		e := &m.epochs[n]
		over := m.units > maxRememberedUnits || m.bytes > maxRememberedBytes
		if !over && !m.acknowledged(e) {
			break
		}
		m.drop(e)
		dropThrough = e.index
		n++
	}
	if n > 0 {
		m.epochs = slices.Delete(m.epochs, 0, n)
	}
	for len(m.origins) > maxRememberedOrigins {
		m.dropOldestOrigin()
	}
	return dropThrough
}

func (m *requestMemory) acknowledged(e *rememberedEpoch) bool {
	for _, id := range e.ids {
		if o := m.origins[id.Origin]; o != nil && id.Seq >= o.lowest {
			return false
		}
	}
	return true
}

func (m *requestMemory) drop(e *rememberedEpoch) {
	for _, id := range e.ids {
		o := m.origins[id.Origin]
		if o == nil {
			continue
		}
		delete(o.results, id.Seq)
		if id.Seq >= o.lowest {
			o.horizon = max(o.horizon, id.Seq+1)
		}
	}
	m.units -= len(e.ids)
	m.bytes -= e.bytes
}

// dropOldestOrigin forgets the origin that has been silent longest. Ties cannot
// decide differently on two replicas: the smaller identity goes first.
func (m *requestMemory) dropOldestOrigin() {
	var victim uint64
	for id, o := range m.origins {
		v := m.origins[victim]
		if v == nil || o.last < v.last || o.last == v.last && id < victim {
			victim = id
		}
	}
	delete(m.origins, victim)
	m.forgotten = max(m.forgotten, victim)
}

// originsVersion is the format of the origins blob in the mark row.
const originsVersion = 1

// appendOrigins encodes what the stored epochs cannot tell: per origin what was
// acknowledged and what was dropped. Sorted, so that equal memories have equal bytes.
func (m *requestMemory) appendOrigins(b []byte) []byte {
	b = append(b, originsVersion)
	b = binary.AppendUvarint(b, m.forgotten)
	b = binary.AppendUvarint(b, uint64(len(m.origins)))
	for _, id := range slices.Sorted(maps.Keys(m.origins)) {
		o := m.origins[id]
		b = binary.AppendUvarint(b, id)
		b = binary.AppendUvarint(b, o.lowest)
		b = binary.AppendUvarint(b, o.horizon)
		b = binary.AppendUvarint(b, o.last)
	}
	return b
}

var errOrigins = errors.New("engine: the request memory stored in the database file is damaged")

// loadOrigins is the inverse of appendOrigins, on an empty memory.
func (m *requestMemory) loadOrigins(b []byte) error {
	if len(b) == 0 || b[0] != originsVersion {
		return errOrigins
	}
	b = b[1:]
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			b = nil
			return 0
		}
		b = b[n:]
		if b == nil {
			b = []byte{}
		}
		return v
	}
	m.forgotten = next()
	n := next()
	if b == nil || n > maxRememberedOrigins {
		return errOrigins
	}
	for range n {
		id := next()
		o := &originMemory{lowest: next(), horizon: next(), last: next(), results: map[uint64]rememberedResult{}}
		if b == nil || id == 0 {
			return errOrigins
		}
		m.origins[id] = o
	}
	if len(b) != 0 {
		return errOrigins
	}
	return nil
}

// restore adds one stored epoch while the file is opened, oldest first.
func (m *requestMemory) restore(mark wire.Mark, rs []wire.StoredResult, size int) {
	e := rememberedEpoch{index: mark.Index, bytes: size}
	for i := range rs {
		r := &rs[i]
		// An origin forgotten since still counts in the bounds, as it does in the
		// memory of a replica that was not restarted.
		if o := m.origins[r.ID.Origin]; o != nil {
			o.results[r.ID.Seq] = rememberedResult{mark: mark, result: wire.Result{Outcome: r.Outcome, Rows: r.Rows, Each: r.Each}}
		}
		e.ids = append(e.ids, r.ID)
	}
	m.epochs = append(m.epochs, e)
	m.units += len(e.ids)
	m.bytes += e.bytes
}
