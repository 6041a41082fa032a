package colmena

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Writes of one node travel to the leader on one stream. Those that wait while a frame
// is being sent go into the next one, so frames form by themselves, as epochs do on
// the leader. Every unit has a tag of its own and is answered when it is decided: a
// slow one holds up no other's answer.
//
// A request frame is the tag of its first unit, then a wire.WriteRequest. One without
// units withdraws the unit of that tag. A response frame is a count, so many tags, then
// a wire.WriteResponse with as many results.

// maxUnanswered is how many frames may be out of which nothing was answered yet.
// More would leave earlier than units can gather.
const maxUnanswered = 2

// maxFrameUnits bounds the units of one frame, and maxFrameBytes roughly its size
// unless it is one unit.
const (
	maxFrameUnits = 4096
	maxFrameBytes = 4 << 20
)

// senderSet holds a sender per node that leads or has led.
type senderSet struct {
	n   *Node
	mu  sync.Mutex
	all map[string]*sender
}

// outgoing is a unit on its way to the leader.
type outgoing struct {
	db    string
	unit  wire.Unit
	tag   uint64
	frame uint64
	done  chan sendOutcome // one slot
}

// sendOutcome is a result, or an error of the way there.
type sendOutcome struct {
	result wire.UnitResult
	err    error // rpc.ErrNotDelivered, rpc.ErrInterrupted
}

type sender struct {
	n      *Node
	target string
	wake   chan struct{} // one slot

	mu         sync.Mutex
	queue      []*outgoing
	out        map[uint64]*outgoing // sent and not answered, by tag
	unanswered map[uint64]bool      // frames of which nothing was answered
	canceled   []uint64             // tags whose callers have gone, to be told
	nextTag    uint64
	nextFrame  uint64
	stream     *rpc.Stream
}

// send hands a unit to the node that leads and waits. When ctx ends first, or another
// node is found to lead, the unit may have been sent or not: sent tells. A leader that
// hangs answers nothing and closes nothing, so waiting for it alone would take until
// its connection is given up.
func (s *senderSet) send(ctx context.Context, target, db string, u wire.Unit) (res wire.UnitResult, sent bool, err error) {
	o := &outgoing{db: db, unit: u, done: make(chan sendOutcome, 1)}
	sn := s.get(target)
	sn.mu.Lock()
	if len(sn.queue) >= engine.DefaultMaxQueued {
		sn.mu.Unlock()
		return res, false, &wire.Error{Code: wire.ErrBusy, Msg: "too many writes wait to be sent to the leader"}
	}
	sn.queue = append(sn.queue, o)
	sn.mu.Unlock()
	select {
	case sn.wake <- struct{}{}:
	default:
	}
	var late <-chan time.Time
	for {
		watch := s.n.stateWatch()
		if late == nil && s.n.anotherLeads(target) {
			if sn.withdraw(o) {
				return res, false, fmt.Errorf("%w: node %q leads no more", rpc.ErrNotDelivered, target)
			}
			late = time.After(answerGrace)
		}
		select {
		case r := <-o.done:
			return r.result, !errors.Is(r.err, rpc.ErrNotDelivered), r.err
		case <-late:
			// It stays in sn.out: its answer, if one comes, makes room for a frame.
			return res, true, fmt.Errorf("%w: node %q leads no more and has not answered", rpc.ErrInterrupted, target)
		case <-watch:
		case <-ctx.Done():
			return sn.cancel(ctx, o)
		case <-s.n.done:
			return res, !sn.withdraw(o), ErrClosed
		}
	}
}

// answerGrace is how long the answer of a node that no longer leads is waited for: one
// that handed leadership over in good order has sent it before.
const answerGrace = 20 * time.Millisecond

// anotherLeads reports whether a node other than id is known to lead.
func (n *Node) anotherLeads(id string) bool {
	now, _, ok := n.leader()
	return ok && now != id
}

func (s *senderSet) get(target string) *sender {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sn := s.all[target]; sn != nil {
		return sn
	}
	if s.all == nil {
		s.all = map[string]*sender{}
	}
	sn := &sender{n: s.n, target: target, wake: make(chan struct{}, 1), out: map[uint64]*outgoing{}, unanswered: map[uint64]bool{}}
	s.all[target] = sn
	s.n.group.Go("writes to "+target, sn.run)
	return sn
}

// withdraw takes a unit out of the queue, if it was not sent.
func (sn *sender) withdraw(o *outgoing) bool {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	for i, q := range sn.queue {
		if q == o {
			sn.queue = append(sn.queue[:i], sn.queue[i+1:]...)
			return true
		}
	}
	return false
}

