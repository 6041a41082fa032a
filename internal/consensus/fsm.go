package consensus

import (
	"errors"
	"io"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/wire"
)

// fsm gives raft the machine in the form it asks for.
type fsm struct{ m Machine }

var _ raft.BatchingFSM = (*fsm)(nil)

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	for _, l := range logs {
		f.m.Deliver(wire.Mark{Term: l.Term, Index: l.Index}, l.Type == raft.LogCommand, l.Data)
	}
	return make([]any, len(logs))
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	persist, err := f.m.Snapshot()
	if err != nil {
		return nil, err
	}
	return persisted(persist), nil
}

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	return f.m.Restore(r)
}

type persisted func(io.Writer) error

// Persist implements raft.FSMSnapshot.
func (p persisted) Persist(sink raft.SnapshotSink) error {
	if err := p(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (p persisted) Release() {}

// Entry returns an entry of the log. Its data are nil if it is no command.
func (r *Raft) Entry(index uint64) (term uint64, data []byte, err error) {
	var e raft.Log
	if err := r.cfg.Log.GetLog(index, &e); err != nil || e.Type != raft.LogCommand {
		return 0, nil, err
	}
	if e.Data == nil {
		e.Data = []byte{} // no entry, which must be found out and not passed over
	}
	return e.Term, e.Data, nil
}

// NoCommands reports whether no entry of the log from first to last is a command. What the log holds no more was delivered long ago.
func (r *Raft) NoCommands(first, last uint64) bool {
	for i := first; i <= last; i++ {
		var e raft.Log
		switch err := r.cfg.Log.GetLog(i, &e); {
		case errors.Is(err, raft.ErrLogNotFound):
		case err != nil || e.Type == raft.LogCommand:
			return false
		}
	}
	return true
}
