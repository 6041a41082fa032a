package logstore

import (
	"errors"

	"github.com/hashicorp/raft"
)

// WithBoundary returns a log as raft is to read it: with the term of the entry that a
// received snapshot ends with.
//
// After a copy was installed the log begins, or goes on, behind the snapshot's index.
// When the answer to the first entries after it was lost, because this node was killed
// say, the leader asks whether both agree at that index. Raft looks for the entry in
// the log and not at the snapshot, says no, and is sent the same copy again, for ever.
func WithBoundary(log raft.LogStore, snaps raft.SnapshotStore) raft.LogStore {
	return boundaryLog{log, snaps}
}

type boundaryLog struct {
	raft.LogStore
	snaps raft.SnapshotStore
}

// GetLog implements raft.LogStore. What it adds can be compared with and cannot be sent
// on: raft sends an entry only if it has found the one before it.
func (l boundaryLog) GetLog(index uint64, entry *raft.Log) error {
	err := l.LogStore.GetLog(index, entry)
	if !errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	var near raft.Log
	if l.LogStore.GetLog(index+1, &near) != nil || l.LogStore.GetLog(index-1, &near) == nil {
		return err
	}
	metas, listErr := l.snaps.List()
	if listErr != nil {
		return err
	}
	for _, m := range metas {
		if m.Index == index {
			*entry = raft.Log{Index: index, Term: m.Term, Type: raft.LogNoop}
			return nil
		}
	}
	return err
}
