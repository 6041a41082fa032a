package outbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// maxUnanswered is how many frames may be out of which nothing was answered yet. More would leave earlier than units can gather.
const maxUnanswered = 2

// sender gathers the units for one node and sends them.
type sender struct {
	cfg  *Config
	node string
	wake chan struct{} // one slot

	mu         sync.Mutex // guards what follows
	queue      []*outgoing
	out        map[uint64]*outgoing // sent and not answered, by tag
	unanswered map[uint64]bool      // frames of which nothing was answered
	canceled   []uint64             // tags whose callers have gone, to be told
	nextTag    uint64
	nextFrame  uint64
	stream     Stream
}

func newSender(cfg *Config, node string) *sender {
	return &sender{cfg: cfg, node: node, wake: make(chan struct{}, 1), out: map[uint64]*outgoing{}, unanswered: map[uint64]bool{}}
}

func (s *sender) rouse() { notify(s.wake) }

func notify(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// enqueue has a unit wait to be sent.
func (s *sender) enqueue(db string, u wire.Unit) (*outgoing, error) {
	o := &outgoing{db: db, unit: u, done: make(chan outcome, 1)}
	s.mu.Lock()
	if len(s.queue) >= engine.DefaultMaxQueued {
		s.mu.Unlock()
		return nil, &wire.Error{Code: wire.ErrBusy, Msg: "too many writes wait to be sent to the leader"}
	}
	s.queue = append(s.queue, o)
	s.mu.Unlock()
	s.rouse()
	return o, nil
}

// withdraw takes a unit out of the queue, if it was not sent.
func (s *sender) withdraw(o *outgoing) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, q := range s.queue {
		if q == o {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			return true
		}
	}
	return false
}

// recall has the other side told that nobody waits for a unit that was sent.
func (s *sender) recall(o *outgoing) {
	s.mu.Lock()
	if s.out[o.tag] == o {
		s.canceled = append(s.canceled, o.tag)
	}
	s.mu.Unlock()
	s.rouse()
}

func (s *sender) run(ctx context.Context) {
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			s.fail(nil, rpc.ErrInterrupted)
			return
		case <-s.wake:
		}
		for s.ready() {
			st, err := s.open(ctx)
			if err != nil {
				s.failQueue(err)
				break
			}
			runtime.Gosched() // let those who were just answered queue up
			if buf = s.takeCanceled(buf[:0]); len(buf) == 0 {
				buf = s.take(st, buf)
			}
			if len(buf) == 0 {
				break
			}
			if err := st.Send(buf); err != nil {
				s.fail(st, err)
			}
		}
	}
}

func (s *sender) ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.canceled) > 0 || len(s.queue) > 0 && len(s.unanswered) < maxUnanswered
}

// takeCanceled makes a frame that withdraws one unit: its tag, and no unit.
func (s *sender) takeCanceled(buf []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.canceled) == 0 {
		return buf
	}
	tag := s.canceled[0]
	s.canceled = s.canceled[1:]
	return appendRequest(buf, tag, new(wire.WriteRequest))
}

// open returns the stream, opening it if need be.
func (s *sender) open(ctx context.Context) (Stream, error) {
	s.mu.Lock()
	st := s.stream
	s.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := s.cfg.Open(ctx, s.node)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.stream = st
	s.mu.Unlock()
	if !s.cfg.Group.Go("write answers from "+s.node, func(context.Context) { s.receive(st) }) {
		s.fail(st, rpc.ErrClosed)
		return nil, rpc.ErrClosed
	}
	return st, nil
}

// take makes a frame of what waits for one database. Of a stream that has ended meanwhile it makes none: its end has been told to all that
// was sent on it, and nobody would tell of it again.
func (s *sender) take(st Stream, buf []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream != st || len(s.queue) == 0 || len(s.unanswered) >= maxUnanswered {
		return nil
	}
	req := wire.WriteRequest{DB: s.queue[0].db}
	first, bytes, n := s.nextTag, 0, 0
	kept := s.queue[:0]
	s.nextFrame++
	for _, o := range s.queue {
		size := o.unit.Size()
		if o.db != req.DB || n >= maxFrameUnits || n > 0 && bytes+size > maxFrameBytes { // one that is large goes alone
			kept = append(kept, o)
			continue
		}
		o.frame, o.tag = s.nextFrame, s.nextTag
		s.out[o.tag] = o
		s.nextTag++
		req.Units = append(req.Units, o.unit)
		bytes += size
		n++
	}
	clear(s.queue[len(kept):])
	s.queue = kept
	s.unanswered[s.nextFrame] = true
	return appendRequest(buf, first, &req)
}

// receive hands out answers until the stream ends.
func (s *sender) receive(st Stream) {
	for {
		b, err := st.Recv()
		if err == nil {
			err = s.answer(b)
		}
		if err != nil {
			// As text: an error of the stream is not one of the units on it.
			s.fail(st, fmt.Errorf("%w: %v", rpc.ErrInterrupted, err))
			return
		}
	}
}

func (s *sender) answer(b []byte) error {
	tags, results, err := readResponse(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for i, tag := range tags {
		if o := s.out[tag]; o != nil {
			delete(s.out, tag)
			delete(s.unanswered, o.frame)
			o.done <- outcome{result: results[i]}
		}
	}
	s.mu.Unlock()
	s.rouse()
	return nil
}

// fail ends a stream, or with nil whichever there is: what was sent on it has an unknown outcome.
func (s *sender) fail(st Stream, err error) {
	if !errors.Is(err, rpc.ErrInterrupted) {
		err = fmt.Errorf("%w: %w", rpc.ErrInterrupted, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st != nil && s.stream != st {
		return
	}
	if s.stream != nil {
		_ = s.stream.Close()
		s.stream = nil
	}
	for _, o := range s.out {
		o.done <- outcome{err: err}
	}
	clear(s.out)
	clear(s.unanswered)
	s.canceled = nil
	s.rouse()
}

// failQueue answers what could not be sent.
func (s *sender) failQueue(err error) {
	if !errors.Is(err, rpc.ErrNotDelivered) {
		err = fmt.Errorf("%w: %w", rpc.ErrNotDelivered, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.queue {
		o.done <- outcome{err: err}
	}
	s.queue = nil
}
