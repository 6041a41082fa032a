package colmena

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// deliver is what raft hands each committed entry to. It only routes it: each database
// has a queue and a goroutine of its own, so databases apply in parallel and a slow one
// does not hold up the others. An entry of the system database is waited for, because
// it decides which databases there are.
func (n *Node) deliver(mark wire.Mark, command bool, data []byte) {
	n.delivering.Lock()
	defer n.delivering.Unlock()
	if command {
		n.route(mark, data)
	}
	n.delivered(mark.Index)
}

func (n *Node) route(mark wire.Mark, data []byte) {
	inc, _, _, _, err := wire.EntryOwner(data)
	if err != nil {
		n.missed(mark.Index, "log", fmt.Errorf("entry %d/%d cannot be read: %w", mark.Term, mark.Index, err))
		return
	}
	db, known := n.dbs.Route(inc)
	switch {
	case db == nil && known:
		return // of a database that was dropped
	case db == nil:
		n.missed(mark.Index, "log", fmt.Errorf("entry %v belongs to database %d, which this node does not know", mark, inc))
		return
	}
	if inc != 0 && !plainfile.IsHidden(db.Name()) {
		n.hooks.Register(inc, db.Name(), mark.Index, len(data))
	}
	if !db.Deliver(mark, data) {
		n.hooks.Stopped(inc)
	}
	if inc != 0 {
		return
	}
	if err := db.Drain(context.Background()); err != nil {
		return // halted, and reported
	}
	if err := n.dbs.Reload(); err != nil {
		n.missed(mark.Index, "system", err)
		return
	}
	n.catalogueChanged()
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

// takeSnapshot lets the log be cut. A replica that has not applied what it was given must
// not say that it has (H2); while a copy is on its way the log is kept (H19).
func (n *Node) takeSnapshot() (persist func(io.Writer) error, err error) {
	if n.isClosed() {
		return nil, ErrClosed // the databases may not take in any more what they are handed
	}
	if n.snaps.Sending() > 0 {
		return nil, errors.New("colmena: a copy is being sent; the log is kept until it has arrived")
	}
	if err := n.haltedErr(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), snapshotDrain)
	defer cancel()
	if err := n.dbs.Settle(ctx); err != nil {
		return nil, fmt.Errorf("colmena: snapshot: %w", err)
	}
	manifest := n.dbs.Manifest(n.id.ClusterID())
	return func(w io.Writer) error { return n.persist(w, manifest) }, nil
}

// snapshotDrain bounds how long a snapshot waits for the databases.
const snapshotDrain = 10 * time.Second

// persist makes the files durable up to their marks, because the log before them is about
// to go (H18), and then says where they stand.
func (n *Node) persist(w io.Writer, m *snapshot.Manifest) error {
	for _, d := range n.dbs.All() {
		if err := d.Sync(); err != nil {
			return err
		}
	}
	durable.CrashPoint("snapshot.synced")
	_, err := w.Write(m.Encode())
	return err
}

// restore makes a copy that was received and staged this node's state.
func (n *Node) restore(staged io.Reader) error {
	id, err := snapshot.ParseStaged(staged)
	if err != nil {
		return err
	}
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

func (n *Node) haltedErr() error {
	if e := n.halted.Load(); e != nil {
		return fmt.Errorf("%w: %w", ErrReplicaHalted, *e)
	}
	return nil
}
