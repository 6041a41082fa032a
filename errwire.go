package colmena

import (
	"context"
	"errors"
	"strings"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// errorToWire gives an error of the engine or of a handler the form in which it
// travels. Local and remote callers see the same error: both go through here.
func errorToWire(err error) *wire.Error {
	var (
		w    *wire.Error
		se   *sqlite.Error
		nd   *engine.NonDeterministicError
		ref  *engine.RefusedError
		big  *engine.TooLargeError
		arg  *engine.ArgumentError
		late *engine.NotReadyError
		user *SQLError
		over *engine.AbortedError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &w):
		return w
	case errors.As(err, &over):
		w := &wire.Error{Code: wire.ErrTxAborted, Primary: int32(over.Reason), Detail: over.Holder}
		if over.Cause != nil {
			w.Msg = over.Cause.Error()
		}
		return w
	case errors.Is(err, engine.ErrNotFound):
		return &wire.Error{Code: wire.ErrNotFound, Msg: "the request was not applied"}
	case errors.As(err, &nd):
		return &wire.Error{Code: wire.ErrNonDeterministic, Offset: int32(nd.Offset), Msg: nd.Function}
	case errors.As(err, &ref):
		return &wire.Error{Code: wire.ErrRefused, Msg: ref.What, Detail: ref.Advice}
	case errors.As(err, &late):
		return &wire.Error{Code: wire.ErrFunctionNotReady, Msg: late.Name, Detail: strings.Join(late.Missing, "\n")}
	case errors.As(err, &big):
		return &wire.Error{Code: wire.ErrTooLarge, Msg: big.Error()}
	case errors.As(err, &arg):
		return &wire.Error{Code: wire.ErrSQL, Primary: sqlite.Generic, Extended: sqlite.Generic, Offset: -1, Msg: arg.Msg}
	case errors.Is(err, engine.ErrNotLeading):
		return &wire.Error{Code: wire.ErrNotLeader, Msg: err.Error()}
	case errors.Is(err, engine.ErrUnknown):
		return &wire.Error{Code: wire.ErrOutcomeUnknown, Msg: err.Error()}
	case errors.Is(err, engine.ErrExpired):
		return &wire.Error{Code: wire.ErrExpired, Msg: "the request is too old to tell whether it was applied"}
	case errors.Is(err, engine.ErrHalted):
		return &wire.Error{Code: wire.ErrHalted, Msg: err.Error()}
	case errors.Is(err, engine.ErrClosed), errors.Is(err, ErrClosed):
		return &wire.Error{Code: wire.ErrClosed, Msg: "the node was closed"}
	case errors.Is(err, engine.ErrTimeout):
		return &wire.Error{Code: wire.ErrTimeout, Msg: "the statement took too long"}
	case errors.Is(err, engine.ErrCanceled):
		return &wire.Error{Code: wire.ErrCanceled, Msg: "canceled"}
	case errors.As(err, &se):
		code := wire.ErrSQL
		if se.Code == sqlite.Full {
			code = wire.ErrDiskFull
		}
		return &wire.Error{Code: code, Primary: int32(se.Code), Extended: int32(se.Extended), Offset: int32(se.Offset), Msg: se.Msg, SQL: shorten(se.SQL)}
	case errors.As(err, &user):
		return &wire.Error{Code: wire.ErrSQL, Primary: int32(user.Primary), Extended: int32(user.ExtendedCode), Offset: int32(user.Offset), Msg: user.Msg, SQL: shorten(user.SQL)}
	case errors.Is(err, context.DeadlineExceeded):
		return &wire.Error{Code: wire.ErrTimeout, Msg: err.Error()}
	case errors.Is(err, context.Canceled):
		return &wire.Error{Code: wire.ErrCanceled, Msg: err.Error()}
	}
	for _, e := range memberErrors {
		if errors.Is(err, e.decided) {
			return &wire.Error{Code: e.code, Msg: strings.TrimPrefix(err.Error(), "colmena: ")}
		}
	}
	return &wire.Error{Code: wire.ErrInternal, Msg: err.Error()}
}

// memberErrors are refusals of a change of members: as they are decided, as they
// travel, and as the user finds them.
var memberErrors = []struct {
	decided error
	code    wire.ErrorCode
	public  error
}{
	{membership.ErrUnknownMember, wire.ErrUnknownMember, ErrUnknownMember},
	{membership.ErrLastVoter, wire.ErrLastVoter, ErrLastVoter},
	{membership.ErrNoQuorum, wire.ErrNoQuorum, ErrNoQuorum},
	{membership.ErrNoSuccessor, wire.ErrNoSuccessor, ErrNoSuccessor},
}

// maxErrorSQL is how much of a statement travels with its error.
const maxErrorSQL = 4096

func shorten(sql string) string {
	if len(sql) > maxErrorSQL {
		return sql[:maxErrorSQL] + "..."
	}
	return sql
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
	case wire.ErrNoHandler:
		return &outcomeError{"colmena: " + e.Msg, []error{ErrNoHandler, ErrNotApplied}}
	case wire.ErrHalted:
		return &outcomeError{"colmena: " + e.Msg, []error{ErrReplicaHalted, ErrNotApplied}}
	case wire.ErrClosed:
		return &outcomeError{"colmena: " + e.Msg, []error{ErrClosed, ErrNotApplied}}
	case wire.ErrNotLeader:
		return &outcomeError{"colmena: " + e.Msg, []error{ErrNoLeader, ErrNotApplied}}
	case wire.ErrOutcomeUnknown, wire.ErrExpired:
		return &outcomeError{"colmena: " + e.Msg, []error{ErrOutcomeUnknown}}
	case wire.ErrTimeout:
		return &outcomeError{"colmena: " + e.Msg, []error{context.DeadlineExceeded, ErrNotApplied}}
	case wire.ErrCanceled:
		return &outcomeError{"colmena: " + e.Msg, []error{context.Canceled, ErrNotApplied}}
	case wire.ErrBusy:
		return &outcomeError{"colmena: " + e.Msg, []error{ErrNotApplied}}
	}
	for _, m := range memberErrors {
		if e.Code == m.code {
			return &outcomeError{"colmena: " + e.Msg, []error{m.public}}
		}
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
