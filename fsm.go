package colmena

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/intake"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/snapshot"
)

// newIntake makes what committed entries go through to the databases.
func (n *Node) newIntake() *intake.Intake {
	return intake.New(intake.Config{
		Route: func(incarnation uint64) (intake.Database, bool) {
			db, known := n.dbs.Route(incarnation)
			if db == nil {
				return nil, known // and no nil pointer
			}
			return db, known
		},
		Shown: func(name string) bool { return !plainfile.IsHidden(name) }, Hooks: n.hooks,
		Reload: func() error { return n.dbs.Reload() }, Changed: n.catalogueChanged, Delivered: func() { n.fresh.Delivered() },
		GoOn: func(ctx context.Context, missed uint64) error {
			if err := n.store.Failure(); err != nil {
				return err
			}
			return n.dbs.GoOn(ctx, deliveredLog{n}, missed)
		},
		Stopped: func(incarnation uint64) bool {
			d, _ := n.dbs.Route(incarnation)
			return d != nil && d.Err() != nil
		},
		GoneOn: n.lead.Changed, Halted: n.replicaHalted, Done: n.done, Logger: n.log,
	})
}

// deliveredLog is the log as far as the databases were handed it.
type deliveredLog struct{ n *Node }

var _ catalogue.Log = deliveredLog{}

func (l deliveredLog) First() (uint64, error) { return l.n.store.FirstIndex() }
func (l deliveredLog) Last() uint64           { return l.n.intake.Applied() }

func (l deliveredLog) Entry(index uint64) (term uint64, data []byte, err error) {
	return l.n.raft.Entry(index)
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
	return n.intake.Install(func() (covered uint64, err error) {
		if err := n.snaps.Install(id, n.dbs.Close, func(dir string) error { return n.dbs.Open(dir, false) }); err != nil {
			return 0, err
		}
		if list, err := n.snaps.List(); err == nil && len(list) > 0 {
			covered = list[0].Index // the newest is the one installed
		}
		if err := n.gens.Collect(); err != nil {
			n.log.Warn("old generation is left behind", "err", err)
		}
		return covered, nil
	})
}

func (n *Node) haltedErr() error {
	if err := n.intake.Halted(); err != nil {
		return fmt.Errorf("%w: %w", ErrReplicaHalted, err)
	}
	return nil
}
