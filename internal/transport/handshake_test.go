package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// TestOnlyProvenMembersPass is the matrix of what a node may present; only what is
// valid passes, in both directions and for every purpose.
func TestOnlyProvenMembersPass(t *testing.T) {
	good, other := newCA(t), newCA(t)
	valid := time.Now().Add(time.Hour)
	tlsOf := func(c *ca, id string, until time.Time) func(*Config) {
		return func(cfg *Config) { cfg.TLS = c.config(c.issue(t, id, until)) }
	}
	server := tlsOf(good, "srv", valid)
	keys := func(ks ...string) func(*Config) { return func(cfg *Config) { cfg.ClusterKeys = ks } }
	both := func(fs ...func(*Config)) func(*Config) {
		return func(cfg *Config) {
			for _, f := range fs {
				f(cfg)
			}
		}
	}
	wrongCluster := func(cfg *Config) {
		cfg.Hello = func(uint8) wire.Hello { return wire.Hello{ClusterID: "c2", NodeID: "cli"} }
		cfg.Check = func(wire.Hello) error { return nil }
	}
	const k1, k2, k3 = "0123456789abcdef-1", "0123456789abcdef-2", "0123456789abcdef-3"
	cases := []struct {
		name           string
		server, client func(*Config)
		want           string // "" passes, else part of the dialer's error
	}{
		{"open", nil, nil, ""},
		{"wrong cluster", nil, wrongCluster, "is not ours"},
		{"valid certificate", server, tlsOf(good, "cli", valid), ""},
		{"certificate without node", server, tlsOf(good, "", valid), ""},
		{"no certificate", server, func(cfg *Config) {
			cfg.TLS = func() (*tls.Config, error) { return &tls.Config{RootCAs: good.pool}, nil }
		}, "no certificate"},
		{"empty certificate", server, func(cfg *Config) {
			cfg.TLS = func() (*tls.Config, error) {
				return &tls.Config{RootCAs: good.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return &tls.Certificate{}, nil
				}}, nil
			}
		}, "certificate required"},
		{"client of wrong CA", server, func(cfg *Config) {
			cfg.TLS = func() (*tls.Config, error) {
				return &tls.Config{RootCAs: good.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					c := other.issue(t, "cli", valid)
					return &c, nil
				}}, nil
			}
		}, "unknown certificate authority"},
		{"server of wrong CA", tlsOf(other, "srv", valid), tlsOf(good, "cli", valid), "unknown authority"},
		{"client expired", server, tlsOf(good, "cli", time.Now().Add(-time.Minute)), "expired"},
		{"server expired", tlsOf(good, "srv", time.Now().Add(-time.Minute)), tlsOf(good, "cli", valid), "expired"},
		{"client certificate of another node", server, tlsOf(good, "else", valid), "bound to node"},
		{"server certificate of another node", tlsOf(good, "else", valid), tlsOf(good, "cli", valid), "bound to node"},
		{"TLS and wrong cluster", server, both(tlsOf(good, "cli", valid), wrongCluster), "is not ours"},
		{"plain to TLS", server, nil, "requires TLS"},
		{"TLS to plain", nil, tlsOf(good, "cli", valid), "does not look like a TLS"},
		{"plain to TLS that allows it", both(server, func(cfg *Config) { cfg.AllowPlain = true }), nil, ""},
		{"TLS that allows plain to plain", nil, both(tlsOf(good, "cli", valid), func(cfg *Config) { cfg.AllowPlain = true }), ""},
		{"wrong host name", tlsOf(good, "", valid), both(tlsOf(good, "cli", valid), serverName("elsewhere.test")), "elsewhere.test"},
		{"right host name", tlsOf(good, "", valid), both(tlsOf(good, "cli", valid), serverName("node.test")), ""},
		{"server's own auth setting is overruled", func(cfg *Config) {
			cert := good.issue(t, "srv", valid)
			cfg.TLS = func() (*tls.Config, error) {
				return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: good.pool, ClientAuth: tls.NoClientCert,
					GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
						return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: good.pool}, nil
					}}, nil
			}
		}, func(cfg *Config) {
			cfg.TLS = func() (*tls.Config, error) {
				return &tls.Config{RootCAs: good.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return &tls.Certificate{}, nil
				}}, nil
			}
		}, "certificate required"},
		{"right key", keys(k1), keys(k1), ""},
		{"wrong key", keys(k1), keys(k2), "not one of ours"},
		{"no key", keys(k1), nil, "cluster key is required"},
		{"key to a node without", nil, keys(k1), "has none"},
		{"rotation: new key first at the dialer", keys(k1, k2), keys(k2, k1), ""},
		{"rotation: listener still leads with the old one", keys(k1, k2), keys(k2), ""},
		{"rotation: retired key", keys(k2, k3), keys(k1, k3), "not one of ours"},
		{"TLS and key", both(server, keys(k1)), both(tlsOf(good, "cli", valid), keys(k1)), ""},
		{"TLS and wrong key", both(server, keys(k1)), both(tlsOf(good, "cli", valid), keys(k2)), "not one of ours"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBook()
			start(t, "srv", b, c.server)
			client := start(t, "cli", b, c.client)
			err := ping(t, client, "srv")
			checkOutcome(t, "rpc", err, c.want)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			for name, purpose := range map[string]uint8{"raft": wire.PurposeRaft, "direct": wire.PurposeDirect} {
				pc, err := client.dialNode(ctx, "srv", purpose)
				if err == nil {
					pc.Close()
				}
				checkOutcome(t, name, err, c.want)
			}
		})
	}
}

