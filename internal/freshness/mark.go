package freshness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// position is how far the leader has applied a database, and which database has the name there: none, 0, or another than on a node that has yet
// to follow a drop or a load.
type position struct {
	wire.Mark
	incarnation uint64
}

// same reports whether a database, nil for none, is the one that the leader spoke of.
func (p position) same(d Database) bool { return d != nil && d.Incarnation() == p.incarnation }

// reached reports whether a database, nil for none, holds what the leader's did.
func (p position) reached(d Database) bool {
	if d == nil {
		return p == position{}
	}
	return p.same(d) && d.Mark().Index >= p.Index
}

// leaderMark asks the leader how far it has applied a database. With confirm the leader first has its term confirmed by a majority, in a round
// that begins after the question arrived (H22), so that the answer covers every write acknowledged before.
func (g *Gauge) leaderMark(ctx context.Context, db string, confirm bool) (position, error) {
	lead := &g.cfg.Leadership
	deadline := time.Now().Add(max(g.cfg.LeaderWait, 0))
	for {
		watch := lead.Watch()
		leader, local, err := lead.Await(ctx, deadline)
		if err != nil {
			return position{}, lead.Lost(ctx, err)
		}
		var m position
		if local {
			m, err = g.markHere(ctx, db, confirm)
		} else {
			m, err = g.askers.ask(ctx, markKey{leader, db, confirm})
		}
		if err == nil || ctx.Err() != nil || !lead.Elsewhere(err) && !errors.Is(err, rpc.ErrInterrupted) {
			return m, err
		}
		if err := lead.Pause(ctx, watch, deadline); err != nil {
			return m, lead.Lost(ctx, err)
		}
	}
}

// markHere is the leader's own answer: what it has applied of the database, which after its term's barrier is every write acknowledged so far
// (H23). What is committed and not yet applied here may have been applied, and read, on another node: with confirm the leader catches up with it
// first, so that no read sees less than one that ended before it began.
func (g *Gauge) markHere(ctx context.Context, db string, confirm bool) (position, error) {
	term := g.cfg.Leadership.Term()
	if term == 0 {
		return position{}, g.cfg.Errors.NoLeader
	}
	if err := g.AwaitSystem(ctx); err != nil {
		return position{}, err
	}
	if confirm {
		if err := g.delivery.await(ctx, g.cfg.Consensus.Committed()); err != nil {
			return position{}, err
		}
	}
	var m position
	if d := g.cfg.Databases.Get(db); d != nil {
		if confirm {
			err := d.Settle(ctx)
			if errors.Is(err, engine.ErrClosed) && !g.closed() && g.cfg.Databases.Get(db) != d {
				return g.markHere(ctx, db, confirm) // it was replaced or dropped meanwhile
			}
			if err != nil {
				return position{}, err
			}
		}
		m = position{d.Mark(), d.Incarnation()}
	}
	if confirm {
		if err := g.confirmer.confirm(ctx, term); err != nil {
			return position{}, err
		}
	}
	if g.cfg.Leadership.Term() != term {
		return position{}, g.cfg.Errors.NoLeader
	}
	return m, nil
}

func (g *Gauge) closed() bool {
	select {
	case <-g.cfg.Done:
		return true
	default:
		return false
	}
}

// ServeMarks answers the questions of one asker.
func (g *Gauge) ServeMarks(ctx context.Context, st Stream) error {
	return answerEach(st, func(b []byte) ([]byte, error) {
		var req wire.MarkRequest
		if err := req.Decode(b); err != nil {
			return nil, err
		}
		var resp wire.MarkResponse
		m, err := g.markHere(ctx, req.DB, req.Confirm)
		resp.Mark, resp.DBIncarnation, resp.Term = m.Mark, m.incarnation, g.cfg.Leadership.Term()
		switch {
		case errors.Is(err, g.cfg.Errors.NoLeader):
			resp.Err = &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"}
		case err != nil:
			resp.Err = g.cfg.Errors.ToWire(err)
		}
		return resp.Append(nil), nil
	})
}

type markKey struct {
	leader, db string
	confirm    bool
}

// askers share questions: all reads that begin while one is out go into the next.
type askers struct {
	cfg *Config

	mu   sync.Mutex // guards what follows
	m    map[markKey]*shared[position]
	idle map[string][]Stream // open streams to leaders, kept for the next question of any database
}

const (
	maxAskers      = 4096
	maxIdleStreams = 8
)

// take returns an open stream to a leader, nil if there is none.
func (a *askers) take(leader string) Stream {
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

func (a *askers) put(leader string, st Stream) {
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
		a.idle = map[string][]Stream{}
	}
	a.idle[leader] = append(a.idle[leader], st)
}

// of returns the question that is shared under a key.
func (a *askers) of(k markKey) *shared[position] {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.m[k]
	if s == nil {
		if a.m == nil || len(a.m) >= maxAskers {
			a.m = map[markKey]*shared[position]{}
		}
		s = &shared[position]{cfg: a.cfg, do: func(ctx context.Context) (position, error) { return a.question(ctx, k) }}
		a.m[k] = s
	}
	return s
}

func (a *askers) question(ctx context.Context, k markKey) (position, error) {
	var resp wire.MarkResponse
	req := wire.MarkRequest{DB: k.db, Confirm: k.confirm}
	open := func(ctx context.Context) (Stream, error) { return a.cfg.OpenMarks(ctx, k.leader) }
	st, err := exchange(ctx, a.cfg.Group.Context(), a.take(k.leader), open, req.Append(nil), resp.Decode)
	a.put(k.leader, st)
	if err == nil && resp.Err != nil {
		err = resp.Err
	}
	return position{resp.Mark, resp.DBIncarnation}, err
}

func (a *askers) ask(ctx context.Context, k markKey) (position, error) {
	r, err := a.of(k).join()
	if err != nil {
		return position{}, err
	}
	for {
		// A leader that answers no more is not waited for once there is another.
		watch := a.cfg.Leadership.Watch()
		if id, _, ok := a.cfg.Leadership.Leader(); ok && id != k.leader {
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
