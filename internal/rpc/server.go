package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/wire"
)

// MaxStreamsDefault is ServerConfig.MaxStreams's default.
const MaxStreamsDefault = 4096

// Handler serves one stream. Its ctx ends when the caller closes the stream (which is
// noticed within awayMax of the handler's last Recv), the connection dies, the caller's
// deadline passes or the server closes; it must return soon after. What it returns reaches
// the caller: a *wire.Error as such, a context's error as ErrTimeout or ErrCanceled, any
// other as ErrInternal with its text. st is closed when it returns.
type Handler func(ctx context.Context, peer wire.Hello, st *Stream) error

// ServerConfig configures a Server. The zero value is usable.
type ServerConfig struct {
	Logger     *slog.Logger // nil discards
	MaxStreams int          // streams at once per connection (4096); more are refused with ErrBusy
	MaxDirect  int          // direct connections of all nodes (256); more are closed, and their nodes do without
	MaxFrame   int          // bytes of one message (wire.MaxFrameBytes)
}

// Server runs handlers for the streams of the connections it is given.
type Server struct {
	cfg      ServerConfig
	log      *slog.Logger
	group    *lifecycle.Group
	handlers map[string]Handler // fixed once serving

	mu       sync.Mutex
	sessions map[*yamux.Session]struct{}
	newest   map[string]*muxConn // the latest multiplexed connection of each node
	direct   int                 // how many direct connections there are
	closed   bool
}

// NewServer returns a server without handlers.
func NewServer(cfg ServerConfig) *Server {
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = MaxStreamsDefault
	}
	if cfg.MaxDirect <= 0 {
		cfg.MaxDirect = MaxDirectDefault
	}
	if cfg.MaxFrame <= 0 {
		cfg.MaxFrame = wire.MaxFrameBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg:      cfg,
		log:      cfg.Logger,
		group:    lifecycle.NewGroup(),
		handlers: make(map[string]Handler),
		sessions: make(map[*yamux.Session]struct{}),
		newest:   make(map[string]*muxConn),
	}
}

// Handle registers a method. It must not be called once connections are served;
// a method registered twice or with a name over MethodBytesMax is a programming
// error and panics.
func (s *Server) Handle(method string, h Handler) {
	if method == "" || len(method) > MethodBytesMax || h == nil || s.handlers[method] != nil {
		panic(fmt.Sprintf("rpc: bad registration of method %q", method))
	}
	s.handlers[method] = h
}

// ServeConn serves a connection and owns it: a direct one if that is the purpose the
// peer came with, else a multiplexed one. It blocks until the connection has ended and
// every handler on it has returned.
func (s *Server) ServeConn(conn net.Conn, peer wire.Hello) {
	if peer.Purpose == wire.PurposeDirect {
		s.serveDirect(conn, peer)
		return
	}
	mc := &muxConn{Conn: conn}
	session, err := yamux.Server(mc, muxConfig(s.log))
	if err != nil {
		s.log.Error("rpc: no session", "error", err)
		conn.Close()
		return
	}
	if !s.enter(session, mc, peer.NodeID) {
		session.Close()
		return
	}
	defer s.leave(session, mc, peer.NodeID)
	defer session.Close()
	ctx, cancel := context.WithCancel(s.group.Context())
	sc := &serverConn{s: s, peer: peer, ctx: ctx}
	defer sc.wg.Wait()
	defer cancel()
	for {
		st, err := session.AcceptStream()
		if err != nil {
			return
		}
		if session.NumStreams() > 2*s.cfg.MaxStreams+acceptBacklog {
			s.log.Warn("rpc: peer leaves too many streams behind, closing its connection", "peer", peer.NodeID)
			return
		}
		sc.start(st)
	}
}

func (s *Server) enter(session *yamux.Session, conn *muxConn, nodeID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.sessions[session] = struct{}{}
	s.newest[nodeID] = conn
	return true
}

func (s *Server) leave(session *yamux.Session, conn *muxConn, nodeID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, session)
	if s.newest[nodeID] == conn {
		delete(s.newest, nodeID)
	}
}

// Close ends every connection and the contexts of all handlers and waits for
// them. Idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var open []*yamux.Session
	for session := range s.sessions {
		open = append(open, session)
	}
	s.mu.Unlock()
	for _, session := range open {
		session.Close()
	}
	s.group.Stop()
	return nil
}

// serverConn is one connection being served.
type serverConn struct {
	s      *Server
	peer   wire.Hello
	ctx    context.Context
	wg     sync.WaitGroup
	active atomic.Int32
}

// start serves an accepted stream on a goroutine of its own.
func (c *serverConn) start(mux *yamux.Stream) {
	busy := int(c.active.Add(1)) > c.s.cfg.MaxStreams
	c.wg.Add(1)
	ok := c.s.group.Go("rpc stream", func(context.Context) {
		defer c.wg.Done()
		defer c.active.Add(-1)
		c.serveStream(mux, busy)
	})
	if !ok {
		c.active.Add(-1)
		c.wg.Done()
		mux.Close()
	}
}

// openTimeout bounds the time between a stream and its open frame.
const openTimeout = 10 * time.Second

