package colmena

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/errwire"
	"github.com/mentasystems/colmena/internal/wire"
)

// errorToWire gives an error of the engine or of a handler the form in which it
// travels. Local and remote callers see the same error: both go through here.
func errorToWire(err error) *wire.Error { return errwire.Of(err, userToWire) }

// userToWire is the form of the user's errors. What this node answers with may be one: of
// a query that it ran for another node, say.
func userToWire(err error) *wire.Error {
	var (
		user *SQLError
		nd   *NonDeterministicError
		ref  *RefusedError
		late *FunctionNotReadyError
		big  *LimitError
		over *TxAbortedError
		out  *outcomeError
	)
	text := strings.TrimPrefix(err.Error(), "colmena: ")
	switch {
	case errors.As(err, &user):
		return &wire.Error{Code: wire.ErrSQL, Primary: int32(user.Primary), Extended: int32(user.ExtendedCode), Offset: int32(user.Offset), Msg: user.Msg, SQL: errwire.Shorten(user.SQL)}
	case errors.As(err, &nd):
		return &wire.Error{Code: wire.ErrNonDeterministic, Offset: int32(nd.Offset), Msg: nd.Function, SQL: errwire.Shorten(nd.SQL)}
	case errors.As(err, &ref):
		return &wire.Error{Code: wire.ErrRefused, Msg: ref.What, Detail: ref.Advice}
	case errors.As(err, &late):
		return &wire.Error{Code: wire.ErrFunctionNotReady, Msg: late.Name, Detail: strings.Join(late.Missing, "\n")}
	case errors.As(err, &big):
		return &wire.Error{Code: wire.ErrTooLarge, Msg: big.Msg}
	case errors.As(err, &over):
		return abortedToWire(over)
	case errors.As(err, &out) && out.code != 0:
		return &wire.Error{Code: out.code, Msg: text}
	case errors.Is(err, ErrClosed):
		return errwire.Closed()
	case errors.Is(err, ErrOutcomeUnknown):
		return &wire.Error{Code: wire.ErrOutcomeUnknown, Msg: text}
	case errors.Is(err, ErrReplicaHalted):
		return &wire.Error{Code: wire.ErrHalted, Msg: text}
	case errors.Is(err, ErrNoLeader):
		return &wire.Error{Code: wire.ErrNotLeader, Msg: text}
	}
	return nil
}

// kinds are what the user finds in errors of nodes other than those of statements. They are
// made at first use: ErrClosed is set by an init function.
var kinds = sync.OnceValue(func() map[wire.ErrorCode][]error {
	return map[wire.ErrorCode][]error{
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
})

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
	if is := kinds()[e.Code]; is != nil {
		return &outcomeError{"colmena: " + e.Msg, is, e.Code}
	}
	return errors.New("colmena: " + e.Msg)
}

// abortReasons are the engine's and the user's. A changed leader is what all others mean.
var abortReasons = map[engine.AbortReason]TxAbortReason{engine.AbortLeader: TxAbortLeader, engine.AbortIdle: TxAbortIdle, engine.AbortTime: TxAbortTime,
	engine.AbortWait: TxAbortWait, engine.AbortStatement: TxAbortStatement, engine.AbortRepeatable: TxAbortRepeat}

func abortedFromWire(e *wire.Error) error {
	a := &TxAbortedError{Reason: TxAbortLeader, Holder: e.Detail}
	if r, ok := abortReasons[engine.AbortReason(e.Primary)]; ok {
		a.Reason = r
	}
	if e.Msg != "" {
		a.Err = errors.New(e.Msg)
	}
	return a
}

func abortedToWire(a *TxAbortedError) *wire.Error {
	w := &wire.Error{Code: wire.ErrTxAborted, Primary: int32(engine.AbortLeader), Detail: a.Holder}
	for internal, reason := range abortReasons {
		if reason == a.Reason {
			w.Primary = int32(internal)
		}
	}
	if a.Err != nil {
		w.Msg = a.Err.Error()
	}
	return w
}
