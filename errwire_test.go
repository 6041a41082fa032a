package colmena

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

// What a node answers with may be a user's error already: a query that it ran for another
// node, say. It travels as what it is.
func TestUsersErrorsTravelAsWhatTheyAre(t *testing.T) {
	kindsOf := []error{ErrClosed, ErrReplicaHalted, ErrNoLeader, ErrOutcomeUnknown, ErrNotApplied, ErrNoHandler, ErrTxAborted, ErrUnknownMember, ErrLastVoter,
		ErrNoQuorum, ErrNoSuccessor, context.Canceled, context.DeadlineExceeded}
	for code := wire.ErrSQL; code <= wire.ErrTxAborted; code++ {
		if code == wire.ErrExpired {
			continue // its kind is that of an unknown outcome
		}
		w := &wire.Error{Code: code, Primary: 5, Extended: 6, Offset: 7, Msg: "m", SQL: "SELECT 1", Detail: "d"}
		here := errorFromWire(w)
		there := errorFromWire(errorToWire(here))
		if here.Error() != there.Error() || reflect.TypeOf(here) != reflect.TypeOf(there) || SafeToRetry(here) != SafeToRetry(there) {
			t.Errorf("%v: %T %v became %T %v", code, here, here, there, there)
		}
		for _, kind := range kindsOf {
			if errors.Is(here, kind) != errors.Is(there, kind) {
				t.Errorf("%v: whether it is %v differs", code, kind)
			}
		}
	}
	if w := errorToWire(ErrNoLeader); w.Code != wire.ErrNotLeader {
		t.Errorf("no leader: %v", w.Code)
	}
	if w := errorToWire(notApplied(context.Canceled, "stopped")); w.Code != wire.ErrCanceled {
		t.Errorf("stopped: %v", w.Code)
	}
}
