// Package delivery makes each write happen exactly once. A write carries a request ID and is sent to whoever leads, again and again, until its result
// is known or its context ends; the replicated state remembers the IDs, so an attempt that was applied is found and not run again. What ends a write
// says which of two it is: not applied, or outcome unknown.
package delivery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/requestid"
	"github.com/mentasystems/colmena/internal/wire"
)

// Leaders tells who leads: an office of package leadership.
type Leaders interface {
	Deadline() time.Time // until when a call that begins now waits for a leader
	Watch() <-chan struct{}
	Await(ctx context.Context, deadline time.Time) (id string, local bool, err error)
	Pause(ctx context.Context, watch <-chan struct{}, deadline time.Time) error
	Ask(ctx context.Context, deadline time.Time, try func(leader string, local bool) (again bool)) error
}

// Errors are what the caller finds in errors, and the makers of those.
type Errors struct {
	Closed, NoLeader, Halted, NotApplied, Unknown error

	// Refused and Lost make an error that is NotApplied, or Unknown, and cause; Lost ends it with UnknownEnding.
	Refused, Lost func(cause error, format string, args ...any) error
	// User makes the caller's error of one that travelled or came from the engine, Statement of one that a transaction met. Leaderless makes it of
	// one that ended the search for a leader, TooLarge of a *wire.LimitError.
	User, Statement, TooLarge func(error) error
	Leaderless                func(context.Context, error) error
	ToWire                    func(error) *wire.Error // the form in which any error travels
}

// UnknownEnding ends the text of an error whose outcome is unknown.
const UnknownEnding = "; whether the write was applied is unknown"

// Config is what a Service needs of its node.
type Config struct {
	Leaders Leaders
	// Here runs a unit on this node, which leads, There sends it to another. maybe says that it may have been applied, or may still be.
	Here  func(ctx context.Context, db string, u wire.Unit) (res wire.UnitResult, maybe bool, err error)
	There func(ctx context.Context, leader, db string, u wire.Unit) (res wire.UnitResult, maybe bool, err error)
	// Register is the write that gives this process a number to write under, as the rowid it inserts, in the database RegisterIn.
	Register   func() wire.Unit
	RegisterIn string
	// Bound is how long a write that was sent waits for its result if its context has no deadline, 0 for as long as it takes.
	Bound  time.Duration
	Halted func() error    // why this replica has stopped, nil while it goes on
	Done   <-chan struct{} // closed when the node closes
	Errors Errors
}

// Service delivers writes. Its methods may be called from several goroutines at once.
type Service struct {
	cfg      Config
	errs     Errors
	requests *requestid.Source
}

// New returns a service that asks for a number to write under with the first write.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, errs: cfg.Errors}
	s.requests = requestid.New(s.register)
	return s
}

func (s *Service) register(ctx context.Context) (uint64, error) {
	res, _, err := s.send(ctx, s.cfg.RegisterIn, s.cfg.Register())
	return uint64(res.Result.LastInsertID), err
}

// Write has a unit applied exactly once and returns its result.
func (s *Service) Write(ctx context.Context, db string, u wire.Unit) (wire.UnitResult, error) {
	if err := u.Check(); err != nil {
		return wire.UnitResult{}, s.errs.TooLarge(err)
	}
	for {
		id, lowest, err := s.requests.Begin(ctx)
		if err != nil {
			return wire.UnitResult{}, s.notNumbered(err)
		}
		u.ID, u.Lowest = wire.RequestID(id), lowest
		res, sent, err := s.send(ctx, db, u)
		s.requests.End(id)
		if !isExpired(err) {
			return res, err
		}
		s.requests.Expired(id.Origin)
		if sent {
			return res, s.errs.Lost(err, "the cluster no longer remembers the request")
		}
	}
}

// notNumbered makes the error of a write that got no request ID, so that it was not sent. What became of the request for one says nothing of the
// write, so Unknown must not be found in it.
func (s *Service) notNumbered(err error) error {
	if !errors.Is(err, s.errs.Unknown) {
		if errors.Is(err, s.errs.Closed) || errors.Is(err, s.errs.NotApplied) {
			return err
		}
		return s.errs.Refused(err, "write: %s", plain(err))
	}
	return s.errs.Refused(s.causes(err), "write: asking the cluster for a number to write under: %s", plain(err))
}

// causes are what an error says of the cause, and nothing of the outcome.
func (s *Service) causes(err error) error {
	var found []error
	for _, e := range []error{s.errs.Closed, s.errs.NoLeader, s.errs.Halted, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			found = append(found, e)
		}
	}
	return errors.Join(found...)
}

// plain is an error's text for a place within another's.
func plain(err error) string {
	s := strings.TrimSuffix(strings.TrimPrefix(err.Error(), "colmena: "), UnknownEnding)
	return strings.ReplaceAll(strings.ReplaceAll(s, "\n", "; "), "; colmena: ", "; ")
}

