package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// DialRPC opens an RPC connection to a member.
func (t *Transport) DialRPC(ctx context.Context, nodeID string) (net.Conn, wire.Hello, error) {
	return t.dialCalls(ctx, nodeID, wire.PurposeRPC)
}

// DialDirect opens an RPC connection to a member that carries one stream at a time.
func (t *Transport) DialDirect(ctx context.Context, nodeID string) (net.Conn, wire.Hello, error) {
	return t.dialCalls(ctx, nodeID, wire.PurposeDirect)
}

func (t *Transport) dialCalls(ctx context.Context, nodeID string, purpose uint8) (net.Conn, wire.Hello, error) {
	pc, err := t.dialNode(ctx, nodeID, purpose)
	if err != nil {
		return nil, wire.Hello{}, err
	}
	return pc, pc.peer, nil
}

// DialAddr opens an RPC connection to whoever answers at addr: for joining, when
// no node is known by ID yet.
func (t *Transport) DialAddr(ctx context.Context, addr string) (net.Conn, wire.Hello, error) {
	pc, err := t.dial(ctx, addr, t.hello(wire.PurposeRPC))
	if err != nil {
		return nil, wire.Hello{}, err
	}
	return pc, pc.peer, nil
}

// dialNode dials a member by its ID, at its present address.
func (t *Transport) dialNode(ctx context.Context, nodeID string, purpose uint8) (*peerConn, error) {
	if t.isBlocked(nodeID, purpose) {
		return nil, ErrBlocked
	}
	addr, incarnation, err := t.cfg.Resolve(nodeID)
	if err != nil {
		return nil, fmt.Errorf("colmena: no address for node %q: %w", nodeID, err)
	}
	hello := t.hello(purpose)
	hello.WantNodeID, hello.WantIncarnation = nodeID, incarnation
	return t.dial(ctx, addr, hello)
}

// dial connects, does the handshake and tracks the connection.
func (t *Transport) dial(ctx context.Context, addr string, hello wire.Hello) (*peerConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()

	useTLS := t.cfg.TLS != nil
	pc, err := t.dialOnce(ctx, addr, hello, useTLS)
	if err != nil && useTLS && t.cfg.AllowPlain && speaksPlain(err) && ctx.Err() == nil {
		t.log.Debug("peer does not speak TLS, using plaintext", "addr", addr, "error", err)
		pc, err = t.dialOnce(ctx, addr, hello, false)
	}
	if err == nil {
		if t.cfg.OnPeer != nil {
			t.cfg.OnPeer(pc.peer)
		}
		return pc, nil
	}
	if t.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		refused.Addr = addr
		return nil, err
	}
	return nil, fmt.Errorf("colmena: cannot reach %s: %w", addr, err)
}

func (t *Transport) dialOnce(ctx context.Context, addr string, hello wire.Hello, useTLS bool) (_ *peerConn, err error) {
	dialCtx, cancel := context.WithTimeout(ctx, t.cfg.DialTimeout)
	raw, err := t.cfg.Dial(dialCtx, addr)
	cancel()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	if err := raw.SetDeadline(time.Now().Add(t.cfg.HandshakeTimeout)); err != nil {
		return nil, err
	}
	// A context that ends unblocks the handshake by closing the connection.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn, binding, cert, err := t.dialSecurity(ctx, raw, useTLS)
	if err != nil {
		return nil, err
	}
	h := &handshake{t: t, rw: conn, left: HandshakeBytesMax, binding: binding}
	peer, err := h.dial(hello)
	if err != nil {
		return nil, err
	}
	if err := t.checkDialed(peer, hello, cert); err != nil {
		return nil, err
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	pc := &peerConn{Conn: conn, raw: raw, t: t, peer: peer, purpose: hello.Purpose}
	if err := t.track(pc); err != nil {
		return nil, err
	}
	return pc, nil
}

func (t *Transport) dialSecurity(ctx context.Context, raw net.Conn, useTLS bool) (net.Conn, []byte, *x509.Certificate, error) {
	if !useTLS {
		return raw, nil, nil, nil
	}
	cfg, err := t.clientTLS()
	if err != nil {
		return nil, nil, nil, err
	}
	pre := &prefixConn{Conn: raw, left: TLSHandshakeBytesMax}
	conn := tls.Client(pre, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, nil, &tlsError{err}
	}
	pre.left = -1
	state := conn.ConnectionState()
	return conn, tlsBinding(state), state.PeerCertificates[0], nil
}

// checkDialed holds the answering node to the one we meant, its certificate to
// its hello, and asks whether it is of our cluster.
func (t *Transport) checkDialed(peer, ours wire.Hello, cert *x509.Certificate) error {
	if err := checkNodeCert(cert, peer.NodeID); err != nil {
		return err
	}
	if w := ours.WantNodeID; w != "" && w != peer.NodeID {
		return fmt.Errorf("%w: meant %q, got %q", ErrWrongPeer, w, peer.NodeID)
	}
	if w := ours.WantIncarnation; w != "" && w != peer.Incarnation {
		return fmt.Errorf("%w: node %q is another incarnation now", ErrWrongPeer, peer.NodeID)
	}
	return t.cfg.Check(peer)
}

// tlsError is a failed TLS handshake of an outbound connection.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return "TLS: " + e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// speaksPlain says whether a failure looks like that of TLS with a peer that has none.
func speaksPlain(err error) bool {
	if _, ok := errors.AsType[*tlsError](err); !ok {
		return false
	}
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	return notTLS || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}
