package colmena

import (
	"context"
	"fmt"

	"github.com/mentasystems/colmena/internal/delivery"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/interactive"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// beginInteractive begins a transaction on the leader, wherever it is.
func (n *Node) beginInteractive(ctx context.Context, db string, o engine.SessionOptions) (tx interactive.Tx, err error) {
	o.Label = fmt.Sprintf("node %q", n.id.NodeID)
	err = n.writes.Begin(ctx, func(leader string, local bool) (err error) {
		if local {
			tx, err = n.beginHere(ctx, db, o)
		} else {
			tx, err = n.beginThere(ctx, leader, db, o)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return tx, nil
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
	// The stream lives as long as the transaction can, not as the context of its begin.
	life := n.lead.Tenure(leader)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	st, err := n.client.OpenDirect(ctx, life, leader, methodTx)
	if err != nil {
		return nil, err
	}
	tx, err := interactive.Begin(ctx, st, leader, &wire.SessionRequest{DB: db, Label: o.Label, ForeignKeys: o.Modes.ForeignKeys, RecursiveTriggers: o.Modes.RecursiveTriggers, Pre: o.Pre})
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

// commitInteractive commits exactly once. over is false if a constraint keeps the
// transaction open.
func (n *Node) commitInteractive(ctx context.Context, db string, tx delivery.Tx) (over bool, err error) {
	if bound := n.writes.ResultBound(ctx); bound > 0 {
		short, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		ctx = short
	}
	mark, over, err := n.writes.Commit(ctx, db, tx)
	if err == nil {
		n.fresh.Acknowledged(db, mark.Index)
	}
	return over, err
}
