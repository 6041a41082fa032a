package rpc

import (
	"context"
	"io"
	"sync"
	"time"
)

const (
	// awayMax is how long a handler may do without receiving before somebody reads in
	// its place: after that long its context ends when the caller goes away.
	awayMax = 2 * time.Millisecond
	// aheadBytesMax bounds what is read ahead of a handler.
	aheadBytesMax = windowBytes
	spareBytesMax = stepBytes
)

// reader reads the frames that a caller sends. A handler that waits for a frame reads
// it itself, with no other goroutine between it and the connection. While it stays away
// for longer than awayMax another reads ahead, so that the caller's end is noticed, and
// stops when it has handed a frame to the handler that is back.
type reader struct {
	src   io.Reader
	max   int
	start func(func()) bool // runs a goroutine; false when the server is closed
	gone  func()            // told that src has ended
	timer *time.Timer       // runs look; nil until the handler first left

	mu       sync.Mutex
	peek     func([]byte) bool // guarded by mu: is shown each message that is read ahead; may be nil
	queue    []frame           // guarded by mu: read and not taken
	bytes    int               // guarded by mu: in queue
	end      error             // guarded by mu: what follows the queue
	inNext   bool              // guarded by mu: the handler waits
	left     time.Time         // guarded by mu: since when it does not
	looking  bool              // guarded by mu: timer is set
	ahead    chan struct{}     // guarded by mu: closed when the goroutine that reads ahead ends; nil if there is none
	draining bool              // guarded by mu: nobody takes frames any more
	spare    []byte            // guarded by mu: memory to read the next message into

	filled chan struct{} // one slot: a frame or the end was added
	taken  chan struct{} // one slot: a frame was taken
}

// frame is a frame that was read.
type frame struct {
	typ  byte
	body []byte
}

func newReader(src io.Reader, max int, start func(func()) bool, gone func()) *reader {
	return &reader{src: src, max: max, start: start, gone: gone, filled: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// leave says that the handler does something else from now on.
func (r *reader) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaveLocked()
}

// leaveLocked is leave. The timer runs out undisturbed however often the handler comes
// and goes: setting one anew wakes a processor that sleeps.
func (r *reader) leaveLocked() {
	r.inNext, r.left = false, time.Now()
	switch {
	case r.looking:
		return
	case r.timer == nil:
		r.timer = time.AfterFunc(awayMax, r.look)
	default:
		r.timer.Reset(awayMax)
	}
	r.looking = true
}

// next returns the next frame, in buf's memory where that suffices. It returns when ctx
// ends if somebody reads ahead; else whoever ends ctx has to end the reading.
func (r *reader) next(ctx context.Context, buf []byte) (frame, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inNext = true
	defer r.leaveLocked()
	for len(r.queue) == 0 {
		if r.end != nil {
			return frame{}, r.end
		}
		if r.ahead == nil {
			return r.readLocked(buf)
		}
		r.mu.Unlock()
		select {
		case <-r.filled:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if err := context.Cause(ctx); err != nil && len(r.queue) == 0 {
			return frame{}, err
		}
	}
	return r.takeLocked(buf), nil
}

// readLocked reads a frame, with the lock released.
func (r *reader) readLocked(buf []byte) (frame, error) {
	r.mu.Unlock()
	typ, body, err := readFrame(r.src, r.max, buf)
	if err != nil {
		r.gone()
	}
	r.mu.Lock()
	r.end = err
	return frame{typ, body}, err
}

// takeLocked takes a frame out of the queue, which has one. Where buf is large enough
// the body is copied and its memory used again.
func (r *reader) takeLocked(buf []byte) frame {
	f := r.queue[0]
	r.queue[0] = frame{}
	if r.queue = r.queue[1:]; len(r.queue) == 0 {
		r.queue = nil
	}
	r.bytes -= len(f.body) + headBytes
	if len(f.body) <= cap(buf) {
		buf = append(buf[:0], f.body...)
		if cap(f.body) <= spareBytesMax {
			r.spare = f.body
		}
		f.body = buf
	}
	notify(r.taken)
	return f
}

// look starts the goroutine that reads ahead if the handler is away for too long.
func (r *reader) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looking = false
	if r.inNext || r.draining || r.ahead != nil || r.end != nil {
		return
	}
	if more := awayMax - time.Since(r.left); more > 0 {
		r.looking = true
		r.timer.Reset(more)
		return
	}
	ahead := make(chan struct{})
	if r.start(func() { defer close(ahead); r.run() }) {
		r.ahead = ahead
	}
}

// run reads ahead.
func (r *reader) run() {
	for {
		r.mu.Lock()
		spare := r.spare
		r.spare = nil
		r.mu.Unlock()
		typ, body, err := readFrame(r.src, r.max, spare)
		r.mu.Lock()
		peek := r.peek
		r.mu.Unlock()
		if err == nil && typ == frameData && peek != nil && peek(body) {
			continue
		}
		if err != nil {
			r.gone()
		}
		if !r.add(frame{typ, body}, err) {
			return
		}
	}
}

// add queues what was read ahead, waiting for room. It returns false when there is
// nothing more to do.
func (r *reader) add(f frame, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for err == nil && !r.draining && r.bytes > 0 && r.bytes+len(f.body)+headBytes > aheadBytesMax {
		r.mu.Unlock()
		<-r.taken
		r.mu.Lock()
	}
	if err != nil {
		r.end = err
	} else {
		r.queue = append(r.queue, f)
		r.bytes += len(f.body) + headBytes
	}
	notify(r.filled)
	if err == nil && !r.inNext && !r.draining {
		return true
	}
	r.ahead = nil
	return false
}

// drain reads on and throws away, until src ends.
func (r *reader) drain() {
	r.mu.Lock()
	r.draining = true
	if r.timer != nil {
		r.timer.Stop()
	}
	ahead := r.ahead
	r.mu.Unlock()
	notify(r.taken)
	if ahead != nil {
		<-ahead
	}
	// Whatever ends it, it is over.
	_, _ = io.Copy(io.Discard, r.src)
}
