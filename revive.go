package colmena

import (
	"context"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
)

// reviveTick is how often a replica that stopped for a local reason is tried again.
const reviveTick = time.Second

// reviveReplicas brings databases back that stopped because of this machine: a full
// disk, an I/O error. The file is opened anew, and what was delivered since its mark is
// read from the log again, so nothing is skipped. A replica that parted from the others
// stays stopped.
func (n *Node) reviveReplicas(ctx context.Context) {
	tick := time.NewTicker(reviveTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.halted.Load() == nil {
			continue
		}
		if err := n.goOn(ctx); err != nil {
			n.log.Warn("this node cannot go on yet", "err", err)
			continue
		}
		n.halted.Store(nil)
		n.lead.Changed()
		n.log.Info("this node goes on")
	}
}

// goOn brings back everything that stopped, or tells what keeps it from that. The
// log's goroutine delivers nothing meanwhile.
func (n *Node) goOn(ctx context.Context) error {
	n.delivering.Lock()
	defer n.delivering.Unlock()
	if err := n.store.Failure(); err != nil {
		return err
	}
	if err := n.dbs.GoOn(ctx, deliveredLog{n}, n.missedFrom.Load()); err != nil {
		return err
	}
	n.missedFrom.Store(0)
	n.hooks.GoOn(n.applied.Load(), func(incarnation uint64) bool {
		d, _ := n.dbs.Route(incarnation)
		return d != nil && d.Err() != nil
	})
	return nil
}

// deliveredLog is the log as far as the databases were handed it.
type deliveredLog struct{ n *Node }

var _ catalogue.Log = deliveredLog{}

func (l deliveredLog) First() (uint64, error) { return l.n.store.FirstIndex() }
func (l deliveredLog) Last() uint64           { return l.n.applied.Load() }

func (l deliveredLog) Entry(index uint64) (term uint64, data []byte, err error) {
	return l.n.raft.Entry(index)
}