func serverName(name string) func(*Config) {
	return func(cfg *Config) {
		inner := cfg.TLS
		cfg.TLS = func() (*tls.Config, error) {
			c, err := inner()
			c.ServerName = name
			return c, err
		}
	}
}

func checkOutcome(t *testing.T, purpose string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", purpose, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got %v, want an error with %q", purpose, err, want)
	}
}

func TestRefusalReachesDialer(t *testing.T) {
	b := newBook()
	srv := start(t, "srv", b, func(cfg *Config) {
		cfg.Check = func(wire.Hello) error { return errors.New("you were removed " + strings.Repeat("é", 1000)) }
	})
	cli := start(t, "cli", b, nil)
	err := ping(t, cli, "srv")
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.Addr != srv.Addr() || !strings.HasPrefix(refused.Reason, "you were removed") || len(refused.Reason) > reasonBytesMax {
		t.Fatalf("got %v", err)
	}
}

// Both sides of a connection learn which engine the other one runs.
func TestHazard12FingerprintTravelsInTheHandshake(t *testing.T) {
	b := newBook()
	heard := make(chan wire.Hello, 1)
	with := func(id string, engine uint64) func(*Config) {
		return func(cfg *Config) {
			cfg.Hello = func(uint8) wire.Hello {
				return wire.Hello{ClusterID: "c1", NodeID: id, Incarnation: "i-" + id, Engine: engine}
			}
			if id == "srv" {
				cfg.Check = func(h wire.Hello) error { heard <- h; return nil }
			}
		}
	}
	start(t, "srv", b, with("srv", 0xfeed))
	conn, hello, err := start(t, "cli", b, with("cli", 0xbeef)).DialRPC(t.Context(), "srv")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-heard; hello.Engine != 0xfeed || got.Engine != 0xbeef {
		t.Errorf("the dialer heard %x, the listener %x", hello.Engine, got.Engine)
	}
}

