package colmena

import (
	"context"
	"sync"

	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/rpc"
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
