package logstore

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/hashicorp/raft"
)

// raft v1.7.3 panics on its main goroutine when the current term cannot be saved, and when a committed entry cannot be
// read. In an embedded library that would end the application. The two views below end the calling goroutine instead (runtime.Goexit), after Fatal was told.
// That is sound and it is the only way that does not leave raft half alive:
//
//   - Nothing false is said: the goroutine ends at the very statement that failed, before the new term is believed or anything is
//     answered under it. Its deferred functions run: an RPC under way is answered with the refusal that raft prepares first, a leader's futures
//     fail with ErrLeadershipLost, and its replication stops.
//   - raft has a transport call its heartbeat handler on the connection's goroutine, which may be the one that ends: a transport has to do its
//     cleaning up in deferred functions.
//   - raft counts its goroutines in a deferred call, so raft.Shutdown().Error() returns as usual. (Blocking for ever would make it hang.)
//   - raft holds no lock at either place.
//
// What is left is a node that takes part in nothing. Fatal is the owner's signal to shut it down.
//
// The views are for raft.NewRaft alone, and NewRaft has to be called within Contain. raft.BootstrapCluster, raft.RecoverCluster and everybody else use the
// Store itself, whose errors are plain.

// keyCurrentTerm is the stable key whose failure raft answers with a panic; a vote that cannot be saved it handles.
const keyCurrentTerm = "CurrentTerm"

// Log returns the log for raft.NewRaft. See Contain.
func (s *Store) Log() raft.LogStore { return raftLog{s} }

// Stable returns the stable store for raft.NewRaft. See Contain.
func (s *Store) Stable() raft.StableStore { return raftStable{s} }

type raftLog struct{ *Store }

// GetLog does not return an error other than raft.ErrLogNotFound, which raft asks for in the ordinary course.
func (l raftLog) GetLog(index uint64, entry *raft.Log) error {
	err := l.Store.GetLog(index, entry)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		l.end(fmt.Errorf("colmena: raft needs log entry %d: %w", index, err))
	}
	return err
}

type raftStable struct{ *Store }

// SetUint64 does not return if it is the term that cannot be saved.
func (st raftStable) SetUint64(key []byte, value uint64) error {
	err := st.Store.SetUint64(key, value)
	if err != nil && string(key) == keyCurrentTerm {
		st.end(err)
	}
	return err
}

// end reports err, unless the owner closed the store himself, and ends the calling goroutine. A full disk ends it as well, although the store itself goes on: raft has no way to wait for room.
func (s *Store) end(err error) {
	s.ended.CompareAndSwap(nil, &err)
	if !errors.Is(err, ErrClosed) {
		s.fatal(err)
	}
	runtime.Goexit()
}

// Contain runs fn, which calls raft.NewRaft with Log and Stable, on a goroutine of its own, and turns the ways NewRaft may fail
// other than by an error into one: a view that ended the goroutine, and a panic.
func (s *Store) Contain(fn func() error) error {
	var err error
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("colmena: starting raft on log store %s: %v\n%s", s.cfg.Path, r, debug.Stack())
			} else if !returned {
				err = fmt.Errorf("colmena: raft cannot start: %w", s.endedBy())
			}
		}()
		err = fn()
		returned = true
	}()
	<-done
	return err
}

// endedBy returns the error for which a goroutine was ended.
func (s *Store) endedBy() error {
	if p := s.ended.Load(); p != nil {
		return *p
	}
	return errors.New("its goroutine was ended from elsewhere")
}