func TestDialerReachesWhomItMeans(t *testing.T) {
	b := newBook()
	srv := start(t, "srv", b, nil)
	cli := start(t, "cli", b, nil)
	b.set("other", srv.Addr())
	if err := ping(t, cli, "other"); err == nil || !strings.Contains(err.Error(), `this is node "srv", not "other"`) {
		t.Fatalf("wrong node: %v", err)
	}
	old := start(t, "old", b, func(cfg *Config) {
		cfg.Resolve = func(string) (string, string, error) { return srv.Addr(), "earlier", nil }
	})
	if err := ping(t, old, "srv"); err == nil || !strings.Contains(err.Error(), "another incarnation") {
		t.Fatalf("wrong incarnation: %v", err)
	}
	conn, hello, err := cli.DialAddr(t.Context(), srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if hello.NodeID != "srv" || exchange(conn) != nil {
		t.Fatalf("DialAddr reached %q", hello.NodeID)
	}
}

func TestCertificatesRotateWithoutRestart(t *testing.T) {
	oldCA, newerCA := newCA(t), newCA(t)
	valid := time.Now().Add(time.Hour)
	var mu sync.Mutex
	use := oldCA
	config := func(id string) func(*Config) {
		return func(cfg *Config) {
			cfg.TLS = func() (*tls.Config, error) {
				mu.Lock()
				defer mu.Unlock()
				return use.config(use.issue(t, id, valid))()
			}
		}
	}
	b := newBook()
	start(t, "srv", b, config("srv"))
	cli := start(t, "cli", b, config("cli"))
	stale := start(t, "stale", b, func(cfg *Config) { cfg.TLS = oldCA.config(oldCA.issue(t, "stale", valid)) })
	if err := errors.Join(ping(t, cli, "srv"), ping(t, stale, "srv")); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	use = newerCA
	mu.Unlock()
	if err := ping(t, cli, "srv"); err != nil {
		t.Fatal(err)
	}
	if err := ping(t, stale, "srv"); err == nil {
		t.Fatal("a certificate of the retired CA still passes")
	}
}

// TestProofCannotBeReflected plays the listener's own proof back to it.
func TestProofCannotBeReflected(t *testing.T) {
	h := &handshake{nonceD: newNonce(), nonceL: newNonce(), mode: modeKey}
	key := []byte("0123456789abcdef")
	hello := (&wire.Hello{NodeID: "n", Purpose: wire.PurposeRPC}).Append(nil)
	asListener := h.prove(key, roleListener, hello)
	h.t = &Transport{cfg: Config{ClusterKeys: []string{string(key)}}}
	if h.matchKey(asListener, roleDialer, hello) != nil {
		t.Fatal("a listener's proof passes as a dialer's")
	}
	proof := h.prove(key, roleDialer, hello)
	if h.matchKey(proof, roleDialer, hello) == nil {
		t.Fatal("a right proof does not pass")
	}
	other := *h
	other.nonceL = newNonce()
	if other.matchKey(proof, roleDialer, hello) != nil {
		t.Fatal("a proof passes in another handshake")
	}
	bound := *h
	bound.binding = []byte("session")
	if bound.matchKey(proof, roleDialer, hello) != nil {
		t.Fatal("a proof passes in another TLS session")
	}
}

// TestHostileConnections holds the port under garbage, silence and half
// handshakes: a member gets through at once, and memory stays bounded.
func TestHostileConnections(t *testing.T) {
	c := newCA(t)
	for _, secure := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "TLS"}[secure]
		t.Run(name, func(t *testing.T) {
			b := newBook()
			edit := func(id string) func(*Config) {
				return func(cfg *Config) {
					cfg.HandshakeTimeout = 2 * time.Second
					cfg.MaxPending = 32
					if secure {
						cfg.TLS = c.config(c.issue(t, id, time.Now().Add(time.Hour)))
					}
				}
			}
			srv := start(t, "srv", b, edit("srv"))
			cli := start(t, "cli", b, edit("cli"))
			before := heap()
			hostile := flood(t, srv.Addr(), 300)
			for range 5 {
				if err := ping(t, cli, "srv"); err != nil {
					t.Fatalf("a member was shut out: %v", err)
				}
			}
			if grown := int64(heap()) - int64(before); grown > 32<<20 {
				t.Errorf("300 hostile connections cost %d bytes", grown)
			}
			srv.mu.Lock()
			pending := len(srv.pending.list)
			srv.mu.Unlock()
			if pending > 32 {
				t.Errorf("%d connections pending, at most 32", pending)
			}
			for _, conn := range hostile { // every one is ended by the server
				conn.SetReadDeadline(time.Now().Add(8 * time.Second))
				if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
					t.Fatal("a hostile connection was left open")
				}
				conn.Close()
			}
		})
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// flood opens connections that say nothing, garbage, half a start, half a TLS
// record, or claim a large frame.
func flood(t *testing.T, addr string, n int) []net.Conn {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	garbage := make([]byte, 1000)
	for i := range garbage {
		garbage[i] = byte(rng.Uint32())
	}
	nonce := make([]byte, nonceBytes)
	full := append(append([]byte(magic), handshakeVersion, modeNone), nonce...)
	payloads := [][]byte{nil, garbage, full[:3], full[:20], {0x16, 3, 1, 0xff, 0xff}, append(full, 0xff, 0xff, frameHello),
		append(full, 0x0b, 0xff, frameHello)}
	var conns []net.Conn
	for i := range n {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		conn.Write(payloads[i%len(payloads)])
	}
	return conns
}

