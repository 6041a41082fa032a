package rpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// A direct connection carries one stream at a time, in the same frames as a stream of
// the multiplexed connection, and the goroutines that send and receive write and read it
// themselves: a message passes through no goroutine but theirs. It lives beside the
// multiplexed connection of the same two nodes and no longer than that, whose keep-alive
// so watches over both.
//
// After the handshake the server says with one byte that it serves the connection. Then
// one stream follows another: the caller opens the next when it has the last frame of
// the one before. What the caller sends between that and its next open frame belongs to
// the stream before and is thrown away. A stream that does not end on both sides ends
// its connection.
const (
	directReady = 1

	// directPerNodeMax bounds a client's direct connections with one node; what needs
	// more goes over the multiplexed one.
	directPerNodeMax = 128
	// directDialsMax bounds those that are being dialed at once.
	directDialsMax = 4
	// directRetry is how long after a failed dial the next may begin.
	directRetry = time.Second
	// directIdleMax is how long a client keeps one that it does not use. The server
	// waits longer, so that it is the client who ends it.
	directIdleMax      = 30 * time.Second
	directServeIdleMax = 90 * time.Second
)

// MaxDirectDefault is ServerConfig.MaxDirect's default.
const MaxDirectDefault = 256

// directConn is a direct connection of either side.
type directConn struct {
	net.Conn
	r    *bufio.Reader
	of   *directSet
	idle *time.Timer // client: ends it when it is not used; nil until it first lay idle
}

func newDirectConn(conn net.Conn, of *directSet) *directConn {
	return &directConn{Conn: conn, r: bufio.NewReader(conn), of: of}
}

// Read implements net.Conn.
func (d *directConn) Read(b []byte) (int, error) { return d.r.Read(b) }

// Write implements net.Conn. It ends a peer that takes nothing, as on the multiplexed
// connection.
func (d *directConn) Write(b []byte) (int, error) {
	if err := d.Conn.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
		return 0, err
	}
	return d.Conn.Write(b)
}

// Close implements net.Conn.
func (d *directConn) Close() error {
	d.of.remove(d)
	return d.Conn.Close()
}

// takeEnd takes an end frame that has arrived already; false if there is none.
func (d *directConn) takeEnd() bool {
	if d.r.Buffered() < headBytes {
		return false
	}
	head, _ := d.r.Peek(headBytes)
	if head[4] != frameEnd || binary.BigEndian.Uint32(head) != 0 {
		return false
	}
	_, _ = d.r.Discard(headBytes)
	return true
}

// directSet is the direct connections beside a multiplexed one.
type directSet struct {
	mu        sync.Mutex
	all       map[*directConn]struct{} // guarded by mu
	idle      []*directConn            // guarded by mu: client: those without a stream, the last used last
	dialing   int                      // guarded by mu
	notBefore time.Time                // guarded by mu: of the next dial
	closed    bool                     // guarded by mu
}

// add enters a connection; false when the multiplexed one has ended.
func (s *directSet) add(d *directConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.all == nil {
		s.all = make(map[*directConn]struct{})
	}
	s.all[d] = struct{}{}
	return true
}

func (s *directSet) remove(d *directConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, d)
	if i := slices.Index(s.idle, d); i >= 0 {
		s.idle = slices.Delete(s.idle, i, i+1)
	}
	if d.idle != nil {
		d.idle.Stop()
	}
}

// close ends all of them, and those to come.
func (s *directSet) close() {
	s.mu.Lock()
	s.closed = true
	all := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	for _, d := range all {
		_ = d.Close()
	}
}

// take returns one that lies idle, nil if there is none.
func (s *directSet) take() *directConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == 0 {
		return nil
	}
	d := s.idle[len(s.idle)-1]
	s.idle = s.idle[:len(s.idle)-1]
	if d.idle != nil {
		d.idle.Stop()
	}
	return d
}

// put lets one lie idle, unless it has ended.
func (s *directSet) put(d *directConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.all[d]; !ok {
		return
	}
	s.idle = append(s.idle, d)
	if d.idle == nil {
		d.idle = time.AfterFunc(directIdleMax, func() { s.expire(d) })
	} else {
		d.idle.Reset(directIdleMax)
	}
}

// expire ends one that has lain idle for too long, if it still does.
func (s *directSet) expire(d *directConn) {
	s.mu.Lock()
	i := slices.Index(s.idle, d)
	if i >= 0 {
		s.idle = slices.Delete(s.idle, i, i+1) // so that nobody takes it
	}
	s.mu.Unlock()
	if i >= 0 {
		_ = d.Close()
	}
}

// reserve says whether one more may be dialed, which settle must follow.
func (s *directSet) reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.dialing >= directDialsMax || len(s.all)+s.dialing >= directPerNodeMax || time.Now().Before(s.notBefore) {
		return false
	}
	s.dialing++
	return true
}

