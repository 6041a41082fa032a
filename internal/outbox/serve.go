package outbox

import (
	"context"
	"runtime"
	"sync"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// Database takes units and decides each: an *engine.DB.
type Database interface{ Submit(units ...*engine.Unit) }

// Leader is what the other end of a sender's stream needs of its node.
type Leader struct {
	// Database returns a database to write to; it may wait until there is one, or ctx ends.
	Database func(ctx context.Context, name string) (Database, error)
	// ToWire is the form in which an error travels; nil for nil.
	ToWire func(error) *wire.Error
}

// Serve is the leader's end of a sender's stream. It returns when the other side is gone or done, or has sent what is no frame.
func (l *Leader) Serve(ctx context.Context, st Stream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := newAnswers(l.ToWire)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer cancel()
		a.run(ctx, st)
	}()
	err := l.receive(ctx, st, a)
	cancel()
	<-sent
	return err
}

func (l *Leader) receive(ctx context.Context, st Stream, a *answers) error {
	for {
		b, err := st.Recv()
		if err != nil {
			return nil // the other side is gone or done
		}
		var req wire.WriteRequest
		tag, err := readRequest(b, &req)
		if err != nil {
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
		db, err := l.Database(ctx, req.DB)
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

// answers gathers decided units of one stream and sends them back.
type answers struct {
	toWire func(error) *wire.Error
	wake   chan struct{} // one slot

	mu   sync.Mutex // guards what follows
	tags []uint64
	res  []wire.UnitResult
	out  map[uint64]*engine.Unit // not answered yet, by tag
}

func newAnswers(toWire func(error) *wire.Error) *answers {
	return &answers{toWire: toWire, wake: make(chan struct{}, 1), out: map[uint64]*engine.Unit{}}
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
	r.Err = a.toWire(u.Err)
	a.mu.Lock()
	delete(a.out, tag)
	a.tags, a.res = append(a.tags, tag), append(a.res, r)
	a.mu.Unlock()
	notify(a.wake)
}

func (a *answers) run(ctx context.Context, st Stream) {
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
			buf = appendResponse(buf[:0], tags[:k], res[:k])
			if err := st.Send(buf); err != nil {
				return
			}
			tags, res = tags[k:], res[k:]
		}
	}
}
