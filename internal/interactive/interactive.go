// Package interactive carries interactive transactions between the node on which a client
// is and the leader, on which they run. A stream carries one transaction. Its end, by
// whichever side, ends the transaction, so a client that disappears leaves nothing.
package interactive

import (
	"context"
	"errors"
	"fmt"
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
	st      *rpc.Stream
	from    string
	answers chan answer // one slot
	over    error
	buf     []byte
}

type answer struct {
	res wire.SessionResponse
	err error
}

// Begin begins a transaction on the node that a stream leads to, which it takes over. start
// runs a goroutine, unless its owner has ended. The errors are those of the stream, the
// context's, and *wire.Error; nothing of them has any effect.
func Begin(ctx context.Context, st *rpc.Stream, node string, req *wire.SessionRequest, start func(func()) bool) (*Remote, error) {
	r := &Remote{st: st, from: node, answers: make(chan answer, 1)}
	if !start(r.receive) {
		_ = st.Close()
		return nil, rpc.ErrClosed
	}
	req.Kind = wire.SessionBegin
	a, err := r.send(req.Append(nil))
	if err == nil && a == nil {
		select {
		case got := <-r.answers:
			a = &got
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	switch {
	case err != nil:
	case a.err != nil:
		err = a.err
	case a.res.Err != nil:
		err = a.res.Err
	default:
		return r, nil
	}
	_ = st.Close()
	return nil, err
}

// send sends a request. If the leader has answered it and ended the stream before Send
// returned, which then fails, the answer is what counts.
func (r *Remote) send(b []byte) (*answer, error) {
	err := r.st.Send(b)
	if err == nil {
		return nil, nil
	}
	select {
	case a := <-r.answers:
		return &a, nil
	default:
		return nil, err
	}
}

// receive hands answers over until the stream ends.
func (r *Remote) receive() {
	for {
		b, err := r.st.Recv()
		var a answer
		if err == nil {
			err = a.res.Decode(b)
		}
		a.err = err
		select {
		case r.answers <- a:
		default: // nobody asked
			_ = r.st.Close()
			return
		}
		if err != nil {
			return
		}
	}
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
	r.buf = req.Append(r.buf[:0])
	switch a, err := r.send(r.buf); {
	case err != nil:
		return r.broken(req, err)
	case a != nil:
		return r.take(req, *a)
	}
	select {
	case a := <-r.answers:
		return r.take(req, a)
	case <-ctx.Done():
	}
	stop := wire.SessionRequest{Kind: wire.SessionCancel}
	if err := r.st.Send(stop.Append(nil)); err != nil {
		return r.broken(req, err)
	}
	timer := time.NewTimer(2 * engine.CancelGrace)
	defer timer.Stop()
	select {
	case a := <-r.answers:
		res := r.take(req, a)
		if errors.Is(res.Err, engine.ErrCanceled) || isCode(res.Err, wire.ErrCanceled) {
			res.Err = fmt.Errorf("%w (%w)", context.Cause(ctx), engine.ErrCanceled)
		}
		return res
	case <-timer.C:
		return r.broken(req, context.Cause(ctx))
	}
}

func isCode(err error, code wire.ErrorCode) bool {
	var w *wire.Error
	return errors.As(err, &w) && w.Code == code
}

func (r *Remote) take(req *wire.SessionRequest, a answer) engine.StepResult {
	if a.err != nil {
		return r.broken(req, a.err)
	}
	res := engine.StepResult{State: a.res.State, Rows: a.res.Rows, Mark: a.res.Mark, Over: a.res.Over}
	if a.res.Err != nil {
		res.Err = a.res.Err
	}
	if res.Over {
		if r.over = res.Err; r.over == nil {
			r.over = errDone
		}
		_ = r.st.Close()
	}
	return res
}

var errDone = errors.New("the transaction has ended")

// broken ends a transaction whose stream has ended, or is given up.
func (r *Remote) broken(req *wire.SessionRequest, err error) engine.StepResult {
	_ = r.st.Close()
	// As text: what ended the stream says nothing of what ran on it.
	lost := &engine.AbortedError{Reason: engine.AbortLeader, Cause: fmt.Errorf("node %q, on which it ran, has not answered: %v", r.from, err)}
	r.over = lost
	switch {
	case req.Kind == wire.SessionCommit:
		return engine.StepResult{Err: fmt.Errorf("%w: node %q has not answered: %w", engine.ErrUnknown, r.from, err), Over: true}
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
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
		return st.Send(first.Append(nil))
	}
	defer tx.Abort()
	if err := st.Send(first.Append(nil)); err != nil {
		return err
	}
	w := &worker{tx: tx, st: st, toWire: toWire, work: make(chan job), done: make(chan struct{})}
	go w.run(ctx)
	defer func() { close(w.work); <-w.done }()
	return w.receive(ctx)
}

// worker carries requests out while the stream is read, so that a cancel is noticed.
type worker struct {
	tx     Tx
	st     *rpc.Stream
	toWire func(error) *wire.Error
	work   chan job
	done   chan struct{}
}

type job struct {
	ctx context.Context
	req wire.SessionRequest
}

func (w *worker) receive(ctx context.Context) error {
	stop := func() {}
	defer func() { stop() }()
	for {
		b, err := w.st.Recv()
		if err != nil {
			return nil // the client has gone
		}
		var j job
		if err := j.req.Decode(b); err != nil {
			return err
		}
		stop()
		if j.req.Kind == wire.SessionCancel {
			continue
		}
		j.ctx, stop = stoppable(ctx)
		select {
		case w.work <- j:
		case <-w.done:
			return nil
		}
	}
}

func stoppable(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, cancel
}

func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	for {
		select {
		case j, ok := <-w.work:
			if !ok || !w.answer(j) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer carries out one request. It returns false when the transaction has ended.
func (w *worker) answer(j job) bool {
	var res engine.StepResult
	switch j.req.Kind {
	case wire.SessionRun:
		res = w.tx.Run(j.ctx, engine.Statement{Statement: j.req.Statement, Pin: j.req.Pin, WantRows: j.req.WantRows, Timeout: time.Duration(j.req.Timeout) * time.Millisecond})
	case wire.SessionCommit:
		res = w.tx.Commit(j.ctx, j.req.ID, j.req.Lowest)
	case wire.SessionRollback:
		res = w.tx.Rollback(j.ctx)
	default:
		return false
	}
	resp := wire.SessionResponse{State: res.State, Rows: res.Rows, Mark: res.Mark, Err: w.toWire(res.Err), Over: res.Over}
	if err := resp.Check(); err != nil {
		resp.Rows, resp.Err = nil, &wire.Error{Code: wire.ErrTooLarge, Msg: err.Error()}
	}
	return w.st.Send(resp.Append(nil)) == nil && !res.Over
}
