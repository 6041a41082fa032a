package delivery

import (
	"context"
	"errors"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// again reports whether a write that failed so goes on to be tried: it did not reach a leader, or its outcome is not known yet.
func (s *Service) again(err error) bool {
	if errors.Is(err, rpc.ErrNotDelivered) || errors.Is(err, rpc.ErrInterrupted) {
		// The way there failed. Whatever error ended the stream, it judges no unit.
		return !errors.Is(err, engine.ErrCanceled)
	}
	var w *wire.Error
	if errors.As(err, &w) {
		return w.Code == wire.ErrNotLeader || w.Code == wire.ErrOutcomeUnknown || w.Code == wire.ErrClosed || w.Code == wire.ErrHalted
	}
	for _, e := range []error{engine.ErrNotLeading, engine.ErrUnknown, engine.ErrHalted, engine.ErrClosed,
		s.errs.NoLeader, s.errs.Closed, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return !errors.Is(err, engine.ErrCanceled)
		}
	}
	return false
}

// judged reports whether an error comes from running the unit, which happens only after it was found that no earlier attempt was applied, nor can be
// any more.
func (s *Service) judged(err error) bool {
	switch s.errs.ToWire(err).Code {
	case wire.ErrSQL, wire.ErrDiskFull, wire.ErrNonDeterministic, wire.ErrRefused, wire.ErrFunctionNotReady, wire.ErrNotFound:
		return true
	}
	return false
}

// decided makes the caller's error of one that says the write was not applied.
func (s *Service) decided(err error) error {
	if errors.Is(err, engine.ErrCanceled) {
		return s.errs.Refused(err, "write: %s", plain(err))
	}
	return s.errs.User(err)
}

func isExpired(err error) bool {
	return errors.Is(err, engine.ErrExpired) || isCode(err, wire.ErrExpired)
}

func isCode(err error, code wire.ErrorCode) bool {
	var w *wire.Error
	return errors.As(err, &w) && w.Code == code
}
