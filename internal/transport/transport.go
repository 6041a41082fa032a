// Package transport owns the one port of a node. Every connection, inbound or
// outbound, passes the same handshake (TLS or the cluster key's challenge, then
// the hello of both sides) before a byte of it reaches raft or the RPC room; the
// hello's purpose tells the two apart.
//
// What holds for every connection:
//
//   - Before the peer is authenticated at most HandshakeBytesMax bytes of our own
//     protocol are read (TLS, whose certificate chains are larger, has a budget of
//     its own: TLSHandshakeBytesMax), all within HandshakeTimeout.
//   - Unauthenticated connections have a bound separate from authenticated ones,
//     and when it is reached the oldest of the busiest address makes room, so a
//     flood cannot shut the cluster's own nodes out.
//   - A connection belongs to one node ID, the one its hello named (and, where the
//     certificate carries one, the one the certificate is bound to).
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/wire"
)

// Defaults of Config.
const (
	HandshakeTimeoutDefault = 5 * time.Second
	DialTimeoutDefault      = 3 * time.Second
	RaftTimeoutDefault      = 10 * time.Second
	MaxConnsDefault         = 1024
	MaxPendingDefault       = 128
	MaxPoolDefault          = 3
)

// Config says how the port is bound, who may use it and what happens to an
// accepted connection. The zero value of every bound means its default.
type Config struct {
	// Bind is the host:port to listen on; port 0 takes a free one.
	Bind string
	// Advertise is the address other nodes dial. Empty means the bound address,
	// which must then not be an unspecified one (0.0.0.0, ::). Port 0 stands for
	// the bound port.
	Advertise string

	// TLS, if not nil, is asked at every handshake, in both directions, and makes
	// TLS mutual and mandatory: client certificates are required and verified and
	// the minimum is TLS 1.2, whatever the returned configuration says. The
	// returned configuration is not changed. Chains are verified against RootCAs
	// when dialing and ClientCAs when accepting; one of the two stands in for the
	// other if that is nil, and both nil is an error (the system's roots would
	// admit anybody). InsecureSkipVerify has no effect.
	//
	// A certificate that carries a URI SAN colmena://<node id> (NodeURI) is bound
	// to that node: it must equal the node ID of the peer's hello, and the host
	// name is not looked at. A certificate without one is verified by its chain,
	// and, when dialing, by host name if ServerName is set.
	TLS func() (*tls.Config, error)
	// ClusterKeys, if any, makes both sides of every connection prove that they
	// hold one of them (HMAC-SHA256 over fresh nonces; the key never travels). The
	// first proves us to others, any of them is accepted. It authenticates; it
	// does not encrypt. With TLS as well, both are demanded, and the proof is
	// bound to the TLS session.
	ClusterKeys []string
	// AllowPlain, with TLS: accept plaintext connections too, and fall back to
	// plaintext when a dialed peer does not speak TLS. For the step from plain to
	// TLS one node at a time; while it is on, TLS protects against nobody.
	AllowPlain bool

	// Hello returns our own hello. Purpose and Want fields are set by the
	// transport.
	Hello func(purpose uint8) wire.Hello
	// Check decides whether the peer may talk to us. The text of its error is sent
	// to an inbound peer, cut to a bound.
	Check func(peer wire.Hello) error
	// Resolve returns the present address of a member and the incarnation we mean
	// to reach ("" for any). Raft knows members by ID alone.
	Resolve func(nodeID string) (addr, incarnation string, err error)
	// OnPeer, if not nil, is told every hello that was accepted, in both
	// directions. It must not block.
	OnPeer func(peer wire.Hello)
	// OnRPC owns an accepted RPC connection, multiplexed or direct as the purpose in
	// the peer's hello says. It runs on the connection's own
	// goroutine, may block for its whole life, and must return once the connection
	// is closed: Close waits for it. The connection is closed when it returns.
	OnRPC func(conn net.Conn, peer wire.Hello)

	Logger *slog.Logger

	// HandshakeTimeout bounds the whole handshake of a connection (5 s).
	HandshakeTimeout time.Duration
	// DialTimeout bounds the connecting of an outbound connection (3 s).
	DialTimeout time.Duration
	// RaftTimeout bounds a raft RPC, and the time a raft stream may make no
	// progress (10 s).
	RaftTimeout time.Duration
	// MaxConns bounds authenticated inbound connections (1024).
	MaxConns int
	// MaxPending bounds inbound connections that have not authenticated yet (128).
	MaxPending int
	// MaxPool bounds idle raft connections kept per peer (3).
	MaxPool int

	// Listen, a seam for tests, and Dial: nil means TCP with keep-alive.
	Listen func(network, addr string) (net.Listener, error)
	Dial   func(ctx context.Context, addr string) (net.Conn, error)
}

