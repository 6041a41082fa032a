package errwire

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestFormsOfErrors(t *testing.T) {
	own := errors.New("of the user")
	user := func(err error) *wire.Error {
		if errors.Is(err, own) {
			return &wire.Error{Code: wire.ErrBusy}
		}
		return nil
	}
	long := strings.Repeat("x", 2*maxSQL)
	for _, tt := range []struct {
		err  error
		want wire.Error
	}{
		{&wire.Error{Code: wire.ErrApp, Msg: "m"}, wire.Error{Code: wire.ErrApp, Msg: "m"}},
		{&engine.AbortedError{Reason: engine.AbortWait, Holder: "h", Cause: errors.New("c")}, wire.Error{Code: wire.ErrTxAborted, Primary: int32(engine.AbortWait), Detail: "h", Msg: "c"}},
		{engine.ErrNotFound, wire.Error{Code: wire.ErrNotFound, Msg: "the request was not applied"}},
		{&engine.NonDeterministicError{Function: "random", Offset: 7}, wire.Error{Code: wire.ErrNonDeterministic, Msg: "random", Offset: 7}},
		{&engine.RefusedError{What: "ATTACH", Advice: "none"}, wire.Error{Code: wire.ErrRefused, Msg: "ATTACH", Detail: "none"}},
		{&engine.NotReadyError{Name: "f", Missing: []string{"a", "b"}}, wire.Error{Code: wire.ErrFunctionNotReady, Msg: "f", Detail: "a\nb"}},
		{&engine.ArgumentError{Msg: "m"}, wire.Error{Code: wire.ErrSQL, Primary: sqlite.Generic, Extended: sqlite.Generic, Offset: -1, Msg: "m"}},
		{engine.ErrNotLeading, wire.Error{Code: wire.ErrNotLeader, Msg: engine.ErrNotLeading.Error()}},
		{engine.ErrUnknown, wire.Error{Code: wire.ErrOutcomeUnknown, Msg: engine.ErrUnknown.Error()}},
		{engine.ErrExpired, wire.Error{Code: wire.ErrExpired, Msg: "the request is too old to tell whether it was applied"}},
		{engine.ErrHalted, wire.Error{Code: wire.ErrHalted, Msg: engine.ErrHalted.Error()}},
		{engine.ErrClosed, *Closed()},
		{own, wire.Error{Code: wire.ErrBusy}},
		{engine.ErrTimeout, wire.Error{Code: wire.ErrTimeout, Msg: "the statement took too long"}},
		{engine.ErrCanceled, wire.Error{Code: wire.ErrCanceled, Msg: "canceled"}},
		{&sqlite.Error{Code: 19, Extended: 2067, Offset: 3, Msg: "m", SQL: long}, wire.Error{Code: wire.ErrSQL, Primary: 19, Extended: 2067, Offset: 3, Msg: "m", SQL: long[:maxSQL] + "..."}},
		{&sqlite.Error{Code: sqlite.Generic, Extended: sqlite.Generic, Msg: "SQL logic error: local time unavailable"}, wire.Error{Code: wire.ErrSQL, Primary: sqlite.Generic, Extended: sqlite.Generic,
			Msg: "SQL logic error: local time unavailable: 'localtime' and 'utc' work in queries outside a transaction only, since nodes may be in other zones: convert the time in the application"}},
		{&sqlite.Error{Code: sqlite.Full, Extended: sqlite.Full, Msg: "m"}, wire.Error{Code: wire.ErrDiskFull, Primary: sqlite.Full, Extended: sqlite.Full, Msg: "m"}},
		{context.DeadlineExceeded, wire.Error{Code: wire.ErrTimeout, Msg: context.DeadlineExceeded.Error()}},
		{context.Canceled, wire.Error{Code: wire.ErrCanceled, Msg: context.Canceled.Error()}},
		{membership.ErrUnknownMember, wire.Error{Code: wire.ErrUnknownMember, Msg: "no such member"}},
		{membership.ErrNoSuccessor, wire.Error{Code: wire.ErrNoSuccessor, Msg: strings.TrimPrefix(membership.ErrNoSuccessor.Error(), "colmena: ")}},
		{errors.New("disk"), wire.Error{Code: wire.ErrInternal, Msg: "disk"}},
	} {
		if got := Of(tt.err, user); *got != tt.want {
			t.Errorf("%T %v: %+v; want %+v", tt.err, tt.err, *got, tt.want)
		}
		if got := Of(fmt.Errorf("x: %w", tt.err), user); got.Code != tt.want.Code {
			t.Errorf("wrapped %T %v: %v; want %v", tt.err, tt.err, got.Code, tt.want.Code)
		}
	}
	// A statement that was stopped by its caller and by nothing else.
	if got := Of(fmt.Errorf("%w (%w)", context.Canceled, engine.ErrCanceled), user); got.Code != wire.ErrCanceled {
		t.Error(got)
	}
	if Of(nil, user) != nil {
		t.Error("nil has a form")
	}
}
