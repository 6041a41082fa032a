package colmena

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/delivery"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/wire"
)

// Statement is one SQL statement string and its arguments, for ExecMulti.
type Statement struct {
	SQL  string
	Args []any // as for database/sql: values, or sql.Named
}

// ExecResult is what a statement did.
type ExecResult struct {
	LastInsertID int64
	RowsAffected int64
}

// newWrites makes what delivers this node's writes to the leader.
func (n *Node) newWrites() *delivery.Service {
	var bound time.Duration // what a statement may run, and ApplyTimeout for all the rest
	if n.cfg.ApplyTimeout > 0 && n.cfg.MaxStatementTime > 0 {
		bound = n.cfg.ApplyTimeout + n.cfg.MaxStatementTime
	}
	return delivery.New(delivery.Config{
		Leaders: n.lead, Here: n.writeHere, There: n.sendWrite, Bound: bound, Halted: n.haltedErr, Done: n.done,
		Register: func() wire.Unit { return catalogue.OriginUnit(n.id.NodeID) }, RegisterIn: catalogue.SystemName,
		Errors: delivery.Errors{
			Closed: ErrClosed, NoLeader: ErrNoLeader, Halted: ErrReplicaHalted, NotApplied: ErrNotApplied, Unknown: ErrOutcomeUnknown,
			Refused: notApplied, Lost: outcomeUnknown, User: userError, Statement: n.txStatementError, TooLarge: tooLarge,
			Leaderless: noLeader, ToWire: errorToWire,
		},
	})
}

// write sends one unit to the leader, wherever it is, and returns its result. It makes
// the unit happen exactly once.
func (n *Node) write(ctx context.Context, db string, u wire.Unit) (wire.UnitResult, error) {
	n.count.writes.Add(1)
	return n.writes.Write(ctx, db, u)
}

// tooLarge makes the user's error of what no decoder would take. A unit must not be sent
// then: the leader would end the stream on which other writes travel too.
func tooLarge(err error) error {
	var big *wire.LimitError
	if errors.As(err, &big) {
		return &LimitError{Msg: fmt.Sprintf("too large: %s: %d, the limit is %d", big.What, big.Got, big.Max)}
	}
	return notApplied(err, "%v", err)
}

// writeHere runs a unit on this node, which leads.
func (n *Node) writeHere(ctx context.Context, db string, u wire.Unit) (res wire.UnitResult, maybe bool, err error) {
	d, err := n.databaseForWrite(ctx, db)
	if err != nil {
		return res, false, err
	}
	res, err = d.Exec(ctx, u)
	if err == nil && d.Mark().Index < res.Mark.Index {
		n.fresh.Acknowledged(db, res.Mark.Index) // replicated, and this node could not commit it
	}
	return res, errors.Is(err, engine.ErrUnknown), err
}

// databaseForWrite returns a database on the leader, made if there is none yet.
func (n *Node) databaseForWrite(ctx context.Context, name string) (*engine.DB, error) {
	return n.dbs.Make(ctx, name, n.admit)
}

// admit decides whether a database may be made by a write. One that a load fills is not:
// the load makes it.
func (n *Node) admit(ctx context.Context, name string) (wanted bool, err error) {
	if plainfile.IsHidden(name) {
		return false, n.hiddenExists(ctx, name)
	}
	if !dbName.MatchString(name) {
		return false, &wire.Error{Code: wire.ErrRefused, Msg: "a database of that name", Detail: badName(name).Error()}
	}
	if err := n.admitDatabase(); err != nil {
		return false, &wire.Error{Code: wire.ErrTooLarge, Msg: err.Msg}
	}
	return true, nil
}

// DropDB removes a database and its files on every node. Open handles see an empty
// database afterwards; the next write makes a new one.
func (n *Node) DropDB(ctx context.Context, name string) error {
	name, err := checkName(name)
	if err != nil {
		return err
	}
	res, err := n.write(ctx, catalogue.SystemName, catalogue.DropUnit(name))
	if err != nil {
		return err
	}
	// Done is done; that this node's own reads at level None see it is worth a wait.
	short, cancel := context.WithTimeout(ctx, ownWritesPatience)
	defer cancel()
	_ = n.fresh.AwaitSet(short, res.Mark.Index)
	return nil
}

// Databases lists the databases this node knows of.
func (n *Node) Databases() []string {
	var names []string
	for _, d := range n.dbs.All() {
		if d.Incarnation() != 0 && !plainfile.IsHidden(d.Name()) {
			names = append(names, d.Name())
		}
	}
	return names
}
