package transport

//lint:file-ignore SA1019 raft itself still sets and reads the deprecated Leader and Candidate fields

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/wire"
)

// counter is a state machine that keeps what it was given.
type counter struct {
	mu   sync.Mutex
	seen []string
}

func (c *counter) Apply(l *raft.Log) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, string(l.Data))
	return len(c.seen)
}

func (c *counter) Snapshot() (raft.FSMSnapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return counterSnapshot(strings.Join(c.seen, "\n")), nil
}

func (c *counter) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = strings.Split(string(b), "\n")
	return nil
}

func (c *counter) last() (int, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) == 0 {
		return 0, ""
	}
	return len(c.seen), c.seen[len(c.seen)-1]
}

type counterSnapshot string

func (s counterSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write([]byte(s)); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}
func (counterSnapshot) Release() {}

// member is a raft node whose transport can be taken away and given another port.
type member struct {
	id    string
	tr    *Transport
	raft  *raft.Raft
	fsm   *counter
	store *raft.InmemStore
	snaps *raft.InmemSnapshotStore
}

func (m *member) run(t *testing.T) {
	t.Helper()
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(m.id)
	cfg.HeartbeatTimeout, cfg.ElectionTimeout = 150*time.Millisecond, 150*time.Millisecond
	cfg.LeaderLeaseTimeout, cfg.CommitTimeout = 100*time.Millisecond, 5*time.Millisecond
	cfg.Logger = HCLog(nil)
	m.fsm = &counter{}
	r, err := raft.NewRaft(cfg, m.fsm, m.store, m.store, m.snaps, m.tr.Raft())
	if err != nil {
		t.Fatal(err)
	}
	m.raft = r
}

func (m *member) stop(t *testing.T) {
	t.Helper()
	if err := m.raft.Shutdown().Error(); err != nil {
		t.Error(err)
	}
	if err := m.tr.Close(); err != nil {
		t.Error(err)
	}
}

