package transport

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/wire"
)

// raftNet is raft's transport over the node's port. It takes the place of raft's
// own NetworkTransport, whose decoder allocates what a peer claims (a frame of 20
// bytes can claim 256 MiB), whose pool hands out connections that died while idle
// (after a peer's restart each costs a failed vote), and whose goroutines nobody
// can wait for. Frames of our own with a bound per type (raftcodec.go) are less
// code than a guard that would have to agree with that decoder on every byte.
//
// Server addresses are node IDs; every dial resolves the ID anew, so members may
// move to other addresses.
type raftNet struct {
	t       *Transport
	localID string
	rpcs    chan raft.RPC

	heartbeat atomic.Pointer[func(raft.RPC)]

	dialing     context.Context // ends with Close
	stopDialing context.CancelFunc
	stopped     chan struct{}
	stopOnce    sync.Once

	mu   sync.Mutex
	pool map[string][]*raftConn // idle connections by node ID, oldest first
}

var (
	_ raft.Transport   = (*raftNet)(nil)
	_ raft.WithPreVote = (*raftNet)(nil)
	_ raft.WithClose   = (*raftNet)(nil)
)

const (
	// pipelineDepth is how many AppendEntries of a pipeline are under way at once.
	// Raft's own measurements: more hurts commit latency as soon as entries batch.
	pipelineDepth = 2
	// poolIdleMax is how long an idle connection is kept. The listening side keeps
	// it longer (serveIdleMax), so that it is the dialer who ends it.
	poolIdleMax  = 30 * time.Second
	serveIdleMax = 90 * time.Second
	raftBufBytes = 64 << 10
	// snapshotRate is the slowest a snapshot may be installed at, in bytes per second.
	snapshotRate = 1 << 20
)

func newRaftNet(t *Transport, localID string) *raftNet {
	dialing, stopDialing := context.WithCancel(t.ctx)
	return &raftNet{
		t: t, dialing: dialing, stopDialing: stopDialing,
		localID: localID,
		rpcs:    make(chan raft.RPC),
		stopped: make(chan struct{}),
		pool:    make(map[string][]*raftConn),
	}
}

// Consumer implements raft.Transport.
func (n *raftNet) Consumer() <-chan raft.RPC { return n.rpcs }

// LocalAddr implements raft.Transport: the node ID.
func (n *raftNet) LocalAddr() raft.ServerAddress { return raft.ServerAddress(n.localID) }

// EncodePeer implements raft.Transport.
func (n *raftNet) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer implements raft.Transport.
func (n *raftNet) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport.
func (n *raftNet) SetHeartbeatHandler(f func(raft.RPC)) {
	if f == nil {
		n.heartbeat.Store(nil)
		return
	}
	n.heartbeat.Store(&f)
}

// Close ends raft's use of the port, and only that; the transport's Close waits
// for the goroutines. Idempotent.
func (n *raftNet) Close() error {
	n.stopOnce.Do(func() { close(n.stopped) })
	n.stopDialing()
	n.mu.Lock()
	clear(n.pool)
	n.mu.Unlock()
	n.t.closeWhere(func(c *peerConn) bool { return c.purpose == wire.PurposeRaft })
	return nil
}

func (n *raftNet) isStopped() bool {
	select {
	case <-n.stopped:
		return true
	default:
		return false
	}
}

// AppendEntries implements raft.Transport.
func (n *raftNet) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return n.call(nodeID(id, target), req, resp)
}

// RequestVote implements raft.Transport.
func (n *raftNet) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return n.call(nodeID(id, target), req, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (n *raftNet) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return n.call(nodeID(id, target), req, resp)
}

// TimeoutNow implements raft.Transport.
func (n *raftNet) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return n.call(nodeID(id, target), req, resp)
}

// nodeID is whom raft means. ID and address are the same; the address stands in
// where raft knows no ID.
func nodeID(id raft.ServerID, target raft.ServerAddress) string {
	if id != "" {
		return string(id)
	}
	return string(target)
}

// call does one RPC. A connection from the pool may have died while it lay idle,
// so a failure on one is tried again, once, on a new one: raft's RPCs are
// idempotent.
func (n *raftNet) call(id string, req, resp any) error {
	deadline := time.Now().Add(n.t.cfg.RaftTimeout)
	for {
		c, pooled, err := n.get(id, deadline)
		if err != nil {
			return err
		}
		remote, err := c.roundTrip(req, resp, deadline)
		if err == nil {
			n.put(id, c)
			return remote
		}
		c.Close()
		if ne, ok := errors.AsType[net.Error](err); !pooled || n.isStopped() || (ok && ne.Timeout()) {
			return err
		}
		n.dropPool(id)
	}
}

