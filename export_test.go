package colmena

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Partition cuts a node off from those for which f is true; nil heals.
func (n *Node) Partition(f func(nodeID string) bool) { n.net.Partition(f) }

// SetTrailingLogs sets how many entries before a snapshot are kept.
func SetTrailingLogs(c *Config, entries uint64) { c.trailingLogs = entries }

// HoldDatabase keeps the owner of a database busy until release is called.
func (n *Node) HoldDatabase(name string) (release func()) {
	hold, held := make(chan struct{}), make(chan struct{})
	go func() { _ = n.dbs.Get(name).Do(context.Background(), func() { close(held); <-hold }) }()
	<-held
	return sync.OnceFunc(func() { close(hold) })
}

// AskAt asks whoever answers at addr for a change of members, whatever it says.
func (n *Node) AskAt(ctx context.Context, addr string, c members.Change) error {
	conn, peer, err := n.net.DialAddr(ctx, addr)
	if err != nil {
		return err
	}
	if n.id.ClusterID() == "" {
		_ = conn.Close()
		if err := n.id.Join(peer.ClusterID); err != nil {
			return err
		}
		if conn, _, err = n.net.DialAddr(ctx, addr); err != nil {
			return err
		}
	}
	_, err = n.client.CallConn(ctx, conn, members.MethodChange, rpc.EncodeControl(&c))
	return changeError(err)
}

// CommittedUnit is what one writer committed, as the log has it.
type CommittedUnit struct {
	Index uint64
	ID    wire.RequestID
	SQL   []string
}

// CommittedUnits reads from the log what a database was made of, in order. It judges by
// itself which entries count: those that stand on the one before.
func (n *Node) CommittedUnits(name string) (units []CommittedUnit, err error) {
	first, err := n.store.FirstIndex()
	if err != nil || first != 1 {
		return nil, fmt.Errorf("the log begins with entry %d: %w", first, err)
	}
	var have wire.Mark
	for index := first; index <= n.AppliedIndex(); index++ {
		var l raft.Log
		if err := n.store.GetLog(index, &l); err != nil {
			return nil, err
		}
		var e wire.Entry
		if l.Type != raft.LogCommand {
			continue
		}
		if err := wire.DecodeEntry(l.Data, &e); err != nil {
			return nil, err
		}
		if e.DB != n.dbs.Get(name).Incarnation() || e.Prev != have {
			continue
		}
		have = wire.Mark{Term: l.Term, Index: l.Index}
		for _, u := range e.Units {
			c := CommittedUnit{Index: index, ID: u.ID}
			for _, s := range u.Statements {
				c.SQL = append(c.SQL, s.SQL)
			}
			units = append(units, c)
		}
	}
	if at := n.dbs.Get(name).Mark(); at != have {
		return nil, fmt.Errorf("the log leads to %v, and the database is at %v", have, at)
	}
	return units, nil
}

// ParkTransactions has a database park and repeat interactive transactions between any two
// of their statements.
func (n *Node) ParkTransactions(name string) { n.setInEngine(name, "cutEach") }

// LetWritesPassParked plants a mistake in the engine of a database: writes run while an
// interactive transaction is parked, and so between two of its statements.
func (n *Node) LetWritesPassParked(name string) { n.setInEngine(name, "passParked") }

// setInEngine sets a switch that has no setter, so that nothing but tests can.
func (n *Node) setInEngine(name, field string) {
	f := reflect.ValueOf(n.dbs.Get(name)).Elem().FieldByName(field)
	(*atomic.Bool)(f.Addr().UnsafePointer()).Store(true)
}
