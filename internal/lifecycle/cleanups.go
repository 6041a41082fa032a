package lifecycle

import (
	"errors"
	"slices"
	"sync"
)

// Cleanups is a stack of what has to be undone if building something fails halfway, or when it is closed. The zero value is
// ready. Its methods may be called from several goroutines at once.
//
//	var undo lifecycle.Cleanups
//	defer undo.Run()        // does nothing after Release
//	...
//	undo.Add(file.Close)
//	...
//	undo.Release()
type Cleanups struct {
	mu    sync.Mutex
	stack []func() error // guarded by mu
}

// Add pushes fn. What is added after Run waits for the next Run.
func (c *Cleanups) Add(fn func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stack = append(c.stack, fn)
}

// Run calls the functions, the last one added first, each once, whatever the others return, and returns their errors
// joined. A second call finds nothing left to do.
func (c *Cleanups) Run() error {
	stack := c.take()
	var errs []error
	for _, fn := range slices.Backward(stack) {
		errs = append(errs, fn())
	}
	return errors.Join(errs...)
}

// Release forgets the functions without calling them: what was built is handed over.
func (c *Cleanups) Release() { c.take() }

// take empties the stack, so that no function is called under the lock and none is called twice.
func (c *Cleanups) take() []func() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	stack := c.stack
	c.stack = nil
	return stack
}