// raftCluster starts n members over TLS.
func raftCluster(t *testing.T, n int) (*book, []*member, func(id string) *Transport) {
	t.Helper()
	c, b := newCA(t), newBook()
	listen := func(id string) *Transport {
		cert := c.issue(t, id, time.Now().Add(time.Hour))
		return start(t, id, b, func(cfg *Config) {
			cfg.TLS = c.config(cert)
			cfg.RaftTimeout = 2 * time.Second
		})
	}
	var members []*member
	var servers []raft.Server
	for i := range n {
		id := fmt.Sprintf("node-%d", i)
		m := &member{id: id, tr: listen(id), store: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
		members = append(members, m)
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	for _, m := range members {
		m.run(t)
	}
	t.Cleanup(func() {
		for _, m := range members {
			m.stop(t)
		}
	})
	if err := members[0].raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		t.Fatal(err)
	}
	return b, members, listen
}

// apply has the cluster take a value, whoever leads.
func apply(t *testing.T, members []*member, value string) *member {
	t.Helper()
	var by *member
	eventually(t, "apply of "+value, func() bool {
		for _, m := range members {
			if m.raft.State() == raft.Leader && m.raft.Apply([]byte(value), time.Second).Error() == nil {
				by = m
				return true
			}
		}
		return false
	})
	return by
}

func waitSeen(t *testing.T, members []*member, value string) {
	t.Helper()
	for _, m := range members {
		eventually(t, m.id+" applied "+value, func() bool { _, v := m.fsm.last(); return v == value })
	}
}

// TestHazard25RaftMovesToOtherPorts has three nodes elect and apply over TLS, then each in
// turn restarts on another port and goes on.
func TestHazard25RaftMovesToOtherPorts(t *testing.T) {
	_, members, listen := raftCluster(t, 3)
	apply(t, members, "first")
	waitSeen(t, members, "first")
	for i, m := range members {
		old := m.tr.Addr()
		m.stop(t)
		m.tr = listen(m.id)
		if m.tr.Addr() == old {
			t.Fatal("the same port again")
		}
		m.run(t)
		value := fmt.Sprintf("after move %d %s", i, strings.Repeat("x", 200_000))
		apply(t, members, value)
		waitSeen(t, members, value)
	}
}

func TestRaftInstallsSnapshot(t *testing.T) {
	_, members, _ := raftCluster(t, 3)
	leader := apply(t, members, "zero")
	var cut *member
	for _, m := range members {
		if m != leader {
			cut = m
		}
	}
	waitSeen(t, members, "zero")
	cut.tr.Mute(true)
	big := strings.Repeat("snapshot ", 50_000)
	rest := slicesWithout(members, cut)
	for i := range 5 {
		apply(t, rest, fmt.Sprint(i, big))
	}
	apply(t, rest, "end")
	waitSeen(t, rest, "end")
	for _, m := range rest {
		cfg := m.raft.ReloadableConfig()
		cfg.TrailingLogs = 0
		if err := errors.Join(m.raft.ReloadConfig(cfg), m.raft.Snapshot().Error()); err != nil {
			t.Fatal(err)
		}
	}
	cut.tr.Mute(false)
	waitSeen(t, members, "end")
	if n, _ := cut.fsm.last(); n != 7 {
		t.Errorf("%d values after the snapshot, want 7", n)
	}
	apply(t, members, "on it goes")
	waitSeen(t, members, "on it goes")
}

func slicesWithout(ms []*member, not *member) []*member {
	var out []*member
	for _, m := range ms {
		if m != not {
			out = append(out, m)
		}
	}
	return out
}

// TestHazard26MuteMovesLeadership mutes the leader, as its disk watchdog would.
func TestHazard26MuteMovesLeadership(t *testing.T) {
	_, members, _ := raftCluster(t, 3)
	leader := apply(t, members, "first")
	leader.tr.Mute(true)
	rest := slicesWithout(members, leader)
	if next := apply(t, rest, "second"); next == leader {
		t.Fatal("the muted node still leads")
	}
	if err := ping(t, rest[0].tr, leader.id); err != nil {
		t.Errorf("RPC to a muted node: %v", err)
	}
	leader.tr.Mute(false)
	waitSeen(t, members, "second")
}

func TestPartitionCutsBothDirections(t *testing.T) {
	_, members, _ := raftCluster(t, 3)
	leader := apply(t, members, "first")
	conn, _, err := leader.tr.DialRPC(t.Context(), slicesWithout(members, leader)[0].id)
	if err != nil {
		t.Fatal(err)
	}
	leader.tr.Partition(func(id string) bool { return id != leader.id })
	if exchange(conn) == nil {
		t.Error("a connection survived the partition")
	}
	rest := slicesWithout(members, leader)
	apply(t, rest, "second")
	if err := ping(t, leader.tr, rest[0].id); !errors.Is(err, ErrBlocked) {
		t.Errorf("out of the partition: %v", err)
	}
	if err := ping(t, rest[0].tr, leader.id); err == nil {
		t.Error("into the partition: no error")
	}
	leader.tr.Partition(nil)
	waitSeen(t, members, "second")
}

// answering has raft's side of a transport answer everything.
func answering(t *testing.T, tr *Transport) {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case rpc := <-tr.Raft().Consumer():
				switch r := rpc.Command.(type) {
				case *raft.AppendEntriesRequest:
					rpc.Respond(&raft.AppendEntriesResponse{Term: r.Term, Success: true, LastLog: uint64(len(r.Entries))}, nil)
				case *raft.RequestVoteRequest:
					rpc.Respond(&raft.RequestVoteResponse{Term: r.Term, Granted: true}, nil)
				case *raft.RequestPreVoteRequest:
					rpc.Respond(&raft.RequestPreVoteResponse{Term: r.Term}, errors.New("not now"))
				case *raft.InstallSnapshotRequest:
					n, _ := io.Copy(io.Discard, rpc.Reader)
					rpc.Respond(&raft.InstallSnapshotResponse{Term: uint64(n), Success: true}, nil)
				default:
					rpc.Respond(nil, errors.New("refused"))
				}
			case <-done:
				return
			}
		}
	}()
}

// TestPooledConnectionsSurviveARestart: the first RPC after the peer restarted
// must not fail on a connection that died with it.
func TestPooledConnectionsSurviveARestart(t *testing.T) {
	b := newBook()
	srv := start(t, "srv", b, nil)
	answering(t, srv)
	cli := start(t, "cli", b, nil)
	vote := func() error {
		var resp raft.RequestVoteResponse
		err := cli.Raft().RequestVote("srv", "srv", &raft.RequestVoteRequest{Term: 7}, &resp)
		if err == nil && (!resp.Granted || resp.Term != 7) {
			return fmt.Errorf("answer %+v", resp)
		}
		return err
	}
	if err := vote(); err != nil {
		t.Fatal(err)
	}
	srv.Close()
	answering(t, start(t, "srv", b, nil))
	if err := vote(); err != nil {
		t.Fatalf("after the restart: %v", err)
	}
	cli.raft.sweep(time.Now().Add(time.Hour))
	if cli.raft.takeIdle("srv") != nil {
		t.Fatal("an idle connection outlived the sweep")
	}
}

