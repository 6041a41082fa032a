// Package interactive carries interactive transactions between the node on which a client
// is and the leader, on which they run. A stream carries one transaction. Its end, by
// whichever side, ends the transaction, so a client that disappears leaves nothing.
package interactive

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Tx is an interactive transaction, here or on the leader. *engine.Session is one. Its
// methods are for one goroutine at a time, except for Abort.
type Tx interface {
	Run(ctx context.Context, st engine.Statement) engine.StepResult
	Commit(ctx context.Context, id wire.RequestID, lowest uint64) engine.StepResult
	Rollback(ctx context.Context) engine.StepResult
	Abort()
}

// Remote is a transaction that runs on another node.
type Remote struct {
	st   *rpc.Stream
	from string
	over error
	buf  []byte
}

// Begin begins a transaction on the node that a stream leads to, which it takes over. The
// errors are those of the stream, the context's, and *wire.Error; nothing of them has any
// effect.
func Begin(ctx context.Context, st *rpc.Stream, node string, req *wire.SessionRequest) (*Remote, error) {
	r := &Remote{st: st, from: node}
	req.Kind = wire.SessionBegin
	stop := context.AfterFunc(ctx, r.Abort)
	res, err := r.exchange(req, func() {})
	switch {
	case !stop():
		return nil, ctx.Err()
	case err != nil:
		r.Abort()
		return nil, err
	case res.Err != nil:
		st.Done()
		return nil, res.Err
	}
	return r, nil
}

// exchange sends a request and waits for its answer.
func (r *Remote) exchange(req *wire.SessionRequest, sent func()) (res wire.SessionResponse, err error) {
	r.buf = req.Append(r.buf[:0])
	err = r.st.Send(r.buf)
	sent()
	if err != nil {
		return res, err
	}
	b, err := r.st.Recv() // the rows of the answer alias it
	if err != nil {
		return res, err
	}
	return res, res.Decode(b)
}

// Run implements Tx.
func (r *Remote) Run(ctx context.Context, st engine.Statement) engine.StepResult {
	req := wire.SessionRequest{Kind: wire.SessionRun, Statement: st.Statement, Pin: st.Pin, WantRows: st.WantRows}
	if by, ok := ctx.Deadline(); ok {
		req.Timeout = max(1, time.Until(by).Milliseconds())
	}
	if err := req.Check(); err != nil {
		return engine.StepResult{Err: err}
	}
	return r.ask(ctx, &req)
}

// Commit implements Tx.
func (r *Remote) Commit(ctx context.Context, id wire.RequestID, lowest uint64) engine.StepResult {
	return r.ask(ctx, &wire.SessionRequest{Kind: wire.SessionCommit, ID: id, Lowest: lowest})
}

// Rollback implements Tx.
func (r *Remote) Rollback(ctx context.Context) engine.StepResult {
	return r.ask(ctx, &wire.SessionRequest{Kind: wire.SessionRollback})
}

// Abort implements Tx.
func (r *Remote) Abort() { _ = r.st.Close() }

func (r *Remote) ask(ctx context.Context, req *wire.SessionRequest) engine.StepResult {
	if r.over != nil {
		return engine.StepResult{Err: r.over, Over: true}
	}
	c := canceler{st: r.st, sent: make(chan struct{}), answered: make(chan struct{}), done: make(chan struct{})}
	stop := context.AfterFunc(ctx, c.run)
	resp, err := r.exchange(req, func() { close(c.sent) })
	if stop() {
		return r.take(req, resp, err)
	}
	close(c.answered)
	<-c.done
	if err != nil {
		return r.broken(req, context.Cause(ctx), true)
	}
	res := r.take(req, resp, nil)
	if errors.Is(res.Err, engine.ErrCanceled) || isCode(res.Err, wire.ErrCanceled) {
		res.Err = fmt.Errorf("%w (%w)", context.Cause(ctx), engine.ErrCanceled)
	}
	return res
}

// canceler stops what was asked for when its context ends, and the transaction if there is
// no answer soon.
type canceler struct {
	st       *rpc.Stream
	sent     chan struct{} // closed when the request is on its way
	answered chan struct{} // closed when there is nothing to stop any more
	done     chan struct{} // closed when run has returned
}

func (c *canceler) run() {
	defer close(c.done)
	late := time.AfterFunc(2*engine.CancelGrace, func() { _ = c.st.Close() })
	defer late.Stop()
	<-c.sent // a Send that hangs ends with the stream
	stop := wire.SessionRequest{Kind: wire.SessionCancel}
	if err := c.st.Send(stop.Append(nil)); err != nil {
		_ = c.st.Close()
	}
	<-c.answered
}

func isCode(err error, code wire.ErrorCode) bool {
	var w *wire.Error
	return errors.As(err, &w) && w.Code == code
}

func (r *Remote) take(req *wire.SessionRequest, resp wire.SessionResponse, err error) engine.StepResult {
	if err != nil {
		return r.broken(req, err, false)
	}
	res := engine.StepResult{State: resp.State, Rows: resp.Rows, Mark: resp.Mark, Over: resp.Over}
	if resp.Err != nil {
		res.Err = resp.Err
	}
	if res.Over {
		if r.over = res.Err; r.over == nil {
			r.over = errDone
		}
		r.st.Done()
	}
	return res
}

