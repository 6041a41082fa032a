// Package lifecycle starts and ends things: a group of goroutines that is waited for, and a stack of cleanups run in reverse.
package lifecycle

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Group launches the goroutines of one owner and ends them together. Every method may be called from several goroutines at once, except
// that Stop and StopTimeout wait for the group's goroutines and so must not be called by one of them.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc
	idle   chan struct{} // closed when the group is stopped and its last goroutine has returned

	mu      sync.Mutex
	stopped bool           // no further goroutine starts; guarded by mu
	running map[string]int // goroutines by name; guarded by mu
}

// NewGroup returns a group without goroutines. Its context lives until Stop.
func NewGroup() *Group {
	ctx, cancel := context.WithCancel(context.Background())
	return &Group{ctx: ctx, cancel: cancel, idle: make(chan struct{}), running: make(map[string]int)}
}

// Context is cancelled by Stop. It is the one the goroutines are given.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs fn in a goroutine and returns true; once the group is stopped it does nothing and returns false. fn must return
// soon after its context is cancelled. A panic in fn is not recovered: it ends the process as in any goroutine. The name is what StopTimeout reports; several goroutines may share one.
func (g *Group) Go(name string, fn func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return false
	}
	g.running[name]++
	go func() {
		defer g.done(name)
		fn(g.ctx)
	}()
	return true
}

// Stop cancels the context and waits until every goroutine has returned. Further calls wait as well, and return when all is over.
func (g *Group) Stop() {
	g.shut()
	<-g.idle
}

// StopTimeout is Stop that waits for at most d. It returns the names of the goroutines that still run, sorted, one entry for each
// goroutine; nil means that all have returned. It may be called again to go on waiting.
func (g *Group) StopTimeout(d time.Duration) []string {
	g.shut()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-g.idle:
		return nil
	case <-timer.C:
		return g.Running()
	}
}

// Running returns the names of the goroutines that run now, sorted, one entry for each.
func (g *Group) Running() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var names []string
	for name, n := range g.running {
		for range n {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// shut closes the door and cancels; the first call does the work.
func (g *Group) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return
	}
	g.stopped = true
	g.cancel()
	if len(g.running) == 0 {
		close(g.idle)
	}
}

// done is deferred by each goroutine, so that it counts one that ends by runtime.Goexit too.
func (g *Group) done(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running[name]--; g.running[name] == 0 {
		delete(g.running, name)
	}
	if g.stopped && len(g.running) == 0 {
		close(g.idle)
	}
}
