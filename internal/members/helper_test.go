package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/identity"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// node is what a Keeper is given in these tests: a table, a configuration and a network in memory. It notes what was done to them.
type node struct {
	*Keeper
	mu       sync.Mutex
	id       *identity.Identity
	lines    map[string]membership.Record
	servers  []membership.Server
	leader   string // "" for none
	leading  bool
	applied  uint64
	addr     string
	done     []string
	fails    map[string]error                                           // by what is done
	answers  map[string]func(method string, req []byte) ([]byte, error) // by ID or address
	greeting map[string]wire.Hello                                      // by address
	removed  int
}

var errDown = errors.New("nobody answers")

// newNode makes a node that is in no cluster yet.
func newNode(t *testing.T, id string, join ...string) *node {
	t.Helper()
	self, err := identity.Load(t.TempDir(), id)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{id: self, addr: id + ":1", lines: map[string]membership.Record{}, fails: map[string]error{},
		answers: map[string]func(string, []byte) ([]byte, error){}, greeting: map[string]wire.Hello{}}
	n.Keeper = NewKeeper(Config{Self: self, Table: n, Raft: n, Join: join, Voter: true, Engine: 7, Functions: "f own/1 1\n",
		AnswerTimeout: time.Second, Removed: func() { n.removed++ }, Logger: slog.New(slog.DiscardHandler)})
	n.net = n
	return n
}

// newLeader makes a node "a" that leads voters b and c, which answer, and a learner d, which is down.
func newLeader(t *testing.T) *node {
	t.Helper()
	n := newNode(t, "a")
	if err := n.id.Join("cluster"); err != nil {
		t.Fatal(err)
	}
	n.leader, n.leading, n.applied = "a", true, 2000
	for _, id := range []string{"a", "b", "c", "d"} {
		n.servers = append(n.servers, membership.Server{ID: id, Voter: id != "d"})
		n.lines[id] = membership.Record{ID: id, Incarnation: "i" + id, Addr: id + ":1", Voter: true, Engine: 7, FormatMin: FormatMin, FormatMax: FormatMax, Functions: "f " + id + "/1 1\n"}
	}
	n.lines["a"] = n.line(true)
	n.progress("b", "ib", 2000)
	n.progress("c", "ic", 2000)
	return n
}

// progress has a node answer how far it is.
func (n *node) progress(id, incarnation string, applied uint64) {
	other := newKeeperOf(id, incarnation, applied)
	n.answers[id] = func(method string, req []byte) ([]byte, error) {
		if method != MethodProgress {
			return nil, fmt.Errorf("%s of %s", method, id)
		}
		return other.ServeProgress(context.Background(), req)
	}
}

func newKeeperOf(id, incarnation string, applied uint64) *Keeper {
	n := &node{applied: applied}
	n.Keeper = NewKeeper(Config{Self: &identity.Identity{NodeID: id, Incarnation: incarnation}, Table: n, Raft: n})
	return n.Keeper
}

func (n *node) do(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	what := fmt.Sprintf(format, args...)
	n.done = append(n.done, what)
	return n.fails[what]
}

// did returns what was done since it was last asked.
func (n *node) did() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	done := strings.Join(n.done, "; ")
	n.done = nil
	return done
}

func (n *node) Member(id string) (membership.Record, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m, ok := n.lines[id]
	return m, ok
}

func (n *node) Members() []membership.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []membership.Record
	for _, m := range n.lines {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b membership.Record) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Exec understands the two statements there are.
func (n *node) Exec(_ context.Context, u wire.Unit) error {
	r, err := u.Statements[0].Args.Reader()
	if err != nil {
		return err
	}
	var v []wire.Value
	for {
		_, x, ok, err := r.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		v = append(v, x)
	}
	if strings.HasPrefix(u.Statements[0].SQL, "DELETE FROM members WHERE id = ?") && len(v) == 1 {
		if err := n.do("forget %s", v[0].String()); err != nil {
			return err
		}
		n.mu.Lock()
		delete(n.lines, v[0].String())
		n.mu.Unlock()
		return nil
	}
	if !strings.HasPrefix(u.Statements[0].SQL, "INSERT OR REPLACE INTO members VALUES") || len(v) != 8 {
		return fmt.Errorf("another statement: %s with %d arguments", u.Statements[0].SQL, len(v))
	}
	m := membership.Record{ID: v[0].String(), Incarnation: v[1].String(), Addr: v[2].String(), Voter: v[3].Int64() != 0,
		Engine: uint64(v[4].Int64()), FormatMin: uint16(v[5].Int64()), FormatMax: uint16(v[6].Int64()), Functions: v[7].String()}
	if err := n.do("record %s", m.ID); err != nil {
		return err
	}
	n.mu.Lock()
	n.lines[m.ID] = m
	n.mu.Unlock()
	return nil
}

func (n *node) Servers() []membership.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.servers)
}

// vote changes the configuration if what is noted does not fail.
func (n *node) vote(what, id string, change func()) error {
	if err := n.do("%s %s", what, id); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	return nil
}

func (n *node) at(id string) int {
	return slices.IndexFunc(n.servers, func(s membership.Server) bool { return s.ID == id })
}

func (n *node) AddLearner(_ context.Context, id string) error {
	return n.vote("add-learner", id, func() { n.servers = append(n.servers, membership.Server{ID: id}) })
}

func (n *node) AddVoter(_ context.Context, id string) error {
	return n.vote("promote", id, func() { n.servers[n.at(id)].Voter = true })
}

func (n *node) Demote(_ context.Context, id string) error {
	return n.vote("demote", id, func() { n.servers[n.at(id)].Voter = false })
}

func (n *node) Remove(_ context.Context, id string) error {
	return n.vote("remove", id, func() { n.servers = slices.Delete(n.servers, n.at(id), n.at(id)+1) })
}

func (n *node) Transfer(_ context.Context, id string) error { return n.do("transfer %s", id) }

func (n *node) Leader() (id string, local, ok bool) { return n.leader, n.leading, n.leader != "" }
func (n *node) Leading() bool                       { return n.leading }
func (n *node) Applied() uint64                     { return n.applied }
func (n *node) Advertised() string                  { return n.addr }
func (n *node) Drop(id string)                      { _ = n.do("drop %s", id) }

func (n *node) Call(_ context.Context, id, method string, req []byte) ([]byte, error) {
	if method != MethodProgress {
		_ = n.do("call %s of %s", method, id)
	}
	if f := n.answers[id]; f != nil {
		return f(method, req)
	}
	return nil, errDown
}

func (n *node) CallAddr(ctx context.Context, addr, method string, req []byte) ([]byte, error) {
	return n.Call(ctx, addr, method, req)
}

func (n *node) Greet(_ context.Context, addr string) (wire.Hello, error) {
	_ = n.do("greet %s", addr)
	if h, ok := n.greeting[addr]; ok {
		return h, nil
	}
	return wire.Hello{}, errDown
}

// wantCode wants an error that travels with a code.
func wantCode(t *testing.T, err error, code wire.ErrorCode) {
	t.Helper()
	var w *wire.Error
	if !errors.As(err, &w) || w.Code != code {
		t.Errorf("error %v, want the code of %q", err, code)
	}
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
