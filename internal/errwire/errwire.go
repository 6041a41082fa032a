// Package errwire gives errors the form in which they travel, so that a caller on another node finds the same in them as one on the node where they
// arose.
package errwire

import (
	"context"
	"errors"
	"strings"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// Of gives an error of the engine, or of a change of members, its form; user knows those of the user's errors, and nil of all others.
func Of(err error, user func(error) *wire.Error) *wire.Error {
	if err == nil {
		return nil
	}
	var w *wire.Error
	if errors.As(err, &w) {
		return w
	}
	for _, form := range []func(error) *wire.Error{ofStatement, ofReplica, user, ofEnd, ofMembers} {
		if w := form(err); w != nil {
			return w
		}
	}
	return &wire.Error{Code: wire.ErrInternal, Msg: text(err)}
}

// ofStatement is the form of what the engine says of a statement or a transaction.
func ofStatement(err error) *wire.Error {
	var (
		nd   *engine.NonDeterministicError
		ref  *engine.RefusedError
		big  *engine.TooLargeError
		arg  *engine.ArgumentError
		late *engine.NotReadyError
		over *engine.AbortedError
	)
	switch {
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
	}
	return nil
}

// ofReplica is the form of what the engine says of its own state.
func ofReplica(err error) *wire.Error {
	switch {
	case errors.Is(err, engine.ErrNotLeading):
		return &wire.Error{Code: wire.ErrNotLeader, Msg: err.Error()}
	case errors.Is(err, engine.ErrUnknown):
		return &wire.Error{Code: wire.ErrOutcomeUnknown, Msg: err.Error()}
	case errors.Is(err, engine.ErrExpired):
		return &wire.Error{Code: wire.ErrExpired, Msg: "the request is too old to tell whether it was applied"}
	case errors.Is(err, engine.ErrHalted):
		return &wire.Error{Code: wire.ErrHalted, Msg: err.Error()}
	case errors.Is(err, engine.ErrClosed):
		return Closed()
	}
	return nil
}

// Closed is the form of a node's end.
func Closed() *wire.Error { return &wire.Error{Code: wire.ErrClosed, Msg: "the node was closed"} }

// ofEnd is the form of what ended a statement, SQLite's own errors among them.
func ofEnd(err error) *wire.Error {
	var se *sqlite.Error
	switch {
	case errors.Is(err, engine.ErrTimeout):
		return &wire.Error{Code: wire.ErrTimeout, Msg: "the statement took too long"}
	case errors.Is(err, engine.ErrCanceled):
		return &wire.Error{Code: wire.ErrCanceled, Msg: "canceled"}
	case errors.As(err, &se):
		code := wire.ErrSQL
		if se.Code == sqlite.Full {
			code = wire.ErrDiskFull
		}
		msg := se.Msg
		if se.Code == sqlite.Generic && strings.HasSuffix(msg, "local time unavailable") {
			msg += ": 'localtime' and 'utc' work in queries outside a transaction only, since nodes may be in other zones: convert the time in the application"
		}
		return &wire.Error{Code: code, Primary: int32(se.Code), Extended: int32(se.Extended), Offset: int32(se.Offset), Msg: msg, SQL: Shorten(se.SQL)}
	case errors.Is(err, context.DeadlineExceeded):
		return &wire.Error{Code: wire.ErrTimeout, Msg: text(err)}
	case errors.Is(err, context.Canceled):
		return &wire.Error{Code: wire.ErrCanceled, Msg: text(err)}
	}
	return nil
}

// ofMembers is the form of a refused change of members.
func ofMembers(err error) *wire.Error {
	for decided, code := range map[error]wire.ErrorCode{
		membership.ErrUnknownMember: wire.ErrUnknownMember, membership.ErrLastVoter: wire.ErrLastVoter,
		membership.ErrNoQuorum: wire.ErrNoQuorum, membership.ErrNoSuccessor: wire.ErrNoSuccessor,
	} {
		if errors.Is(err, decided) {
			return &wire.Error{Code: code, Msg: text(err)}
		}
	}
	return nil
}

// text is an error's, without what is put before it again where it arrives.
func text(err error) string { return strings.TrimPrefix(err.Error(), "colmena: ") }

// maxSQL is how much of a statement travels with its error.
const maxSQL = 4096

// Shorten cuts a statement to what travels of it.
func Shorten(sql string) string {
	if len(sql) > maxSQL {
		return sql[:maxSQL] + "..."
	}
	return sql
}