// settle ends a dial.
func (s *directSet) settle(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing--
	if err != nil {
		s.notBefore = time.Now().Add(directRetry)
	}
}

// OpenDirect is Open for a stream whose messages are to be under way as short as
// possible. It takes a direct connection that lies idle; if there is none the stream is
// one of the multiplexed connection, and a direct one is dialed for those to come. The
// peer must take what is sent to it: a write that makes no progress ends the stream. The
// stream begins with the first Send. ctx bounds the opening alone; the stream ends with
// life.
func (c *Client) OpenDirect(ctx, life context.Context, nodeID, method string) (*Stream, error) {
	session, conn, err := c.session(ctx, nodeID)
	if err != nil {
		return nil, fmt.Errorf("%w to node %q: %w", ErrNotDelivered, nodeID, err)
	}
	var d *directConn
	if c.cfg.DialDirect != nil && len(method) <= MethodBytesMax {
		if d = conn.direct.take(); d == nil {
			c.dialDirect(nodeID, &conn.direct)
		}
	}
	if d == nil {
		return c.open(ctx, life, session, conn, method, false, nil)
	}
	st := &Stream{conn: d, direct: d, ctx: life, maxFrame: c.cfg.MaxFrame, delivery: &delivery{},
		opening: appendOpen(nil, method, remoteTimeout(life))}
	st.stopWatch = context.AfterFunc(life, st.shut)
	return st, nil
}

// dialDirect has one more direct connection dialed, within bounds.
func (c *Client) dialDirect(nodeID string, of *directSet) {
	if !of.reserve() {
		return
	}
	ok := c.group.Go("rpc direct dial", func(gctx context.Context) {
		ctx, cancel := context.WithTimeout(gctx, c.cfg.DialTimeout)
		defer cancel()
		d, err := c.newDirect(ctx, nodeID, of)
		of.settle(err)
		if err == nil {
			of.put(d)
		}
	})
	if !ok {
		of.settle(ErrClosed)
	}
}

func (c *Client) newDirect(ctx context.Context, nodeID string, of *directSet) (*directConn, error) {
	conn, _, err := c.cfg.DialDirect(ctx, nodeID)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var ready [1]byte
	if _, err = io.ReadFull(conn, ready[:]); err == nil && ready[0] != directReady {
		err = errFrame
	}
	d := newDirectConn(conn, of)
	if err == nil && (!stop() || !of.add(d)) {
		err = ErrClosed
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return d, nil
}

// serveDirect serves a direct connection, one stream after another.
func (s *Server) serveDirect(conn net.Conn, peer wire.Hello) {
	d := s.enterDirect(conn, peer)
	if d == nil {
		conn.Close()
		return
	}
	defer s.leaveDirect()
	defer d.Close()
	ended := make(chan struct{})
	if s.group.Go("rpc direct connection", func(gctx context.Context) {
		defer close(ended)
		ctx, cancel := context.WithCancel(gctx)
		defer cancel()
		c := &serverConn{s: s, peer: peer, ctx: ctx}
		c.serveStreams(d, newReader(d, s.cfg.MaxFrame, s.background, cancel))
	}) {
		<-ended
	}
}

// enterDirect takes a direct connection in beside the multiplexed one of the same node,
// nil if there is none or there are too many.
func (s *Server) enterDirect(conn net.Conn, peer wire.Hello) *directConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	beside := s.newest[peer.NodeID]
	if s.closed || beside == nil || s.direct >= s.cfg.MaxDirect {
		return nil
	}
	d := newDirectConn(conn, &beside.direct)
	if !beside.direct.add(d) {
		return nil
	}
	s.direct++
	return d
}

func (s *Server) leaveDirect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.direct--
}

// serveStreams serves the streams of a direct connection until one does not end as it
// should, or no further comes.
func (c *serverConn) serveStreams(d *directConn, in *reader) {
	defer in.drain()
	defer d.Close() // so that what reads ahead ends
	if _, err := d.Write([]byte{directReady}); err != nil {
		return
	}
	for {
		if d.SetReadDeadline(time.Now().Add(directServeIdleMax)) != nil {
			return
		}
		f, err := in.next(c.ctx, nil)
		if err != nil {
			return
		}
		if f.typ != frameOpen {
			continue // the stream before has ended meanwhile
		}
		method, timeout, err := decodeOpen(f.body)
		if err != nil || d.SetReadDeadline(time.Time{}) != nil {
			return
		}
		st := &Stream{conn: d, maxFrame: c.s.cfg.MaxFrame, in: in}
		e, intact := c.run(c.ctx, st, method, timeout)
		st.Ahead(nil)
		st.end(e)
		if !intact || st.isCut() || errors.Is(st.recvEnd, errFrame) {
			return
		}
	}
}
