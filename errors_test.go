package colmena

import (
	"context"
	"errors"
	"testing"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// TestUnknownOutcomeStaysUnknown holds that a commit whose outcome nobody could tell does
// not look like one that was not applied, which would be done again: whatever the leader,
// or the want of one, said to the question what became of it.
func TestUnknownOutcomeStaysUnknown(t *testing.T) {
	n := &Node{done: make(chan struct{})}
	for name, answer := range map[string]error{
		"no leader":      noLeader(t.Context(), context.DeadlineExceeded),
		"not the leader": &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"},
		"halted":         &wire.Error{Code: wire.ErrHalted, Msg: "stopped"},
		"closed":         &wire.Error{Code: wire.ErrClosed, Msg: "closed"},
		"busy":           &wire.Error{Code: wire.ErrBusy, Msg: "busy"},
		"its own error":  &wire.Error{Code: wire.ErrSQL, Primary: 1, Extended: 1, Msg: "near nothing"},
		"another abort":  &engine.AbortedError{Reason: engine.AbortWait},
	} {
		for _, sent := range []bool{false, true} {
			cause := errors.Join(noLeader(t.Context(), context.DeadlineExceeded), answer)
			asked := notApplied(cause, "write: %v", cause)
			if sent {
				asked = outcomeUnknown(cause, "write: %v", cause)
			}
			err := n.txStatementError(outcomeUnknown(errors.Join(asked, engine.ErrUnknown), "commit: %v", asked))
			if !errors.Is(err, ErrOutcomeUnknown) || SafeToRetry(err) || mayRunAgain(err) {
				t.Errorf("%s: %v is not of unknown outcome", name, err)
			}
			_, hasSQLCode := sqlCode(err)
			if errors.Is(err, ErrNotApplied) || errors.Is(err, ErrNoLeader) || errors.Is(err, ErrTxAborted) || hasSQLCode {
				t.Errorf("%s: %v says as well that nothing was applied", name, err)
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v does not tell why", name, err)
			}
		}
	}
}
