package colmena

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/freshness"
	"github.com/mentasystems/colmena/internal/rowstream"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/sqltext"
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

// read runs a statement string that only reads, at the mode's level, here or on the
// leader.
func (n *Node) read(ctx context.Context, db string, m readMode, sql string, args wire.Args, pre wire.PreState) (rowSource, error) {
	n.count.read(m.level)
	leader, err := n.freshen(ctx, db, m)
	if err != nil {
		return nil, err
	}
	if leader != "" {
		return n.readThere(ctx, leader, db, m, sql, args, pre)
	}
	return n.readHere(ctx, db, sql, args, pre)
}

// readHere runs a query on this node's file, as it is.
func (n *Node) readHere(ctx context.Context, db, sql string, args wire.Args, pre wire.PreState) (rowSource, error) {
	r, err := n.reader(ctx, db)
	if err != nil {
		return nil, err
	}
	c, err := r.Query(sql, args, pre)
	if err != nil {
		r.Release()
		return nil, readError(err)
	}
	return &localRows{r: r, Cursor: c}, nil
}

// snapshot pins this node's state, when it is as fresh as the mode asks.
func (n *Node) snapshot(ctx context.Context, db string, m readMode) (readSnapshot, error) {
	if err := n.freshenHere(ctx, db, m); err != nil {
		return nil, err
	}
	r, err := n.reader(ctx, db)
	if err != nil {
		return nil, err
	}
	r.Use(context.Background()) // each query brings its own
	if err := r.Begin(); err != nil {
		r.Release()
		return nil, readError(err)
	}
	return &pinnedRead{r}, nil
}

type pinnedRead struct{ r *engine.Reader }

func (p *pinnedRead) Query(ctx context.Context, sql string, args wire.Args, pre wire.PreState) (rowSource, error) {
	p.r.Use(ctx)
	c, err := p.r.Query(sql, args, pre)
	if err != nil {
		return nil, readError(err)
	}
	return &localRows{Cursor: c, shared: p.r, ctx: ctx}, nil
}

func (p *pinnedRead) Close() error {
	p.r.Release()
	return nil
}

// reader takes a connection to the local file. While a copy is being installed it
// waits for the new one.
func (n *Node) reader(ctx context.Context, db string) (*engine.Reader, error) {
	for {
		if n.isClosed() {
			return nil, ErrClosed
		}
		watch := n.dbs.Watch()
		var r *engine.Reader
		var err error
		d := n.dbs.Get(db)
		switch {
		case d == nil:
			r, err = n.empty.Reader(ctx)
		case d.Err() != nil && !catalogue.LocalFailure(d.Err()):
			return nil, userError(d.Err()) // it may have parted from the others
		default:
			r, err = d.Reader(ctx)
		}
		if !errors.Is(err, engine.ErrClosed) {
			return r, err
		}
		if err := n.haltedErr(); err != nil {
			return nil, err
		}
		select {
		case <-watch:
		case <-n.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(localPatience):
		}
	}
}

// classify tells whether a statement string writes.
func (n *Node) classify(ctx context.Context, db string, m readMode, sql string) (engine.Class, error) {
	class, err := n.classifyHere(ctx, db, sql)
	if err == nil {
		return class, nil
	}
	var refused *engine.RefusedError
	if errors.As(err, &refused) {
		return 0, userError(err)
	}
	if errors.Is(err, ErrReplicaHalted) && !sqltext.SeemsToWrite(sql) {
		return engine.ClassRead, nil // the leader can answer it
	}
	if sqltext.SeemsToWrite(sql) {
		return engine.ClassWrite, nil // the leader judges it
	}
	// The schema here may lag behind.
	if err := n.freshenHere(ctx, db, m); err != nil {
		return 0, err
	}
	class, err = n.classifyHere(ctx, db, sql)
	return class, readError(err)
}

func (n *Node) classifyHere(ctx context.Context, db, sql string) (engine.Class, error) {
	r, err := n.reader(ctx, db)
	if err != nil {
		return 0, err
	}
	defer r.Release()
	return r.Classify(sql)
}

