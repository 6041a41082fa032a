package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/wire"
)

// transportTimeout is short because a call to a stopped node waits for it; raft allows ten times as much for a copy.
const transportTimeout = 500 * time.Millisecond

// toyNode is a raft node whose state machine is one toy database file.
type toyNode struct {
	id        string
	dir       string
	rig       *rig
	raft      *raft.Raft
	transport *raft.InmemTransport
	logs      *raft.InmemStore
	peers     []*toyNode

	mu       sync.Mutex
	restored int
	mark     wire.Mark
	data     map[string]string
}

func (n *toyNode) path() string { return filepath.Join(n.rig.gens.Current(), "main.db") }

func (n *toyNode) bytes() []byte {
	b, _ := json.Marshal(n.data)
	return toyBytes(1, n.mark, string(b))
}

func (n *toyNode) openFile(dir string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, mark, payload, err := readToy(filepath.Join(dir, "main.db"))
	n.mark, n.data = mark, map[string]string{}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(payload), &n.data)
}

func (n *toyNode) Apply(l *raft.Log) any {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.Index <= n.mark.Index {
		return nil // the file holds it already
	}
	n.data[string(l.Data)] = fmt.Sprint(l.Index)
	n.mark = wire.Mark{Term: l.Term, Index: l.Index}
	return nil
}

func (n *toyNode) Snapshot() (raft.FSMSnapshot, error) { return n, nil }

// Persist makes the file durable first, then writes the manifest, and closes the sink, as raft does once more.
func (n *toyNode) Persist(sink raft.SnapshotSink) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	inc, mark, payload, err := parseToy(n.bytes())
	if err == nil {
		err = writeToy(n.path(), inc, mark, payload)
	}
	if err != nil {
		return err
	}
	m := Manifest{ClusterID: "c", Databases: []Database{{Name: "main", Incarnation: 1, Mark: n.mark, File: "main.db"}}}
	if _, err := sink.Write(m.Encode()); err != nil {
		return err
	}
	return sink.Close()
}

func (n *toyNode) Release() {}

func (n *toyNode) Restore(rc io.ReadCloser) error {
	id, err := ParseStaged(rc)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.restored++
	n.mu.Unlock()
	return n.rig.store.Install(id, nop, n.openFile)
}

// Pin copies what is in memory, so the copy is newer than the manifest whenever something was applied since.
func (n *toyNode) Pin(ctx context.Context) (Pinned, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &toyCopier{files: []toyFile{{Database{"main", 1, n.mark, "main.db"}, []byte("the WAL has it all"), n.bytes()}}}
	return c.Pin(ctx)
}

// start does what a node does before raft.NewRaft.
func (n *toyNode) start(t *testing.T) {
	t.Helper()
	var err error
	n.rig, err = tryRig(n.dir, func(c *Config) { c.Copier = func() Copier { return n } })
	if err != nil {
		t.Fatal(err)
	}
	if err := n.rig.store.Recover(); err != nil {
		t.Fatal(err)
	}
	if err := n.openFile(n.rig.gens.Current()); err != nil {
		t.Fatal(err)
	}
	if err := n.rig.store.CheckFiles(func(Database) (wire.Mark, uint64, error) { return n.mark, 1, nil }); err != nil {
		t.Fatal(err)
	}
	first, _ := n.logs.FirstIndex()
	last, _ := n.logs.LastIndex()
	if err := n.rig.store.CheckLog(first, last); err != nil {
		t.Fatal(err)
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(n.id)
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = 150*time.Millisecond, 150*time.Millisecond, 100*time.Millisecond
	cfg.CommitTimeout = 5 * time.Millisecond
	cfg.TrailingLogs = 2
	cfg.NoSnapshotRestoreOnStart = true
	cfg.Logger = hclog.NewNullLogger()
	n.raft, err = raft.NewRaft(cfg, n, n.logs, n.logs, n.rig.store, n.transport)
	if err != nil {
		t.Fatal(err)
	}
}

func (n *toyNode) stop(t *testing.T) {
	t.Helper()
	for _, peer := range n.peers {
		peer.transport.Disconnect(n.transport.LocalAddr())
	}
	if err := n.raft.Shutdown().Error(); err != nil {
		t.Error(err)
	}
	n.rig.store.Close()
}

func (n *toyNode) state() (wire.Mark, map[string]string, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mark, maps.Clone(n.data), n.restored
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not happen", what)
		}
		time.Sleep(2 * time.Millisecond) // polling interval
	}
}

