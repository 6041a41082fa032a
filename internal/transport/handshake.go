package transport

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
	"unicode/utf8"

	"github.com/mentasystems/colmena/internal/wire"
)

// The handshake, once TLS (if any) is done. D is the dialer, L the listener:
//
//	D: magic, version, mode, nonce of D
//	L: frame challenge: mode, nonce of L
//	D: frame hello: proof of D, hello of D
//	L: frame hello: proof of L, hello of L         the connection is open
//
// and instead of any of its frames L may send a refusal with a text and close.
// Mode says whether a cluster key is demanded; both sides must agree. A proof is
// HMAC-SHA256 under a cluster key over the prover's role, both nonces, the TLS
// session (if any) and the hellos sent so far, so it can neither be replayed nor
// reflected nor moved to another connection. D proves first: a stranger who dials
// gets nothing computed with the key.
const (
	handshakeVersion = 1

	modeNone = 0 // no cluster key
	modeKey  = 1 // both sides prove a cluster key

	frameChallenge = 1
	frameHello     = 2
	frameRefusal   = 3

	nonceBytes = 32
	proofBytes = sha256.Size
	startBytes = len(magic) + 2 + nonceBytes

	frameBytesMax  = 3 << 10
	reasonBytesMax = 512

	tlsRecordHandshake = 0x16 // first byte of a TLS connection
)

const magic = "CLMN"

const (
	// HandshakeBytesMax bounds what is read from a peer before it is authenticated.
	HandshakeBytesMax = 4 << 10
	// TLSHandshakeBytesMax bounds what TLS reads for its handshake, certificate
	// chains included.
	TLSHandshakeBytesMax = 64 << 10
)

var (
	errFull     = errors.New("too many connections")
	errGarbage  = errors.New("transport: not a colmena handshake")
	errBudget   = errors.New("transport: peer sent more than a handshake may hold")
	errPlain    = errors.New("transport: peer speaks plaintext where TLS is required")
	errNeedsTLS = errors.New("transport: peer speaks TLS and this node has none configured")
)

// acceptHandshake runs the listener's side. On success the connection is tracked
// and out of the pending set; on failure it is the caller's to close.
func (t *Transport) acceptHandshake(p *pendingConn) (*peerConn, error) {
	if err := p.conn.SetDeadline(time.Now().Add(t.cfg.HandshakeTimeout)); err != nil {
		return nil, err
	}
	conn, binding, cert, err := t.acceptSecurity(p.conn)
	if err != nil {
		return nil, err
	}
	h := &handshake{t: t, rw: conn, left: HandshakeBytesMax, binding: binding}
	peer, err := h.listen()
	if err == nil {
		err = checkNodeCert(cert, peer.NodeID)
	}
	ours := t.hello(peer.Purpose)
	if err == nil {
		err = checkWanted(peer, ours)
	}
	if err == nil {
		err = t.cfg.Check(peer)
	}
	var pc *peerConn
	if err == nil {
		pc = &peerConn{Conn: conn, raw: p.conn, t: t, peer: peer, purpose: peer.Purpose, isIn: true}
		if err = t.promote(p, pc); errors.Is(err, ErrBlocked) {
			return nil, err // a partition answers nothing
		}
	}
	if err != nil {
		h.refuse(err)
		return nil, err
	}
	if err = h.welcome(ours); err == nil {
		err = p.conn.SetDeadline(time.Time{})
	}
	if err != nil {
		pc.Close()
		return nil, err
	}
	return pc, nil
}

// promote moves an authenticated connection from the pending places to the
// tracked ones.
func (t *Transport) promote(p *pendingConn, pc *peerConn) error {
	t.mu.Lock()
	held := t.pending.remove(p)
	t.mu.Unlock()
	if !held {
		return errors.New("transport: displaced by newer connections during its handshake")
	}
	return t.track(pc)
}

// acceptSecurity looks at the first byte and does what TLS there is to do.
func (t *Transport) acceptSecurity(raw net.Conn) (net.Conn, []byte, *x509.Certificate, error) {
	var first [1]byte
	if _, err := io.ReadFull(raw, first[:]); err != nil {
		return nil, nil, nil, err
	}
	pre := &prefixConn{Conn: raw, prefix: first[:], left: -1}
	isTLS := first[0] == tlsRecordHandshake
	switch {
	case isTLS && t.cfg.TLS == nil:
		(&handshake{t: t, rw: raw, left: HandshakeBytesMax}).refuse(errors.New("this node has no TLS configured"))
		return nil, nil, nil, errNeedsTLS
	case !isTLS && first[0] != magic[0]:
		return nil, nil, nil, errGarbage
	case !isTLS && t.cfg.TLS != nil && !t.cfg.AllowPlain:
		(&handshake{t: t, rw: raw, left: HandshakeBytesMax}).refuse(errors.New("this cluster requires TLS"))
		return nil, nil, nil, errPlain
	case !isTLS:
		return pre, nil, nil, nil
	}
	cfg, err := t.serverTLS()
	if err != nil {
		t.log.Error("TLS configuration is not usable: no connection can be accepted", "error", err)
		return nil, nil, nil, err
	}
	pre.left = TLSHandshakeBytesMax
	conn := tls.Server(pre, cfg)
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.HandshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, nil, fmt.Errorf("transport: TLS: %w", err)
	}
	pre.left = -1
	state := conn.ConnectionState()
	return conn, tlsBinding(state), state.PeerCertificates[0], nil
}

