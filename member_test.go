package colmena_test

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
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/testcluster"
)

func TestFourthNodeJoinsWhileWritersWrite(t *testing.T) {
	c := testcluster.New(t, 3, shortLog)
	l := startLoad(t, c, 4)
	l.await(size(200))
	exec(t, c.Node(0), "CREATE TABLE blobs(b BLOB)")
	for range size(40) {
		exec(t, c.Node(1), "INSERT INTO blobs VALUES(zeroblob(100000))")
	}
	for _, n := range c.Running() {
		if err := n.Snapshot(limit(t)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	i := c.Add()
	c.WaitVoters(4)
	c.WaitReady()
	t.Logf("voter and ready after %v", time.Since(began))
	l.await(size(200))
	wantNumber(t, c.Node(i), colmena.Strong, int64(size(40)), "SELECT count(*) FROM blobs")
	l.stop()
}

func TestNonvoterStaysOne(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 3)
	i := c.Add(func(_ int, cfg *colmena.Config) { cfg.JoinAs = colmena.JoinAsNonvoter })
	c.WaitReady()
	add(t, c.Node(i), 1)
	c.WaitVoters(3)
	wantRows(t, c, 4)
	if m := member(t, c.Node(0), i); m.Voter || m.Promoting {
		t.Errorf("the learner is %+v", m)
	}
	if role := c.Node(i).Status().Role; role != "learner" {
		t.Errorf("the role of the learner is %q", role)
	}
	if err := c.Node(i).AddVoter(limit(t), c.Node(i).ID()); err != nil {
		t.Fatal(err)
	}
	c.WaitVoters(4)
	c.Until("the role is a voter's", func() bool { r := c.Node(i).Status().Role; return r == "follower" || r == "leader" })
}

// member is a node as another one knows it; its ID is empty if it is none.
func member(t *testing.T, n *colmena.Node, i int) colmena.Member {
	t.Helper()
	members, err := n.Members(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.ID == fmt.Sprintf("node-%d", i+1) {
			return m
		}
	}
	return colmena.Member{}
}

func TestLeadershipIsTransferredFromAnyNode(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	for from := range 3 {
		for to := range 3 {
			if err := c.Node(from).TransferLeadership(limit(t), c.Node(to).ID()); err != nil {
				t.Fatalf("from %d to %d: %v", from, to, err)
			}
			c.Until("the chosen leader", func() bool { return c.Node(to).IsLeader() })
			add(t, c.Node(from), 1)
		}
	}
	before := c.Leader()
	if err := c.Node((before+1)%3).TransferLeadership(limit(t), ""); err != nil {
		t.Fatal(err)
	}
	c.Until("another leader", func() bool { return c.Leader() != before })
	wantRows(t, c, 10)
	if err := c.Node(0).TransferLeadership(limit(t), "nobody"); err == nil {
		t.Error("leadership was transferred to nobody")
	}
	add(t, c.Node(0), 1)
}

func TestMembersAreDemotedAndPromotedFromAnyNode(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	for from := range 3 {
		for _, id := range []int{c.Leader(), c.Follower()} {
			if err := c.Node(from).DemoteVoter(limit(t), c.Node(id).ID()); err != nil {
				t.Fatalf("demote node %d from node %d: %v", id+1, from+1, err)
			}
			c.WaitVoters(2)
			if m := member(t, c.Node(from), id); m.Voter || m.Leader || m.Promoting {
				t.Errorf("the demoted node is %+v", m)
			}
			add(t, c.Node(id), 1)
			if err := c.Node(from).AddVoter(limit(t), c.Node(id).ID()); err != nil {
				t.Fatalf("promote node %d from node %d: %v", id+1, from+1, err)
			}
			c.WaitVoters(3)
		}
	}
	wantRows(t, c, 7)
	for _, err := range []error{c.Node(0).DemoteVoter(limit(t), "nobody"), c.Node(1).RemoveNode(limit(t), "nobody"), c.Node(2).AddVoter(limit(t), "nobody")} {
		if err == nil || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("a change of an unknown member: %v", err)
		}
	}
}

