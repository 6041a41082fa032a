package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ca is a certificate authority of a test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &ca{cert: cert, key: key, pool: pool}
}

// issue makes a node's certificate; nodeID "" leaves the URI SAN out.
func (c *ca) issue(t testing.TB, nodeID string, notAfter time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, DNSNames: []string{"node.test"},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if nodeID != "" {
		tmpl.URIs = []*url.URL{NodeURI(nodeID)}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (c *ca) config(certs ...tls.Certificate) func() (*tls.Config, error) {
	return func() (*tls.Config, error) {
		return &tls.Config{Certificates: certs, RootCAs: c.pool, ClientCAs: c.pool}, nil
	}
}

// book is where the nodes of a test find each other.
type book struct {
	mu    sync.Mutex
	addrs map[string]string
}

func newBook() *book { return &book{addrs: map[string]string{}} }

func (b *book) set(id, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[id] = addr
}

func (b *book) resolve(id string) (string, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	addr, ok := b.addrs[id]
	if !ok {
		return "", "", errors.New("unknown node")
	}
	return addr, "", nil
}

// echo answers what it reads, as an RPC room stands in.
func echo(conn net.Conn, _ wire.Hello) { _, _ = io.Copy(conn, conn) }

// start makes a serving transport; edit may change the configuration.
func start(t testing.TB, id string, b *book, edit func(*Config)) *Transport {
	t.Helper()
	cfg := Config{
		Bind: "127.0.0.1:0",
		Hello: func(uint8) wire.Hello {
			return wire.Hello{ClusterID: "c1", NodeID: id, Incarnation: "i-" + id}
		},
		Check: func(peer wire.Hello) error {
			if peer.ClusterID != "c1" {
				return fmt.Errorf("cluster %q is not ours", peer.ClusterID)
			}
			return nil
		},
		Resolve: b.resolve,
		OnRPC:   echo,
	}
	if edit != nil {
		edit(&cfg)
	}
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.set(id, tr.Addr())
	tr.Serve()
	t.Cleanup(func() { tr.Close() })
	return tr
}

// ping dials and has a few bytes echoed.
func ping(t testing.TB, from *Transport, to string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, hello, err := from.DialRPC(ctx, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	if hello.NodeID != to {
		return fmt.Errorf("answered by %q", hello.NodeID)
	}
	return exchange(conn)
}

func exchange(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("echoed %q", b)
	}
	return nil
}

// eventually polls a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