var errDone = errors.New("the transaction has ended")

// broken ends a transaction whose stream has ended, or is given up because the context of
// what was asked for has ended.
func (r *Remote) broken(req *wire.SessionRequest, err error, canceled bool) engine.StepResult {
	_ = r.st.Close()
	// As text, and without the word that an outcome is unknown: what ended the stream says nothing of what ran on it.
	why := strings.TrimPrefix(err.Error(), rpc.ErrInterrupted.Error()+": ")
	lost := &engine.AbortedError{Reason: engine.AbortLeader, Cause: fmt.Errorf("node %q, on which it ran, has not answered: %s", r.from, why)}
	r.over = lost
	switch {
	case req.Kind == wire.SessionCommit:
		return engine.StepResult{Err: fmt.Errorf("%w: node %q has not answered: %w", engine.ErrUnknown, r.from, err), Over: true}
	case canceled:
		return engine.StepResult{Err: fmt.Errorf("%w (%w)", err, engine.ErrCanceled), Over: true}
	}
	return engine.StepResult{Err: lost, Over: true}
}

// Serve is the leader's end of a stream: it begins a transaction and carries out what is
// asked of it.
func Serve(ctx context.Context, st *rpc.Stream, begin func(context.Context, *wire.SessionRequest) (Tx, error), toWire func(error) *wire.Error) error {
	b, err := st.Recv()
	if err != nil {
		return err
	}
	var req wire.SessionRequest
	if err := req.Decode(b); err != nil {
		return err
	}
	if req.Kind != wire.SessionBegin {
		return wire.ErrCorrupt
	}
	tx, err := begin(ctx, &req)
	first := wire.SessionResponse{State: req.Pre, Err: toWire(err), Over: err != nil}
	if err != nil {
		return st.SendLast(first.Append(nil))
	}
	defer tx.Abort()
	if err := st.Send(first.Append(nil)); err != nil {
		return err
	}
	return serve(ctx, st, tx, toWire)
}

// serve carries out what is asked for, until the transaction or the stream ends.
func serve(ctx context.Context, st *rpc.Stream, tx Tx, toWire func(error) *wire.Error) error {
	var r running
	st.Ahead(r.cancel)
	var out []byte
	for {
		b, err := st.Recv() // the statement aliases it, and the transaction keeps that
		if err != nil {
			return nil // the client has gone
		}
		var req wire.SessionRequest
		if err := req.Decode(b); err != nil {
			return err
		}
		if req.Kind == wire.SessionCancel {
			continue // what it was to stop has been answered
		}
		res, ok := carryOut(r.begin(ctx), tx, &req)
		if !ok {
			return wire.ErrCorrupt
		}
		resp := wire.SessionResponse{State: res.State, Rows: res.Rows, Mark: res.Mark, Err: toWire(res.Err), Over: res.Over}
		if err := resp.Check(); err != nil {
			resp.Rows, resp.Err = nil, &wire.Error{Code: wire.ErrTooLarge, Msg: err.Error()}
		}
		out = resp.Append(out[:0])
		if res.Over {
			return st.SendLast(out)
		}
		if err := st.Send(out); err != nil {
			return err
		}
	}
}

// carryOut carries out one request. It returns false if there is no such request.
func carryOut(ctx context.Context, tx Tx, req *wire.SessionRequest) (engine.StepResult, bool) {
	switch req.Kind {
	case wire.SessionRun:
		return tx.Run(ctx, engine.Statement{Statement: req.Statement, Pin: req.Pin, WantRows: req.WantRows, Timeout: time.Duration(req.Timeout) * time.Millisecond}), true
	case wire.SessionCommit:
		return tx.Commit(ctx, req.ID, req.Lowest), true
	case wire.SessionRollback:
		return tx.Rollback(ctx), true
	}
	return engine.StepResult{}, false
}

// running is the context of what is carried out, which a cancel that arrives meanwhile
// ends. One that comes too late ends it between two requests: the next has another.
type running struct {
	mu       sync.Mutex
	ctx      context.Context    // guarded by mu: nil before the first request
	stop     context.CancelFunc // guarded by mu
	waits    bool               // guarded by mu: a request was read ahead and has not begun
	canceled bool               // guarded by mu: so was its cancel
}

// begin returns the context of a request.
func (r *running) begin(ctx context.Context) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil || r.ctx.Err() != nil {
		r.ctx, r.stop = context.WithCancel(ctx)
	}
	if r.waits = false; r.canceled {
		r.canceled = false
		r.stop()
	}
	return r.ctx
}

// cancel takes a cancel out of what is read ahead.
func (r *running) cancel(b []byte) bool {
	var req wire.SessionRequest
	is := req.Decode(b) == nil && req.Kind == wire.SessionCancel
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !is:
		r.waits = true
	case r.waits:
		r.canceled = true
	case r.ctx != nil:
		r.stop()
	}
	return is
}