// TestSlowLorisIsCutOff feeds a handshake byte by byte.
func TestSlowLorisIsCutOff(t *testing.T) {
	b := newBook()
	srv := start(t, "srv", b, func(cfg *Config) { cfg.HandshakeTimeout = 200 * time.Millisecond })
	conn, err := net.Dial("tcp", srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	msg := append([]byte(magic), handshakeVersion)
	for i := 0; time.Since(began) < 5*time.Second; i++ {
		if _, err := conn.Write(msg[min(i, len(msg)-1):][:1]); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond) // the pace of the attack
	}
	t.Fatal("still open after 5 s")
}

func TestEstablishedConnectionsAreBounded(t *testing.T) {
	b := newBook()
	srv := start(t, "srv", b, func(cfg *Config) { cfg.MaxConns = 2 })
	cli := start(t, "cli", b, nil)
	var conns []net.Conn
	for range 2 {
		conn, _, err := cli.DialRPC(t.Context(), "srv")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if err := ping(t, cli, "srv"); err == nil || !strings.Contains(err.Error(), errFull.Error()) {
		t.Fatalf("third connection: %v", err)
	}
	conns[0].Close()
	eventually(t, "room for one more", func() bool { return ping(t, cli, "srv") == nil })
	_ = srv
}

func TestAcceptErrorsBackOff(t *testing.T) {
	b := newBook()
	var l *flakyListener
	start(t, "srv", b, func(cfg *Config) {
		cfg.Listen = func(network, addr string) (net.Listener, error) {
			inner, err := net.Listen(network, addr)
			l = &flakyListener{Listener: inner, fail: 5}
			return l, err
		}
	})
	cli := start(t, "cli", b, nil)
	if err := ping(t, cli, "srv"); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls > 20 {
		t.Errorf("%d calls of Accept: no back-off", l.calls)
	}
}

// flakyListener fails its first accepts, as when file descriptors run out.
type flakyListener struct {
	net.Listener
	mu          sync.Mutex
	fail, calls int
}

func (l *flakyListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.calls++
	l.fail--
	failing := l.fail >= 0
	l.mu.Unlock()
	if failing {
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

func TestCanceledDialReturnsAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := newBook()
	cli := start(t, "cli", b, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, _, err = cli.DialAddr(ctx, l.Addr().String())
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 2*time.Second {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
}

func TestCloseEndsDialsAndConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := newBook()
	start(t, "srv", b, nil)
	cli := start(t, "cli", b, nil)
	conn, _, err := cli.DialRPC(t.Context(), "srv")
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, _, err := cli.DialAddr(context.Background(), l.Addr().String())
		failed <- err
	}()
	if _, err := l.Accept(); err != nil { // the dial is in its handshake
		t.Fatal(err)
	}
	if err := cli.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Fatalf("dial: %v", err)
	}
	if exchange(conn) == nil {
		t.Fatal("a connection survived Close")
	}
	cli.Close()
	if _, _, err := cli.DialRPC(t.Context(), "srv"); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

func TestAdvertisedAddress(t *testing.T) {
	bound := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9000}
	cases := []struct {
		advertise string
		bound     net.Addr
		want      string // "" is an error
	}{
		{"", bound, "127.0.0.1:9000"},
		{"", &net.TCPAddr{IP: net.IPv4zero, Port: 9000}, ""},
		{"", &net.TCPAddr{IP: net.IPv6unspecified, Port: 9000}, ""},
		{"10.0.0.1:7000", &net.TCPAddr{IP: net.IPv4zero, Port: 9000}, "10.0.0.1:7000"},
		{"host.example:0", &net.TCPAddr{IP: net.IPv4zero, Port: 9000}, "host.example:9000"},
		{"0.0.0.0:9000", bound, ""},
		{":9000", bound, ""},
		{"[::]:9000", bound, ""},
		{"nonsense", bound, ""},
	}
	for _, c := range cases {
		got, err := advertisedAddr(c.advertise, c.bound)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q on %v: %q, %v", c.advertise, c.bound, got, err)
		}
	}
	cfg := Config{Bind: "0.0.0.0:0", Hello: func(uint8) wire.Hello { return wire.Hello{} }, Check: func(wire.Hello) error { return nil },
		Resolve: newBook().resolve, OnRPC: echo}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "set Advertise") {
		t.Errorf("an unspecified address was advertised: %v", err)
	}
}