func (c *serverConn) serveStream(mux *yamux.Stream, busy bool) {
	st := &Stream{conn: mux, maxFrame: c.s.cfg.MaxFrame}
	defer st.Close()
	if busy {
		st.refuse(&wire.Error{Code: wire.ErrBusy, Msg: fmt.Sprintf("more than %d streams on one connection", c.s.cfg.MaxStreams)})
		return
	}
	mux.SetReadDeadline(time.Now().Add(openTimeout))
	typ, body, err := readFrame(mux, MethodBytesMax+16, nil)
	if err != nil || typ != frameOpen {
		return
	}
	method, timeout, err := decodeOpen(body)
	if err != nil {
		return
	}
	mux.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	st.in = newReader(mux, c.s.cfg.MaxFrame, c.s.background, cancel)
	e, _ := c.run(ctx, st, method, timeout)
	st.finish(e)
	st.in.drain()
}

// run invokes the handler of a stream and returns what its caller is to be told. intact
// says that the stream's deadlines were left alone.
func (c *serverConn) run(ctx context.Context, st *Stream, method string, timeout time.Duration) (e *wire.Error, intact bool) {
	h := c.s.handlers[method]
	if h == nil {
		return &wire.Error{Code: wire.ErrNoHandler, Msg: fmt.Sprintf("no handler for %q", method)}, true
	}
	var cancel context.CancelFunc
	if timeout > 0 {
		st.ctx, cancel = context.WithTimeout(ctx, timeout)
	} else {
		st.ctx, cancel = context.WithCancel(ctx)
	}
	defer cancel()
	// The context's end unblocks a Send that waits for the caller to read, and a
	// Recv; the caller's end reaches the handler through the reader.
	ended := make(chan struct{})
	stop := context.AfterFunc(st.ctx, func() {
		defer close(ended)
		st.conn.SetDeadline(time.Unix(1, 0))
	})
	st.in.leave()
	err := c.invoke(h, method, st)
	if intact = stop(); !intact {
		<-ended
	}
	return toWire(err), intact
}

// background runs a goroutine that reads ahead, unless the server is closed.
func (s *Server) background(f func()) bool {
	return s.group.Go("rpc read ahead", func(context.Context) { f() })
}

// finish sends the stream's last frame and closes our direction. The caller may
// be in the middle of sending: what still comes is to be read and thrown away until it
// has noticed, or it would wait for ever for somebody to read.
func (s *Stream) finish(e *wire.Error) {
	s.conn.SetDeadline(time.Now().Add(drainTimeout))
	s.end(e)
	s.conn.Close()
}

// refuse finishes a stream that no handler serves.
func (s *Stream) refuse(e *wire.Error) {
	s.finish(e)
	// Whatever ends it, the stream is over.
	_, _ = io.Copy(io.Discard, s.conn)
}

// drainTimeout bounds how long a stream whose handler has returned waits for the
// caller to take the answer and close.
const drainTimeout = 10 * time.Second

// invoke runs the handler; a panic in it becomes an error.
func (c *serverConn) invoke(h Handler, method string, st *Stream) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.s.log.Error("rpc handler panicked", "method", method, "peer", c.peer.NodeID, "panic", p, "stack", string(debug.Stack()))
			err = &wire.Error{Code: wire.ErrPanic, Msg: cut(fmt.Sprintf("handler of %q panicked: %v", method, p), msgBytesMax)}
		}
	}()
	return h(st.ctx, c.peer, st)
}

// end sends the stream's last frame: nil means that all went well. After a frame
// that was left incomplete it must not: the caller would take it for the rest. Nor
// after the end: what follows that on a direct connection is the next stream's.
func (s *Stream) end(e *wire.Error) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendCut || s.sendEnd {
		return
	}
	if e == nil {
		s.sendBuf = append(s.sendBuf[:0], 0, 0, 0, 0, 0)
		putHead(s.sendBuf, frameEnd, 0)
	} else {
		s.sendBuf = appendFailure(s.sendBuf[:0], e)
	}
	s.sendEnd = true
	// The caller may be gone, which it then knows itself.
	for b := s.sendBuf; len(b) > 0; {
		step := b[:min(len(b), stepBytes)]
		if _, err := s.conn.Write(step); err != nil {
			return
		}
		b = b[len(step):]
	}
}

const (
	msgBytesMax    = 4 << 10
	detailBytesMax = 64 << 10
)

// toWire is the form in which a handler's error travels, within bounds.
func toWire(err error) *wire.Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*wire.Error](err); ok {
		c := *e
		c.Msg, c.Detail = cut(c.Msg, detailBytesMax), cut(c.Detail, detailBytesMax)
		c.SQL = cut(c.SQL, wire.MaxStatementBytes)
		return &c
	}
	e := &wire.Error{Code: wire.ErrInternal, Msg: cut(err.Error(), msgBytesMax)}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = wire.ErrTimeout
	case errors.Is(err, context.Canceled):
		e.Code = wire.ErrCanceled
	}
	return e
}

func cut(s string, n int) string { return s[:min(len(s), n)] }
