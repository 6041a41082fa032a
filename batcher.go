package colmena

import (
	"context"

	"github.com/mentasystems/colmena/internal/outbox"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// A write on a node that does not lead goes through its outbox: all that wait while a
// frame is on its way travel in the next one, and on the leader they gather into epochs
// the same way. Each is answered by itself, when it is decided.
//
//	internal/delivery → outbox.Send … stream … outbox.Leader → engine.DB.Submit → epoch
//	                  ←────────────── result ←───────────────── Unit.Done ←────────────

// newOutbox makes the sending end. A unit that waits for a leader that no longer leads
// comes back to internal/delivery, which sends it to the next one.
func (n *Node) newOutbox() *outbox.Outbox {
	return outbox.New(outbox.Config{
		Open: func(ctx context.Context, node string) (outbox.Stream, error) {
			return n.client.Open(ctx, node, methodWrite)
		},
		Group: n.group, Deposed: n.anotherLeads, Watch: n.lead.Watch, Done: n.done, Closed: ErrClosed,
	})
}

// anotherLeads reports whether a node other than id is known to lead.
func (n *Node) anotherLeads(id string) bool {
	now, _, ok := n.lead.Leader()
	return ok && now != id
}

// serveWrites is the leader's end of a sender's stream.
func (n *Node) serveWrites(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
	l := outbox.Leader{ToWire: errorToWire, Database: func(ctx context.Context, name string) (outbox.Database, error) {
		return n.databaseForWrite(ctx, name)
	}}
	return l.Serve(ctx, st)
}

// sendWrite sends a unit to the node that leads and waits for its result. maybe says that
// it may have been applied.
func (n *Node) sendWrite(ctx context.Context, leader, db string, u wire.Unit) (res wire.UnitResult, maybe bool, err error) {
	n.count.forwarded.Add(1)
	res, maybe, err = n.outbox.Send(ctx, leader, db, u)
	if err == nil && res.Err != nil {
		err, maybe = res.Err, res.Err.Code == wire.ErrOutcomeUnknown
	}
	if err == nil {
		n.fresh.Acknowledged(db, res.Mark.Index)
	}
	return res, maybe, err
}