// handshake is one side of one handshake in progress.
type handshake struct {
	t       *Transport
	rw      net.Conn
	left    int // bytes that may still be read
	binding []byte
	mode    byte

	nonceD, nonceL []byte
	helloD         []byte
	key            []byte // listener: the key D proved
}

// listen runs L's side up to D's hello, which it returns authenticated.
func (h *handshake) listen() (wire.Hello, error) {
	var peer wire.Hello
	start := make([]byte, startBytes)
	if err := h.readFull(start[:len(magic)]); err != nil {
		return peer, err
	}
	if string(start[:len(magic)]) != magic {
		return peer, errGarbage
	}
	if err := h.readFull(start[len(magic):]); err != nil {
		return peer, err
	}
	if v := start[len(magic)]; v != handshakeVersion {
		return peer, fmt.Errorf("handshake version %d is not known here (this node speaks %d)", v, handshakeVersion)
	}
	h.mode = h.t.mode()
	if err := checkMode(h.mode, start[len(magic)+1]); err != nil {
		return peer, err
	}
	h.nonceD = start[len(magic)+2:]
	h.nonceL = newNonce()
	if err := h.writeFrame(frameChallenge, []byte{h.mode}, h.nonceL); err != nil {
		return peer, err
	}
	body, err := h.readFrame(frameHello)
	if err != nil {
		return peer, err
	}
	proof, hello, err := h.splitProof(body)
	if err != nil {
		return peer, err
	}
	h.helloD = hello
	if h.mode == modeKey {
		if h.key = h.matchKey(proof, roleDialer, hello); h.key == nil {
			return peer, fmt.Errorf("%w: its cluster key is not one of ours", ErrAuth)
		}
	}
	if err := peer.Decode(hello); err != nil {
		return peer, err
	}
	if peer.Purpose < wire.PurposeRaft || peer.Purpose > wire.PurposeDirect {
		return peer, fmt.Errorf("purpose %d is not known here", peer.Purpose)
	}
	return peer, nil
}

// welcome sends L's hello, which opens the connection.
func (h *handshake) welcome(ours wire.Hello) error {
	hello := ours.Append(nil)
	var proof []byte
	if h.mode == modeKey {
		proof = h.prove(h.key, roleListener, hello)
	}
	return h.writeFrame(frameHello, proof, hello)
}

// dial runs D's side and returns L's hello, authenticated.
func (h *handshake) dial(ours wire.Hello) (wire.Hello, error) {
	var peer wire.Hello
	h.mode = h.t.mode()
	h.nonceD = newNonce()
	start := append([]byte(magic), handshakeVersion, h.mode)
	if _, err := h.rw.Write(append(start, h.nonceD...)); err != nil {
		return peer, err
	}
	body, err := h.readFrame(frameChallenge)
	if err != nil {
		return peer, err
	}
	if len(body) != 1+nonceBytes {
		return peer, errGarbage
	}
	if err := checkMode(h.mode, body[0]); err != nil {
		return peer, err
	}
	h.nonceL = body[1:]
	h.helloD = ours.Append(nil)
	var proof []byte
	if h.mode == modeKey {
		proof = h.prove([]byte(h.t.cfg.ClusterKeys[0]), roleDialer, h.helloD)
	}
	if err := h.writeFrame(frameHello, proof, h.helloD); err != nil {
		return peer, err
	}
	if body, err = h.readFrame(frameHello); err != nil {
		return peer, err
	}
	proof, hello, err := h.splitProof(body)
	if err != nil {
		return peer, err
	}
	if h.mode == modeKey && h.matchKey(proof, roleListener, hello) == nil {
		return peer, fmt.Errorf("%w: its cluster key is not one of ours", ErrAuth)
	}
	return peer, peer.Decode(hello)
}

// refuse tells the peer why, as far as it wants to know, and within the deadline
// that is set already.
func (h *handshake) refuse(why error) {
	if errors.Is(why, errGarbage) || errors.Is(why, errBudget) || errors.Is(why, io.EOF) {
		return
	}
	reason := why.Error()
	if len(reason) > reasonBytesMax {
		reason = reason[:reasonBytesMax]
		for len(reason) > 0 && !utf8.ValidString(reason) {
			reason = reason[:len(reason)-1]
		}
	}
	if h.writeFrame(frameRefusal, []byte(reason)) != nil {
		return // the peer is gone: its loss, nothing depends on this frame
	}
	// Closing a connection with unread bytes resets it, and the reset can overtake
	// the refusal: let the peer close first, within bounds.
	if cw, ok := h.rw.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil && h.left > 0 {
		h.rw.SetReadDeadline(time.Now().Add(refusalLinger))
		_, _ = io.CopyN(io.Discard, h.rw, int64(h.left))
	}
}

