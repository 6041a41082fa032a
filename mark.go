package colmena

import (
	"context"

	"github.com/mentasystems/colmena/internal/freshness"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// newGauge makes what proves how fresh a read is: it joins what the databases, raft and
// the other nodes say.
func (n *Node) newGauge() *freshness.Gauge {
	open := func(method string) func(context.Context, string) (freshness.Stream, error) {
		return func(ctx context.Context, node string) (freshness.Stream, error) {
			return n.client.Open(ctx, node, method)
		}
	}
	return freshness.New(freshness.Config{
		NodeID: n.id.NodeID, Alone: n.cfg.Bind == "", Group: n.group, Done: n.done,
		Databases: freshness.Databases{
			Get: func(name string) freshness.Database {
				if d := n.dbs.Get(name); d != nil {
					return d
				}
				return nil
			},
			System:  func() uint64 { return n.dbs.System().Mark().Index },
			Follows: func(index uint64) bool { return n.dbs.Follows(index) },
			Watch:   func() <-chan struct{} { return n.dbs.Watch() },
			Halted:  n.haltedErr,
			Missing: func() bool { return n.intake.Missing() },
		},
		Leadership: freshness.Leadership{
			Term: n.lead.Term, Leader: n.lead.Leader, Watch: n.lead.Watch, Await: n.lead.Await, Pause: n.lead.Pause,
			Elsewhere: goesToLeader, Lost: noLeader,
		},
		Consensus: freshness.Consensus{
			Term:      func() uint64 { return n.raft.Term() },
			Committed: func() uint64 { return n.raft.Committed() },
			Applied:   func() uint64 { return n.intake.Applied() }, Voters: func() []string { return n.raft.Voters() },
			NoCommands: func(first, last uint64) bool { return n.raft.NoCommands(first, last) },
		},
		Errors:    freshness.Errors{Closed: ErrClosed, NoLeader: ErrNoLeader, Stale: ErrStale, NotCaughtUp: ErrNotCaughtUp, ToWire: errorToWire},
		OpenMarks: open(methodMark), OpenTerms: open(methodTerm),
		LeaderWait: n.cfg.LeaderWait, RoundWithin: n.cfg.ElectionTimeout,
	})
}

// serveMarks answers a follower's questions, how far this node has applied a database.
func (n *Node) serveMarks(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
	return n.fresh.ServeMarks(ctx, st)
}

// serveTerms tells a leader which term this node is in.
func (n *Node) serveTerms(_ context.Context, _ wire.Hello, st *rpc.Stream) error {
	return n.fresh.ServeTerms(st)
}
