package nudge

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// world is a leader of term 3 with followers a and b.
type world struct {
	*Nudger
	mu   sync.Mutex // guards what follows
	term uint64
	sent []string
	hang map[string]chan struct{}
	fail map[string]bool

	ended func() // called when Run has ended
}

func run(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{term: 3, hang: map[string]chan struct{}{}, fail: map[string]bool{}, ended: func() {}}
		done := make(chan struct{})
		w.Nudger = New(Config{Done: done, Followers: func() []string { return []string{"a", "b"} }, Send: w.send,
			Term: func() uint64 { w.mu.Lock(); defer w.mu.Unlock(); return w.term }})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.Run(ctx) })
		f(t, w)
		cancel()
		close(done)
		wg.Wait()
		w.ended()
	})
}

func (w *world) send(id string, m wire.Mark) bool {
	w.mu.Lock()
	w.sent = append(w.sent, fmt.Sprint(id, m.Index))
	hang, fail := w.hang[id], w.fail[id]
	w.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return !fail
}

// want checks what was sent since it was last called.
func (w *world) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.sent)
	if !slices.Equal(w.sent, want) {
		t.Errorf("sent was %v, want %v", w.sent, want)
	}
	w.sent = nil
}

func mark(index uint64) wire.Mark { return wire.Mark{Term: 3, Index: index} }

func TestEveryFollowerIsTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.Committed(mark(1))
		w.want(t, "a1", "b1")
		w.Committed(mark(2))
		w.want(t, "a2", "b2")
	})
}

func TestOnlyEntriesOfTheLeadersOwnTermAreToldOf(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.Committed(wire.Mark{Term: 2, Index: 1})
		w.want(t)
		w.term = 0
		w.Committed(mark(2))
		w.want(t)
	})
}

// What waits when leadership ends is not sent.
func TestNothingIsSentAfterTheTerm(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		w.hang["a"], w.hang["b"] = release, release
		w.Committed(mark(1))
		w.want(t, "a1", "b1")
		w.Committed(mark(2))
		w.mu.Lock()
		w.term = 0
		w.mu.Unlock()
		close(release)
		w.want(t)
	})
}

// The newest replaces what waits; one that hangs holds up no other and gathers nothing.
func TestFollowerThatHangs(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		a, b := make(chan struct{}), make(chan struct{})
		w.hang["a"], w.hang["b"] = a, b
		w.Committed(mark(1))
		w.want(t, "a1", "b1")
		for i := range uint64(5) {
			w.Committed(mark(2 + i))
		}
		w.want(t)
		close(b)
		w.want(t, "b6")
		w.Committed(mark(7))
		w.want(t, "b7")
		close(a)
		synctest.Wait()
		w.Committed(mark(8))
		w.want(t, "a8", "b8")
	})
}

// One that lags or cannot be reached is left to raft for a while.
func TestFollowerThatFails(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.fail["a"] = true
		w.Committed(mark(1))
		w.want(t, "a1", "b1")
		w.Committed(mark(2))
		w.want(t, "b2")
		time.Sleep(pause)
		w.fail["a"] = false
		w.Committed(mark(3))
		w.want(t, "a3", "b3")
		w.Committed(mark(4))
		w.want(t, "a4", "b4")
	})
}

// Closing does not wait for a follower that hangs.
func TestCloseWhileAFollowerHangs(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		hang := make(chan struct{})
		w.hang["a"], w.hang["b"] = hang, hang
		w.ended = func() { close(hang) }
		w.Committed(mark(1))
		w.want(t, "a1", "b1")
	})
}
