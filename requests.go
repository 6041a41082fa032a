package colmena

import (
	"context"
	"sync"

	"github.com/mentasystems/colmena/internal/wire"
)

// requestIDs numbers this process's writes, so that one that is sent again is not
// applied again (H15). The origin is a number the cluster gave this process and
// replicates; the sequence counts its writes; with each goes the lowest sequence that
// is still outstanding, up to which the replicas may forget results.
type requestIDs struct {
	mu     sync.Mutex
	origin uint64
	next   uint64 // next sequence
	lowest uint64
	done   []bool // done[i] tells of sequence lowest+i

	// register asks the cluster for an origin; one caller at a time.
	register   func(context.Context) (uint64, error)
	registered chan struct{} // nil, or closed when the present attempt ends
}

// begin gives a write its identity.
func (r *requestIDs) begin(ctx context.Context) (id wire.RequestID, lowest uint64, err error) {
	for {
		r.mu.Lock()
		if r.origin != 0 {
			id = wire.RequestID{Origin: r.origin, Seq: r.next}
			r.next++
			r.done = append(r.done, false)
			lowest = r.lowest
			r.mu.Unlock()
			return id, lowest, nil
		}
		wait := r.registered
		mine := wait == nil
		if mine {
			wait = make(chan struct{})
			r.registered = wait
		}
		r.mu.Unlock()
		if !mine {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return id, 0, ctx.Err()
			}
		}
		origin, err := r.register(ctx)
		r.mu.Lock()
		r.registered = nil
		if err == nil {
			r.origin, r.next, r.lowest, r.done = origin, 1, 1, nil
		}
		r.mu.Unlock()
		close(wait)
		if err != nil {
			return id, 0, err
		}
	}
}

// end says that nobody will send the write again.
func (r *requestIDs) end(id wire.RequestID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id.Origin != r.origin {
		return
	}
	r.done[id.Seq-r.lowest] = true
	n := 0
	for n < len(r.done) && r.done[n] {
		n++
	}
	if n == 0 {
		return
	}
	r.lowest += uint64(n)
	if n == len(r.done) {
		r.done = r.done[:0]
	} else {
		r.done = append(r.done[:0], r.done[n:]...)
	}
}

// expired gives up an origin that the cluster has forgotten; the next write asks for
// another one.
func (r *requestIDs) expired(origin uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.origin == origin {
		r.origin = 0
	}
}