// send sends a unit until it is decided. sent says that some attempt may have been applied. The error is the caller's, but for an expired request.
func (s *Service) send(ctx context.Context, db string, u wire.Unit) (res wire.UnitResult, sent bool, err error) {
	leaderBy := s.cfg.Leaders.Deadline()
	caller, cancel := ctx, context.CancelFunc(func() {})
	defer func() { cancel() }()
	bound := s.ResultBound(ctx)
	sent = u.Resolve // what is asked for was sent before
	var last error   // why the attempt before failed
	for {
		watch := s.cfg.Leaders.Watch()
		leader, local, err := s.cfg.Leaders.Await(ctx, leaderBy)
		if err != nil {
			return res, sent, s.giveUp(sent, err, last)
		}
		if bound > 0 && !sent { // it counts from the first attempt that may have arrived
			cancel()
			attempt, end := context.WithTimeout(caller, bound)
			ctx, cancel = attempt, end
		}
		res, maybe, err := s.attempt(ctx, leader, local, db, u)
		waited := err != nil && s.errs.ToWire(err).Code == wire.ErrTxAborted // for a transaction, for too long
		if waited && sent {
			err, maybe = engine.ErrUnknown, true // it waits again: what became of it before must be found out
		}
		switch {
		case err == nil:
			return res, sent, nil
		case waited && !sent && ctx.Err() == nil:
			return res, sent, s.decided(err)
		case isExpired(err):
			return res, sent, err
		case !s.again(err) && sent && !s.judged(err):
			// This attempt ended before the request was looked up: it tells nothing of the one before.
			return res, sent, s.giveUp(sent, ctx.Err(), err)
		case !s.again(err) && sent && !u.Resolve && u.ID.Origin != 0:
			res, err = s.fence(ctx, db, u, res, err)
			return res, sent, err
		case !s.again(err):
			return res, sent, s.decided(err)
		}
		sent, last = sent || maybe, err
		if maybe {
			leaderBy = s.cfg.Leaders.Deadline() // there was a leader; the wait for the next one begins
		}
		if !sent {
			ctx = caller
		}
		if ctx.Err() != nil || s.closed() {
			return res, sent, s.giveUp(sent, ctx.Err(), last)
		}
		if err := s.cfg.Leaders.Pause(ctx, watch, leaderBy); err != nil {
			return res, sent, s.giveUp(sent, err, last)
		}
	}
}

// fence makes sure of an error of a unit that an earlier attempt may still bring to the log: that attempt found a leader which had not yet handed it
// over, lost its office, and may win it back. What takes the request's place now is in front of it.
// failed is what the unit did, and stays its result, unless the earlier attempt was applied.
func (s *Service) fence(ctx context.Context, db string, u wire.Unit, failed wire.UnitResult, failure error) (wire.UnitResult, error) {
	res, _, err := s.send(ctx, db, wire.Unit{ID: u.ID, Lowest: u.Lowest, Resolve: true})
	switch {
	case err == nil:
		return res, nil
	case errors.Is(err, engine.ErrNotFound):
		return failed, s.decided(failure)
	}
	return failed, s.errs.Lost(err, "write: %s; asked again: %s", plain(failure), plain(err))
}

func (s *Service) attempt(ctx context.Context, leader string, local bool, db string, u wire.Unit) (res wire.UnitResult, maybe bool, err error) {
	u.Timeout = 0
	if by, ok := ctx.Deadline(); ok {
		u.Timeout = max(1, time.Until(by).Milliseconds())
	}
	if local {
		return s.cfg.Here(ctx, db, u)
	}
	return s.cfg.There(ctx, leader, db, u)
}

// ResultBound is how long a write that was sent under a context waits for its result, 0 for as long as it takes.
func (s *Service) ResultBound(ctx context.Context) time.Duration {
	if _, ok := ctx.Deadline(); ok {
		return 0
	}
	return s.cfg.Bound
}

// giveUp makes the error of a write that was not decided: err ended it, last is why the latest attempt had failed.
func (s *Service) giveUp(sent bool, err, last error) error {
	if s.closed() {
		err = errors.Join(s.errs.Closed, err)
	}
	reasons := []string{}
	for _, e := range []error{err, last, s.cfg.Halted()} {
		if e == nil {
			continue
		}
		if s := plain(e); !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(r, s) }) {
			reasons = append(reasons, s)
		}
	}
	cause := errors.Join(err, last)
	if sent {
		return s.errs.Lost(cause, "write: %s", strings.Join(reasons, "; "))
	}
	return s.errs.Refused(cause, "write: %s", strings.Join(reasons, "; "))
}

func (s *Service) closed() bool {
	select {
	case <-s.cfg.Done:
		return true
	default:
		return false
	}
}

// Begin has try begin a transaction on the leader, wherever it is. Until it has begun nothing has happened, so another leader is asked as often as
// need be.
func (s *Service) Begin(ctx context.Context, try func(leader string, local bool) error) error {
	var last error
	over := func() bool { return ctx.Err() != nil || s.closed() }
	lost := s.cfg.Leaders.Ask(ctx, s.cfg.Leaders.Deadline(), func(leader string, local bool) (again bool) {
		last = try(leader, local)
		return last != nil && !over() && s.again(last)
	})
	switch {
	case lost != nil:
		return s.notBegun(ctx, lost, last)
	case last == nil:
		return nil
	case over():
		return s.notBegun(ctx, ctx.Err(), last)
	}
	return s.decided(last)
}

// notBegun is giveUp for a transaction.
func (s *Service) notBegun(ctx context.Context, err, last error) error {
	switch {
	case s.closed():
		err = errors.Join(s.errs.Closed, err)
	case ctx.Err() == nil:
		err = s.errs.Leaderless(ctx, err)
	}
	if last != nil {
		return s.errs.Refused(errors.Join(err, last), "begin: %s: %s", plain(err), plain(last))
	}
	return s.errs.Refused(err, "begin: %s", plain(err))
}