func TestRaftRPCs(t *testing.T) {
	b := newBook()
	srv := start(t, "srv", b, nil)
	answering(t, srv)
	cli := start(t, "cli", b, nil)
	tr := cli.Raft()
	if tr.LocalAddr() != "cli" || tr.DecodePeer(tr.EncodePeer("srv", "srv")) != "srv" {
		t.Error("addresses are not node IDs")
	}
	pre := tr.(raft.WithPreVote)
	var pv raft.RequestPreVoteResponse
	if err := pre.RequestPreVote("srv", "srv", &raft.RequestPreVoteRequest{Term: 3}, &pv); err == nil || err.Error() != "not now" || pv.Term != 3 {
		t.Errorf("pre-vote: %v %+v", err, pv)
	}
	if err := tr.TimeoutNow("srv", "srv", &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{}); err == nil || err.Error() != "refused" {
		t.Errorf("timeout now: %v", err)
	}
	data := bytes.Repeat([]byte("s"), 3<<20)
	var is raft.InstallSnapshotResponse
	req := &raft.InstallSnapshotRequest{Size: int64(len(data)), Configuration: []byte("c")}
	if err := tr.InstallSnapshot("srv", "srv", req, &is, bytes.NewReader(data)); err != nil || is.Term != uint64(len(data)) {
		t.Errorf("snapshot: %v %+v", err, is)
	}
	if err := tr.InstallSnapshot("srv", "srv", req, &is, bytes.NewReader(data[1:])); err == nil {
		t.Error("a snapshot shorter than announced was taken")
	}
	var ae raft.AppendEntriesResponse
	forged := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ID: []byte("somebody")}, Term: 1}
	if err := tr.AppendEntries("srv", "srv", forged, &ae); err == nil {
		t.Error("a request in another node's name was answered")
	}
	p, err := tr.AppendEntriesPipeline("srv", "srv")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 20 {
		entries := make([]*raft.Log, i)
		for j := range entries {
			entries[j] = &raft.Log{Index: uint64(j), Data: bytes.Repeat([]byte{byte(j)}, j*10_000)}
		}
		if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 2, Entries: entries}, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
		f := <-p.Consumer()
		if err := f.Error(); err != nil || f.Response().LastLog != uint64(i) {
			t.Fatalf("answer %d: %v %+v", i, err, f.Response())
		}
	}
	srv.CloseConns("cli")
	eventually(t, "the pipeline notices", func() bool {
		_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 2}, &raft.AppendEntriesResponse{})
		return err != nil
	})
}

// TestLyingRaftFramesCostNothing claims 65 MiB on many connections and sends none.
func TestLyingRaftFramesCostNothing(t *testing.T) {
	b := newBook()
	srv := start(t, "srv", b, func(cfg *Config) { cfg.RaftTimeout = 300 * time.Millisecond })
	answering(t, srv)
	cli := start(t, "cli", b, nil)
	before := heap()
	var conns []net.Conn
	for range 50 {
		pc, err := cli.dialNode(t.Context(), "srv", wire.PurposeRaft)
		if err != nil {
			t.Fatal(err)
		}
		req, err := encodeRequest(nil, &raft.AppendEntriesRequest{Term: 1, Entries: make([]*raft.Log, 1)})
		if err != nil {
			t.Fatal(err)
		}
		pc.Write(append(req, typeEntry, 4, 0, 0, 0)) // an entry of 64 MiB
		conns = append(conns, pc)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if grown := int64(m.HeapAlloc) - int64(before); grown > 64<<20 {
		t.Errorf("50 lying frames cost %d bytes", grown)
	}
	for _, conn := range conns {
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("left open: %v", err)
		}
		conn.Close()
	}
	for _, head := range [][]byte{{typeEntry, 0xff, 0, 0, 0}, {typeRequestVote, 0, 1, 0, 1}, {99, 0, 0, 0, 0}} {
		if _, _, err := readFrame(bytes.NewReader(head)); !errors.Is(err, errRaftFrame) {
			t.Errorf("%v: %v", head, err)
		}
	}
}

