package colmena

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// position is how far the leader has applied a database, and which database has the
// name there: none, 0, or another than on a node that has yet to follow a drop or a load.
type position struct {
	wire.Mark
	incarnation uint64
}

// leaderMark asks the leader how far it has applied a database. With confirm the
// leader first has its term confirmed by a majority, in a round that begins after the
// question arrived (H22), so that the answer covers every write acknowledged before.
func (n *Node) leaderMark(ctx context.Context, db string, confirm bool) (position, error) {
	deadline := n.leaderDeadline()
	for {
		watch := n.stateWatch()
		leader, local, err := n.awaitLeader(ctx, deadline)
		if err != nil {
			return position{}, noLeader(ctx, err)
		}
		var m position
		if local {
			m, err = n.markHere(ctx, db, confirm)
		} else {
			m, err = n.marks.ask(ctx, markKey{leader, db, confirm})
		}
		if err == nil || ctx.Err() != nil || !goesToLeader(err) && !errors.Is(err, rpc.ErrInterrupted) {
			return m, err
		}
		if err := n.pause(ctx, watch, deadline); err != nil {
			return m, noLeader(ctx, err)
		}
	}
}

// markHere is the leader's own answer: what it has applied of the database, which
// after its term's barrier is every write acknowledged so far (H23). What is committed
// and not yet applied here may have been applied, and read, on another node: with
// confirm the leader catches up with it first, so that no read sees less than one that
// ended before it began.
func (n *Node) markHere(ctx context.Context, db string, confirm bool) (position, error) {
	term := n.leading.Load()
	if term == 0 {
		return position{}, ErrNoLeader
	}
	if err := n.settled(ctx, n.dbs.System().Mark().Index); err != nil {
		return position{}, err
	}
	if confirm {
		if err := n.delivery.await(ctx, n.raft.CommitIndex()); err != nil {
			return position{}, err
		}
	}
	var m position
	if d := n.dbs.Get(db); d != nil {
		if confirm {
			err := d.Settle(ctx)
			if errors.Is(err, engine.ErrClosed) && !n.isClosed() && n.dbs.Get(db) != d {
				return n.markHere(ctx, db, confirm) // it was replaced or dropped meanwhile
			}
			if err != nil {
				return position{}, err
			}
		}
		m = position{d.Mark(), d.Incarnation()}
	}
	if confirm {
		if err := n.confirmer.confirm(ctx, term); err != nil {
			return position{}, err
		}
	}
	if n.leading.Load() != term {
		return position{}, ErrNoLeader
	}
	return m, nil
}

// delivery tells when committed entries have been handed to the databases.
type delivery struct {
	n *Node

	mu      sync.Mutex
	changed chan struct{} // closed at the next delivery, nil while nobody waits
	quiet   uint64        // up to here raft's own entries follow what was delivered
}

