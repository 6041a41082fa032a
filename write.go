package colmena

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/rpc"
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

// write sends one unit to the leader, wherever it is, and returns its result. It makes
// the unit happen exactly once: it carries a request ID, and is sent again, to the next
// leader if need be, until its result is known or ctx ends.
func (n *Node) write(ctx context.Context, db string, u wire.Unit) (wire.UnitResult, error) {
	n.count.writes.Add(1)
	if err := u.Check(); err != nil {
		return wire.UnitResult{}, tooLarge(err)
	}
	for {
		id, lowest, err := n.requests.Begin(ctx)
		if err != nil {
			return wire.UnitResult{}, notBegun(err)
		}
		u.ID, u.Lowest = wire.RequestID(id), lowest
		res, sent, err := n.writeUnit(ctx, db, u)
		n.requests.End(id)
		if !isExpired(err) {
			return res, err
		}
		n.requests.Expired(id.Origin)
		if sent {
			return res, outcomeUnknown(err, "the cluster no longer remembers the request")
		}
	}
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

// notBegun makes the error of a write that got no request ID, so that it was not sent.
// What became of the request for one says nothing of the write, so ErrOutcomeUnknown
// must not be found in it.
func notBegun(err error) error {
	if !errors.Is(err, ErrOutcomeUnknown) {
		if errors.Is(err, ErrClosed) || errors.Is(err, ErrNotApplied) {
			return err
		}
		return notApplied(err, "write: %v", err)
	}
	var causes []error
	for _, e := range []error{ErrClosed, ErrNoLeader, ErrReplicaHalted, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			causes = append(causes, e)
		}
	}
	why := strings.TrimSuffix(strings.TrimPrefix(err.Error(), "colmena: "), unknownEnding)
	return notApplied(errors.Join(causes...), "write: asking the cluster for a number to write under: %s", why)
}

func isExpired(err error) bool {
	var w *wire.Error
	return errors.Is(err, engine.ErrExpired) || errors.As(err, &w) && w.Code == wire.ErrExpired
}

// writeUnit sends a unit until it is decided. sent says that some attempt may have
// been applied. The error is the user's, but for an expired request.
func (n *Node) writeUnit(ctx context.Context, db string, u wire.Unit) (res wire.UnitResult, sent bool, err error) {
	leaderBy := n.lead.Deadline()
	caller, cancel := ctx, context.CancelFunc(func() {})
	defer func() { cancel() }()
	bound := n.resultBound(ctx)
	var last error // why the attempt before failed
	for {
		watch := n.lead.Watch()
		leader, local, err := n.lead.Await(ctx, leaderBy)
		if err != nil {
			return res, sent, n.giveUp(sent, err, last)
		}
		if bound > 0 && !sent { // it counts from the first attempt that may have arrived
			cancel()
			attempt, end := context.WithTimeout(caller, bound)
			ctx, cancel = attempt, end
		}
		u.Timeout = 0
		if by, ok := ctx.Deadline(); ok {
			u.Timeout = max(1, time.Until(by).Milliseconds())
		}
		maybe := false
		if local {
			res, maybe, err = n.writeHere(ctx, db, u)
		} else {
			res, maybe, err = n.sendWrite(ctx, leader, db, u)
		}
		switch {
		case err == nil:
			return res, sent, nil
		case isExpired(err):
			return res, sent, err
		case !again(err) && sent && !judged(err):
			// This attempt ended before the request was looked up: it tells nothing of
			// the one before.
			return res, sent, n.giveUp(sent, ctx.Err(), err)
		case !again(err):
			return res, sent, decided(err)
		}
		sent, last = sent || maybe, err
		if maybe {
			leaderBy = n.lead.Deadline() // there was a leader; the wait for the next one begins
		}
		if !sent {
			ctx = caller
		}
		if ctx.Err() != nil || n.isClosed() {
			return res, sent, n.giveUp(sent, ctx.Err(), last)
		}
		if err := n.lead.Pause(ctx, watch, leaderBy); err != nil {
			return res, sent, n.giveUp(sent, err, last)
		}
	}
}

// resultBound is how long a write that was sent waits for its result, 0 for as long as
// it takes: what its statement may run, and ApplyTimeout for all the rest.
func (n *Node) resultBound(ctx context.Context) time.Duration {
	if _, ok := ctx.Deadline(); ok || n.cfg.ApplyTimeout < 0 || n.cfg.MaxStatementTime < 0 {
		return 0
	}
	return n.cfg.ApplyTimeout + n.cfg.MaxStatementTime
}