// cancel withdraws a unit whose caller is gone. One that was sent is stopped on the
// leader, so that it holds up nobody; a short wait tells whether it was.
func (sn *sender) cancel(ctx context.Context, o *outgoing) (res wire.UnitResult, sent bool, err error) {
	if sn.withdraw(o) {
		return res, false, ctx.Err()
	}
	sn.mu.Lock()
	if sn.out[o.tag] == o {
		sn.canceled = append(sn.canceled, o.tag)
	}
	sn.mu.Unlock()
	select {
	case sn.wake <- struct{}{}:
	default:
	}
	timer := time.NewTimer(engine.CancelGrace)
	defer timer.Stop()
	select {
	case r := <-o.done:
		if e := r.result.Err; e != nil && e.Code == wire.ErrCanceled {
			return res, false, fmt.Errorf("%w (%w)", ctx.Err(), engine.ErrCanceled)
		}
		return r.result, !errors.Is(r.err, rpc.ErrNotDelivered), r.err
	case <-timer.C:
		return res, true, ctx.Err()
	}
}

func (sn *sender) run(ctx context.Context) {
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			sn.fail(nil, rpc.ErrInterrupted)
			return
		case <-sn.wake:
		}
		for sn.ready() {
			st, err := sn.open(ctx)
			if err != nil {
				sn.failQueue(err)
				break
			}
			runtime.Gosched() // let those who were just answered queue up
			if buf = sn.takeCanceled(buf[:0]); len(buf) == 0 {
				buf = sn.take(buf)
			}
			if len(buf) == 0 {
				break
			}
			if err := st.Send(buf); err != nil {
				sn.fail(st, err)
			}
		}
	}
}

func (sn *sender) ready() bool {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	return len(sn.canceled) > 0 || len(sn.queue) > 0 && len(sn.unanswered) < maxUnanswered
}

// takeCanceled makes a frame that withdraws one unit: its tag, and no unit.
func (sn *sender) takeCanceled(buf []byte) []byte {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if len(sn.canceled) == 0 {
		return buf
	}
	tag := sn.canceled[0]
	sn.canceled = sn.canceled[1:]
	var req wire.WriteRequest
	return req.Append(binary.AppendUvarint(buf, tag))
}

// open returns the stream, opening it if need be.
func (sn *sender) open(ctx context.Context) (*rpc.Stream, error) {
	sn.mu.Lock()
	st := sn.stream
	sn.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := sn.n.client.Open(ctx, sn.target, methodWrite)
	if err != nil {
		return nil, err
	}
	sn.mu.Lock()
	sn.stream = st
	sn.mu.Unlock()
	if !sn.n.group.Go("write answers from "+sn.target, func(context.Context) { sn.receive(st) }) {
		sn.fail(st, rpc.ErrClosed)
		return nil, rpc.ErrClosed
	}
	return st, nil
}

// take makes a frame of what waits for one database.
func (sn *sender) take(buf []byte) []byte {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if len(sn.queue) == 0 || len(sn.unanswered) >= maxUnanswered {
		return nil
	}
	req := wire.WriteRequest{DB: sn.queue[0].db}
	first, size, n := sn.nextTag, 0, 0
	kept := sn.queue[:0]
	sn.nextFrame++
	for _, o := range sn.queue {
		s := o.unit.Size()
		if o.db != req.DB || n >= maxFrameUnits || n > 0 && size+s > maxFrameBytes { // one that is large goes alone
			kept = append(kept, o)
			continue
		}
		o.frame, o.tag = sn.nextFrame, sn.nextTag
		sn.out[o.tag] = o
		sn.nextTag++
		req.Units = append(req.Units, o.unit)
		size += s
		n++
	}
	clear(sn.queue[len(kept):])
	sn.queue = kept
	sn.unanswered[sn.nextFrame] = true
	return req.Append(binary.AppendUvarint(buf, first))
}

// receive hands out answers until the stream ends.
func (sn *sender) receive(st *rpc.Stream) {
	for {
		b, err := st.Recv()
		if err == nil {
			err = sn.answer(b)
		}
		if err != nil {
			// As text: an error of the stream is not one of the units on it.
			sn.fail(st, fmt.Errorf("%w: %v", rpc.ErrInterrupted, err))
			return
		}
	}
}

func (sn *sender) answer(b []byte) error {
	count, k := binary.Uvarint(b)
	if k <= 0 || count > maxFrameUnits {
		return wire.ErrCorrupt
	}
	b = b[k:]
	tags := make([]uint64, count)
	for i := range tags {
		if tags[i], k = binary.Uvarint(b); k <= 0 {
			return wire.ErrCorrupt
		}
		b = b[k:]
	}
	var resp wire.WriteResponse
	if err := resp.Decode(b); err != nil {
		return err
	}
	if len(resp.Results) != len(tags) {
		return wire.ErrCorrupt
	}
	sn.mu.Lock()
	for i, tag := range tags {
		if o := sn.out[tag]; o != nil {
			delete(sn.out, tag)
			delete(sn.unanswered, o.frame)
			o.done <- sendOutcome{result: resp.Results[i]}
		}
	}
	sn.mu.Unlock()
	select {
	case sn.wake <- struct{}{}:
	default:
	}
	return nil
}

