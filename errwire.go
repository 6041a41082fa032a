package colmena

import (
	"context"
	"errors"
	"strings"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/errwire"
	"github.com/mentasystems/colmena/internal/wire"
)

// errorToWire gives an error of the engine or of a handler the form in which it
// travels. Local and remote callers see the same error: both go through here.
func errorToWire(err error) *wire.Error { return errwire.Of(err, userToWire) }

// userToWire is the form of the user's errors.
func userToWire(err error) *wire.Error {
	var user *SQLError
	switch {
	case errors.Is(err, ErrClosed):
		return errwire.Closed()
	case errors.As(err, &user):
		return &wire.Error{Code: wire.ErrSQL, Primary: int32(user.Primary), Extended: int32(user.ExtendedCode), Offset: int32(user.Offset), Msg: user.Msg, SQL: errwire.Shorten(user.SQL)}
	}
	return nil
}

// kinds are what the user finds in errors of nodes other than those of statements.
var kinds = map[wire.ErrorCode][]error{
	wire.ErrNoHandler:      {ErrNoHandler, ErrNotApplied},
	wire.ErrHalted:         {ErrReplicaHalted, ErrNotApplied},
	wire.ErrClosed:         {ErrClosed, ErrNotApplied},
	wire.ErrNotLeader:      {ErrNoLeader, ErrNotApplied},
	wire.ErrOutcomeUnknown: {ErrOutcomeUnknown},
	wire.ErrExpired:        {ErrOutcomeUnknown},
	wire.ErrTimeout:        {context.DeadlineExceeded, ErrNotApplied},
	wire.ErrCanceled:       {context.Canceled, ErrNotApplied},
	wire.ErrBusy:           {ErrNotApplied},
	wire.ErrUnknownMember:  {ErrUnknownMember},
	wire.ErrLastVoter:      {ErrLastVoter},
	wire.ErrNoQuorum:       {ErrNoQuorum},
	wire.ErrNoSuccessor:    {ErrNoSuccessor},
}

func errorFromWire(e *wire.Error) error {
	if e == nil {
		return nil
	}
	switch e.Code {
	case wire.ErrSQL, wire.ErrDiskFull:
		return &SQLError{Primary: int(e.Primary), ExtendedCode: int(e.Extended), Offset: int(e.Offset), Msg: e.Msg, SQL: e.SQL}
	case wire.ErrNonDeterministic:
		return &NonDeterministicError{Function: e.Msg, Offset: int(e.Offset), SQL: e.SQL}
	case wire.ErrRefused:
		return &RefusedError{What: e.Msg, Advice: e.Detail}
	case wire.ErrFunctionNotReady:
		return &FunctionNotReadyError{Name: e.Msg, Missing: strings.Split(e.Detail, "\n")}
	case wire.ErrTxAborted:
		return abortedFromWire(e)
	case wire.ErrNotFound:
		return engine.ErrNotFound // only what resolves a commit asks so
	case wire.ErrTooLarge:
		return &LimitError{Msg: e.Msg}
	}
	if is := kinds[e.Code]; is != nil {
		return &outcomeError{"colmena: " + e.Msg, is}
	}
	return errors.New("colmena: " + e.Msg)
}

func abortedFromWire(e *wire.Error) error {
	reasons := map[engine.AbortReason]TxAbortReason{engine.AbortIdle: TxAbortIdle, engine.AbortTime: TxAbortTime, engine.AbortWait: TxAbortWait,
		engine.AbortStatement: TxAbortStatement, engine.AbortRepeatable: TxAbortRepeat}
	a := &TxAbortedError{Reason: TxAbortLeader, Holder: e.Detail}
	if r, ok := reasons[engine.AbortReason(e.Primary)]; ok {
		a.Reason = r
	}
	if e.Msg != "" {
		a.Err = errors.New(e.Msg)
	}
	return a
}