// messages is every raft message with every field set.
func messages() (requests, responses []any) {
	h := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("id"), Addr: []byte("addr")}
	requests = []any{
		&raft.AppendEntriesRequest{RPCHeader: h, Term: 1, Leader: []byte("l"), PrevLogEntry: 2, PrevLogTerm: 3, LeaderCommitIndex: 4,
			Entries: []*raft.Log{{Index: 5, Term: 6, Type: raft.LogBarrier, Data: []byte("data"), Extensions: []byte("ext"),
				AppendedAt: time.Unix(7, 8)}, {Index: 9}}},
		&raft.RequestVoteRequest{RPCHeader: h, Term: 1, Candidate: []byte("c"), LastLogIndex: 2, LastLogTerm: 3, LeadershipTransfer: true},
		&raft.RequestPreVoteRequest{RPCHeader: h, Term: 1, LastLogIndex: 2, LastLogTerm: 3},
		&raft.TimeoutNowRequest{RPCHeader: h},
		&raft.InstallSnapshotRequest{RPCHeader: h, SnapshotVersion: 1, Term: 1, Leader: []byte("l"), LastLogIndex: 2, LastLogTerm: 3,
			Peers: []byte("p"), Configuration: []byte("conf"), ConfigurationIndex: 4, Size: 5},
	}
	responses = []any{
		&raft.AppendEntriesResponse{RPCHeader: h, Term: 1, LastLog: 2, Success: true, NoRetryBackoff: true},
		&raft.RequestVoteResponse{RPCHeader: h, Term: 1, Peers: []byte("p"), Granted: true},
		&raft.RequestPreVoteResponse{RPCHeader: h, Term: 1, Granted: true},
		&raft.TimeoutNowResponse{RPCHeader: h},
		&raft.InstallSnapshotResponse{RPCHeader: h, Term: 1, Success: true},
	}
	return requests, responses
}

// TestRaftMessagesKeepEveryField fails when a new version of raft adds a field
// that the codec does not carry.
func TestRaftMessagesKeepEveryField(t *testing.T) {
	requests, responses := messages()
	for i, want := range requests {
		assertSet(t, reflect.ValueOf(want).Elem())
		typ, b := encoded(t, want)
		r := bytes.NewReader(b)
		gotTyp, body, err := readFrame(r)
		if err != nil || gotTyp != typ {
			t.Fatal(err)
		}
		got, n, err := decodeRequest(typ, body)
		if err == nil && n > 0 {
			got.(*raft.AppendEntriesRequest).Entries, err = readEntries(r, n)
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: %v\n got %+v\nwant %+v", want, err, got, want)
		}
		full := responses[i]
		assertSet(t, reflect.ValueOf(full).Elem())
		b, err = encodeResponse(nil, responseType(typ), full, errors.New("why"))
		if err != nil {
			t.Fatal(err)
		}
		resp := reflect.New(reflect.TypeOf(full).Elem()).Interface()
		remote, err := decodeResponse(b[0], b[frameHeadBytes:], resp)
		if err != nil || remote == nil || remote.Error() != "why" || !reflect.DeepEqual(resp, full) {
			t.Errorf("%T: %v %v\n got %+v\nwant %+v", full, remote, err, resp, full)
		}
	}
}

// encoded is what send writes.
func encoded(t testing.TB, req any) (byte, []byte) {
	t.Helper()
	b, err := encodeRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := req.(*raft.AppendEntriesRequest); ok {
		for _, l := range r.Entries {
			if b, err = encodeEntry(b, l); err != nil {
				t.Fatal(err)
			}
			b = append(b, l.Data...)
		}
	}
	return b[0], b
}

// assertSet holds the test's messages to having every field set.
func assertSet(t *testing.T, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%v.%s is not set in this test: add it here and to the codec", v.Type(), v.Type().Field(i).Name)
		}
	}
	if log, ok := v.Interface().(raft.AppendEntriesRequest); ok {
		assertSet(t, reflect.ValueOf(*log.Entries[0]))
	}
}

// FuzzRaftFrames feeds the listening side of a raft connection.
func FuzzRaftFrames(f *testing.F) {
	requests, responses := messages()
	for i, r := range requests {
		typ, b := encoded(f, r)
		f.Add(b)
		b, err := encodeResponse(nil, responseType(typ), responses[i], nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{typeEntry, 4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			typ, body, err := readFrame(r)
			if err != nil {
				return
			}
			if cap(body) > 2*len(in)+allocStepBytes {
				t.Fatalf("%d bytes allocated for %d", cap(body), len(in))
			}
			for _, resp := range responses {
				_, _ = decodeResponse(typ, body, reflect.New(reflect.TypeOf(resp).Elem()).Interface())
			}
			_, n, err := decodeRequest(typ, body)
			if err == nil && n > 0 {
				_, _ = readEntries(r, n)
			}
		}
	})
}

func TestHCLog(t *testing.T) {
	var out bytes.Buffer
	l := HCLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})))
	l.Named("raft").With("node", "a").Warn("trouble", "n", 3)
	l.Debug("hidden")
	l.StandardLogger(nil).Print("plain line\n")
	got := out.String()
	for _, want := range []string{"level=WARN", "msg=trouble", "component=raft", "node=a", "n=3", `msg="plain line"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	if strings.Contains(got, "hidden") || l.IsDebug() || !l.IsInfo() || l.GetLevel().String() != "info" {
		t.Errorf("levels: %s", got)
	}
	HCLog(nil).Error("nowhere")
}
