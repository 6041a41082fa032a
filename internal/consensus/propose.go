package consensus

import (
	"errors"
	"reflect"

	"github.com/hashicorp/raft"
)

// Propose hands an entry to raft and tells done what became of that; it does not wait. Waiting for the future has a goroutine of its own: the
// database's must stay free to take the entry when it comes back (H13).
func (r *Raft) Propose(data []byte, done func(error)) {
	go func() {
		f := r.raft.Apply(data, r.cfg.ElectionTimeout)
		r.endWith(f)
		done(f.Error())
	}()
}

// endWith has a future that is not yet waited for end, with raft.ErrRaftShutdown, when raft has ended. raft forgets entries that are committed and
// queued for the FSM when it stops; their futures would be waited for ever. Futures have a field for such a channel, which raft itself does not set
// in those of entries.
func (r *Raft) endWith(f raft.Future) {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return // answered already
	}
	if ch := v.Elem().FieldByName("ShutdownCh"); ch.IsValid() && ch.CanSet() && ch.Type() == reflect.TypeFor[chan struct{}]() {
		ch.Set(reflect.ValueOf(r.ended))
	}
}

// Lost tells whether an entry can still be committed after its proposal ended with err (H14).
func Lost(err error) bool {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return false
	}
	return true
}

// NotLeading reports whether something failed only because this node leads no more.
func NotLeading(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrLeadershipTransferInProgress)
}
