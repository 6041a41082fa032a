package colmena

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// TestErrorsOfChangesReadTheSameHereAndThere: what is decided on the leader has one kind
// and one text, whether it has travelled or not.
func TestErrorsOfChangesReadTheSameHereAndThere(t *testing.T) {
	for _, tt := range []struct {
		err  error
		is   error // nil: no kind of its own
		text string
	}{
		{fmt.Errorf("%w: %q", membership.ErrUnknownMember, "x"), ErrUnknownMember, `colmena: no such member: "x"`},
		{fmt.Errorf("%w: demoting x", membership.ErrLastVoter), ErrLastVoter, ErrLastVoter.Error() + ": demoting x"},
		{fmt.Errorf("%w (1 of 2)", membership.ErrNoQuorum), ErrNoQuorum, ErrNoQuorum.Error() + " (1 of 2)"},
		{membership.ErrNoSuccessor, ErrNoSuccessor, ErrNoSuccessor.Error()},
		{errors.New(`colmena: node "x" cannot lead`), nil, `colmena: node "x" cannot lead`},
		{fmt.Errorf("remove x: %w", context.DeadlineExceeded), context.DeadlineExceeded, "colmena: remove x: context deadline exceeded"},
		{fmt.Errorf("remove x: %w", context.Canceled), context.Canceled, "colmena: remove x: context canceled"},
		{&wire.Error{Code: wire.ErrRefused, Msg: "a call", Detail: "join"}, nil, "colmena: a call is refused: join"},
	} {
		for where, err := range map[string]error{"here": changeError(tt.err), "there": changeError(errorToWire(tt.err))} {
			if err == nil || err.Error() != tt.text || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%s: %v; want %v as %q", where, err, tt.is, tt.text)
			}
			if errors.Is(err, ErrNotApplied) {
				t.Errorf("%s: %v: a change may have taken some of its steps", where, err)
			}
		}
	}
	for _, err := range []error{nil, ErrClosed, fmt.Errorf("%w: x", ErrNoLeader)} {
		if got := changeError(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// TestLostLeadershipSendsAChangeOn: whoever asked, the next leader is asked.
func TestLostLeadershipSendsAChangeOn(t *testing.T) {
	for _, err := range []error{raft.ErrNotLeader, raft.ErrLeadershipLost, raft.ErrLeadershipTransferInProgress, engine.ErrNotLeading, ErrNoLeader} {
		step := fmt.Errorf("remove x: %w", unled(err))
		if !goesToLeader(step) || !goesToLeader(errorToWire(step)) {
			t.Errorf("%v is not tried again", err)
		}
	}
	for _, err := range []error{nil, raft.ErrRaftShutdown, engine.ErrUnknown, context.Canceled} {
		if unled(err) != err {
			t.Errorf("%v is tried again", err)
		}
	}
}