// fail ends a stream: what was sent on it has an unknown outcome.
func (sn *sender) fail(st *rpc.Stream, err error) {
	if !errors.Is(err, rpc.ErrInterrupted) {
		err = fmt.Errorf("%w: %w", rpc.ErrInterrupted, err)
	}
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if st != nil && sn.stream != st {
		return
	}
	if sn.stream != nil {
		_ = sn.stream.Close()
		sn.stream = nil
	}
	for _, o := range sn.out {
		o.done <- sendOutcome{err: err}
	}
	clear(sn.out)
	clear(sn.unanswered)
	sn.canceled = nil
	select {
	case sn.wake <- struct{}{}:
	default:
	}
}

// failQueue answers what could not be sent.
func (sn *sender) failQueue(err error) {
	if !errors.Is(err, rpc.ErrNotDelivered) {
		err = fmt.Errorf("%w: %w", rpc.ErrNotDelivered, err)
	}
	sn.mu.Lock()
	defer sn.mu.Unlock()
	for _, o := range sn.queue {
		o.done <- sendOutcome{err: err}
	}
	sn.queue = nil
}

// answers gathers decided units of one stream and sends them back.
type answers struct {
	mu   sync.Mutex
	tags []uint64
	res  []wire.UnitResult
	out  map[uint64]*engine.Unit // not answered yet, by tag
	wake chan struct{}           // one slot
}

// take notes units that were received.
func (a *answers) take(tag uint64, units []*engine.Unit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, u := range units {
		a.out[tag+uint64(i)] = u
	}
}

// cancel withdraws a unit that is not answered yet.
func (a *answers) cancel(tag uint64) {
	a.mu.Lock()
	u := a.out[tag]
	a.mu.Unlock()
	if u != nil && u.Cancel() {
		u.Err = engine.ErrCanceled // it was not taken up, and nobody else will answer
		a.add(tag, u)
	}
}

func (a *answers) add(tag uint64, u *engine.Unit) {
	r := u.Result
	r.Err = errorToWire(u.Err)
	a.mu.Lock()
	delete(a.out, tag)
	a.tags, a.res = append(a.tags, tag), append(a.res, r)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// serveWrites is the leader's end of a sender's stream.
func (n *Node) serveWrites(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &answers{out: map[uint64]*engine.Unit{}, wake: make(chan struct{}, 1)}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer cancel()
		a.run(ctx, st)
	}()
	err := n.receiveWrites(ctx, st, a)
	cancel()
	<-sent
	return err
}

func (n *Node) receiveWrites(ctx context.Context, st *rpc.Stream, a *answers) error {
	for {
		b, err := st.Recv()
		if err != nil {
			return nil // the other side is gone or done
		}
		tag, k := binary.Uvarint(b)
		if k <= 0 {
			return wire.ErrCorrupt
		}
		var req wire.WriteRequest
		if err := req.Decode(b[k:]); err != nil {
			return err
		}
		if len(req.Units) == 0 {
			a.cancel(tag)
			continue
		}
		units := make([]*engine.Unit, len(req.Units))
		for i := range units {
			t := tag + uint64(i)
			units[i] = &engine.Unit{Req: req.Units[i], Done: func(u *engine.Unit) { a.add(t, u) }}
		}
		a.take(tag, units)
		db, err := n.databaseForWrite(ctx, req.DB)
		if err != nil {
			for _, u := range units {
				u.Err = err
				u.Done(u)
			}
			continue
		}
		db.Submit(units...)
	}
}

func (a *answers) run(ctx context.Context, st *rpc.Stream) {
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
		runtime.Gosched()
		a.mu.Lock()
		tags, res := a.tags, a.res
		a.tags, a.res = nil, nil
		a.mu.Unlock()
		for len(tags) > 0 {
			k, size := 0, 0
			for k < len(tags) && k < maxFrameUnits && size < maxFrameBytes {
				size += res[k].Size()
				k++
			}
			buf = binary.AppendUvarint(buf[:0], uint64(k))
			for _, t := range tags[:k] {
				buf = binary.AppendUvarint(buf, t)
			}
			resp := wire.WriteResponse{Results: res[:k]}
			buf = resp.Append(buf)
			if err := st.Send(buf); err != nil {
				return
			}
			tags, res = tags[k:], res[k:]
		}
	}
}