func TestRemovedNodeStaysOut(t *testing.T) {
	for _, leader := range []bool{false, true} {
		t.Run(fmt.Sprintf("leader=%t", leader), func(t *testing.T) {
			c := testcluster.New(t, 3)
			kv(t, c, 1)
			c.WaitConverged()
			i := c.Follower()
			if leader {
				i = c.Leader()
			}
			removed, other := c.Node(i), c.Node((i+1)%3)
			if err := removed.RemoveNode(limit(t), removed.ID()); err != nil {
				t.Fatal(err)
			}
			if m := member(t, other, i); m.ID != "" {
				t.Fatalf("still a member: %+v", m)
			}
			c.Until("a removed node without a leader", func() bool { _, ok := removed.Leader(); return !ok })
			// Enough for a node that is not told to stay out to come back.
			for end := time.Now().Add(600 * time.Millisecond); time.Now().Before(end); {
				add(t, other, 1)
				if m := member(t, other, i); m.ID != "" {
					t.Fatalf("a removed node has come back by itself: %+v", m)
				}
			}
			rows, err := number(limit(t), other, colmena.Strong, "SELECT count(*) FROM kv")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if _, err := removed.DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES('no')"); err == nil {
				t.Error("a removed node takes writes")
			}
			cancel()
			// Started again with Join it returns as a fresh member.
			c.Stop(i)
			cfg := c.Config(i)
			cfg.Bootstrap, cfg.Join = false, []string{other.Addr()}
			c.StartWith(i, cfg)
			c.WaitVoters(3)
			c.WaitReady()
			wantRows(t, c, rows)
		})
	}
}

func TestNodeRemovedWhileDownReturnsWithJoin(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	i := c.Follower()
	addr := c.Node(i).Addr()
	c.Stop(i)
	other := c.Node(c.Leader())
	if err := other.RemoveNode(limit(t), c.Config(i).NodeID); err != nil {
		t.Fatal(err)
	}
	add(t, other, 5)
	// Started without Join it is told; with Join it returns.
	d := &diary{}
	cfg := c.Config(i)
	cfg.Bind, cfg.Bootstrap, cfg.Logger = addr, false, textLogger(d)
	c.StartWith(i, cfg)
	c.Until("word of the removal", func() bool { return d.has("removed from the cluster") })
	c.Stop(i)
	cfg.Join, cfg.Logger = []string{other.Addr()}, testcluster.Logger(t, i+1)
	c.StartWith(i, cfg)
	c.WaitVoters(3)
	c.WaitReady()
	wantRows(t, c, 6)
}

func TestLastVoterIsNeitherRemovedNorDemoted(t *testing.T) {
	c := testcluster.New(t, 1)
	kv(t, c, 1)
	n := c.Node(0)
	if err := n.RemoveNode(limit(t), n.ID()); err == nil {
		t.Error("the last voter was removed")
	}
	if err := n.DemoteVoter(limit(t), n.ID()); err == nil {
		t.Error("the last voter was demoted")
	}
	add(t, n, 1)
}

// TestRefusedChangesReadTheSameOnEveryNode: kind and text of an error do not depend on
// the node that was called.
func TestRefusedChangesReadTheSameOnEveryNode(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	learner := c.Add(func(_ int, cfg *colmena.Config) { cfg.JoinAs = colmena.JoinAsNonvoter })
	c.WaitReady()
	same := func(what string, want error, change func(*colmena.Node) error) {
		t.Helper()
		text := ""
		for _, n := range c.Running() {
			err := change(n)
			if err == nil || want != nil && !errors.Is(err, want) {
				t.Fatalf("%s on node %s: %v; want %v", what, n.ID(), err, want)
			}
			if text == "" {
				text = err.Error()
			}
			if err.Error() != text || strings.Count(text, "colmena: ") != 1 {
				t.Errorf("%s on node %s: %q, and elsewhere %q", what, n.ID(), err, text)
			}
		}
	}
	leader, away, last := c.Leader(), -1, -1
	for i := range 3 {
		switch {
		case i == leader:
		case away < 0:
			away = i
		default:
			last = i
		}
	}
	id := func(i int) string { return c.Config(i).NodeID }
	same("a stranger removed", colmena.ErrUnknownMember, func(n *colmena.Node) error { return n.RemoveNode(limit(t), "nobody") })
	same("a stranger demoted", colmena.ErrUnknownMember, func(n *colmena.Node) error { return n.AddNonvoter(limit(t), "nobody") })
	same("a stranger promoted", colmena.ErrUnknownMember, func(n *colmena.Node) error { return n.AddVoter(limit(t), "nobody") })
	same("leadership to a stranger", colmena.ErrUnknownMember, func(n *colmena.Node) error { return n.TransferLeadership(limit(t), "nobody") })
	same("leadership to a learner", nil, func(n *colmena.Node) error { return n.TransferLeadership(limit(t), id(learner)) })

	c.Stop(away)
	same("a majority lost", colmena.ErrNoQuorum, func(n *colmena.Node) error { return n.RemoveNode(limit(t), id(last)) })
	same("a majority lost", colmena.ErrNoQuorum, func(n *colmena.Node) error { return n.DemoteVoter(limit(t), id(leader)) })
	if err := c.Node(last).RemoveNode(limit(t), id(away)); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(last).DemoteVoter(limit(t), id(last)); err != nil {
		t.Fatal(err)
	}
	c.WaitVoters(1)
	same("the last voter removed", colmena.ErrLastVoter, func(n *colmena.Node) error { return n.RemoveNode(limit(t), id(leader)) })
	same("the last voter demoted", colmena.ErrLastVoter, func(n *colmena.Node) error { return n.DemoteVoter(limit(t), id(leader)) })
	same("leadership to nobody", colmena.ErrNoSuccessor, func(n *colmena.Node) error { return n.TransferLeadership(limit(t), "") })
	if c.Leader() != leader {
		t.Error("a refused change has moved leadership")
	}
	add(t, c.Node(last), 1)
	wantRows(t, c, 2)
}

