package colmena

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/handlers"
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
	insider := func(h rpc.Handler) rpc.Handler { return admitted(n.members.AdmitInsider, h) }
	member := func(h rpc.Handler) rpc.Handler { return admitted(n.members.AdmitMember, h) }
	n.server.Handle(methodWrite, member(n.serveWrites))
	n.server.Handle(methodMark, member(n.serveMarks))
	n.server.Handle(methodTerm, member(n.serveTerms))
	n.server.Handle(methodQuery, member(n.serveQuery))
	n.server.Handle(methodTx, member(n.serveTx))
	n.server.Handle(methodForward, member(unary(n.handlers.Serve)))
	n.server.Handle(members.MethodList, insider(unary(n.members.ServeList)))
	n.server.Handle(members.MethodProgress, member(unary(n.members.ServeProgress)))
	n.server.Handle(members.MethodChange, insider(func(ctx context.Context, peer wire.Hello, st *rpc.Stream) error {
		change := func(ctx context.Context, b []byte) ([]byte, error) { return nil, n.members.ServeChange(ctx, peer, b) }
		return unary(change)(ctx, peer, st)
	}))
}

// admitted lets a handler answer those whom admit has nothing against.
func admitted(admit func(wire.Hello) error, h rpc.Handler) rpc.Handler {
	return func(ctx context.Context, peer wire.Hello, st *rpc.Stream) error {
		if err := admit(peer); err != nil {
			return err
		}
		return h(ctx, peer, st)
	}
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

// RegisterHandler registers what Forward runs under the key when this node leads.
// Register on every node, in Config.Setup, before the port opens. The handler's
// context ends with the caller's, and when leadership ends.
func RegisterHandler[Req, Resp any](n *Node, key HandlerKey[Req, Resp], f func(context.Context, Req) (Resp, error)) error {
	return n.handlers.Register(key.name, func(ctx context.Context, b []byte) ([]byte, error) {
		var req Req
		if err := json.Unmarshal(b, &req); err != nil {
			return nil, fmt.Errorf("request of handler %q: %w", key.name, err)
		}
		resp, err := f(ctx, req)
		if err != nil {
			return nil, err
		}
		return json.Marshal(resp)
	})
}

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

// newHandlers makes what runs handlers while this node leads.
func (n *Node) newHandlers() *handlers.Set {
	return handlers.New(handlers.Config{NodeID: n.ID, Term: n.lead.Term, During: n.lead.During, Group: n.group, Done: n.done, Closed: ErrClosed, Logger: n.log})
}

// forwardGrace is how long the answer of a node that leads no more is waited for: the
// contexts of its handlers have ended.
const forwardGrace = time.Second

// forwardThere has the leader run a handler. One that hangs is not waited for when another
// has led for a while.
func (n *Node) forwardThere(ctx context.Context, leader string, req []byte) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(n.lead.Tenure(leader), func() {
		select {
		case <-time.After(forwardGrace):
			cancel()
		case <-ctx.Done():
		}
	})
	defer stop()
	return n.client.Call(ctx, leader, methodForward, req)
}

func (n *Node) forward(ctx context.Context, name string, body []byte) (out []byte, err error) {
	lost := n.lead.Ask(ctx, n.lead.Deadline(), func(leader string, local bool) (again bool) {
		if local {
			out, err = n.handlers.Here(ctx, name, body)
		} else {
			out, err = n.forwardThere(ctx, leader, handlers.Encode(name, body))
		}
		return handlers.Undelivered(err)
	})
	var w *wire.Error
	switch {
	case lost != nil:
		return nil, notApplied(noLeader(ctx, lost), "forward %q: %v", name, lost)
	case err == nil:
		return out, nil
	case errors.As(err, &w) && (w.Code == wire.ErrApp || w.Code == wire.ErrPanic):
		return nil, &HandlerError{Name: name, Msg: w.Msg, Panic: w.Code == wire.ErrPanic}
	case handlers.Unknown(err):
		return nil, outcomeUnknown(errors.Join(err, handlers.Ended(ctx)), "forward %q: %v", name, err)
	}
	return nil, userError(err)
}