// get takes an idle connection or dials one.
func (n *raftNet) get(id string, deadline time.Time) (c *raftConn, pooled bool, err error) {
	if n.isStopped() {
		return nil, false, raft.ErrTransportShutdown
	}
	if n.t.isBlocked(id, wire.PurposeRaft) {
		return nil, false, ErrBlocked
	}
	if c := n.takeIdle(id); c != nil {
		return c, true, nil
	}
	ctx, cancel := context.WithDeadline(n.dialing, deadline)
	defer cancel()
	pc, err := n.t.dialNode(ctx, id, wire.PurposeRaft)
	if err != nil {
		return nil, false, err
	}
	c = newRaftConn(pc, n.t.cfg.RaftTimeout)
	if n.isStopped() { // Close may have looked before the connection was there
		c.Close()
		return nil, false, raft.ErrTransportShutdown
	}
	return c, false, nil
}

func (n *raftNet) takeIdle(id string) *raftConn {
	n.mu.Lock()
	defer n.mu.Unlock()
	idle := n.pool[id]
	for len(idle) > 0 {
		c := idle[len(idle)-1]
		idle = idle[:len(idle)-1]
		n.pool[id] = idle
		if time.Since(c.idleSince) < poolIdleMax {
			return c
		}
		c.Close()
	}
	return nil
}

func (n *raftNet) put(id string, c *raftConn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.isStopped() || len(n.pool[id]) >= n.t.cfg.MaxPool {
		c.Close()
		return
	}
	c.idleSince = time.Now()
	n.pool[id] = append(n.pool[id], c)
}

func (n *raftNet) dropPool(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.pool[id] {
		c.Close()
	}
	delete(n.pool, id)
}

// janitor closes connections that stay idle.
func (n *raftNet) janitor(ctx context.Context) {
	tick := time.NewTicker(poolIdleMax / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			n.sweep(time.Now().Add(-poolIdleMax))
		}
	}
}

// sweep closes what has been idle since before the given time.
func (n *raftNet) sweep(before time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, idle := range n.pool {
		keep := idle[:0]
		for _, c := range idle {
			if c.idleSince.Before(before) {
				c.Close()
			} else {
				keep = append(keep, c)
			}
		}
		clear(idle[len(keep):])
		if n.pool[id] = keep; len(keep) == 0 {
			delete(n.pool, id)
		}
	}
}

// InstallSnapshot implements raft.Transport. The transfer lasts as long as it
// makes progress; the answer, which comes after the snapshot was installed, has
// time by its size.
func (n *raftNet) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	c, _, err := n.get(nodeID(id, target), time.Now().Add(n.t.cfg.RaftTimeout))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.send(req); err != nil {
		return err
	}
	sent, err := io.Copy(c.w, io.LimitReader(data, req.Size))
	if err != nil {
		return err
	}
	if sent != req.Size {
		return fmt.Errorf("transport: snapshot has %d bytes, announced were %d", sent, req.Size)
	}
	if err := c.w.Flush(); err != nil {
		return err
	}
	patience := n.t.cfg.RaftTimeout + time.Duration(req.Size/snapshotRate)*time.Second
	remote, err := c.receive(resp, time.Now().Add(patience))
	if err != nil {
		return err
	}
	return remote
}

// AppendEntriesPipeline implements raft.Transport.
func (n *raftNet) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	c, _, err := n.get(nodeID(id, target), time.Now().Add(n.t.cfg.RaftTimeout))
	if err != nil {
		return nil, err
	}
	p := &pipeline{
		c:       c,
		timeout: n.t.cfg.RaftTimeout,
		sent:    make(chan *appendFuture, pipelineDepth-2),
		done:    make(chan raft.AppendFuture, pipelineDepth-2),
		stopped: make(chan struct{}),
	}
	if !n.t.group.Go("raft pipeline", func(context.Context) { p.receive() }) {
		c.Close()
		return nil, raft.ErrTransportShutdown
	}
	return p, nil
}

// raftConn is a raft connection, either side. It is used by one caller at a time,
// but a pipeline sends and receives at once.
type raftConn struct {
	*peerConn
	stream    *steadyConn
	r         *bufio.Reader
	w         *bufio.Writer
	buf       []byte // scratch of send
	idleSince time.Time
}

