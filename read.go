package colmena

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

const (
	// localPatience is how long a read waits for this node to reach the leader's mark
	// before the leader runs it.
	localPatience = 20 * time.Millisecond
	// ownWritesPatience is how long a read at level None waits for this node's own
	// acknowledged writes.
	ownWritesPatience = 2 * time.Second
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
	if errors.Is(err, ErrReplicaHalted) && !writes(sql) {
		return engine.ClassRead, nil // the leader can answer it
	}
	if writes(sql) {
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

// writes guesses, of a statement that this node cannot prepare, whether it writes, by
// its first word. The leader finds out; a read sent there as a write is answered too.
func writes(sql string) bool {
	word, _, _ := strings.Cut(strings.TrimLeft(sql, " \t\r\n("), " ")
	switch strings.ToUpper(word) {
	case "INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER", "REINDEX", "ANALYZE":
		return true
	}
	return false
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
		if err := n.pause(ctx, n.dbs.Watch(), time.Now().Add(localPatience)); err != nil && !errors.Is(err, ErrNoLeader) {
			return err
		}
	}
}

// freshen waits until this node may answer at the mode's level. If it lags too far
// behind the leader it returns the leader instead.
func (n *Node) freshen(ctx context.Context, db string, m readMode) (leader string, err error) {
	if m.minIndex > 0 {
		if err := n.awaitIndex(ctx, db, m.minIndex); err != nil {
			return "", err
		}
	}
	if m.stale > 0 {
		return "", n.checkStaleness(ctx, db, m.stale)
	}
	if m.level == None {
		return "", n.awaitOwnWrites(ctx, db)
	}
	if m.level == Weak && n.leading.Load() != 0 {
		return "", n.settled(ctx, n.dbs.System().Mark().Index)
	}
	asked := time.Now()
	mark, err := n.leaderMark(ctx, db, m.level == Strong)
	if err != nil {
		return "", readError(err)
	}
	leader, err = n.reachMark(ctx, db, mark)
	if err == nil && leader == "" {
		n.proven.note(db, asked)
	}
	return leader, err
}

// reachMark waits a moment until this node stands where the leader stood, or names the
// leader.
func (n *Node) reachMark(ctx context.Context, db string, at position) (leader string, err error) {
	watch := n.dbs.Watch()
	d := n.dbs.Get(db)
	if at.reached(d) {
		return "", nil
	}
	short, cancel := context.WithTimeout(ctx, localPatience)
	defer cancel()
	if !at.same(d) {
		select {
		case <-watch:
			d = n.dbs.Get(db)
		case <-short.Done():
		}
	}
	if at.reached(d) || at.same(d) && d.WaitMark(short, at.Index) == nil {
		return "", nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	id, local, ok := n.leader()
	if !ok || local {
		return n.id.NodeID, nil // ask again
	}
	return id, nil
}

// same reports whether a database is the one that the leader spoke of.
func (p position) same(d *engine.DB) bool { return d != nil && d.Incarnation() == p.incarnation }

// reached reports whether a database, nil for none, holds what the leader's did.
func (p position) reached(d *engine.DB) bool {
	if d == nil {
		return p == position{}
	}
	return p.same(d) && d.Mark().Index >= p.Index
}

// awaitOwnWrites waits until this node has applied what it acknowledged itself (H24).
func (n *Node) awaitOwnWrites(ctx context.Context, db string) error {
	index := n.acked.Get(db)
	if index == 0 {
		return nil
	}
	d := n.dbs.Get(db)
	if d != nil && d.Mark().Index >= index {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, ownWritesPatience)
	defer cancel()
	if err := n.awaitIndex(short, db, index); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: this node has not yet received its own acknowledged write, entry %d, and cannot reach the leader; WithMaxStaleness or a later try may do", ErrNotCaughtUp, index)
	}
	return nil
}

// awaitIndex waits until this node has applied everything up to index to db.
func (n *Node) awaitIndex(ctx context.Context, db string, index uint64) error {
	for {
		d := n.dbs.Get(db)
		if d != nil && d.Mark().Index >= index {
			return nil
		}
		if n.applied.Load() >= index {
			if d == nil {
				return nil
			}
			return d.Drain(ctx)
		}
		wait, cancel := context.WithTimeout(ctx, localPatience)
		if d != nil {
			_ = d.WaitMark(wait, index)
		} else {
			<-wait.Done()
		}
		cancel()
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: entry %d is not here yet: %w", ErrNotCaughtUp, index, err)
		}
		if n.isClosed() {
			return ErrClosed
		}
	}
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
	by := n.leaderDeadline()
	req := wire.QueryRequest{DB: db, Level: uint8(m.level), Statement: wire.Statement{SQL: sql, Args: args}, Pre: pre, HasPre: true}
	if err := req.Check(); err != nil {
		return nil, tooLarge(err)
	}
	for {
		if leader != n.id.NodeID && n.client != nil { // otherwise this node has become the leader
			watch := n.stateWatch()
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
			if n.pause(ctx, watch, by) == ErrNoLeader {
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
func (n *Node) queryThere(ctx context.Context, leader string, req *wire.QueryRequest) (rows rowSource, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	st, err := n.client.Open(ctx, leader, methodQuery)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = st.Close()
		}
	}()
	if err := st.Send(req.Append(nil)); err != nil {
		return nil, fmt.Errorf("%w: %w", rpc.ErrInterrupted, err)
	}
	b, err := st.Recv()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: there is no answer", rpc.ErrInterrupted)
	}
	if err != nil {
		return nil, err
	}
	var head wire.RowsHeader
	if err := head.Decode(b); err != nil {
		return nil, err
	}
	if head.Err != nil {
		return nil, head.Err
	}
	return &remoteRows{st: st, from: leader, ctx: ctx, cancel: cancel, columns: head.Columns, row: make([]wire.Value, len(head.Columns))}, nil
}

// remoteRows reads a stream of rows.
type remoteRows struct {
	st      *rpc.Stream
	from    string // the node that runs the query
	ctx     context.Context
	cancel  context.CancelFunc
	columns []wire.Column
	chunk   wire.RowsChunk
	data    []byte
	left    int
	row     []wire.Value
	err     error // what Next goes on returning
}

func (r *remoteRows) Columns() []wire.Column { return r.columns }
func (r *remoteRows) Value(i int) wire.Value { return r.row[i] }

func (r *remoteRows) Next() (bool, error) {
	for r.left == 0 {
		if r.err != nil || r.chunk.Last && r.chunk.Err == nil {
			return false, r.err
		}
		if err := r.receive(); err != nil {
			r.err = r.broken(err)
		}
	}
	r.left--
	for i := range r.row {
		v, rest, err := wire.ReadValue(r.data)
		if err != nil {
			r.left, r.err = 0, r.broken(err)
			return false, r.err
		}
		r.row[i], r.data = v, rest
	}
	return true, nil
}

// receive takes the next chunk. The error that a chunk carries comes after its rows.
func (r *remoteRows) receive() error {
	if r.chunk.Err != nil {
		return r.chunk.Err
	}
	b, err := r.st.Recv()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	r.chunk = wire.RowsChunk{}
	if err := r.chunk.Decode(b); err != nil {
		return err
	}
	r.data, r.left = r.chunk.Data, r.chunk.N
	return nil
}

// broken makes the user's error of a result that ended before its last row. That the
// other node was closed, or has halted, must not look like a state of this one.
func (r *remoteRows) broken(err error) error {
	if ctx := r.ctx.Err(); ctx != nil {
		return ctx
	}
	var w *wire.Error
	if errors.As(err, &w) && !ofTheNode(w) {
		return errorFromWire(w)
	}
	return &outcomeError{fmt.Sprintf("colmena: node %q ended the result before its last row: %v", r.from, err), []error{ErrNotApplied}}
}

func (r *remoteRows) Close() error {
	r.cancel()
	return r.st.Close()
}

// chunkBytes is about how much of a result is sent, and held in memory, at a time.
const chunkBytes = 64 << 10

// serveQuery runs a follower's query on the leader.
func (n *Node) serveQuery(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
	b, err := st.Recv()
	if err != nil {
		return err
	}
	var req wire.QueryRequest
	if err := req.Decode(b); err != nil {
		return err
	}
	level := ConsistencyLevel(req.Level)
	if n.leading.Load() == 0 || level != Weak && level != Strong {
		return &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"}
	}
	rows, err := n.read(ctx, req.DB, readMode{level: level}, req.Statement.SQL, req.Statement.Args, req.Pre)
	if err != nil {
		head := wire.RowsHeader{Err: errorToWire(err)}
		return st.Send(head.Append(nil))
	}
	defer rows.Close()
	head := wire.RowsHeader{Columns: rows.Columns()}
	if err := st.Send(head.Append(nil)); err != nil {
		return err
	}
	return sendRows(st, rows, len(head.Columns))
}

func sendRows(st *rpc.Stream, rows rowSource, columns int) error {
	var data, frame []byte
	for {
		chunk := wire.RowsChunk{}
		data = data[:0]
		for len(data) < chunkBytes {
			ok, err := rows.Next()
			if err != nil || !ok {
				chunk.Last, chunk.Err = true, errorToWire(err)
				break
			}
			for i := range columns {
				data = wire.AppendValue(data, rows.Value(i))
			}
			chunk.N++
		}
		chunk.Data = data
		frame = chunk.Append(frame[:0])
		if err := st.Send(frame); err != nil || chunk.Last {
			return err
		}
	}
}
