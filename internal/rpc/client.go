// Package rpc carries calls between nodes: a yamux session per connection, a
// stream per call. Closing a stream ends the context of the handler at the other
// side, deadlines travel with the call, and every failure says whether the
// request may have been delivered.
//
// The room knows nothing of addresses or of how connections are made safe: it is
// given connections that are authenticated already.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/wire"
)

// Defaults of ClientConfig.
const (
	DialTimeoutDefault = 10 * time.Second
	// backoffMin and backoffMax bound the pause between two dials of one node.
	backoffMin = 10 * time.Millisecond
	backoffMax = 250 * time.Millisecond
)

// ClientConfig configures a Client.
type ClientConfig struct {
	// Dial opens an authenticated connection to a node. It must end with its ctx.
	Dial func(ctx context.Context, nodeID string) (net.Conn, wire.Hello, error)
	// DialDirect is Dial for a connection whose purpose is wire.PurposeDirect. nil:
	// OpenDirect is Open.
	DialDirect func(ctx context.Context, nodeID string) (net.Conn, wire.Hello, error)
	// Logger; nil discards.
	Logger *slog.Logger
	// MaxFrame bounds one message, in bytes (wire.MaxFrameBytes).
	MaxFrame int
	// DialTimeout bounds one call of Dial (10 s).
	DialTimeout time.Duration
}

// Client opens streams to nodes, over one connection per node that is dialed when
// first needed and again when it has died. Safe for concurrent use.
type Client struct {
	cfg   ClientConfig
	log   *slog.Logger
	group *lifecycle.Group

	mu     sync.Mutex
	nodes  map[string]*nodeConn // guarded by mu
	closed bool                 // guarded by mu
}

// nodeConn is the connection to one node, or the attempt to have one. Its fields
// are guarded by Client.mu.
type nodeConn struct {
	session *yamux.Session
	conn    *muxConn

	dialing   chan struct{} // closed when the dial under way ends; nil if none
	dialErr   error         // of the last dial
	pause     time.Duration // before the next dial; 0 after a success
	notBefore time.Time     // of the next dial
}

// NewClient returns a client without connections.
func NewClient(cfg ClientConfig) *Client {
	if cfg.MaxFrame <= 0 {
		cfg.MaxFrame = wire.MaxFrameBytes
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = DialTimeoutDefault
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, log: cfg.Logger, group: lifecycle.NewGroup(), nodes: make(map[string]*nodeConn)}
}

// Open opens a stream of the method. The stream ends with ctx; its deadline
// travels to the handler. Every error here is ErrNotDelivered but for one that
// came while the request's first bytes were being written.
func (c *Client) Open(ctx context.Context, nodeID, method string) (*Stream, error) {
	session, conn, err := c.session(ctx, nodeID)
	if err != nil {
		return nil, fmt.Errorf("%w to node %q: %w", ErrNotDelivered, nodeID, err)
	}
	return c.open(ctx, ctx, session, conn, method, false, nil)
}

// Call sends one request and waits for its one response. An error of the handler
// is a *wire.Error.
func (c *Client) Call(ctx context.Context, nodeID, method string, req []byte) ([]byte, error) {
	session, conn, err := c.session(ctx, nodeID)
	if err != nil {
		return nil, fmt.Errorf("%w to node %q: %w", ErrNotDelivered, nodeID, err)
	}
	return c.call(ctx, session, conn, method, req)
}

// CallConn is Call over a connection of its own, which it closes: for joining,
// when there is no node ID yet.
func (c *Client) CallConn(ctx context.Context, conn net.Conn, method string, req []byte) ([]byte, error) {
	mc := &muxConn{Conn: conn}
	session, err := yamux.Client(mc, muxConfig(c.log))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", ErrNotDelivered, err)
	}
	defer session.Close()
	return c.call(ctx, session, mc, method, req)
}

func (c *Client) call(ctx context.Context, session *yamux.Session, conn *muxConn, method string, req []byte) ([]byte, error) {
	if len(req) > c.cfg.MaxFrame {
		return nil, fmt.Errorf("%w: %w: %d bytes, at most %d", ErrNotDelivered, ErrTooLarge, len(req), c.cfg.MaxFrame)
	}
	st, err := c.open(ctx, ctx, session, conn, method, true, req)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	resp, err := st.Recv()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: the handler of %q sent no response", ErrInterrupted, method)
	}
	if err != nil {
		return nil, err
	}
	// The handler's end decides whether the response stands.
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = st.broken(fmt.Errorf("%w: a second response of %q", errFrame, method))
		}
		return nil, err
	}
	return resp, nil
}

// open opens a stream, which ends with life, and sends the open frame, with the one
// request of a Call in the same write where it is small.
func (c *Client) open(ctx, life context.Context, session *yamux.Session, conn *muxConn, method string, unary bool, req []byte) (*Stream, error) {
	if len(method) > MethodBytesMax {
		return nil, fmt.Errorf("%w: method name of %d bytes", ErrNotDelivered, len(method))
	}
	first := appendOpen(make([]byte, 0, 3*headBytes+16+len(method)+min(len(req), stepBytes)), method, remoteTimeout(life))
	whole := unary && len(first)+len(req)+2*headBytes <= stepBytes
	if whole {
		at := len(first)
		first = append(append(first, 0, 0, 0, 0, 0), req...)
		putHead(first[at:], frameData, len(req))
		at = len(first)
		first = append(first, 0, 0, 0, 0, 0)
		putHead(first[at:], frameEnd, 0)
	}
	d := &delivery{}
	mux, err := c.openMux(ctx, session, conn, first, d)
	if err != nil {
		return nil, d.explain(err)
	}
	st := &Stream{conn: mux, ctx: life, maxFrame: c.cfg.MaxFrame, delivery: d, sendEnd: whole,
		forget: func() { conn.unwatch(mux.StreamID()) }, sender: &sender{group: c.group, closed: make(chan struct{})}}
	st.stopWatch = context.AfterFunc(life, st.shut)
	if unary && !whole {
		st.sendMu.Lock()
		defer st.sendMu.Unlock()
		err := st.sendLocked(frameData, req, false)
		if st.sendEnd = true; err == nil {
			err = st.sendLocked(frameEnd, nil, false)
		}
		if err != nil {
			st.Close()
			return nil, err
		}
	}
	return st, nil
}

