package colmena

import (
	"context"
	"errors"
	"fmt"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/freshness"
	"github.com/mentasystems/colmena/internal/reading"
	"github.com/mentasystems/colmena/internal/rowstream"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

const (
	// localPatience is how long a read waits for this node to reach the leader's mark
	// before the leader runs it.
	localPatience = freshness.LocalPatience
	// ownWritesPatience is how long a read at level None waits for this node's own
	// acknowledged writes.
	ownWritesPatience = freshness.OwnWritesPatience
)

// newReads makes what runs queries, here or on the leader.
func (n *Node) newReads() *reading.Reads {
	c := reading.Config{
		NodeID: n.id.NodeID, Databases: n.dbs, Empty: n.empty, Fresh: n.fresh, Leaders: n.lead, MayPass: catalogue.LocalFailure,
		Halted: n.haltedErr, Patience: localPatience, Done: n.done,
		Closed: ErrClosed, NoLeader: ErrNoLeader, ErrHalted: ErrReplicaHalted, User: userError, Error: readError, TooLarge: tooLarge,
	}
	if n.client != nil {
		c.Ask = n.queryThere
	}
	return reading.New(c)
}

// asks is the mode as the rooms know it.
func (m readMode) asks() reading.Mode {
	return reading.Mode{Level: reading.Level(m.level), Stale: m.stale, MinIndex: m.minIndex}
}

// read runs a statement string that only reads, at the mode's level, here or on the
// leader.
func (n *Node) read(ctx context.Context, db string, m readMode, sql string, args wire.Args, pre wire.PreState) (values.RowSource, error) {
	n.count.read(m.level)
	return n.reads.Query(ctx, db, m.asks(), sql, args, pre)
}

// freshenHere waits until this node may answer at the mode's level.
func (n *Node) freshenHere(ctx context.Context, db string, m readMode) error {
	return n.reads.Freshen(ctx, db, m.asks())
}

// readError makes the user's error of one that a read met.
func readError(err error) error {
	if err == nil || errors.Is(err, ErrNoLeader) || errors.Is(err, ErrStale) || errors.Is(err, ErrNotCaughtUp) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return userError(err)
}

// queryThere sends a query to a node and waits until its rows begin.
func (n *Node) queryThere(ctx context.Context, node string, req *wire.QueryRequest) (values.RowSource, error) {
	open := func(ctx context.Context) (rowstream.Stream, error) { return n.client.Open(ctx, node, methodQuery) }
	rows, err := rowstream.Ask(ctx, open, node, req, brokenResult)
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// brokenResult makes the user's error of a result that ended before its last row. That
// the other node was closed, or has halted, must not look like a state of this one.
func brokenResult(node string, err error) error {
	var w *wire.Error
	if errors.As(err, &w) && !reading.OfTheNode(w) {
		return errorFromWire(w)
	}
	return &outcomeError{msg: fmt.Sprintf("colmena: node %q ended the result before its last row: %v", node, err), is: []error{ErrNotApplied}}
}

// serveQuery runs a follower's query on the leader.
func (n *Node) serveQuery(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
	req, err := rowstream.Receive(st)
	if err != nil {
		return err
	}
	level := ConsistencyLevel(req.Level)
	if !n.lead.Leading() || level != Weak && level != Strong {
		return &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"}
	}
	rows, err := n.read(ctx, req.DB, readMode{level: level}, req.Statement.SQL, req.Statement.Args, req.Pre)
	if err != nil {
		return rowstream.Refuse(st, errorToWire(err))
	}
	defer rows.Close()
	return rowstream.Send(st, rows, errorToWire)
}
