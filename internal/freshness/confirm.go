package freshness

import (
	"context"
	"fmt"
	"sync"

	"github.com/mentasystems/colmena/internal/wire"
)

// confirmer has the leader's term confirmed by a majority.
type confirmer struct {
	cfg *Config

	mu     sync.Mutex                   // guards what follows
	by     map[uint64]*shared[struct{}] // per term
	voters map[string]*shared[uint64]   // who is asked, by ID
}

// confirm returns nil if a majority of the voters, this node among them, still was in the term at a moment after confirm was called: so no later
// leader had been elected then, and none had acknowledged a write. All who wait share a round, which begins after each of them came.
func (c *confirmer) confirm(ctx context.Context, term uint64) error {
	c.mu.Lock()
	s := c.by[term]
	if s == nil {
		s = &shared[struct{}]{cfg: c.cfg, do: func(ctx context.Context) (struct{}, error) { return struct{}{}, c.round(ctx, term) }}
		c.by = map[uint64]*shared[struct{}]{term: s}
	}
	c.mu.Unlock()
	_, err := s.get(ctx)
	return err
}

// ConfirmTerm tells done whether a majority is still in the term at a moment after the call. It does not wait.
func (g *Gauge) ConfirmTerm(term uint64, done func(ok bool)) {
	if g.cfg.Alone {
		done(g.cfg.Consensus.Term() == term) // nobody else could lead
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(g.cfg.Group.Context(), g.cfg.RoundWithin)
		defer cancel()
		done(g.confirmer.confirm(ctx, term) == nil)
	}()
}

// maxVoters bounds whom a round asks.
const maxVoters = 64

func (c *confirmer) round(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RoundWithin)
	defer cancel()
	voters := c.cfg.Consensus.Voters()
	if len(voters) > maxVoters {
		return fmt.Errorf("colmena: more than %d voters", maxVoters)
	}
	answers := make(chan bool, maxVoters)
	for _, id := range voters {
		if id == c.cfg.NodeID {
			answers <- c.cfg.Consensus.Term() == term
			continue
		}
		go func() { answers <- c.askTerm(ctx, id, term) }()
	}
	need := len(voters)/2 + 1
	for range voters {
		select {
		case ok := <-answers:
			if ok {
				need--
			}
			if need == 0 {
				return nil
			}
		case <-ctx.Done():
			return c.cfg.Errors.NoLeader
		}
	}
	return c.cfg.Errors.NoLeader
}

// askTerm has a voter say which term it is in, in answer to a question sent from now on.
func (c *confirmer) askTerm(ctx context.Context, id string, term uint64) bool {
	have, err := c.of(id).get(ctx)
	return err == nil && have == term
}

// of returns the question that is shared by all who ask a voter. Its stream is kept for the next.
func (c *confirmer) of(id string) *shared[uint64] {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.voters[id]
	if s == nil {
		if c.voters == nil || len(c.voters) >= maxAskers {
			c.voters = map[string]*shared[uint64]{}
		}
		var st Stream
		open := func(ctx context.Context) (Stream, error) { return c.cfg.OpenTerms(ctx, id) }
		s = &shared[uint64]{cfg: c.cfg, do: func(ctx context.Context) (uint64, error) {
			var resp wire.TermResponse
			var req wire.TermRequest
			var err error
			st, err = exchange(ctx, c.cfg.Group.Context(), st, open, req.Append(nil), resp.Decode)
			return resp.Term, err
		}}
		c.voters[id] = s
	}
	return s
}

// ServeTerms tells one asker which term this node is in.
func (g *Gauge) ServeTerms(st Stream) error {
	return answerEach(st, func(b []byte) ([]byte, error) {
		var req wire.TermRequest
		if err := req.Decode(b); err != nil {
			return nil, err
		}
		term := g.cfg.Consensus.Term()
		resp := wire.TermResponse{Term: term, OK: term == req.Term}
		return resp.Append(nil), nil
	})
}
