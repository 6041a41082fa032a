package colmena

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Methods nodes call on one another. Names are only ever added.
const (
	methodWrite   = "write"
	methodMark    = "mark"
	methodTerm    = "term"
	methodQuery   = "query"
	methodForward = "forward"
	methodTx      = "tx"
)

// registerMethods tells the server what this node answers. All but an entrance call
// need a peer of this cluster.
func (n *Node) registerMethods() {
	insider := func(h rpc.Handler) rpc.Handler {
		return func(ctx context.Context, peer wire.Hello, st *rpc.Stream) error {
			if own := n.id.ClusterID(); own == "" || peer.ClusterID != own {
				return &wire.Error{Code: wire.ErrRefused, Msg: "a call from outside the cluster", Detail: "join first"}
			}
			return h(ctx, peer, st)
		}
	}
	member := func(h rpc.Handler) rpc.Handler {
		return insider(func(ctx context.Context, peer wire.Hello, st *rpc.Stream) error {
			// Only the leader is sure to know who is a member now.
			if n.lead.Leading() && !n.members.IsMember(peer) {
				return &wire.Error{Code: wire.ErrRefused, Msg: "a call of node " + peer.NodeID, Detail: "it is no member of the cluster, or was replaced: start it with Join"}
			}
			return h(ctx, peer, st)
		})
	}
	n.server.Handle(methodWrite, member(n.serveWrites))
	n.server.Handle(methodMark, member(n.serveMarks))
	n.server.Handle(methodTerm, member(n.serveTerms))
	n.server.Handle(methodQuery, member(n.serveQuery))
	n.server.Handle(methodTx, member(n.serveTx))
	n.server.Handle(methodForward, member(unary(n.serveForward)))
	n.server.Handle(members.MethodList, insider(unary(n.members.ServeList)))
	n.server.Handle(members.MethodProgress, member(unary(n.members.ServeProgress)))
	n.server.Handle(members.MethodChange, insider(func(ctx context.Context, peer wire.Hello, st *rpc.Stream) error {
		change := func(ctx context.Context, b []byte) ([]byte, error) { return nil, n.members.ServeChange(ctx, peer, b) }
		return unary(change)(ctx, peer, st)
	}))
}

// unary serves a method of one request and one response.
func unary(f func(context.Context, []byte) ([]byte, error)) rpc.Handler {
	return func(ctx context.Context, _ wire.Hello, st *rpc.Stream) error {
		req, err := st.Recv()
		if err != nil {
			return err
		}
		resp, err := f(ctx, req)
		if err != nil {
			return errorToWire(err)
		}
		return st.Send(resp)
	}
}

// HandlerKey names a handler and fixes the types of its request and response.
type HandlerKey[Req, Resp any] struct{ name string }

// NewHandlerKey makes a key. Every node must use the same name for the same types;
// both travel as JSON, in which unknown fields are ignored.
func NewHandlerKey[Req, Resp any](name string) HandlerKey[Req, Resp] {
	return HandlerKey[Req, Resp]{name}
}

// HandlerError is an error that a handler returned, or the panic it ended in, on
// whichever node it ran.
type HandlerError struct {
	Name  string // of the handler
	Msg   string
	Panic bool
}

func (e *HandlerError) Error() string {
	if e.Panic {
		return fmt.Sprintf("colmena: handler %q panicked: %s", e.Name, e.Msg)
	}
	return e.Msg
}

// handlerSet holds what RegisterHandler registered.
type handlerSet struct {
	mu sync.RWMutex
	m  map[string]func(context.Context, []byte) ([]byte, error)
}

// RegisterHandler registers what Forward runs under the key when this node leads.
// Register on every node, in Config.Setup, before the port opens. The handler's
// context ends with the caller's, and when leadership ends.
func RegisterHandler[Req, Resp any](n *Node, key HandlerKey[Req, Resp], f func(context.Context, Req) (Resp, error)) error {
	if key.name == "" || len(key.name) > maxHandlerName {
		return fmt.Errorf("colmena: handler name %q: a name has 1 to %d bytes", key.name, maxHandlerName)
	}
	n.handlers.mu.Lock()
	defer n.handlers.mu.Unlock()
	if n.handlers.m == nil {
		n.handlers.m = map[string]func(context.Context, []byte) ([]byte, error){}
	}
	if n.handlers.m[key.name] != nil {
		return fmt.Errorf("colmena: a handler %q is registered already", key.name)
	}
	n.handlers.m[key.name] = func(ctx context.Context, b []byte) ([]byte, error) {
		var req Req
		if err := json.Unmarshal(b, &req); err != nil {
			return nil, fmt.Errorf("request of handler %q: %w", key.name, err)
		}
		resp, err := f(ctx, req)
		if err != nil {
			return nil, err
		}
		return json.Marshal(resp)
	}
	return nil
}

const maxHandlerName = 256