// Transport is a bound port and the connections of both directions. Safe for
// concurrent use.
type Transport struct {
	cfg        Config
	log        *slog.Logger
	listener   net.Listener
	advertised string
	raft       *raftNet

	group *lifecycle.Group // every goroutine the transport started
	ctx   context.Context  // the group's: ends with Close

	muted atomic.Bool
	block atomic.Pointer[func(nodeID string) bool]

	mu      sync.Mutex
	serving bool
	closed  bool
	pending pendingSet             // unauthenticated inbound connections
	conns   map[*peerConn]struct{} // authenticated connections, both directions
	inbound int                    // how many of conns are inbound
}

// Sentinels of dialing.
var (
	// ErrClosed is returned by everything after Close.
	ErrClosed = errors.New("colmena: the node's transport is closed")
	// ErrBlocked is returned while the peer is cut off by Mute or Partition.
	ErrBlocked = errors.New("colmena: traffic with this node is cut off")
	// ErrWrongPeer means that another node answered than the one we meant to reach.
	ErrWrongPeer = errors.New("colmena: another node answered at this address")
	// ErrAuth means that the peer could not prove that it belongs to the cluster.
	ErrAuth = errors.New("colmena: peer did not authenticate")
)

// RefusedError means that the peer answered and would not have us.
type RefusedError struct {
	Addr   string
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("colmena: %s refused the connection: %s", e.Addr, e.Reason)
}

// New binds the port. It accepts nothing before Serve.
func New(cfg Config) (*Transport, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l, err := cfg.Listen("tcp", cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("colmena: cannot listen on %q: %w", cfg.Bind, err)
	}
	advertised, err := advertisedAddr(cfg.Advertise, l.Addr())
	if err != nil {
		l.Close()
		return nil, err
	}
	t := &Transport{
		cfg:        cfg,
		log:        cfg.Logger,
		listener:   l,
		advertised: advertised,
		group:      lifecycle.NewGroup(),
		conns:      make(map[*peerConn]struct{}),
	}
	t.ctx = t.group.Context()
	t.raft = newRaftNet(t, cfg.Hello(wire.PurposeRaft).NodeID)
	if cfg.TLS == nil && len(cfg.ClusterKeys) == 0 && !isLoopback(l.Addr().String()) {
		t.log.Warn("the port is open to anybody who can reach it: set TLS or ClusterKeys",
			"bind", l.Addr().String())
	}
	for i, k := range cfg.ClusterKeys {
		if len(k) < 16 {
			t.log.Warn("a cluster key is short enough to be guessed: use at least 16 random characters", "key", i)
		}
	}
	return t, nil
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	defInt := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	def(&c.HandshakeTimeout, HandshakeTimeoutDefault)
	def(&c.DialTimeout, DialTimeoutDefault)
	def(&c.RaftTimeout, RaftTimeoutDefault)
	defInt(&c.MaxConns, MaxConnsDefault)
	defInt(&c.MaxPending, MaxPendingDefault)
	defInt(&c.MaxPool, MaxPoolDefault)
	keepAlive := net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}
	if c.Listen == nil {
		c.Listen = func(network, addr string) (net.Listener, error) {
			lc := net.ListenConfig{KeepAliveConfig: keepAlive}
			return lc.Listen(context.Background(), network, addr)
		}
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			d := net.Dialer{KeepAliveConfig: keepAlive}
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c *Config) validate() error {
	var errs []error
	if c.Bind == "" {
		errs = append(errs, errors.New("colmena: transport: Bind is empty"))
	}
	if c.Hello == nil || c.Check == nil || c.Resolve == nil || c.OnRPC == nil {
		errs = append(errs, errors.New("colmena: transport: Hello, Check, Resolve and OnRPC are required"))
	}
	for i, k := range c.ClusterKeys {
		if k == "" {
			errs = append(errs, fmt.Errorf("colmena: ClusterKeys[%d] is empty", i))
		}
	}
	return errors.Join(errs...)
}