// openMux opens a yamux stream and writes its first bytes. Both may wait for the
// peer, and yamux knows no contexts: a goroutine waits, and when ctx ends first it
// cleans up by itself.
func (c *Client) openMux(ctx context.Context, session *yamux.Session, conn *muxConn, first []byte, d *delivery) (*yamux.Stream, error) {
	type result struct {
		mux *yamux.Stream
		err error
	}
	var taken atomic.Bool // by the result or by the context's end
	done := make(chan result, 1)
	ok := c.group.Go("rpc open", func(context.Context) {
		mux, err := session.OpenStream()
		if err == nil {
			conn.watch(mux.StreamID(), d)
			if d.state.Load() == deliveryWaiting {
				_, err = mux.Write(first)
			}
		}
		won := taken.CompareAndSwap(false, true)
		if mux != nil && (err != nil || !won) {
			conn.unwatch(mux.StreamID())
			mux.Close()
			mux = nil
		}
		done <- result{mux, err}
	})
	if !ok {
		return nil, ErrClosed
	}
	select {
	case r := <-done:
		return r.mux, r.err
	case <-ctx.Done():
		if taken.CompareAndSwap(false, true) {
			d.revoke()
			return nil, ctx.Err()
		}
		r := <-done
		return r.mux, r.err
	}
}

// session returns the live session with a node, waiting for a dial. Concurrent
// callers share one dial, which lives on when one of them gives up. After a
// failure the next dial waits for a moment (at most backoffMax).
func (c *Client) session(ctx context.Context, nodeID string) (*yamux.Session, *muxConn, error) {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, nil, ErrClosed
		}
		n := c.nodes[nodeID]
		if n == nil {
			n = &nodeConn{}
			c.nodes[nodeID] = n
		}
		if n.session != nil && !n.session.IsClosed() {
			session, conn := n.session, n.conn
			c.mu.Unlock()
			return session, conn, nil
		}
		if n.dialing == nil {
			n.dialing = make(chan struct{})
			if !c.group.Go("rpc dial", func(gctx context.Context) { c.dial(gctx, nodeID, n) }) {
				c.mu.Unlock()
				return nil, nil, ErrClosed
			}
		}
		dialing := n.dialing
		c.mu.Unlock()

		select {
		case <-dialing:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		c.mu.Lock()
		session, conn, err := n.session, n.conn, n.dialErr
		c.mu.Unlock()
		if err != nil {
			return nil, nil, err
		}
		if !session.IsClosed() {
			return session, conn, nil
		}
	}
}

// dial does the one dial of n that is under way.
func (c *Client) dial(gctx context.Context, nodeID string, n *nodeConn) {
	c.mu.Lock()
	wait := time.Until(n.notBefore)
	c.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-gctx.Done():
		}
	}
	ctx, cancel := context.WithTimeout(gctx, c.cfg.DialTimeout)
	conn, _, err := c.cfg.Dial(ctx, nodeID)
	cancel()
	var session *yamux.Session
	var mc *muxConn
	if err == nil {
		mc = &muxConn{Conn: conn}
		if session, err = yamux.Client(mc, muxConfig(c.log)); err != nil {
			conn.Close()
		}
	}
	if err = c.settle(nodeID, n, session, mc, err); err != nil && session != nil {
		session.Close()
	}
}

// settle ends the dial under way with its result. The error it returns says that
// the session is not wanted.
func (c *Client) settle(nodeID string, n *nodeConn, session *yamux.Session, conn *muxConn, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && (c.closed || c.nodes[nodeID] != n) {
		err = fmt.Errorf("%w: connection dropped while dialing", ErrClosed)
	}
	n.dialErr = err
	if err == nil {
		n.session, n.conn = session, conn
		n.pause, n.notBefore = 0, time.Time{}
	} else {
		n.session, n.conn = nil, nil
		n.pause = min(max(2*n.pause, backoffMin), backoffMax)
		n.notBefore = time.Now().Add(n.pause)
	}
	close(n.dialing)
	n.dialing = nil
	return err
}

// Drop closes the connection to a node; the next call dials anew, at once.
func (c *Client) Drop(nodeID string) {
	c.mu.Lock()
	n := c.nodes[nodeID]
	delete(c.nodes, nodeID)
	var session *yamux.Session
	if n != nil {
		session = n.session
	}
	c.mu.Unlock()
	if session != nil {
		session.Close()
	}
}

// Close closes every connection and ends every stream and waits for what the
// client started. Idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	var open []*yamux.Session
	for _, n := range c.nodes {
		if n.session != nil {
			open = append(open, n.session)
		}
	}
	c.mu.Unlock()
	for _, session := range open {
		session.Close()
	}
	c.group.Stop()
	return nil
}
