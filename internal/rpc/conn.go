package rpc

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// windowBytes is how much of a stream may be under way unread.
	windowBytes = 1 << 20
	// stallTimeout ends a connection on which a write makes no progress or a ping
	// gets no answer.
	stallTimeout = 5 * time.Second
	// keepAlive is the interval of yamux's pings: a peer that vanished is noticed
	// after keepAlive + stallTimeout at the latest.
	keepAlive = 5 * time.Second
	// closeTimeout bounds how long a stream stays half closed.
	closeTimeout = 30 * time.Second
	// acceptBacklog bounds the streams that are opened and not yet accepted.
	acceptBacklog = 256
)

func muxConfig(log *slog.Logger) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          acceptBacklog,
		EnableKeepAlive:        true,
		KeepAliveInterval:      keepAlive,
		ConnectionWriteTimeout: stallTimeout,
		MaxStreamWindowSize:    windowBytes,
		StreamOpenTimeout:      0, // the contexts of the callers bound it
		StreamCloseTimeout:     closeTimeout,
		Logger:                 muxLogger{log},
	}
}

// muxLogger writes what yamux has to say at level Debug: every failure it tells
// of reaches a caller as an error as well.
type muxLogger struct{ log *slog.Logger }

func (l muxLogger) Print(v ...any)                 { l.log.Debug(fmt.Sprint(v...)) }
func (l muxLogger) Printf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l muxLogger) Println(v ...any)               { l.log.Debug(fmt.Sprint(v...)) }

// muxConn lies between yamux and the connection. It writes a data frame's head
// and body at once where yamux writes twice, and it knows whether a stream's
// bytes were handed to the connection, which yamux cannot tell: that decides
// between ErrNotDelivered and ErrInterrupted.
type muxConn struct {
	net.Conn
	// head is a data frame's head that waits for its body; only yamux's one sending
	// goroutine touches it and buf.
	head []byte
	buf  []byte

	watching atomic.Int32 // how many streams are in fresh
	mu       sync.Mutex
	fresh    map[uint32]*delivery // streams of which nothing was sent yet, by ID; guarded by mu

	direct directSet // the connections beside it, which end with it
}

// Close implements net.Conn.
func (c *muxConn) Close() error {
	c.direct.close()
	return c.Conn.Close()
}

// delivery is the state of a stream's first bytes. It moves once, from waiting.
type delivery struct{ state atomic.Int32 }

const (
	deliveryWaiting = 0
	deliverySent    = 1 // handed to the connection: the peer may have them
	deliveryRevoked = 2 // never to be handed over
)

// revoke makes sure that the bytes will not be sent; false if they were.
func (d *delivery) revoke() bool {
	return d.state.CompareAndSwap(deliveryWaiting, deliveryRevoked) || d.state.Load() == deliveryRevoked
}

// write writes the stream's bytes to a connection that is the stream's alone. Bytes of
// which nothing was handed over are revoked.
func (d *delivery) write(conn net.Conn, b []byte) error {
	first := d.state.CompareAndSwap(deliveryWaiting, deliverySent)
	if !first && d.state.Load() == deliveryRevoked {
		return ErrClosed
	}
	n, err := conn.Write(b)
	if err != nil && n == 0 && first {
		d.state.Store(deliveryRevoked)
	}
	return err
}

// explain says with a failure whether the request may have arrived.
func (d *delivery) explain(err error) error {
	if d.revoke() {
		return fmt.Errorf("%w: %w", ErrNotDelivered, err)
	}
	return fmt.Errorf("%w: %w", ErrInterrupted, err)
}

// yamux's frame head: version, type, flags (2), stream ID (4), length (4).
const (
	muxHeadBytes = 12
	muxTypeData  = 0
)

func (c *muxConn) watch(id uint32, d *delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fresh == nil {
		c.fresh = make(map[uint32]*delivery)
	}
	c.fresh[id] = d
	c.watching.Add(1)
}

func (c *muxConn) unwatch(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.fresh[id]; ok {
		delete(c.fresh, id)
		c.watching.Add(-1)
	}
}

// Write implements net.Conn for yamux's sending goroutine.
func (c *muxConn) Write(b []byte) (int, error) {
	if c.head == nil {
		if len(b) != muxHeadBytes || b[1] != muxTypeData || binary.BigEndian.Uint32(b[8:]) == 0 {
			return c.Conn.Write(b)
		}
		c.buf = append(c.buf[:0], b...)
		c.head = c.buf
		return len(b), nil
	}
	c.buf = append(c.buf, b...)
	if c.watching.Load() > 0 && !c.deliver(binary.BigEndian.Uint32(c.head[4:])) {
		clear(c.buf[muxHeadBytes:])
	}
	c.head = nil
	if _, err := c.Conn.Write(c.buf); err != nil {
		return 0, err
	}
	return len(b), nil
}

// deliver marks the stream's bytes as sent; false if they were revoked. yamux
// cannot leave out a frame it has queued, so zeros go in its place, which the
// server takes for no request.
func (c *muxConn) deliver(id uint32) bool {
	c.mu.Lock()
	d := c.fresh[id]
	if d != nil {
		delete(c.fresh, id)
		c.watching.Add(-1)
	}
	c.mu.Unlock()
	return d == nil || d.state.CompareAndSwap(deliveryWaiting, deliverySent)
}