func (d *delivery) delivered(index uint64) {
	d.n.applied.Store(index)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// await waits until every command up to index, which is committed, has been handed to
// the databases. Entries of raft's own never are.
func (d *delivery) await(ctx context.Context, index uint64) error {
	for {
		d.mu.Lock()
		applied := d.n.applied.Load()
		if max(applied, d.quiet) >= index {
			d.mu.Unlock()
			return nil
		}
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
		changed, from := d.changed, max(applied, d.quiet)
		d.mu.Unlock()
		if d.n.noCommands(from+1, index) {
			d.mu.Lock()
			d.quiet = max(d.quiet, index)
			d.mu.Unlock()
			return nil
		}
		select {
		case <-changed:
		case <-d.n.done:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// noCommands reports whether no entry from first to last is a command. What the log
// holds no more was delivered long ago.
func (n *Node) noCommands(first, last uint64) bool {
	for i := first; i <= last; i++ {
		var l raft.Log
		switch err := n.store.Log().GetLog(i, &l); {
		case errors.Is(err, raft.ErrLogNotFound):
		case err != nil || l.Type == raft.LogCommand:
			return false
		}
	}
	return true
}

// settled waits until the set of databases follows the entry at index of the system
// database: a drop is acknowledged a moment before the database is gone here.
func (n *Node) settled(ctx context.Context, index uint64) error {
	for {
		watch := n.dbs.Watch()
		if n.dbs.Follows(index) {
			return nil
		}
		if err := n.haltedErr(); err != nil {
			return err
		}
		select {
		case <-watch:
		case <-time.After(localPatience):
		case <-n.done:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type markKey struct {
	leader, db string
	confirm    bool
}

// markAskers share questions: all reads that begin while one is out go into the next.
type markAskers struct {
	n  *Node
	mu sync.Mutex
	m  map[markKey]*shared[position]
	// idle are open streams to leaders, kept for the next question of any database.
	idle map[string][]*rpc.Stream
}

const (
	maxAskers      = 4096
	maxIdleStreams = 8
)

// take returns an open stream to a leader, nil if there is none.
func (a *markAskers) take(leader string) *rpc.Stream {
	a.mu.Lock()
	defer a.mu.Unlock()
	idle := a.idle[leader]
	if len(idle) == 0 {
		return nil
	}
	st := idle[len(idle)-1]
	a.idle[leader] = idle[:len(idle)-1]
	return st
}

func (a *markAskers) put(leader string, st *rpc.Stream) {
	if st == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.idle[leader]) >= maxIdleStreams {
		_ = st.Close()
		return
	}
	if a.idle == nil {
		a.idle = map[string][]*rpc.Stream{}
	}
	a.idle[leader] = append(a.idle[leader], st)
}

func (a *markAskers) ask(ctx context.Context, k markKey) (position, error) {
	a.mu.Lock()
	s := a.m[k]
	if s == nil {
		if a.m == nil || len(a.m) >= maxAskers {
			a.m = map[markKey]*shared[position]{}
		}
		s = &shared[position]{n: a.n, do: func(ctx context.Context) (position, error) {
			var resp wire.MarkResponse
			req := wire.MarkRequest{DB: k.db, Confirm: k.confirm}
			st, err := a.n.exchange(ctx, a.take(k.leader), k.leader, methodMark, req.Append(nil), resp.Decode)
			a.put(k.leader, st)
			if err == nil && resp.Err != nil {
				err = resp.Err
			}
			return position{resp.Mark, resp.DBIncarnation}, err
		}}
		a.m[k] = s
	}
	a.mu.Unlock()
	r, err := s.join()
	if err != nil {
		return position{}, err
	}
	for {
		// A leader that answers no more is not waited for once there is another.
		watch := a.n.stateWatch()
		if id, _, ok := a.n.leader(); ok && id != k.leader {
			return position{}, fmt.Errorf("%w: another node leads", rpc.ErrInterrupted)
		}
		select {
		case <-r.done:
			return r.value, r.err
		case <-watch:
		case <-ctx.Done():
			return position{}, ctx.Err()
		}
	}
}

// serveMarks answers the questions of one asker.
func (n *Node) serveMarks(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
	return answerEach(st, func(b []byte) ([]byte, error) {
		var req wire.MarkRequest
		if err := req.Decode(b); err != nil {
			return nil, err
		}
		var resp wire.MarkResponse
		m, err := n.markHere(ctx, req.DB, req.Confirm)
		resp.Mark, resp.DBIncarnation, resp.Term = m.Mark, m.incarnation, n.leading.Load()
		switch {
		case errors.Is(err, ErrNoLeader):
			resp.Err = &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"}
		case err != nil:
			resp.Err = errorToWire(err)
		}
		return resp.Append(nil), nil
	})
}

// answerEach answers the questions of a stream one by one, until the asker is gone.
func answerEach(st *rpc.Stream, answer func([]byte) ([]byte, error)) error {
	var buf []byte
	for {
		b, err := st.RecvInto(buf)
		if err != nil {
			return nil
		}
		buf = b
		resp, err := answer(b)
		if err == nil {
			err = st.Send(resp)
		}
		if err != nil {
			return err
		}
	}
}

// confirmer has the leader's term confirmed by a majority.
type confirmer struct {
	n      *Node
	mu     sync.Mutex
	by     map[uint64]*shared[struct{}] // per term
	voters map[string]*shared[uint64]   // who is asked, by ID
}

// confirm returns nil if a majority of the voters, this node among them, still was in
// the term at a moment after confirm was called: so no later leader had been elected
// then, and none had acknowledged a write. All who wait share a round, which begins
// after each of them came.
func (c *confirmer) confirm(ctx context.Context, term uint64) error {
	c.mu.Lock()
	s := c.by[term]
	if s == nil {
		s = &shared[struct{}]{n: c.n, do: func(ctx context.Context) (struct{}, error) { return struct{}{}, c.n.confirmRound(ctx, term) }}
		c.by = map[uint64]*shared[struct{}]{term: s}
	}
	c.mu.Unlock()
	_, err := s.get(ctx)
	return err
}

// confirmTerm is confirm for the databases, which must not wait.
func (n *Node) confirmTerm(term uint64, done func(ok bool)) {
	if n.client == nil {
		done(n.raft.CurrentTerm() == term) // nobody else could lead
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(n.group.Context(), n.cfg.ElectionTimeout)
		defer cancel()
		done(n.confirmer.confirm(ctx, term) == nil)
	}()
}

func (n *Node) confirmRound(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.ElectionTimeout)
	defer cancel()
	need, asked := 0, 0
	answers := make(chan bool, 64)
	for _, s := range n.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		need++
		if string(s.ID) == n.id.NodeID {
			answers <- n.raft.CurrentTerm() == term
			asked++
			continue
		}
		if asked++; asked > cap(answers) {
			return fmt.Errorf("colmena: more than %d voters", cap(answers))
		}
		go func() { answers <- n.confirmer.askTerm(ctx, string(s.ID), term) }()
	}
	need = need/2 + 1
	for range asked {
		select {
		case ok := <-answers:
			if ok {
				need--
			}
			if need == 0 {
				return nil
			}
		case <-ctx.Done():
			return ErrNoLeader
		}
	}
	return ErrNoLeader
}

// askTerm has a voter say which term it is in, in answer to a question sent from now on.
func (c *confirmer) askTerm(ctx context.Context, id string, term uint64) bool {
	c.mu.Lock()
	s := c.voters[id]
	if s == nil {
		if c.voters == nil || len(c.voters) >= maxAskers {
			c.voters = map[string]*shared[uint64]{}
		}
		var st *rpc.Stream
		s = &shared[uint64]{n: c.n, do: func(ctx context.Context) (uint64, error) {
			var resp wire.TermResponse
			var req wire.TermRequest
			var err error
			st, err = c.n.exchange(ctx, st, id, methodTerm, req.Append(nil), resp.Decode)
			return resp.Term, err
		}}
		c.voters[id] = s
	}
	c.mu.Unlock()
	have, err := s.get(ctx)
	return err == nil && have == term
}

// serveTerms tells which term this node is in.
func (n *Node) serveTerms(_ context.Context, _ wire.Hello, st *rpc.Stream) error {
	return answerEach(st, func(b []byte) ([]byte, error) {
		var req wire.TermRequest
		if err := req.Decode(b); err != nil {
			return nil, err
		}
		term := n.raft.CurrentTerm()
		resp := wire.TermResponse{Term: term, OK: term == req.Term}
		return resp.Append(nil), nil
	})
}

// exchange sends one request on a stream that is kept, and opened if need be, and
// reads the answer. It returns the stream to use next, nil after a failure.
func (n *Node) exchange(ctx context.Context, st *rpc.Stream, id, method string, req []byte, decode func([]byte) error) (*rpc.Stream, error) {
	if st == nil {
		var err error
		if st, err = n.client.Open(n.group.Context(), id, method); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Close() })
	defer stop()
	err := st.Send(req)
	if err == nil {
		var b []byte
		if b, err = st.Recv(); err == nil {
			err = decode(b)
		}
	}
	if err == nil {
		return st, nil
	}
	_ = st.Close()
	var w *wire.Error
	if !errors.As(err, &w) {
		err = fmt.Errorf("%w: %w", rpc.ErrInterrupted, err)
	}
	return nil, err
}

// shared runs one question at a time for many who ask: whoever comes while one is out
// waits for the next, which begins after he came.
type shared[T any] struct {
	n  *Node
	do func(context.Context) (T, error)

	mu      sync.Mutex
	running bool
	next    *round[T]
}

type round[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// sharedTimeout bounds a round nobody may be waiting for any more.
const sharedTimeout = 5 * time.Second

func (s *shared[T]) get(ctx context.Context) (T, error) {
	r, err := s.join()
	if err != nil {
		var zero T
		return zero, err
	}
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// join returns the round that begins next.
func (s *shared[T]) join() (*round[T], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = &round[T]{done: make(chan struct{})}
	}
	r := s.next
	if !s.running {
		s.running = s.n.group.Go("shared question", s.run)
		if !s.running {
			return nil, ErrClosed
		}
	}
	return r, nil
}

func (s *shared[T]) run(ctx context.Context) {
	for {
		s.mu.Lock()
		r := s.next
		s.next = nil
		if r == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		call, cancel := context.WithTimeout(ctx, sharedTimeout)
		r.value, r.err = s.do(call)
		cancel()
		close(r.done)
	}
}
