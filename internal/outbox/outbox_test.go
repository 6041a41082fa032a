package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// frames tells the sizes of the frames in which units are sent.
func frames(units []wire.Unit) (sizes []int) {
	s := newSender(&Config{}, "leader")
	for _, u := range units {
		if _, err := s.enqueue("default", u); err != nil {
			panic(err)
		}
	}
	for len(s.queue) > 0 {
		sizes = append(sizes, len(s.take(nil, nil)))
		clear(s.unanswered)
	}
	return sizes
}

// What is large, and allowed, goes alone: with others it could exceed a frame.
func TestLargeWriteGoesAlone(t *testing.T) {
	part := wire.Statement{SQL: strings.Repeat(" ", wire.MaxStatementBytes-4096)}
	large := wire.Unit{Statements: []wire.Statement{part, part, part, part}}
	if err := large.Check(); err != nil {
		t.Fatal(err)
	}
	small := wire.Unit{Statements: []wire.Statement{{SQL: strings.Repeat(" ", 1<<20)}}}
	sizes := frames([]wire.Unit{small, large, small, small})
	if len(sizes) != 2 || sizes[0] > 4<<20 || sizes[1] > wire.MaxFrameBytes {
		t.Errorf("frames of %d bytes", sizes)
	}
}

func TestFrameIsBoundedInUnits(t *testing.T) {
	if sizes := frames(make([]wire.Unit, maxFrameUnits+1)); len(sizes) != 2 {
		t.Errorf("%d frames", len(sizes))
	}
}

// What waits while frames are out goes into the next one, database by database.
func TestWaitingWritesShareAFrame(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		all := []*sending{w.start(t, "a", "first")}
		there := <-w.opened
		if tag, req := there.next(t); tag != 0 || len(req.Units) != 1 || req.DB != "a" {
			t.Fatalf("tag %d, %d units for %q", tag, len(req.Units), req.DB)
		}
		all = append(all, w.start(t, "a", "second"))
		there.next(t)
		for i := range 10 { // two frames are out: these wait
			all = append(all, w.start(t, string("ab"[i%2]), fmt.Sprint(i)))
		}
		if len(there.in) != 0 {
			t.Fatal("a third frame is out")
		}
		there.answer(0)
		tag, req := there.next(t)
		if tag != 2 || req.DB != "a" || len(req.Units) != 5 || req.Units[1].Statements[0].SQL != "2" {
			t.Errorf("tag %d, %d units for %q", tag, len(req.Units), req.DB)
		}
		there.answer(1)
		if tag, req := there.next(t); tag != 7 || req.DB != "b" || len(req.Units) != 5 {
			t.Errorf("tag %d, %d units for %q", tag, len(req.Units), req.DB)
		}
		there.answer(11, 10, 9, 8, 7, 6, 5, 4, 3, 2)
		for i, s := range all {
			if s.wait(); s.err != nil || !s.sent {
				t.Errorf("write %d: %v, %v", i, s.sent, s.err)
			}
		}
		if a, b := all[2].res.Result.LastInsertID, all[3].res.Result.LastInsertID; a != 2 || b != 7 {
			t.Errorf("the answers are those of %d and %d", a, b)
		}
	})
}

// Each is answered when it is decided, whatever else was in its frame.
func TestSlowWriteHoldsUpNoOthersAnswer(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		slow := w.start(t, "a", "slow")
		there := <-w.opened
		there.next(t)
		for i := range 5 {
			s := w.start(t, "a", "quick")
			tag, _ := there.next(t)
			there.answer(tag)
			if s.wait(); s.err != nil {
				t.Errorf("write %d: %v", i, s.err)
			}
		}
		if slow.ended() {
			t.Error("the slow one was answered")
		}
		there.answer(0)
		if slow.wait(); slow.err != nil {
			t.Error(slow.err)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	s := newSender(&Config{}, "leader")
	for range engine.DefaultMaxQueued {
		if _, err := s.enqueue("a", unit("x")); err != nil {
			t.Fatal(err)
		}
	}
	var w *wire.Error
	if _, err := s.enqueue("a", unit("x")); !errors.As(err, &w) || w.Code != wire.ErrBusy {
		t.Error(err)
	}
}

// A caller that goes learns whether its write can still happen.
func TestCanceledWrite(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		stopped, silent, won := w.start(t, "a", "0"), w.start(t, "a", "1"), (*sending)(nil)
		there := <-w.opened
		there.next(t)
		there.next(t)
		queued := w.start(t, "a", "2")
		queued.cancel()
		if queued.wait(); queued.sent || queued.err != context.Canceled {
			t.Errorf("not sent: %v, %v", queued.sent, queued.err)
		}
		stopped.cancel()
		if tag, req := there.next(t); tag != 0 || len(req.Units) != 0 {
			t.Errorf("withdrawn was tag %d, with %d units", tag, len(req.Units))
		}
		_ = there.Send(appendResponse(nil, []uint64{0}, []wire.UnitResult{{Err: &wire.Error{Code: wire.ErrCanceled}}}))
		if stopped.wait(); stopped.sent || !errors.Is(stopped.err, engine.ErrCanceled) || !errors.Is(stopped.err, context.Canceled) {
			t.Errorf("stopped over there: %v, %v", stopped.sent, stopped.err)
		}
		began := time.Now()
		silent.cancel()
		if silent.wait(); !silent.sent || silent.err != context.Canceled || time.Since(began) != engine.CancelGrace {
			t.Errorf("not answered: %v, %v after %v", silent.sent, silent.err, time.Since(began))
		}
		there.next(t) // silent's withdrawal
		won = w.start(t, "a", "3")
		tag, _ := there.next(t)
		won.cancel()
		there.next(t)
		there.answer(tag)
		if won.wait(); !won.sent || won.err != nil || won.res.Result.LastInsertID != int64(tag) {
			t.Errorf("decided before it was withdrawn: %v, %v", won.sent, won.err)
		}
	})
}