// toyCluster starts three connected voters.
func toyCluster(t *testing.T) []*toyNode {
	t.Helper()
	var nodes []*toyNode
	var cfg raft.Configuration
	for _, id := range []string{"a", "b", "c"} {
		_, tr := raft.NewInmemTransportWithTimeout(raft.ServerAddress(id), transportTimeout)
		nodes = append(nodes, &toyNode{id: id, dir: t.TempDir(), transport: tr, logs: raft.NewInmemStore()})
		cfg.Servers = append(cfg.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	connect(nodes)
	for _, n := range nodes {
		n.peers = nodes
		n.start(t)
		if err := n.raft.BootstrapCluster(cfg).Error(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			n.stop(t)
		}
	})
	return nodes
}

func connect(nodes []*toyNode) {
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.transport.Connect(b.transport.LocalAddr(), b.transport)
			}
		}
	}
}

// split returns the leader and the others.
func split(t *testing.T, nodes []*toyNode) (leader *toyNode, others []*toyNode) {
	t.Helper()
	eventually(t, "a leader is elected", func() bool {
		leader, others = nil, nil
		for _, n := range nodes {
			if n.raft.VerifyLeader().Error() == nil {
				leader = n
			} else {
				others = append(others, n)
			}
		}
		return leader != nil && len(others) == len(nodes)-1
	})
	return leader, others
}

func (n *toyNode) write(t *testing.T, count int, name string) {
	t.Helper()
	for i := range count {
		if err := n.raft.Apply(fmt.Appendf(nil, "%s-%d", name, i), 5*time.Second).Error(); err != nil {
			t.Fatal(err)
		}
	}
}

// equal waits until n has what leader has.
func equal(t *testing.T, leader, n *toyNode) {
	t.Helper()
	eventually(t, n.id+" equals the leader", func() bool {
		wantMark, want, _ := leader.state()
		mark, data, _ := n.state()
		return mark == wantMark && maps.Equal(data, want)
	})
}

func TestRaftInstallsACopyOnAWipedFollowerAndRestartsFromIt(t *testing.T) {
	t.Parallel()
	nodes := toyCluster(t)
	leader, others := split(t, nodes)
	leader.write(t, 20, "first")
	for _, n := range others {
		equal(t, leader, n)
	}
	// The follower comes back with nothing at all, while the leader's log has been cut.
	wiped := others[0]
	wiped.stop(t)
	leader.write(t, 10, "second")
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	leader.write(t, 5, "third") // the copy will be newer than its manifest
	wiped.dir, wiped.logs = t.TempDir(), raft.NewInmemStore()
	_, wiped.transport = raft.NewInmemTransportWithTimeout(raft.ServerAddress(wiped.id), transportTimeout)
	connect(nodes)
	wiped.start(t)
	equal(t, leader, wiped)
	if _, _, restored := wiped.state(); restored == 0 {
		t.Error("the follower caught up without a copy")
	}
	if got := filepath.Base(wiped.rig.gens.Current()); got == "g-00000001" {
		t.Errorf("the follower still lives in %s", got)
	}
	eventually(t, "the copy is removed", func() bool { return leader.rig.store.Sending() == 0 })

	// It goes on by the log, takes a snapshot of its own, and restarts from its files.
	leader.write(t, 10, "fourth")
	equal(t, leader, wiped)
	if err := wiped.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	wiped.stop(t)
	leader.write(t, 3, "fifth")
	_, wiped.transport = raft.NewInmemTransportWithTimeout(raft.ServerAddress(wiped.id), transportTimeout)
	connect(nodes)
	wiped.start(t)
	equal(t, leader, wiped)
	if err := noLitter(wiped.rig); err != nil {
		t.Error(err)
	}
	if err := noLitter(leader.rig); err != nil {
		t.Error(err)
	}
}

func TestRaftKeepsTheOldStateWhenACopyCannotBeStored(t *testing.T) {
	t.Parallel()
	nodes := toyCluster(t)
	leader, others := split(t, nodes)
	leader.write(t, 10, "first")
	late := others[0]
	equal(t, leader, late)
	late.stop(t)
	leader.write(t, 20, "second")
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	var full sync.Mutex // guards refusals
	refusals := 0
	_, late.transport = raft.NewInmemTransportWithTimeout(raft.ServerAddress(late.id), transportTimeout)
	late.start(t)
	before, _, _ := late.state()
	late.rig.store.free = func(dir string) (int64, bool) {
		full.Lock()
		defer full.Unlock()
		if refusals < 2 {
			refusals++
			return 10, true
		}
		return freeSpace(dir)
	}
	late.rig.store.cfg.Accept = func(*Manifest) error {
		if mark, _, _ := late.state(); mark != before {
			return fmt.Errorf("a refused copy moved the state from %v to %v", before, mark)
		}
		return nil
	}
	connect(nodes)
	equal(t, leader, late)
	full.Lock()
	defer full.Unlock()
	if refusals != 2 {
		t.Errorf("%d refusals", refusals)
	}
}
