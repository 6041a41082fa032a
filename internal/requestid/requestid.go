// Package requestid numbers the writes of a process, so that one that is sent again is not applied again (H15). The origin is a number that
// the cluster gave this process and replicates; the sequence counts its writes; with each goes the lowest sequence that is still outstanding,
// up to which the replicas may forget results.
package requestid

import (
	"context"
	"sync"
)

// ID names a write.
type ID struct{ Origin, Seq uint64 }

// Source gives writes their identities. Its methods may be called from several goroutines at once.
type Source struct {
	register func(context.Context) (uint64, error) // one caller at a time

	mu         sync.Mutex
	origin     uint64 // 0 until there is one
	next       uint64 // next sequence
	lowest     uint64
	done       []bool        // done[i] tells of sequence lowest+i
	registered chan struct{} // nil, or closed when the present attempt ends
}

// New returns a source that asks register for an origin when the first write needs one. register is not called by two goroutines at once.
func New(register func(context.Context) (uint64, error)) *Source {
	return &Source{register: register}
}

// Begin gives a write its identity, and the lowest sequence that is outstanding. Without an origin it gets one first: its error is then that of
// register, or, while another caller asks, that of ctx.
func (s *Source) Begin(ctx context.Context) (id ID, lowest uint64, err error) {
	for {
		s.mu.Lock()
		if s.origin != 0 {
			id = ID{Origin: s.origin, Seq: s.next}
			s.next++
			s.done = append(s.done, false)
			lowest = s.lowest
			s.mu.Unlock()
			return id, lowest, nil
		}
		wait := s.registered
		mine := wait == nil
		if mine {
			wait = make(chan struct{})
			s.registered = wait
		}
		s.mu.Unlock()
		if !mine {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return id, 0, ctx.Err()
			}
		}
		origin, err := s.register(ctx)
		s.mu.Lock()
		s.registered = nil
		if err == nil {
			s.origin, s.next, s.lowest, s.done = origin, 1, 1, nil
		}
		s.mu.Unlock()
		close(wait)
		if err != nil {
			return id, 0, err
		}
	}
}

// End says that nobody will send the write again. It is called once for each that Begin named.
func (s *Source) End(id ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id.Origin != s.origin {
		return
	}
	s.done[id.Seq-s.lowest] = true
	n := 0
	for n < len(s.done) && s.done[n] {
		n++
	}
	if n == 0 {
		return
	}
	s.lowest += uint64(n)
	if n == len(s.done) {
		s.done = s.done[:0]
	} else {
		s.done = append(s.done[:0], s.done[n:]...)
	}
}

// Expired gives up an origin that the cluster has forgotten; the next write asks for another one.
func (s *Source) Expired(origin uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.origin == origin {
		s.origin = 0
	}
}