// authority is a certificate authority of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.key = a.newKey()
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "a test's CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.cert = a.sign(tmpl, tmpl, &a.key.PublicKey)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) sign(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	a.next++
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(a.next), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue makes what a node of that ID uses.
func (a *authority) issue(id string) *tls.Config {
	key := a.newKey()
	cert := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: id}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, URIs: []*url.URL{{Scheme: "colmena", Host: id}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, &key.PublicKey)
	return &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}}}
}

// diary gathers what a node logs.
type diary struct {
	mu   sync.Mutex
	text strings.Builder
}

func (d *diary) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *diary) has(s string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Contains(d.text.String(), s)
}

// stranger tries to join a cluster and must not come in. It returns what it logs.
func stranger(t *testing.T, c *testcluster.Cluster, want string, change func(*colmena.Config)) {
	t.Helper()
	d := &diary{}
	cfg := colmena.Config{NodeID: "stranger", DataDir: t.TempDir(), Bind: "127.0.0.1:0", Join: []string{c.Node(0).Addr()}, Logger: textLogger(d)}
	change(&cfg)
	n, err := colmena.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	deadline := time.Now().Add(testcluster.Timeout)
	for !d.has(want) {
		if time.Now().After(deadline) {
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Fatalf("the stranger was not told %q, but:\n%s", want, d.text.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
	members, err := c.Node(0).Members(limit(t))
	if err != nil || len(members) != len(c.Running()) {
		t.Errorf("members %v, %v", members, err)
	}
}

func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.TLSConfig = ca.issue(cfg.NodeID) })
	kv(t, c, 3)
	for i := range 3 {
		add(t, c.Node(i), 1)
	}
	wantRows(t, c, 6)
	stranger(t, c, "certificate", func(cfg *colmena.Config) { cfg.TLSConfig = newAuthority(t).issue("stranger") })
	stranger(t, c, "certificate", func(cfg *colmena.Config) { cfg.TLSConfig = ca.issue("another") })
	stranger(t, c, "TLS", func(*colmena.Config) {})
}

// TestANodeCannotJoinUnderTheNameOfAnother: who joins is who shook hands. A node with a
// certificate of its own, and no member, can neither take the line of a member that is
// down, nor move it to its own address, nor enter or remove anybody else, whomever of
// the members it asks.
func TestANodeCannotJoinUnderTheNameOfAnother(t *testing.T) {
	ca := newAuthority(t)
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.TLSConfig = ca.issue(cfg.NodeID) })
	kv(t, c, 1)
	down := c.Follower()
	incarnation := c.Node(down).Status().Incarnation
	c.Stop(down)
	leader, follower := c.Node(c.Leader()), c.Node(c.Follower())
	before, err := leader.Members(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	imposter, err := colmena.New(colmena.Config{NodeID: "imposter", DataDir: t.TempDir(), Bind: "127.0.0.1:0", Join: []string{testcluster.FreeAddr(t)},
		TLSConfig: ca.issue("imposter"), Logger: testcluster.Logger(t, 9)})
	if err != nil {
		t.Fatal(err)
	}
	defer imposter.Close()
	join := func(id, incarnation string) members.Change {
		return members.Change{Kind: members.Join, ID: id, Incarnation: incarnation, Addr: imposter.Addr(), Voter: true, FormatMin: members.FormatMin, FormatMax: members.FormatMax}
	}
	victim := c.Config(down).NodeID
	for _, via := range []*colmena.Node{leader, follower} {
		for what, change := range map[string]members.Change{
			"a member's line":    join(victim, "taken"),
			"a member's address": join(victim, incarnation),
			"a new line":         join("newcomer", "taken"),
			"a removal":          {Kind: members.Remove, ID: victim},
		} {
			err := imposter.AskAt(limit(t), via.Addr(), change)
			var refused *colmena.RefusedError
			if notLeader := via == follower && change.Kind != members.Join && errors.Is(err, colmena.ErrNoLeader); !errors.As(err, &refused) && !notLeader {
				t.Errorf("%s, asked of node %s: %v", what, via.ID(), err)
			}
		}
	}
	after, err := leader.Members(limit(t))
	if err != nil || !slices.Equal(before, after) {
		t.Errorf("%v\nmembers were %v\nand are %v", err, before, after)
	}
	// For itself a node may ask any member, which passes that on.
	honest := c.Add(func(_ int, cfg *colmena.Config) { cfg.Join = []string{follower.Addr()} })
	c.WaitVoters(4)
	if m := member(t, leader, honest); m.Addr != c.Node(honest).Addr() {
		t.Errorf("the node that joined through a follower is %+v", m)
	}
	c.Start(down)
	c.WaitReady()
	wantRows(t, c, 1)
}

