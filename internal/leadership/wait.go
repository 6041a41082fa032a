package leadership

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Term is the term in which this node leads and takes writes, 0 if it does not.
func (o *Office) Term() uint64 { return o.term.Load() }

// Leading reports whether this node leads and takes writes.
func (o *Office) Leading() bool { return o.term.Load() != 0 }

// Leader is where writes go now: to this node (local) or to another. ok is false while there is none.
func (o *Office) Leader() (id string, local, ok bool) {
	if o.Leading() {
		return o.cfg.NodeID, true, true
	}
	id = o.cfg.Raft.Leader()
	if id == "" || id == o.cfg.NodeID {
		return "", false, false // or won and not yet ready
	}
	return id, false, true
}

// Changed wakes those who wait for a leader.
func (o *Office) Changed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
}

// Watch returns a channel that is closed at the next change.
func (o *Office) Watch() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// Deadline is until when a call that begins now waits for a leader.
func (o *Office) Deadline() time.Time { return time.Now().Add(max(o.cfg.Wait, 0)) }

// Await waits for a leader until deadline or ctx ends.
func (o *Office) Await(ctx context.Context, deadline time.Time) (id string, local bool, err error) {
	for {
		watch := o.Watch()
		if o.closed() {
			return "", false, o.cfg.Closed
		}
		if id, local, ok := o.Leader(); ok {
			return id, local, nil
		}
		if err := o.Pause(ctx, watch, deadline); err != nil {
			return "", false, o.explain(err)
		}
	}
}

// explain adds to a wait for a leader that was in vain what must be for there to be one.
func (o *Office) explain(err error) error {
	if err != o.cfg.NoLeader {
		return err
	}
	who := "it has not heard of a cluster yet"
	if voters := o.cfg.Raft.Voters(); len(voters) > 0 {
		who = fmt.Sprintf("%d of the voters %s must run and reach one another", len(voters)/2+1, strings.Join(voters, ", "))
	}
	return fmt.Errorf("%w: node %s found none within %v: %s", o.cfg.NoLeader, o.cfg.NodeID, max(o.cfg.Wait, 0), who)
}

// Pause waits for a change, a moment, and at most until deadline.
func (o *Office) Pause(ctx context.Context, watch <-chan struct{}, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return o.cfg.NoLeader
	}
	timer := time.NewTimer(min(left, tick))
	defer timer.Stop()
	select {
	case <-watch:
	case <-timer.C:
	case <-o.cfg.Done:
		return o.cfg.Closed
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Ask has try ask the leader, and after a pause the next one, while try says so and one is found until deadline. The error is that of a search that
// came to an end; what became of the last try, try knows.
func (o *Office) Ask(ctx context.Context, deadline time.Time, try func(leader string, local bool) (again bool)) error {
	for {
		watch := o.Watch()
		leader, local, err := o.Await(ctx, deadline)
		if err != nil {
			return err
		}
		if !try(leader, local) {
			return nil
		}
		if err := o.Pause(ctx, watch, deadline); err != nil {
			return err
		}
	}
}

// During returns a context that ends with ctx, when this node leads no more in a term, and when it closes.
func (o *Office) During(ctx context.Context, term uint64) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for o.Term() == term {
			watch := o.Watch()
			if o.Term() != term {
				return
			}
			select {
			case <-watch:
			case <-o.cfg.Done:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

// tenure is the time in which a node leads, as far as this one knows.
type tenure struct {
	of  string
	ctx context.Context
}

// answerGrace is how long the answers of a node that leads no more are waited for: one that handed leadership over in good order has sent them
// before.
const answerGrace = 20 * time.Millisecond

// Tenure returns a context that ends when another node is known to lead, a moment after, and when this node closes. A leader that hangs answers
// nothing and closes nothing, so waiting for it alone would take until its connection is given up.
func (o *Office) Tenure(id string) context.Context {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t := o.tenure; t.of == id && t.ctx.Err() == nil {
		return t.ctx
	}
	ctx, cancel := context.WithCancel(o.cfg.Group.Context())
	if !o.cfg.Group.Go("tenure of "+id, func(ctx context.Context) {
		defer cancel()
		o.awaitAnother(ctx, id)
	}) {
		cancel()
	}
	o.tenure = tenure{id, ctx}
	return ctx
}

// awaitAnother waits until another node leads, and a moment longer.
func (o *Office) awaitAnother(ctx context.Context, id string) {
	var late <-chan time.Time
	for {
		watch := o.Watch()
		if now, _, ok := o.Leader(); ok && now != id && late == nil {
			late = time.After(answerGrace)
		}
		select {
		case <-watch:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (o *Office) closed() bool {
	select {
	case <-o.cfg.Done:
		return true
	default:
		return false
	}
}