// again reports whether a write that failed so goes on to be tried: it did not reach
// a leader, or its outcome is not known yet.
func again(err error) bool {
	if errors.Is(err, rpc.ErrNotDelivered) || errors.Is(err, rpc.ErrInterrupted) {
		// The way there failed. Whatever error ended the stream, it judges no unit.
		return !errors.Is(err, engine.ErrCanceled)
	}
	var w *wire.Error
	if errors.As(err, &w) {
		return w.Code == wire.ErrNotLeader || w.Code == wire.ErrOutcomeUnknown || w.Code == wire.ErrClosed || w.Code == wire.ErrHalted
	}
	for _, e := range []error{engine.ErrNotLeading, engine.ErrUnknown, engine.ErrHalted, engine.ErrClosed,
		ErrNoLeader, ErrClosed, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return !errors.Is(err, engine.ErrCanceled)
		}
	}
	return false
}

// judged reports whether an error comes from running the unit, which happens only
// after it was found that no earlier attempt was applied, nor can be any more.
func judged(err error) bool {
	switch errorToWire(err).Code {
	case wire.ErrSQL, wire.ErrDiskFull, wire.ErrNonDeterministic, wire.ErrRefused, wire.ErrFunctionNotReady, wire.ErrNotFound:
		return true
	}
	return false
}

// decided makes the user's error of one that says the write was not applied.
func decided(err error) error {
	if errors.Is(err, engine.ErrCanceled) {
		return notApplied(err, "write: %v", err)
	}
	return userError(err)
}

// giveUp makes the error of a write that was not decided: err ended it, last is why
// the latest attempt had failed.
func (n *Node) giveUp(sent bool, err, last error) error {
	if n.isClosed() {
		err = errors.Join(ErrClosed, err)
	}
	reasons := []string{}
	for _, e := range []error{err, last, n.haltedErr()} {
		if e != nil {
			reasons = append(reasons, strings.ReplaceAll(strings.TrimPrefix(e.Error(), "colmena: "), "\n", "; "))
		}
	}
	cause := errors.Join(err, last)
	if sent {
		return outcomeUnknown(cause, "write: %s", strings.Join(reasons, "; "))
	}
	return notApplied(cause, "write: %s", strings.Join(reasons, "; "))
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
	for {
		if d := n.dbs.Get(name); d != nil {
			return d, nil
		}
		watch := n.dbs.Watch()
		if err := n.createDatabase(ctx, name); err != nil {
			return nil, err
		}
		if d := n.dbs.Get(name); d != nil {
			return d, nil
		}
		select {
		case <-watch:
		case <-n.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// maxDatabases bounds the databases of a cluster.
const maxDatabases = 1024

func (n *Node) createDatabase(ctx context.Context, name string) error {
	if plainfile.IsHidden(name) {
		return n.hiddenExists(ctx, name)
	}
	name, err := checkName(name)
	if err != nil {
		return &wire.Error{Code: wire.ErrRefused, Msg: "a database of that name", Detail: err.Error()}
	}
	if len(n.dbs.All()) > maxDatabases {
		return &wire.Error{Code: wire.ErrTooLarge, Msg: fmt.Sprintf("a cluster holds at most %d databases", maxDatabases)}
	}
	args := wire.NewArgs(1)
	args.Add(wire.Text(name))
	_, err = n.dbs.System().Exec(ctx, wire.Unit{Statements: []wire.Statement{{SQL: "INSERT INTO databases(name) VALUES(?) ON CONFLICT DO NOTHING", Args: args.Args()}}})
	return err
}

// registerOrigin asks the cluster for a number under which this process writes.
func (n *Node) registerOrigin(ctx context.Context) (uint64, error) {
	args := wire.NewArgs(1)
	args.Add(wire.Text(n.id.NodeID))
	u := wire.Unit{Statements: []wire.Statement{
		{SQL: "DELETE FROM instances WHERE origin < (SELECT seq FROM sqlite_sequence WHERE name='instances') - 1000"},
		{SQL: "INSERT INTO instances(node) VALUES(?)", Args: args.Args()},
	}}
	res, _, err := n.writeUnit(ctx, catalogue.SystemName, u)
	return uint64(res.Result.LastInsertID), err
}

// DropDB removes a database and its files on every node. Open handles see an empty
// database afterwards; the next write makes a new one.
func (n *Node) DropDB(ctx context.Context, name string) error {
	name, err := checkName(name)
	if err != nil {
		return err
	}
	args := wire.NewArgs(1)
	args.Add(wire.Text(name))
	res, err := n.write(ctx, catalogue.SystemName, wire.Unit{Statements: []wire.Statement{{SQL: "DELETE FROM databases WHERE name = ?", Args: args.Args()}}})
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