func TestClusterKeys(t *testing.T) {
	const key = "a key of at least sixteen bytes"
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.ClusterKeys = []string{key} })
	kv(t, c, 3)
	for i := range 3 {
		add(t, c.Node(i), 1)
	}
	wantRows(t, c, 6)
	stranger(t, c, "key", func(cfg *colmena.Config) { cfg.ClusterKeys = []string{"another key of sixteen bytes"} })
	stranger(t, c, "key", func(*colmena.Config) {})
}

func TestNodeOfAnotherClusterIsRefused(t *testing.T) {
	c := testcluster.New(t, 1)
	kv(t, c, 1)
	dir := t.TempDir()
	n, err := colmena.New(colmena.Config{NodeID: "stranger", DataDir: dir, Bind: "127.0.0.1:0", Bootstrap: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.DB().ExecContext(limit(t), "CREATE TABLE own(a)"); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// A node that leads a cluster of its own does not look for another.
	d := &diary{}
	n, err = colmena.New(colmena.Config{NodeID: "stranger", DataDir: dir, Bind: "127.0.0.1:0", Join: []string{c.Node(0).Addr()}, Logger: textLogger(d)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	wantNumber(t, n, colmena.Strong, 0, "SELECT count(*) FROM own")
	members, err := c.Node(0).Members(limit(t))
	if err != nil || len(members) != 1 {
		t.Errorf("members %v, %v", members, err)
	}
}

func TestDirectoryBelongsToOneNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n, err := colmena.New(colmena.Config{NodeID: "a", DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := colmena.New(colmena.Config{NodeID: "a", DataDir: dir}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a directory used twice: %v", err)
	}
	exec(t, n, "CREATE TABLE t(a)")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := colmena.New(colmena.Config{NodeID: "b", DataDir: dir}); err == nil || !strings.Contains(err.Error(), `belongs to node "a"`) {
		t.Errorf("another node's directory: %v", err)
	}
	// The refusals have done no harm, and without NodeID the directory's own counts.
	n, err = colmena.New(colmena.Config{DataDir: dir})
	if err != nil || n.ID() != "a" {
		t.Fatalf("%v, %v", n, err)
	}
	wantNumber(t, n, colmena.Strong, 0, "SELECT count(*) FROM t")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}

	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "app.db"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := colmena.New(colmena.Config{DataDir: foreign}); err == nil || !strings.Contains(err.Error(), "app.db") {
		t.Errorf("a directory with foreign content: %v", err)
	}
	if entries, _ := os.ReadDir(foreign); len(entries) > 2 {
		t.Errorf("the foreign directory now holds %v", entries)
	}
	if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := colmena.New(colmena.Config{DataDir: dir}); err == nil || !strings.Contains(err.Error(), "node.json") {
		t.Errorf("a damaged node.json: %v", err)
	}
}

func TestConfigReportsEveryViolation(t *testing.T) {
	_, err := colmena.New(colmena.Config{NodeID: "a/b", Join: []string{"x"}, ReadConns: -1})
	for _, want := range []string{"NodeID", "DataDir", "Join", "ReadConns"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named in: %v", want, err)
		}
	}
}

func TestSameNodeIDTwiceIsRefused(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	d := &diary{}
	n, err := colmena.New(colmena.Config{NodeID: "node-2", DataDir: t.TempDir(), Bind: "127.0.0.1:0", Join: []string{c.Node(0).Addr()}, Logger: textLogger(d)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c.Until("a refusal", func() bool { return d.has("same ID") || d.has("calls itself") })
	add(t, c.Node(1), 1)
	if err := n.Close(); err != nil && !errors.Is(err, colmena.ErrClosed) {
		t.Error(err)
	}
	wantRows(t, c, 2)
}
