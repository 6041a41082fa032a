package freshness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// shared runs one question at a time for many who ask: whoever comes while one is out waits for the next, which begins after he came.
type shared[T any] struct {
	cfg *Config
	do  func(context.Context) (T, error)

	mu      sync.Mutex // guards what follows
	running bool
	next    *round[T]
}

type round[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// sharedTimeout bounds a round nobody may be waiting for any more.
const sharedTimeout = 5 * time.Second

func (s *shared[T]) get(ctx context.Context) (T, error) {
	r, err := s.join()
	if err != nil {
		var zero T
		return zero, err
	}
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// join returns the round that begins next.
func (s *shared[T]) join() (*round[T], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = &round[T]{done: make(chan struct{})}
	}
	r := s.next
	if !s.running {
		s.running = s.cfg.Group.Go("shared question", s.run)
		if !s.running {
			return nil, s.cfg.Errors.Closed
		}
	}
	return r, nil
}

func (s *shared[T]) run(ctx context.Context) {
	for {
		s.mu.Lock()
		r := s.next
		s.next = nil
		if r == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		call, cancel := context.WithTimeout(ctx, sharedTimeout)
		r.value, r.err = s.do(call)
		cancel()
		close(r.done)
	}
}

// exchange sends one request on a stream that is kept, and opened if need be, for as long as life, and reads the answer. It returns the stream to
// use next, nil after a failure.
func exchange(ctx, life context.Context, st Stream, open func(context.Context) (Stream, error), req []byte, decode func([]byte) error) (Stream, error) {
	if st == nil {
		var err error
		if st, err = open(life); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Close() })
	defer stop()
	err := st.Send(req)
	if err == nil {
		var b []byte
		if b, err = st.RecvInto(nil); err == nil {
			err = decode(b)
		}
	}
	if err == nil {
		return st, nil
	}
	_ = st.Close()
	var w *wire.Error
	if !errors.As(err, &w) {
		err = fmt.Errorf("%w: %w", rpc.ErrInterrupted, err)
	}
	return nil, err
}

// answerEach answers the questions of a stream one by one, until the asker is gone.
func answerEach(st Stream, answer func([]byte) ([]byte, error)) error {
	var buf []byte
	for {
		b, err := st.RecvInto(buf)
		if err != nil {
			return nil
		}
		buf = b
		resp, err := answer(b)
		if err == nil {
			err = st.Send(resp)
		}
		if err != nil {
			return err
		}
	}
}
