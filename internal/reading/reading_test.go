package reading

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

var (
	errClosed   = errors.New("closed")
	errNoLeader = errors.New("no leader")
	errHalted   = errors.New("halted")
	errStale    = errors.New("stale")
)

// node is what queries are given: how fresh it is, who leads, and real files.
type node struct {
	*Reads
	done chan struct{}

	mu      sync.Mutex // guards what follows
	leading bool
	lags    string // the leader to ask instead, "" when this node is fresh
	reached func() // called by Reach
	err     error  // of whatever proves freshness
	did     []string
	answers []error // of other nodes, one after the other; the last stays
	db      *engine.DB
}

func (n *node) note(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.did = append(n.did, fmt.Sprintf(format, args...))
	return n.err
}

func (n *node) has(t *testing.T, want ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.did, want) {
		t.Errorf("done: %q; want %q", n.did, want)
	}
	n.did = nil
}

func (n *node) set(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

func (n *node) Get(string) *engine.DB  { n.mu.Lock(); defer n.mu.Unlock(); return n.db }
func (n *node) Watch() <-chan struct{} { return nil }
func (n *node) Leading() bool          { n.mu.Lock(); defer n.mu.Unlock(); return n.leading }
func (n *node) Deadline() time.Time    { return time.Now().Add(200 * time.Millisecond) }

func (n *node) Pause(ctx context.Context, _ <-chan struct{}, by time.Time) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case time.Now().After(by):
		return errNoLeader
	}
	time.Sleep(time.Millisecond)
	return nil
}

// never is an index that the log does not reach.
const never = 1 << 40

func (n *node) AwaitIndex(ctx context.Context, _ string, index uint64) error {
	if index == never {
		<-ctx.Done()
		return ctx.Err()
	}
	return n.note("index %d", index)
}
func (n *node) Prove(_ context.Context, _ string, d time.Duration) error {
	return n.note("prove %v", d)
}
func (n *node) AwaitOwnWrites(context.Context, string) error { return n.note("own writes") }
func (n *node) AwaitSystem(context.Context) error            { return n.note("system") }

func (n *node) Reach(_ context.Context, _ string, confirm bool) (string, error) {
	err := n.note("reach %v", confirm)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reached != nil {
		n.reached()
	}
	return n.lags, err
}

type noRows struct{ values.RowSource }

func newNode(t *testing.T) *node {
	n := &node{done: make(chan struct{})}
	stop := make(chan struct{})
	empty := engine.NewEmpty(stop, engine.NewLibrary(nil, nil, func(engine.Kind, string, string) []string { return nil }))
	t.Cleanup(func() { close(stop); empty.Close() })
	n.Reads = New(Config{
		NodeID: "a", Databases: n, Empty: empty, Fresh: n, Leaders: n, Done: n.done, Patience: time.Millisecond, MayPass: func(error) bool { return true },
		Halted: func() error { return nil }, Closed: errClosed, NoLeader: errNoLeader, ErrHalted: errHalted,
		User: func(err error) error { return err }, Error: func(err error) error { return err }, TooLarge: func(err error) error { return err },
		Ask: func(_ context.Context, id string, req *wire.QueryRequest) (values.RowSource, error) {
			_ = n.note("ask %s at %d", id, req.Level)
			n.mu.Lock()
			defer n.mu.Unlock()
			if len(n.answers) == 0 {
				return noRows{values.None}, nil
			}
			err := n.answers[0]
			if len(n.answers) > 1 {
				n.answers = n.answers[1:]
			}
			if err != nil {
				return nil, err
			}
			return noRows{values.None}, nil
		},
	})
	return n
}

// query runs SELECT 1 and tells where it ran.
func (n *node) query(t *testing.T, m Mode) (here bool, err error) {
	t.Helper()
	r, err := n.Query(t.Context(), "db", m, "SELECT 1", wire.NewArgs(0).Args(), wire.PreState{})
	if err != nil {
		return false, err
	}
	if _, there := r.(noRows); there {
		return false, nil
	}
	ok, err := r.Next()
	if !ok || err != nil || r.Value(0).Int64() != 1 {
		t.Errorf("%v, %v", ok, err)
	}
	return true, r.Close()
}

func TestEachModeAsksForItsProof(t *testing.T) {
	n := newNode(t)
	for _, tt := range []struct {
		mode    Mode
		leading bool
		want    []string
	}{
		{Mode{Level: Local}, false, []string{"own writes"}},
		{Mode{Level: Weak}, false, []string{"reach false"}},
		{Mode{Level: Weak}, true, []string{"system"}},
		{Mode{Level: Strong}, false, []string{"reach true"}},
		{Mode{Level: Strong}, true, []string{"reach true"}},
		{Mode{Level: Local, Stale: time.Second}, true, []string{"prove 1s"}},
		{Mode{Level: Strong, MinIndex: 7}, false, []string{"index 7", "reach true"}},
	} {
		n.set(func() { n.leading = tt.leading })
		if here, err := n.query(t, tt.mode); !here || err != nil {
			t.Errorf("%+v: here %v, %v", tt.mode, here, err)
		}
		n.has(t, tt.want...)
	}
	n.set(func() { n.err = errStale })
	if _, err := n.query(t, Mode{Level: Local, Stale: time.Second}); err != errStale {
		t.Error(err)
	}
}