func newRaftConn(pc *peerConn, timeout time.Duration) *raftConn {
	s := &steadyConn{Conn: pc.Conn, timeout: timeout}
	return &raftConn{peerConn: pc, stream: s, r: bufio.NewReaderSize(s, raftBufBytes), w: bufio.NewWriterSize(s, raftBufBytes)}
}

func (c *raftConn) roundTrip(req, resp any, deadline time.Time) (remote, err error) {
	if err := c.send(req); err != nil {
		return nil, err
	}
	return c.receive(resp, deadline)
}

// send writes a request and what belongs to it, and flushes.
func (c *raftConn) send(req any) error {
	b, err := encodeRequest(c.buf[:0], req)
	if err != nil {
		return err
	}
	c.buf = b[:0]
	if _, err := c.w.Write(b); err != nil {
		return err
	}
	if r, ok := req.(*raft.AppendEntriesRequest); ok {
		for _, l := range r.Entries {
			if err := c.sendEntry(l); err != nil {
				return err
			}
		}
	}
	return c.w.Flush()
}

func (c *raftConn) sendEntry(l *raft.Log) error {
	b, err := encodeEntry(c.buf[:0], l)
	if err != nil {
		return err
	}
	c.buf = b[:0]
	if _, err := c.w.Write(b); err != nil {
		return err
	}
	_, err = c.w.Write(l.Data)
	return err
}

// receive reads the response to a request.
func (c *raftConn) receive(resp any, deadline time.Time) (remote, err error) {
	if err := c.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	typ, body, err := readFrame(c.r)
	if err != nil {
		return nil, err
	}
	return decodeResponse(typ, body, resp)
}

// steadyConn bounds the time a stream may make no progress, rather than the whole.
type steadyConn struct {
	net.Conn
	timeout time.Duration
	reading bool // reads have the timeout too; listening side only
}

// writeStepBytes is the unit of progress of a write.
const writeStepBytes = 1 << 20

func (c *steadyConn) Read(b []byte) (int, error) {
	if c.reading {
		if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(b)
}

func (c *steadyConn) Write(b []byte) (n int, err error) {
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return n, err
		}
		step := b[n:min(len(b), n+writeStepBytes)]
		m, err := c.Conn.Write(step)
		if n += m; err != nil || n == len(b) {
			return n, err
		}
	}
}

// pipeline sends AppendEntries without waiting for the answer to the one before.
type pipeline struct {
	c       *raftConn
	timeout time.Duration

	// sent hands each request, once written, to receive; done hands each answered
	// one to raft. Unbuffered, they keep pipelineDepth requests under way.
	sent chan *appendFuture
	done chan raft.AppendFuture

	stopped  chan struct{}
	stopOnce sync.Once
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	f := &appendFuture{start: time.Now(), req: req, resp: resp, ready: make(chan struct{})}
	select {
	case <-p.stopped:
		return nil, raft.ErrPipelineShutdown
	default:
	}
	if err := p.c.send(req); err != nil {
		p.Close()
		return nil, err
	}
	select {
	case p.sent <- f:
		return f, nil
	case <-p.stopped:
		return nil, raft.ErrPipelineShutdown
	}
}

// receive reads the answers in order. After a failure nothing more is handed to
// raft, which would count the failed answer as a sign of life of the follower;
// its next AppendEntries, a CommitTimeout away at most, finds the pipeline closed.
//
// Nor is anything after an answer at which raft stops reading. It may be sending
// at that moment, and does not close the pipeline before it is done with that.
func (p *pipeline) receive() {
	defer p.Close()
	for {
		select {
		case f := <-p.sent:
			remote, err := p.c.receive(f.resp, time.Now().Add(p.timeout))
			f.err = cmp.Or(err, remote)
			close(f.ready)
			if err != nil {
				return
			}
			select {
			case p.done <- f:
			case <-p.stopped:
				return
			}
			if !f.resp.Success || f.resp.Term > f.req.Term {
				return
			}
		case <-p.stopped:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.done }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.stopOnce.Do(func() {
		close(p.stopped)
		p.c.Close()
	})
	return nil
}

type appendFuture struct {
	start time.Time
	req   *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	ready chan struct{}
	err   error // valid once ready is closed
}

func (f *appendFuture) Error() error                          { <-f.ready; return f.err }
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.req }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }
