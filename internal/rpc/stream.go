package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/wire"
)

// Errors of a caller. They are wrapped together with the cause, so errors.Is
// finds a context's error as well.
var (
	// ErrNotDelivered: no byte of the request was handed to the connection. Trying
	// again is safe.
	ErrNotDelivered = errors.New("colmena: request not delivered")
	// ErrInterrupted: the connection or the context ended after the request may
	// have been delivered. The outcome is unknown.
	ErrInterrupted = errors.New("colmena: interrupted, outcome unknown")
	// ErrTooLarge: a message is larger than MaxFrame; it was not sent.
	ErrTooLarge = errors.New("colmena: message larger than a frame may be")
	// ErrClosed: the client, server or stream is closed.
	ErrClosed = errors.New("colmena: rpc is closed")
)

// Stream is one call's two-way sequence of messages. One goroutine may send while
// another receives; Close may be called at any time.
type Stream struct {
	conn     net.Conn    // a stream of the multiplexed connection, or a direct one
	direct   *directConn // client: conn if that is a direct connection
	ctx      context.Context
	maxFrame int
	delivery *delivery // client: whether the request left; nil on the server
	in       *reader   // server: what the caller sends; nil on the client

	sender *sender // client: writes in the place of Send; nil on the server

	stopWatch func() bool // client: ends the watch on ctx
	forget    func()      // client: ends the connection's watch on the first bytes; nil if there is none
	givenUp   atomic.Bool // this side has ended the stream

	sendMu  sync.Mutex // one message at a time
	opening []byte     // guarded by sendMu: the open frame, which the first frame takes along
	sendBuf []byte     // guarded by sendMu
	sendEnd bool       // guarded by sendMu: nothing more may be sent by Send
	sendCut bool       // guarded by sendMu: a frame was left incomplete, so that nothing at all can follow

	recvEnd error // what Recv goes on returning; only the receiving goroutine uses it

	closeOnce sync.Once
}

// Send sends one message. b is the caller's again when it returns. It blocks while
// the other side does not read, until ctx of Open (or the handler) ends.
func (s *Stream) Send(b []byte) error {
	if len(b) > s.maxFrame {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), s.maxFrame)
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendEnd {
		return fmt.Errorf("%w: Send after CloseSend", ErrClosed)
	}
	return s.sendLocked(frameData, b, false)
}

// SendLast is Send of a handler's last message: the stream's end goes with it.
func (s *Stream) SendLast(b []byte) error {
	if len(b) > s.maxFrame {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), s.maxFrame)
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendEnd {
		return fmt.Errorf("%w: Send after the end", ErrClosed)
	}
	if err := s.sendLocked(frameData, b, true); err != nil {
		return err
	}
	s.sendEnd = true
	return nil
}

// CloseSend says that no more messages follow: the other side's Recv gives io.EOF
// after the last one. On the server the handler's return does it.
func (s *Stream) CloseSend() error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendEnd {
		return nil
	}
	s.sendEnd = true
	return s.sendLocked(frameEnd, nil, false)
}

// sendLocked writes a frame in steps, each one write of the connection, and behind it
// the end if it is the last.
func (s *Stream) sendLocked(typ byte, b []byte, last bool) error {
	if err := s.ctx.Err(); err != nil {
		return s.broken(err)
	}
	s.sendBuf = append(s.sendBuf[:0], s.opening...)
	s.opening = nil
	s.sendBuf = appendHead(s.sendBuf, typ, len(b))
	n := min(len(b), stepBytes-len(s.sendBuf)-headBytes)
	s.sendBuf = append(s.sendBuf, b[:n]...)
	for {
		if last && n == len(b) {
			s.sendBuf = appendHead(s.sendBuf, frameEnd, 0)
		}
		if err := s.flushLocked(); err != nil {
			s.sendEnd, s.sendCut = true, true
			return s.broken(err)
		}
		if n == len(b) {
			return nil
		}
		step := b[n:min(len(b), n+stepBytes-headBytes)]
		s.sendBuf = append(s.sendBuf[:0], step...)
		n += len(step)
	}
}

// flushLocked writes sendBuf to the connection.
func (s *Stream) flushLocked() error {
	switch {
	case s.direct != nil:
		return s.delivery.write(s.direct, s.sendBuf)
	case s.sender != nil:
		err := s.sender.write(s.ctx, s.conn, s.sendBuf)
		if err != nil {
			s.sendBuf = nil // the sender may still be reading it
		}
		return err
	}
	_, err := s.conn.Write(s.sendBuf)
	return err
}

func (s *Stream) isCut() bool {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.sendCut
}

// sender is a goroutine that writes for a client's stream. A write may wait for
// the connection, where no context reaches; so that Send returns when its context
// ends, it waits beside. (A handler's Send may be held up, by stallTimeout at
// most: nobody waits for a handler whose connection stalls.)
type sender struct {
	group  *lifecycle.Group
	closed chan struct{} // closed by Stream.Close
	work   chan []byte   // nil until the first write
	done   chan error
}

// write has b written. After an error b may still be in use.
func (w *sender) write(ctx context.Context, mux net.Conn, b []byte) error {
	if w.work == nil {
		w.work, w.done = make(chan []byte), make(chan error, 1)
		if !w.group.Go("rpc sender", func(ctx context.Context) { w.run(ctx, mux) }) {
			return ErrClosed
		}
	}
	select {
	case w.work <- b:
	case <-w.closed:
		return ErrClosed
	case <-w.group.Context().Done():
		return ErrClosed
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-w.closed:
		return ErrClosed
	}
}

func (w *sender) run(ctx context.Context, mux net.Conn) {
	for {
		select {
		case b := <-w.work:
			_, err := mux.Write(b)
			w.done <- err
			if err != nil {
				return
			}
		case <-w.closed:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Recv returns the next message, which is the caller's. io.EOF means that the
// other side has ended properly; an error of the handler is a *wire.Error.
func (s *Stream) Recv() ([]byte, error) { return s.RecvInto(nil) }

// RecvInto is Recv into buf's memory where that suffices.
func (s *Stream) RecvInto(buf []byte) ([]byte, error) {
	if s.recvEnd != nil {
		return nil, s.recvEnd
	}
	if s.in != nil {
		return s.recvCaller(buf)
	}
	typ, body, err := readFrame(s.conn, s.maxFrame, buf)
	switch {
	case err != nil:
		s.recvEnd = s.broken(err)
	case typ == frameData:
		return body, nil
	case typ == frameEnd:
		s.recvEnd = io.EOF
	case typ == frameFailure:
		e, err := decodeFailure(body)
		switch {
		case err != nil:
			s.recvEnd = s.broken(err)
		case (s.givenUp.Load() || s.ctx.Err() != nil) && (e.Code == wire.ErrInternal || e.Code == wire.ErrCanceled || e.Code == wire.ErrTimeout):
			// The handler's word for the end of its context, which we ended.
			s.recvEnd = s.broken(e)
		default:
			s.recvEnd = e
		}
	default:
		s.recvEnd = s.broken(fmt.Errorf("%w: type %d", errFrame, typ))
	}
	return nil, s.recvEnd
}

// recvCaller is RecvInto on the server.
func (s *Stream) recvCaller(buf []byte) ([]byte, error) {
	f, err := s.in.next(s.ctx, buf)
	switch {
	case err != nil:
		s.recvEnd = s.broken(err)
	case f.typ == frameData:
		return f.body, nil
	case f.typ == frameEnd:
		s.recvEnd = io.EOF
	default:
		s.recvEnd = s.broken(fmt.Errorf("%w: type %d", errFrame, f.typ))
	}
	return nil, s.recvEnd
}

// Ahead has f called with every message that arrives while the handler has not
// received for longer than awayMax, on another goroutine. f returns true if it has
// taken the message, which it must not keep; Recv returns the others. It is for
// handlers.
func (s *Stream) Ahead(f func(b []byte) bool) {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.in.peek = f
}

// broken makes the error of a stream that failed: with the context's error if that
// is why, and, for a caller, whether the request may have arrived.
func (s *Stream) broken(err error) error {
	if cause := s.ctx.Err(); cause != nil {
		err = cause
	} else if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if s.delivery == nil {
		return fmt.Errorf("colmena: caller is gone: %w", err)
	}
	return s.delivery.explain(err)
}

// Close ends the stream. On the client it cancels the handler's context unless
// the handler has returned already. Idempotent.
func (s *Stream) Close() error {
	if s.stopWatch != nil {
		s.stopWatch()
	}
	s.shut()
	return nil
}

// Done is Close by a caller of which no other goroutine uses the stream. A direct
// connection is kept for the next stream if this one has ended on the other side too.
func (s *Stream) Done() {
	d := s.direct
	if d == nil || s.isCut() || !s.otherEnded() || d.r.Buffered() > 0 {
		_ = s.Close()
		return
	}
	s.stopWatch()
	s.closeOnce.Do(func() {
		s.givenUp.Store(true)
		d.of.put(d)
	})
}

// otherEnded reports whether the last frame of the other side has arrived.
func (s *Stream) otherEnded() bool {
	_, failed := errors.AsType[*wire.Error](s.recvEnd)
	return failed || s.recvEnd == io.EOF || s.recvEnd == nil && s.direct.takeEnd()
}

// shut is Close but for the watch on the context, which itself calls it.
func (s *Stream) shut() {
	s.closeOnce.Do(func() {
		s.givenUp.Store(true)
		if s.sender != nil {
			close(s.sender.closed)
		}
		if s.delivery != nil {
			s.delivery.revoke()
		}
		if s.forget != nil {
			s.forget()
		}
		// Both unblock what waits; closing tells the other side.
		s.conn.SetDeadline(time.Unix(1, 0))
		if !s.closeBeside() {
			s.conn.Close()
		}
	})
}

// closeBeside has a client's stream closed by another goroutine, false if that cannot be:
// yamux waits until the connection has taken the frame that says so, which is for
// stallTimeout if it stalls, and whoever closes a stream has given up waiting.
func (s *Stream) closeBeside() bool {
	return s.sender != nil && s.sender.group.Go("rpc close", func(context.Context) { s.conn.Close() })
}

// remoteTimeout is what is left of ctx, 0 if it has no deadline.
func remoteTimeout(ctx context.Context) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return max(time.Until(d), time.Microsecond)
	}
	return 0
}