func TestQueryThatReachesNoLeaderIsAskedAgain(t *testing.T) {
	for _, err := range []error{rpc.ErrNotDelivered, rpc.ErrInterrupted, &wire.Error{Code: wire.ErrNotLeader}, &wire.Error{Code: wire.ErrClosed},
		&wire.Error{Code: wire.ErrHalted}, &wire.Error{Code: wire.ErrCanceled}} {
		n := newNode(t)
		n.lags, n.answers = "b", []error{err, nil}
		if here, err := n.query(t, Mode{Level: Strong}); here || err != nil {
			t.Errorf("here %v, %v", here, err)
		}
		n.has(t, "reach true", "ask b at 3", "reach true", "ask b at 3")
		// This node becomes the leader, or catches up.
		n.lags, n.answers = "b", []error{err}
		asked := 0
		n.reached = func() {
			if asked++; asked == 2 {
				n.lags = "a"
			}
			if asked == 3 {
				n.lags = ""
			}
		}
		if here, err := n.query(t, Mode{Level: Weak}); !here || err != nil {
			t.Errorf("here %v, %v", here, err)
		}
		n.has(t, "reach false", "ask b at 2", "reach false", "reach false")
	}
	// What was asked is at fault, or nobody answers.
	n := newNode(t)
	n.lags, n.answers = "b", []error{&wire.Error{Code: wire.ErrSQL, Msg: "no such table"}}
	if _, err := n.query(t, Mode{Level: Weak}); err != n.answers[0] {
		t.Error(err)
	}
	n.has(t, "reach false", "ask b at 2")
	n.answers = []error{rpc.ErrNotDelivered}
	if _, err := n.query(t, Mode{Level: Weak}); !errors.Is(err, errNoLeader) {
		t.Error(err)
	}
	close(n.done)
	if _, err := n.query(t, Mode{Level: Weak}); err != errClosed {
		t.Error(err)
	}
}

func TestStatementsAreClassifiedOnTheNewestSchema(t *testing.T) {
	n := newNode(t)
	for sql, want := range map[string]engine.Class{"": engine.ClassEmpty, "SELECT 1": engine.ClassRead, "CREATE TABLE t(a)": engine.ClassWrite,
		"INSERT INTO unknown VALUES(1)": engine.ClassWrite} {
		if class, err := n.Classify(t.Context(), "db", Mode{Level: Weak}, sql); class != want || err != nil {
			t.Errorf("%q: %v, %v", sql, class, err)
		}
	}
	n.has(t) // the leader judges what seems to write
	if _, err := n.Classify(t.Context(), "db", Mode{Level: Weak}, "SELECT * FROM unknown"); err == nil {
		t.Error("an unknown table is read")
	}
	n.has(t, "reach false")
	n.cfg.Halted = func() error { return errHalted }
	n.cfg.MayPass = func(error) bool { return false }
	n.cfg.User = func(error) error { return errHalted }
	stopped := stoppedDB(t)
	n.set(func() { n.db = stopped })
	if class, err := n.Classify(t.Context(), "db", Mode{Level: Weak}, "SELECT * FROM t"); class != engine.ClassRead || err != nil {
		t.Errorf("a stopped replica: %v, %v; the leader can answer it", class, err)
	}
	if _, err := n.query(t, Mode{Level: Local}); err != errHalted {
		t.Errorf("a stopped replica: %v", err)
	}
	n.set(func() { n.lags = "b" })
	if err := n.Freshen(t.Context(), "db", Mode{Level: Weak}); err != errHalted {
		t.Errorf("a stopped replica: %v; it will not catch up", err)
	}
}

// stoppedDB is a database that could not read an entry.
func stoppedDB(t *testing.T) *engine.DB {
	t.Helper()
	path := t.TempDir() + "/db"
	if err := engine.Create(path, "db", 1); err != nil {
		t.Fatal(err)
	}
	d, err := engine.Open(engine.Config{Path: path, Name: "db", Incarnation: 1, Propose: func([]byte, func(error)) {}, ProposalLost: func(error) bool { return false },
		Confirm: func(uint64, func(bool)) {}, Halt: func(error) {}, Applied: func(wire.Mark, *wire.Entry) {}, Passed: func(uint64) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	d.Deliver(wire.Mark{Term: 1, Index: 1}, []byte("garbage"))
	_ = d.Drain(t.Context())
	if d.Err() == nil {
		t.Fatal("it has not stopped")
	}
	return d
}

func TestSnapshotFollowsTheContextOfEachQuery(t *testing.T) {
	n := newNode(t)
	s, err := n.Snapshot(t.Context(), "db", Mode{Level: Local})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const long = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT x FROM c WHERE x < 0"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	r, err := s.Query(ctx, long, wire.NewArgs(0).Args(), wire.PreState{})
	if err == nil {
		_, err = r.Next()
		_ = r.Close()
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	r, err = s.Query(t.Context(), "SELECT 1", wire.NewArgs(0).Args(), wire.PreState{})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := r.Next(); !ok || err != nil {
		t.Errorf("the next query: %v, %v", ok, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// An entry that never comes is waited for no longer than a leader, unless the context says
// how long.
func TestEntryThatNeverComes(t *testing.T) {
	n := newNode(t)
	for _, bound := range []time.Duration{0, 400 * time.Millisecond} {
		ctx := context.Background()
		if bound > 0 {
			short, cancel := context.WithTimeout(ctx, bound)
			defer cancel()
			ctx = short
		}
		began := time.Now()
		_, err := n.Query(ctx, "d", Mode{Level: Local, MinIndex: never}, "SELECT 1", nil, wire.PreState{})
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took < bound {
			t.Errorf("%v after %v", err, took)
		}
	}
}