// Forward runs the handler of that key on the leader, here if this node leads, and
// returns its response. When the request did not reach a leader it goes to the next
// one; when it may have reached one and the answer was lost, the error is
// ErrOutcomeUnknown. ErrNoHandler means that nothing ran.
func Forward[Req, Resp any](ctx context.Context, n *Node, key HandlerKey[Req, Resp], req Req) (Resp, error) {
	var resp Resp
	b, err := json.Marshal(req)
	if err != nil {
		return resp, fmt.Errorf("colmena: request of handler %q: %w", key.name, err)
	}
	out, err := n.forward(ctx, key.name, b)
	if err != nil {
		return resp, err
	}
	if err := json.Unmarshal(out, &resp); err != nil {
		return resp, fmt.Errorf("colmena: response of handler %q: %w", key.name, err)
	}
	return resp, nil
}

// forwarded travels as msgpack.
type forwarded struct {
	Name string
	Body []byte
}

func (n *Node) forward(ctx context.Context, name string, body []byte) ([]byte, error) {
	deadline := n.lead.Deadline()
	for {
		watch := n.lead.Watch()
		leader, local, err := n.lead.Await(ctx, deadline)
		if err != nil {
			return nil, notApplied(noLeader(ctx, err), "forward %q: %v", name, err)
		}
		var out []byte
		if local {
			out, err = n.forwardHere(ctx, name, body)
		} else {
			out, err = n.client.Call(ctx, leader, methodForward, rpc.EncodeControl(&forwarded{name, body}))
		}
		var w *wire.Error
		switch {
		case err == nil:
			return out, nil
		case errors.As(err, &w) && w.Code == wire.ErrNotLeader, errors.Is(err, rpc.ErrNotDelivered):
		case errors.As(err, &w) && (w.Code == wire.ErrApp || w.Code == wire.ErrPanic):
			return nil, &HandlerError{Name: name, Msg: w.Msg, Panic: w.Code == wire.ErrPanic}
		case errors.Is(err, rpc.ErrInterrupted), errors.As(err, &w) && w.Code == wire.ErrOutcomeUnknown:
			return nil, outcomeUnknown(errors.Join(err, ended(ctx)), "forward %q: %v", name, err)
		default:
			return nil, userError(err)
		}
		if err := n.lead.Pause(ctx, watch, deadline); err != nil {
			return nil, notApplied(noLeader(ctx, err), "forward %q: %v", name, err)
		}
	}
}

// forwardHere runs a handler for a caller on this node, who waits no longer than his
// context says, whatever the handler does.
func (n *Node) forwardHere(ctx context.Context, name string, body []byte) ([]byte, error) {
	type outcome struct {
		out []byte
		err error
	}
	done := make(chan outcome, 1)
	if !n.group.Go("handler "+name, func(context.Context) {
		out, err := n.runHandler(ctx, name, body)
		done <- outcome{out, err}
	}) {
		return nil, ErrClosed
	}
	select {
	case o := <-done:
		return o.out, o.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", rpc.ErrInterrupted, ctx.Err())
	case <-n.done:
		return nil, fmt.Errorf("%w: %w", rpc.ErrInterrupted, ErrClosed)
	}
}

func (n *Node) serveForward(ctx context.Context, b []byte) ([]byte, error) {
	var f forwarded
	if err := rpc.DecodeControl(b, &f); err != nil {
		return nil, fmt.Errorf("forwarded request: %w", err)
	}
	return n.runHandler(ctx, f.Name, f.Body)
}

// runHandler runs a handler on this node, under a context that ends with leadership.
func (n *Node) runHandler(ctx context.Context, name string, body []byte) (out []byte, err error) {
	term := n.lead.Term()
	if term == 0 {
		return nil, &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"}
	}
	n.handlers.mu.RLock()
	f := n.handlers.m[name]
	n.handlers.mu.RUnlock()
	if f == nil {
		return nil, &wire.Error{Code: wire.ErrNoHandler, Msg: fmt.Sprintf("the leader, node %q, has no handler %q: register it on every node", n.id.NodeID, name)}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for n.lead.Term() == term {
			watch := n.lead.Watch()
			if n.lead.Term() != term {
				break
			}
			select {
			case <-watch:
			case <-n.done:
				cancel()
				return
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	defer func() {
		if r := recover(); r != nil {
			n.log.Error("a handler panicked", "handler", name, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			out, err = nil, &wire.Error{Code: wire.ErrPanic, Msg: fmt.Sprint(r)}
		}
	}()
	out, err = f(ctx, body)
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil, &wire.Error{Code: wire.ErrOutcomeUnknown, Msg: "the handler was stopped by its context: " + err.Error()}
	}
	return nil, &wire.Error{Code: wire.ErrApp, Msg: err.Error()}
}

// ended is why a context has ended. A deadline that travelled may be noticed on the
// other node a moment before it is here.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if by, ok := ctx.Deadline(); ok && time.Until(by) < localPatience {
		return context.DeadlineExceeded
	}
	return nil
}