// What ends with its stream may have been applied, and what waited goes on a new one.
func TestStreamThatEnds(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		a, b, c := w.start(t, "a", "0"), w.start(t, "a", "1"), (*sending)(nil)
		there := <-w.opened
		there.next(t)
		there.next(t)
		c = w.start(t, "a", "2") // waits: two frames are out
		there.Close()
		for _, s := range []*sending{a, b} {
			if s.wait(); !s.sent || !errors.Is(s.err, rpc.ErrInterrupted) || errors.Is(s.err, errGone) {
				t.Errorf("%v, %v", s.sent, s.err)
			}
		}
		there = <-w.opened
		if tag, req := there.next(t); tag != 2 || len(req.Units) != 1 {
			t.Fatalf("tag %d", tag)
		}
		there.answer(2)
		if c.wait(); c.err != nil {
			t.Error(c.err)
		}
	})
}

func TestNonsenseEndsTheStream(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.start(t, "a", "0")
		there := <-w.opened
		there.next(t)
		_ = there.Send([]byte{1})
		if s.wait(); !s.sent || !errors.Is(s.err, rpc.ErrInterrupted) {
			t.Errorf("%v, %v", s.sent, s.err)
		}
	})
}

func TestNodeThatCannotBeReached(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.openErr.Store(&errGone)
		if s := w.start(t, "a", "0").wait(); s.sent || !errors.Is(s.err, rpc.ErrNotDelivered) || !errors.Is(s.err, errGone) {
			t.Errorf("%v, %v", s.sent, s.err)
		}
	})
}

// A leader that hangs is waited for until there is another: what was not sent comes
// back at once, what was sent after a moment, and its late answer still makes room.
func TestWritesLeaveANodeThatLeadsNoMore(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		a, b := w.start(t, "a", "0"), w.start(t, "a", "1")
		there := <-w.opened
		there.next(t)
		there.next(t)
		waiting := w.start(t, "a", "2")
		began := time.Now()
		w.deposed.Store(true)
		watch := w.watch
		w.watch = make(chan struct{})
		close(watch)
		if waiting.wait(); waiting.sent || !errors.Is(waiting.err, rpc.ErrNotDelivered) || time.Since(began) != 0 {
			t.Errorf("not sent: %v, %v after %v", waiting.sent, waiting.err, time.Since(began))
		}
		for _, s := range []*sending{a, b} {
			if s.wait(); !s.sent || !errors.Is(s.err, rpc.ErrInterrupted) || time.Since(began) != answerGrace {
				t.Errorf("sent: %v, %v after %v", s.sent, s.err, time.Since(began))
			}
		}
		w.deposed.Store(false)
		next := w.start(t, "a", "3")
		if len(there.in) != 0 {
			t.Error("a third frame is out")
		}
		there.answer(0, 1)
		if tag, _ := there.next(t); tag != 2 {
			t.Errorf("tag %d", tag)
		}
		there.answer(2)
		if next.wait(); next.err != nil {
			t.Error(next.err)
		}
	})
}

func TestCloseEndsWhatWaits(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		a, b := w.start(t, "a", "0"), w.start(t, "a", "1")
		c := w.start(t, "a", "2")
		close(w.done)
		for i, s := range []*sending{a, b, c} {
			if s.wait(); s.err != errClosed || s.sent != (i < 2) {
				t.Errorf("write %d: %v, %v", i, s.sent, s.err)
			}
		}
		synctest.Wait()
	})
}

// A stream may end between being opened and being used. What was about to be sent on it waits for the next one: it is
// not among what the stream's end was told to, and would wait for ever.
func TestStreamThatEndsAtOnceLosesNoWrite(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := newSender(&w.cfg, "leader")
		o, err := s.enqueue("a", unit("x"))
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		(<-w.opened).close()
		synctest.Wait() // its end was noticed
		if b := s.take(st, nil); b != nil {
			t.Errorf("%d bytes would be sent on a stream that has ended", len(b))
		}
		w.cfg.Group.Go("sender", s.run)
		s.rouse()
		there := <-w.opened
		tag, _ := there.next(t)
		there.answer(tag)
		if r := <-o.done; r.err != nil || r.result.Result.LastInsertID != int64(tag) {
			t.Errorf("got %+v", r)
		}
	})
}