// advertisedAddr decides the address that other nodes are told.
func advertisedAddr(advertise string, bound net.Addr) (string, error) {
	addr := advertise
	if addr == "" {
		addr = bound.String()
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		if advertise == "" { // a listener of a test, whose addresses are its own
			return addr, nil
		}
		return "", fmt.Errorf("colmena: Advertise %q is not host:port: %w", advertise, err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return "", fmt.Errorf("colmena: %q is no address other nodes can dial: set Advertise to the host:port "+
			"they reach this node at", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n == 0 {
		if _, port, err = net.SplitHostPort(bound.String()); err != nil {
			return "", fmt.Errorf("colmena: Advertise %q has port 0 and the bound address %q has none", advertise, bound)
		}
		addr = net.JoinHostPort(host, port)
	}
	if len(addr) > wire.MaxAddrBytes {
		return "", fmt.Errorf("colmena: Advertise is longer than %d bytes", wire.MaxAddrBytes)
	}
	return addr, nil
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Serve starts accepting and returns. A second call does nothing.
func (t *Transport) Serve() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.serving || t.closed {
		return
	}
	t.serving = true
	t.group.Go("transport accept", t.acceptLoop)
	t.group.Go("raft connection janitor", t.raft.janitor)
}

// Addr is the bound address.
func (t *Transport) Addr() string { return t.listener.Addr().String() }

// Advertised is the address other nodes are told.
func (t *Transport) Advertised() string { return t.advertised }

// Raft returns raft's side of the port. Its server addresses are node IDs.
func (t *Transport) Raft() raft.Transport { return t.raft }

// acceptLoop accepts until Close. Errors (file descriptors ran out) back off: the
// connections that exist go on meanwhile.
func (t *Transport) acceptLoop(ctx context.Context) {
	const backoffMin, backoffMax = 5 * time.Millisecond, time.Second
	backoff := backoffMin
	for {
		conn, err := t.listener.Accept()
		if err == nil {
			backoff = backoffMin
			t.admit(conn)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		t.log.Warn("cannot accept connections", "error", err, "retry_in", backoff)
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, backoffMax)
		case <-ctx.Done():
			return
		}
	}
}

// admit gives an accepted connection a pending place, taking one from the busiest
// address if all are taken, and starts its handshake.
func (t *Transport) admit(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		conn.Close()
		return
	}
	p := &pendingConn{conn: conn, host: hostOf(conn.RemoteAddr())}
	if evicted := t.pending.add(p, t.cfg.MaxPending); evicted != nil {
		evicted.conn.Close()
	}
	if !t.group.Go("inbound connection", func(context.Context) { t.serveInbound(p) }) {
		conn.Close()
	}
}

// serveInbound runs an inbound connection from its first byte to its end.
func (t *Transport) serveInbound(p *pendingConn) {
	pc, err := t.acceptHandshake(p)
	if err != nil {
		t.log.Debug("inbound connection refused", "remote", p.host, "error", err)
		p.conn.Close()
		t.dropPending(p)
		return
	}
	defer pc.Close()
	if t.cfg.OnPeer != nil {
		t.cfg.OnPeer(pc.peer)
	}
	switch pc.peer.Purpose {
	case wire.PurposeRaft:
		t.raft.serve(pc)
	case wire.PurposeRPC, wire.PurposeDirect:
		t.cfg.OnRPC(pc, pc.peer)
	}
}

func (t *Transport) dropPending(p *pendingConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending.remove(p)
}

// Close closes the port and every connection of both directions and waits for
// all goroutines, OnRPC handlers included. Idempotent.
func (t *Transport) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	for p := range t.pending.all() {
		p.conn.Close()
	}
	victims := t.connsLocked(func(*peerConn) bool { return true })
	t.mu.Unlock()

	var err error
	if first {
		err = t.listener.Close()
	}
	closeAll(victims)
	t.raft.Close()
	t.group.Stop()
	return err
}
