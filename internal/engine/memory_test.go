package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

// reload rebuilds a memory from what the database file would hold of it.
func reload(t *testing.T, m *requestMemory, blobs map[uint64][]byte, marks map[uint64]wire.Mark) *requestMemory {
	t.Helper()
	got := newRequestMemory()
	if err := got.loadOrigins(m.appendOrigins(nil)); err != nil {
		t.Fatal(err)
	}
	for _, e := range m.epochs {
		rs, err := wire.DecodeStoredResults(blobs[e.index])
		if err != nil {
			t.Fatal(err)
		}
		got.restore(marks[e.index], rs, len(blobs[e.index]))
	}
	return got
}

// A replica that was restarted must decide about every later request as one that was
// not: the memory rebuilt from the file equals the one kept, whatever was dropped.
func TestHazard15MemoryRebuiltFromTheFileEqualsTheOneKept(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	m := newRequestMemory()
	blobs, marks := map[uint64][]byte{}, map[uint64]wire.Mark{}
	next, lowest := map[uint64]uint64{}, map[uint64]uint64{}
	steps := 3000
	if testing.Short() {
		steps = 300
	}
	for i := range steps {
		mark := wire.Mark{Term: 1, Index: uint64(i + 1)}
		var rs []wire.StoredResult
		for range rng.IntN(40) {
			o := 1 + rng.Uint64N(100)
			if _, v := m.look(wire.RequestID{Origin: o, Seq: next[o] + 1}); v != requestFresh {
				continue
			}
			next[o]++
			if rng.IntN(3) > 0 {
				lowest[o] = next[o] - rng.Uint64N(min(next[o], 20))
			}
			r := wire.StoredResult{ID: wire.RequestID{Origin: o, Seq: next[o]}, Lowest: lowest[o], Outcome: wire.Outcome{RowsAffected: rng.Int64N(9)}}
			if rng.IntN(10) == 0 {
				r.Rows = &wire.Rows{Columns: []wire.Column{{Name: "a"}}, N: 1, Data: wire.AppendValue(nil, wire.Blob(make([]byte, rng.IntN(60_000))))}
			}
			rs = append(rs, r)
		}
		var blob []byte
		if len(rs) > 0 {
			blob = wire.AppendStoredResults(nil, rs)
			blobs[mark.Index], marks[mark.Index] = blob, mark
		}
		m.remember(mark, rs, len(blob))
		if m.units > maxRememberedUnits || m.bytes > maxRememberedBytes || len(m.origins) > maxRememberedOrigins {
			t.Fatalf("step %d: bounds are exceeded: %d units, %d bytes, %d origins", i, m.units, m.bytes, len(m.origins))
		}
		if i%97 == 0 || i == steps-1 {
			got := reload(t, m, blobs, marks)
			if !reflect.DeepEqual(got.origins, m.origins) || got.units != m.units || got.bytes != m.bytes || got.forgotten != m.forgotten || fmt.Sprint(got.epochs) != fmt.Sprint(m.epochs) {
				t.Fatalf("step %d: the memory differs after a restart", i)
			}
			m = got // go on with the rebuilt one: any difference would grow
		}
	}
}

func TestHazard15ForgottenOriginIsRefused(t *testing.T) {
	m := newRequestMemory()
	for o := uint64(1); o <= maxRememberedOrigins+10; o++ {
		m.remember(wire.Mark{Term: 1, Index: o}, []wire.StoredResult{{ID: wire.RequestID{Origin: o, Seq: 1}, Lowest: 1}}, 10)
	}
	if _, v := m.look(wire.RequestID{Origin: 3, Seq: 2}); v != requestExpired {
		t.Errorf("a forgotten origin is taken for %v", v)
	}
	if _, v := m.look(wire.RequestID{Origin: maxRememberedOrigins + 11, Seq: 1}); v != requestFresh {
		t.Errorf("a new origin is taken for %v", v)
	}
	if _, v := m.look(wire.RequestID{Origin: maxRememberedOrigins + 9, Seq: 1}); v != requestDuplicate {
		t.Errorf("a remembered request is taken for %v", v)
	}
}

func TestHazard15DroppedWhileOutstandingIsRefusedNotRunAgain(t *testing.T) {
	m := newRequestMemory()
	n := uint64(maxRememberedUnits + 100)
	for i := uint64(1); i <= n; i++ {
		m.remember(wire.Mark{Term: 1, Index: i}, []wire.StoredResult{{ID: wire.RequestID{Origin: 1, Seq: i}, Lowest: 1}}, 1)
	}
	if _, v := m.look(wire.RequestID{Origin: 1, Seq: 5}); v != requestExpired {
		t.Errorf("a request whose result was dropped is taken for %v", v)
	}
	if _, v := m.look(wire.RequestID{Origin: 1, Seq: n}); v != requestDuplicate {
		t.Errorf("the newest request is taken for %v", v)
	}
}

func FuzzLoadOrigins(f *testing.F) {
	m := newRequestMemory()
	m.remember(wire.Mark{Term: 1, Index: 9}, []wire.StoredResult{{ID: wire.RequestID{Origin: 4, Seq: 7}, Lowest: 2}}, 10)
	f.Add(m.appendOrigins(nil))
	f.Add([]byte{originsVersion, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newRequestMemory()
		if m.loadOrigins(b) != nil {
			return
		}
		again := newRequestMemory()
		if err := again.loadOrigins(m.appendOrigins(nil)); err != nil || !bytes.Equal(again.appendOrigins(nil), m.appendOrigins(nil)) {
			t.Fatalf("read, written and read again it differs: %v", err)
		}
	})
}

func FuzzParseMarkState(f *testing.F) {
	f.Add(appendMarkState(nil, 7, 12345, newRequestMemory()))
	f.Add([]byte{markVersion})
	f.Fuzz(func(_ *testing.T, b []byte) {
		if _, _, origins, err := parseMarkState(b); err == nil {
			_ = newRequestMemory().loadOrigins(origins)
		}
	})
}
