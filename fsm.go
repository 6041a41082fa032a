package colmena

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// fsm is what raft hands committed entries to. It only routes them: each database has
// a queue and a goroutine of its own, so databases apply in parallel and a slow one
// does not hold up the others. An entry of the system database is waited for, because
// it decides which databases there are.
type fsm struct{ n *Node }

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	f.n.delivering.Lock()
	defer f.n.delivering.Unlock()
	for _, l := range logs {
		if l.Type == raft.LogCommand {
			f.deliver(l)
		}
		f.n.delivered(l.Index)
	}
	return make([]any, len(logs))
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

func (f *fsm) deliver(l *raft.Log) {
	inc, _, _, _, err := wire.EntryOwner(l.Data)
	if err != nil {
		f.n.missed(l.Index, "log", fmt.Errorf("entry %d/%d cannot be read: %w", l.Term, l.Index, err))
		return
	}
	mark := wire.Mark{Term: l.Term, Index: l.Index}
	db, known := f.n.dbs.Route(inc)
	switch {
	case db == nil && known:
		return // of a database that was dropped
	case db == nil:
		f.n.missed(l.Index, "log", fmt.Errorf("entry %v belongs to database %d, which this node does not know", mark, inc))
		return
	}
	if inc != 0 && !plainfile.IsHidden(db.Name()) {
		f.n.hooks.Register(inc, db.Name(), l.Index, len(l.Data))
	}
	if !db.Deliver(mark, l.Data) {
		f.n.hooks.Stopped(inc)
	}
	if inc != 0 {
		return
	}
	if err := db.Drain(context.Background()); err != nil {
		return // halted, and reported
	}
	if err := f.n.dbs.Reload(); err != nil {
		f.n.missed(l.Index, "system", err)
		return
	}
	f.n.catalogueChanged()
}

// missed notes that entries from index on did not reach their databases, and halts:
// before this node goes on they must be read from the log again. What it does not take
// in while it closes is read again at the next start.
func (n *Node) missed(index uint64, name string, err error) {
	if n.isClosed() {
		return
	}
	if from := n.missedFrom.Load(); from == 0 || index < from {
		n.missedFrom.Store(index)
	}
	n.hooks.Skipped(index)
	n.replicaHalted(name, err)
}

// Snapshot implements raft.FSM. A replica that has not applied what it was given
// must not say that it has (H2); while a copy is on its way the log is kept (H19).
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.n.isClosed() {
		return nil, ErrClosed // the databases may not take in any more what they are handed
	}
	if f.n.snaps.Sending() > 0 {
		return nil, errors.New("colmena: a copy is being sent; the log is kept until it has arrived")
	}
	if err := f.n.haltedErr(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), snapshotDrain)
	defer cancel()
	if err := f.n.dbs.Settle(ctx); err != nil {
		return nil, fmt.Errorf("colmena: snapshot: %w", err)
	}
	return &fsmSnapshot{n: f.n, manifest: f.n.dbs.Manifest(f.n.id.ClusterID())}, nil
}

// snapshotDrain bounds how long a snapshot waits for the databases.
const snapshotDrain = 10 * time.Second

// Restore implements raft.FSM: a copy was received and staged, now it becomes this
// node's state.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	id, err := snapshot.ParseStaged(r)
	if err != nil {
		return err
	}
	n := f.n
	n.delivering.Lock()
	defer n.delivering.Unlock()
	if err := n.snaps.Install(id, n.dbs.Close, func(dir string) error { return n.dbs.Open(dir, false) }); err != nil {
		n.hooks.Closed()
		// What the databases had not applied when they were closed is read again, if they
		// were opened where they had been.
		n.missed(1, "system", fmt.Errorf("a copy from the leader could not be installed: %w", err))
		return err
	}
	n.halted.Store(nil)
	n.missedFrom.Store(0) // the copy holds them
	if list, err := n.snaps.List(); err == nil && len(list) > 0 {
		n.applied.Store(max(n.applied.Load(), list[0].Index)) // the newest is the one installed
	}
	n.hooks.Installed(n.applied.Load())
	if err := n.gens.Collect(); err != nil {
		n.log.Warn("old generation is left behind", "err", err)
	}
	n.catalogueChanged()
	return nil
}

type fsmSnapshot struct {
	n        *Node
	manifest *snapshot.Manifest
}

// Persist implements raft.FSMSnapshot: it makes the files durable up to their marks,
// because the log before them is about to go (H18), and then says where they stand.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	for _, d := range s.n.dbs.All() {
		if err := d.Sync(); err != nil {
			return errors.Join(err, sink.Cancel())
		}
	}
	durable.CrashPoint("snapshot.synced")
	if _, err := sink.Write(s.manifest.Encode()); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s *fsmSnapshot) Release() {}

// propose hands an entry to raft. Waiting for the future has a goroutine of its own:
// the database's must stay free to take the entry when it comes back (H13).
func (n *Node) propose(data []byte, done func(error)) {
	go func() {
		f := n.raft.Apply(data, n.cfg.ElectionTimeout)
		n.endWithRaft(f)
		done(f.Error())
	}()
}

// endWithRaft has a future that is not yet waited for end, with raft.ErrRaftShutdown,
// when raft has ended. raft forgets entries that are committed and queued for the FSM
// when it stops; their futures would be waited for ever. Futures have a field for such
// a channel, which raft itself does not set in those of entries.
func (n *Node) endWithRaft(f raft.Future) {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return // answered already
	}
	if ch := v.Elem().FieldByName("ShutdownCh"); ch.IsValid() && ch.CanSet() && ch.Type() == reflect.TypeFor[chan struct{}]() {
		ch.Set(reflect.ValueOf(n.raftEnded))
	}
}

// proposalLost tells whether an entry can still be committed after its proposal
// ended with err (H14).
func proposalLost(err error) bool {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return false
	}
	return true
}

func waitFuture(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) haltedErr() error {
	if e := n.halted.Load(); e != nil {
		return fmt.Errorf("%w: %w", ErrReplicaHalted, *e)
	}
	return nil
}
