package logstore

import (
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/raft"
)

// snapshotEnds is a snapshot store that only lists.
type snapshotEnds struct {
	raft.SnapshotStore
	metas []*raft.SnapshotMeta
	err   error
}

func (s snapshotEnds) List() ([]*raft.SnapshotMeta, error) { return s.metas, s.err }

func TestBoundaryTellsTheTermASnapshotEndsWith(t *testing.T) {
	meta := func(index, term uint64) []*raft.SnapshotMeta {
		return []*raft.SnapshotMeta{{Index: index, Term: term}}
	}
	logOf := func(indexes ...uint64) raft.LogStore {
		log := raft.NewInmemStore()
		for _, i := range indexes {
			if err := log.StoreLog(&raft.Log{Index: i, Term: 3, Type: raft.LogCommand, Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		}
		return log
	}
	for _, c := range []struct {
		name  string
		log   raft.LogStore
		snaps snapshotEnds
		index uint64
		term  uint64 // 0: not found
	}{
		{"the log begins behind the snapshot", logOf(11, 12), snapshotEnds{metas: meta(10, 2)}, 10, 2},
		{"an older snapshot ends there", logOf(11, 12), snapshotEnds{metas: append(meta(20, 2), meta(10, 2)...)}, 10, 2},
		{"what is in the log is read from it", logOf(10, 11), snapshotEnds{metas: meta(10, 2)}, 10, 3},
		{"no snapshot ends there", logOf(11, 12), snapshotEnds{metas: meta(9, 2)}, 10, 0},
		{"the log does not go on there", logOf(12), snapshotEnds{metas: meta(10, 2)}, 10, 0},
		{"a hole in the log", logOf(9, 11), snapshotEnds{metas: meta(10, 2)}, 10, 0},
		{"snapshots cannot be listed", logOf(11), snapshotEnds{err: io.ErrUnexpectedEOF}, 10, 0},
		{"an empty log", logOf(), snapshotEnds{metas: meta(10, 2)}, 10, 0},
	} {
		var l raft.Log
		err := WithBoundary(c.log, c.snaps).GetLog(c.index, &l)
		switch {
		case c.term == 0 && !errors.Is(err, raft.ErrLogNotFound):
			t.Errorf("%s: %+v, %v", c.name, l, err)
		case c.term != 0 && (err != nil || l.Term != c.term || l.Index != c.index):
			t.Errorf("%s: %+v, %v", c.name, l, err)
		case c.term == 2 && len(l.Data) > 0:
			t.Errorf("%s: the entry has data", c.name)
		}
	}
}
