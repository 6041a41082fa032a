package colmena

import (
	"context"
	"errors"
	"fmt"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/interactive"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// beginInteractive begins a transaction on the leader, wherever it is. Until it has begun
// nothing has happened, so another leader is asked as often as need be.
func (n *Node) beginInteractive(ctx context.Context, db string, o engine.SessionOptions) (interactive.Tx, error) {
	o.Label = fmt.Sprintf("node %q", n.id.NodeID)
	by := n.lead.Deadline()
	for {
		watch := n.lead.Watch()
		leader, local, err := n.lead.Await(ctx, by)
		if err != nil {
			return nil, n.notBegunTx(ctx, err, nil)
		}
		var tx interactive.Tx
		if local {
			tx, err = n.beginHere(ctx, db, o)
		} else {
			tx, err = n.beginThere(ctx, leader, db, o)
		}
		switch {
		case err == nil:
			return tx, nil
		case ctx.Err() != nil || n.isClosed():
			return nil, n.notBegunTx(ctx, ctx.Err(), err)
		case !again(err):
			return nil, decided(err)
		}
		if pauseErr := n.lead.Pause(ctx, watch, by); pauseErr != nil {
			return nil, n.notBegunTx(ctx, pauseErr, err)
		}
	}
}

// notBegunTx is giveUp for a transaction.
func (n *Node) notBegunTx(ctx context.Context, err, last error) error {
	if ctx.Err() == nil && !n.isClosed() {
		err = noLeader(ctx, err)
	}
	if n.isClosed() {
		err = errors.Join(ErrClosed, err)
	}
	cause := errors.Join(err, last)
	if last != nil {
		return notApplied(cause, "begin: %v: %v", err, last)
	}
	return notApplied(cause, "begin: %v", err)
}

func (n *Node) beginHere(ctx context.Context, db string, o engine.SessionOptions) (interactive.Tx, error) {
	d, err := n.databaseForWrite(ctx, db)
	if err != nil {
		return nil, err
	}
	s, err := d.Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (n *Node) beginThere(ctx context.Context, leader, db string, o engine.SessionOptions) (interactive.Tx, error) {
	// The stream lives as long as the transaction, not as the context of its begin.
	st, err := n.client.Open(n.group.Context(), leader, methodTx)
	if err != nil {
		return nil, err
	}
	tx, err := interactive.Begin(ctx, st, leader, &wire.SessionRequest{DB: db, Label: o.Label, ForeignKeys: o.Modes.ForeignKeys, RecursiveTriggers: o.Modes.RecursiveTriggers, Pre: o.Pre},
		func(f func()) bool {
			return n.group.Go("transaction on "+leader, func(context.Context) { f() })
		})
	if err != nil {
		return nil, err
	}
	return tx, nil
}

// serveTx is the leader's end of a transaction of another node.
func (n *Node) serveTx(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
	return interactive.Serve(ctx, st, func(ctx context.Context, req *wire.SessionRequest) (interactive.Tx, error) {
		if !n.lead.Leading() {
			return nil, engine.ErrNotLeading
		}
		return n.beginHere(ctx, req.DB, engine.SessionOptions{Label: req.Label,
			Modes: engine.Modes{ForeignKeys: req.ForeignKeys, RecursiveTriggers: req.RecursiveTriggers}, Pre: req.Pre})
	}, errorToWire)
}

// commitInteractive commits under a request ID. When the answer is lost, whoever leads next
// is asked what became of it. over is false if a constraint keeps the transaction open.
func (n *Node) commitInteractive(ctx context.Context, db string, tx interactive.Tx) (over bool, err error) {
	for {
		id, lowest, err := n.requests.Begin(ctx)
		if err != nil {
			tx.Abort()
			return true, notBegun(err)
		}
		res := tx.Commit(ctx, wire.RequestID(id), lowest)
		if errors.Is(res.Err, engine.ErrUnknown) || isWireCode(res.Err, wire.ErrOutcomeUnknown) {
			res.Mark, res.Err = n.resolve(ctx, db, wire.RequestID(id), lowest, res.Err)
			res.Over = true
		}
		n.requests.End(id)
		switch {
		case isExpired(res.Err) && !res.Over:
			n.requests.Expired(id.Origin)
			continue
		case res.Err == nil:
			n.fresh.Acknowledged(db, res.Mark.Index)
			return true, nil
		}
		return res.Over, n.txStatementError(res.Err)
	}
}

// resolve finds out whether a commit was applied.
func (n *Node) resolve(ctx context.Context, db string, id wire.RequestID, lowest uint64, why error) (wire.Mark, error) {
	res, _, err := n.writeUnit(ctx, db, wire.Unit{ID: id, Lowest: lowest, Resolve: true})
	switch {
	case err == nil:
		return res.Mark, nil
	case errors.Is(err, errNeverApplied):
		return wire.Mark{}, &engine.AbortedError{Reason: engine.AbortLeader, Cause: why}
	}
	return wire.Mark{}, outcomeUnknown(errors.Join(err, why), "commit: %v", err)
}

func isWireCode(err error, code wire.ErrorCode) bool {
	var w *wire.Error
	return errors.As(err, &w) && w.Code == code
}