// freshenHere is freshen for what can only run on this node.
func (n *Node) freshenHere(ctx context.Context, db string, m readMode) error {
	for {
		leader, err := n.freshen(ctx, db, m)
		if err != nil || leader == "" {
			return err
		}
		if d := n.dbs.Get(db); d != nil && d.Err() != nil {
			return userError(d.Err()) // it will not catch up by waiting
		}
		if err := n.lead.Pause(ctx, n.dbs.Watch(), time.Now().Add(localPatience)); err != nil && !errors.Is(err, ErrNoLeader) {
			return err
		}
	}
}

// freshen waits until this node may answer at the mode's level. If it lags too far
// behind the leader it returns the leader instead.
func (n *Node) freshen(ctx context.Context, db string, m readMode) (leader string, err error) {
	if m.minIndex > 0 {
		if err := n.fresh.AwaitIndex(ctx, db, m.minIndex); err != nil {
			return "", err
		}
	}
	switch {
	case m.stale > 0:
		return "", n.fresh.Prove(ctx, db, m.stale)
	case m.level == None:
		return "", n.fresh.AwaitOwnWrites(ctx, db)
	case m.level == Weak && n.lead.Leading():
		return "", n.fresh.AwaitSystem(ctx)
	}
	leader, err = n.fresh.Reach(ctx, db, m.level == Strong)
	return leader, readError(err)
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

// localRows walks a query on this node's file. r is released at the end. A reader
// that is shared, by the queries of a snapshot, follows the context of the one that
// steps.
type localRows struct {
	*engine.Cursor
	r      *engine.Reader
	shared *engine.Reader
	ctx    context.Context
}

func (l *localRows) Next() (bool, error) {
	if l.shared != nil {
		l.shared.Use(l.ctx)
	}
	ok, err := l.Cursor.Next()
	return ok, readError(err)
}

func (l *localRows) Close() error {
	l.Cursor.Close()
	if l.r != nil {
		l.r.Release()
		l.r = nil
	}
	return nil
}

// readThere has the leader run a query, which streams its rows. While no row is here
// nothing is lost: when the leader cannot answer, it is found out anew who can.
func (n *Node) readThere(ctx context.Context, leader, db string, m readMode, sql string, args wire.Args, pre wire.PreState) (rowSource, error) {
	by := n.lead.Deadline()
	req := wire.QueryRequest{DB: db, Level: uint8(m.level), Statement: wire.Statement{SQL: sql, Args: args}, Pre: pre, HasPre: true}
	if err := req.Check(); err != nil {
		return nil, tooLarge(err)
	}
	for {
		if leader != n.id.NodeID && n.client != nil { // otherwise this node has become the leader
			watch := n.lead.Watch()
			rows, err := n.queryThere(ctx, leader, &req)
			if err == nil || !askAgain(err) {
				return rows, readError(err)
			}
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case n.isClosed():
				return nil, ErrClosed
			}
			if n.lead.Pause(ctx, watch, by) == ErrNoLeader {
				return nil, fmt.Errorf("%w: node %q, asked last, did not run the query: %v", ErrNoLeader, leader, err)
			}
		}
		var err error
		if leader, err = n.freshen(ctx, db, m); err != nil {
			return nil, err
		}
		if leader == "" {
			return n.readHere(ctx, db, sql, args, pre)
		}
	}
}

// askAgain reports whether a query that failed so may be answered by another node, or
// by the same one later: it was not run, or its answer was lost. err says nothing of
// this node.
func askAgain(err error) bool {
	if errors.Is(err, rpc.ErrNotDelivered) || errors.Is(err, rpc.ErrInterrupted) {
		return true
	}
	var w *wire.Error
	return errors.As(err, &w) && ofTheNode(w)
}

// ofTheNode reports whether an error tells of the state of the node that sent it, and
// not of what was asked of it. A query is canceled over there when that node closes:
// when the caller is gone, nobody waits for the answer.
func ofTheNode(w *wire.Error) bool {
	switch w.Code {
	case wire.ErrNotLeader, wire.ErrClosed, wire.ErrHalted, wire.ErrCanceled, wire.ErrBusy:
		return true
	}
	return false
}

// queryThere sends a query to a node and waits until its rows begin.
func (n *Node) queryThere(ctx context.Context, node string, req *wire.QueryRequest) (rowSource, error) {
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
	if errors.As(err, &w) && !ofTheNode(w) {
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