// FuzzHandshake feeds both sides of the handshake with arbitrary bytes.
func FuzzHandshake(f *testing.F) {
	hello := (&wire.Hello{NodeID: "n", Purpose: wire.PurposeRPC, ClusterID: "c"}).Append(nil)
	frame := func(typ byte, body []byte) []byte {
		return append([]byte{byte(len(body) >> 8), byte(len(body)), typ}, body...)
	}
	nonce := make([]byte, nonceBytes)
	startMsg := append(append([]byte(magic), handshakeVersion, modeNone), nonce...)
	f.Add(append(startMsg, frame(frameHello, hello)...), false)
	f.Add(append(startMsg, 0xff, 0xff, frameHello), true)
	f.Add(append(frame(frameChallenge, append([]byte{modeNone}, nonce...)), frame(frameHello, hello)...), false)
	f.Add(append(frame(frameChallenge, append([]byte{modeKey}, nonce...)), frame(frameHello, make([]byte, 400))...), true)
	f.Add(frame(frameRefusal, []byte("no")), false)
	f.Fuzz(func(t *testing.T, in []byte, keyed bool) {
		cfg := Config{}
		if keyed {
			cfg.ClusterKeys = []string{"0123456789abcdef"}
		}
		tr := &Transport{cfg: cfg}
		for _, dial := range []bool{false, true} {
			conn := &scriptConn{in: in}
			h := &handshake{t: tr, rw: conn, left: HandshakeBytesMax}
			var err error
			if dial {
				_, err = h.dial(wire.Hello{NodeID: "me", Purpose: wire.PurposeRPC})
			} else {
				_, err = h.listen()
			}
			if keyed && err == nil {
				t.Fatal("passed without the key")
			}
			if conn.read > HandshakeBytesMax {
				t.Fatalf("read %d bytes", conn.read)
			}
		}
	})
}

// scriptConn reads from a script and swallows what is written.
type scriptConn struct {
	net.Conn
	in   []byte
	read int
}

func (c *scriptConn) Read(b []byte) (int, error) {
	if c.read == len(c.in) {
		return 0, io.EOF
	}
	n := copy(b, c.in[c.read:])
	c.read += n
	return n, nil
}

func (c *scriptConn) Write(b []byte) (int, error) { return len(b), nil }