// refusalLinger bounds the wait for a refused peer to close.
const refusalLinger = 500 * time.Millisecond

const (
	roleDialer   = "colmena handshake 1: dialer"
	roleListener = "colmena handshake 1: listener"
)

// prove computes the proof of one role over everything said so far.
func (h *handshake) prove(key []byte, role string, hello []byte) []byte {
	m := hmac.New(sha256.New, key)
	helloD := h.helloD
	if role == roleDialer {
		helloD = nil // hello is D's own
	}
	for _, part := range [][]byte{[]byte(role), h.nonceD, h.nonceL, h.binding, helloD, hello} {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(part)))
		m.Write(n[:])
		m.Write(part)
	}
	return m.Sum(nil)
}

// matchKey returns the cluster key a proof was made with, nil if none of ours.
func (h *handshake) matchKey(proof []byte, role string, hello []byte) []byte {
	var match []byte
	for _, k := range h.t.cfg.ClusterKeys {
		if hmac.Equal(proof, h.prove([]byte(k), role, hello)) {
			match = []byte(k)
		}
	}
	return match
}

func (h *handshake) splitProof(body []byte) (proof, hello []byte, err error) {
	if h.mode == modeNone {
		return nil, body, nil
	}
	if len(body) < proofBytes {
		return nil, nil, errGarbage
	}
	return body[:proofBytes], body[proofBytes:], nil
}

// readFrame reads the one frame that may come now; a refusal becomes an error.
func (h *handshake) readFrame(want byte) ([]byte, error) {
	var head [3]byte
	if err := h.readFull(head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:2]))
	if n > frameBytesMax {
		return nil, errBudget
	}
	body := make([]byte, n)
	if err := h.readFull(body); err != nil {
		return nil, err
	}
	switch head[2] {
	case want:
		return body, nil
	case frameRefusal:
		if len(body) > reasonBytesMax {
			return nil, errBudget
		}
		return nil, &RefusedError{Reason: string(bytes.ToValidUTF8(body, []byte("?")))}
	}
	return nil, errGarbage
}

func (h *handshake) writeFrame(typ byte, parts ...[]byte) error {
	b := make([]byte, 3, 512)
	for _, p := range parts {
		b = append(b, p...)
	}
	if len(b)-3 > frameBytesMax {
		return fmt.Errorf("transport: handshake frame of %d bytes is larger than %d", len(b)-3, frameBytesMax)
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-3))
	b[2] = typ
	_, err := h.rw.Write(b)
	return err
}

// readFull reads exactly b, within the budget.
func (h *handshake) readFull(b []byte) error {
	if h.left -= len(b); h.left < 0 {
		return errBudget
	}
	_, err := io.ReadFull(h.rw, b)
	return err
}

func (t *Transport) mode() byte {
	if len(t.cfg.ClusterKeys) > 0 {
		return modeKey
	}
	return modeNone
}

func checkMode(ours, theirs byte) error {
	switch {
	case ours == theirs:
		return nil
	case ours == modeKey:
		return fmt.Errorf("%w: a cluster key is required and the other side has none", ErrAuth)
	case theirs == modeKey:
		return fmt.Errorf("%w: the other side demands a cluster key and this one has none", ErrAuth)
	}
	return errGarbage
}

// checkWanted holds the dialer to whom it meant to reach.
func checkWanted(peer, ours wire.Hello) error {
	if w := peer.WantNodeID; w != "" && w != ours.NodeID {
		return fmt.Errorf("this is node %q, not %q", ours.NodeID, w)
	}
	if w := peer.WantIncarnation; w != "" && w != ours.Incarnation {
		return fmt.Errorf("node %q is another incarnation now than the one meant", ours.NodeID)
	}
	return nil
}

// hello is our own hello with what the transport itself knows.
func (t *Transport) hello(purpose uint8) wire.Hello {
	h := t.cfg.Hello(purpose)
	h.Purpose = purpose
	h.WantNodeID, h.WantIncarnation = "", ""
	return h
}

func newNonce() []byte {
	b := make([]byte, nonceBytes)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

// CloseWrite ends our direction of a TCP connection.
func (c *prefixConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// prefixConn gives back bytes that were read to look at them, and, while left is
// not negative, bounds how many more are read.
type prefixConn struct {
	net.Conn
	prefix []byte
	left   int
}

func (c *prefixConn) Read(b []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(b, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	if c.left < 0 {
		return c.Conn.Read(b)
	}
	if c.left == 0 {
		return 0, errBudget
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}
