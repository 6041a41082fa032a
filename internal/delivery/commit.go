package delivery

import (
	"context"
	"errors"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// Tx is a transaction that can be committed under a request ID.
type Tx interface {
	Commit(ctx context.Context, id wire.RequestID, lowest uint64) engine.StepResult
	Abort()
}

// Commit commits a transaction exactly once. When the answer is lost, whoever leads next is asked what became of it. over is false if a constraint
// keeps the transaction open.
func (s *Service) Commit(ctx context.Context, db string, tx Tx) (mark wire.Mark, over bool, err error) {
	for {
		id, lowest, err := s.requests.Begin(ctx)
		if err != nil {
			tx.Abort()
			return mark, true, s.notNumbered(err)
		}
		res := tx.Commit(ctx, wire.RequestID(id), lowest)
		if errors.Is(res.Err, engine.ErrUnknown) || isCode(res.Err, wire.ErrOutcomeUnknown) {
			mark, err = s.resolve(ctx, db, wire.RequestID(id), lowest, res.Err)
			s.requests.End(id)
			return mark, true, err
		}
		s.requests.End(id)
		switch {
		case isExpired(res.Err) && !res.Over:
			s.requests.Expired(id.Origin)
			continue
		case res.Err == nil:
			return res.Mark, true, nil
		}
		return mark, res.Over, s.errs.Statement(res.Err)
	}
}

// resolve finds out whether a commit was applied. Its error is the caller's.
func (s *Service) resolve(ctx context.Context, db string, id wire.RequestID, lowest uint64, why error) (wire.Mark, error) {
	res, _, err := s.send(ctx, db, wire.Unit{ID: id, Lowest: lowest, Resolve: true})
	switch {
	case err == nil:
		return res.Mark, nil
	case errors.Is(err, engine.ErrNotFound):
		return wire.Mark{}, s.errs.Statement(&engine.AbortedError{Reason: engine.AbortLeader, Cause: why})
	}
	return wire.Mark{}, s.errs.Lost(err, "commit: %s; asked again: %s", plain(why), plain(err))
}
