package colmena_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

type question struct{ Word string }
type answer struct{ Node, Word string }

var echo = colmena.NewHandlerKey[question, answer]("echo")

// withHandlers registers a handler that does what the word says.
func withHandlers(ran *atomic.Int64, ended chan<- error) testcluster.Option {
	return func(_ int, cfg *colmena.Config) {
		cfg.Setup = func(n *colmena.Node) error {
			return colmena.RegisterHandler(n, echo, func(ctx context.Context, q question) (answer, error) {
				ran.Add(1)
				switch q.Word {
				case "panic":
					panic("on purpose")
				case "error":
					return answer{}, errors.New("no good")
				case "wait":
					<-ctx.Done()
					ended <- ctx.Err()
					return answer{}, ctx.Err()
				}
				return answer{n.ID(), q.Word}, nil
			})
		}
	}
}

func TestForwardRunsOnTheLeader(t *testing.T) {
	var ran atomic.Int64
	ended := make(chan error, 8)
	c := testcluster.New(t, 3, withHandlers(&ran, ended), func(_ int, cfg *colmena.Config) { cfg.LeaderWait = 5 * time.Second })
	for i := range 3 {
		n := c.Node(i)
		leader := c.Node(c.Leader()).ID()
		if a, err := colmena.Forward(limit(t), n, echo, question{"hello"}); err != nil || a != (answer{leader, "hello"}) {
			t.Errorf("from node %d: %v, %v", i, a, err)
		}
		var he *colmena.HandlerError
		if _, err := colmena.Forward(limit(t), n, echo, question{"error"}); !errors.As(err, &he) || he.Panic || he.Name != "echo" || he.Msg != "no good" {
			t.Errorf("a handler's error from node %d: %v", i, err)
		}
		if _, err := colmena.Forward(limit(t), n, echo, question{"panic"}); !errors.As(err, &he) || !he.Panic || he.Msg != "on purpose" {
			t.Errorf("a handler's panic from node %d: %v", i, err)
		}
		if _, err := colmena.Forward(limit(t), n, colmena.NewHandlerKey[int, int]("none"), 1); !errors.Is(err, colmena.ErrNoHandler) || !colmena.SafeToRetry(err) {
			t.Errorf("no handler, from node %d: %v", i, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		prompt(t, "Forward past its deadline", 2*time.Second, func() {
			_, err := colmena.Forward(ctx, n, echo, question{"wait"})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a call past its deadline, from node %d: %v", i, err)
			}
			if colmena.SafeToRetry(err) {
				t.Errorf("a call that ran is called safe to retry, from node %d: %v", i, err)
			}
		})
		cancel()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the handler's context did not end")
			}
		case <-time.After(testcluster.Timeout):
			t.Fatal("the handler was not told that its caller is gone")
		}
	}
	if err := colmena.RegisterHandler(c.Node(0), echo, func(context.Context, question) (answer, error) { return answer{}, nil }); err == nil {
		t.Error("a handler was registered twice")
	}
}

func TestHandlerEndsWithLeadership(t *testing.T) {
	var ran atomic.Int64
	ended := make(chan error, 8)
	c := testcluster.New(t, 3, withHandlers(&ran, ended))
	for i := range 3 {
		if c.Node(i).IsLeader() {
			continue
		}
		before := ran.Load()
		result := make(chan error, 1)
		go func() {
			_, err := colmena.Forward(limit(t), c.Node(i), echo, question{"wait"})
			result <- err
		}()
		c.Until("the handler running", func() bool { return ran.Load() > before })
		old := c.Leader()
		if err := c.Node(i).TransferLeadership(limit(t), ""); err != nil {
			t.Fatal(err)
		}
		c.Until("another leader", func() bool { return !c.Node(old).IsLeader() })
		select {
		case <-ended:
		case <-time.After(testcluster.Timeout):
			t.Fatal("the handler was not told that leadership has ended")
		}
		if err := <-result; !errors.Is(err, colmena.ErrOutcomeUnknown) || colmena.SafeToRetry(err) {
			t.Errorf("a call whose handler was stopped: %v", err)
		}
		break
	}
	for i := range 3 {
		if a, err := colmena.Forward(limit(t), c.Node(i), echo, question{"again"}); err != nil || a.Word != "again" {
			t.Errorf("after the change, from node %d: %v, %v", i, a, err)
		}
	}
}

func TestForwardFindsTheNextLeader(t *testing.T) {
	var ran atomic.Int64
	c := testcluster.New(t, 3, withHandlers(&ran, nil))
	i := c.Leader()
	other := c.Node((i + 1) % 3)
	c.Stop(i)
	if a, err := colmena.Forward(limit(t), other, echo, question{"hello"}); err != nil || a.Word != "hello" {
		t.Errorf("%v, %v", a, err)
	}
	c.Start(i)
}

// told gathers what OnApply was told on one node.
type told struct {
	mu     sync.Mutex
	events []colmena.ApplyEvent
}

func (o *told) add(e colmena.ApplyEvent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, e)
}

func (o *told) all() []colmena.ApplyEvent {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]colmena.ApplyEvent(nil), o.events...)
}

// inOrder checks that events come in order, across databases, and none twice.
func inOrder(t *testing.T, node int, events []colmena.ApplyEvent) {
	t.Helper()
	last := uint64(0)
	for _, e := range events {
		if e.Index < last || e.Gap == nil && e.Index == last {
			t.Errorf("node %d: database %q: entry %d after %d", node, e.DB, e.Index, last)
		}
		last = e.Index
		if e.Gap == nil {
			if len(e.Statements) != len(e.Results) || e.Time.IsZero() || e.Term == 0 {
				t.Errorf("node %d: %+v", node, e)
			}
		}
	}
}

func TestOnApplyTellsEveryNodeEveryWriteOnce(t *testing.T) {
	var nodes [3]told
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) { cfg.OnApply = nodes[i].add })
	exec(t, c.Node(0), "CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
	other, err := c.Node(1).OpenDB("other")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.ExecContext(limit(t), "CREATE TABLE o(a)"); err != nil {
		t.Fatal(err)
	}
	const rows = 30
	for i := range rows {
		exec(t, c.Node(i%3), "INSERT INTO t(b) VALUES(?)", i)
		if _, err := other.ExecContext(limit(t), "INSERT INTO o VALUES(?)", i); err != nil {
			t.Fatal(err)
		}
		if i == rows/2 {
			if err := c.Node(0).TransferLeadership(limit(t), ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := c.Node(0).DB().ExecContext(limit(t), "INSERT INTO t(a) VALUES(1)"); !colmena.IsUnique(err) {
		t.Fatal(err)
	}
	for i := range nodes {
		c.Until("all events", func() bool { return len(nodes[i].all()) >= 2*rows+2 })
		events := nodes[i].all()
		inOrder(t, i, events)
		inserts := 0
		for _, e := range events {
			for j, s := range e.Statements {
				if e.DB == colmena.DefaultDatabase && strings.HasPrefix(s, "INSERT") {
					inserts++
					if r := e.Results[j]; r.RowsAffected != 1 || r.LastInsertID != int64(inserts) {
						t.Errorf("node %d, insert %d: %+v", i, inserts, r)
					}
				}
			}
		}
		if inserts != rows {
			t.Errorf("node %d was told of %d inserts, there were %d", i, inserts, rows)
		}
	}
	for _, a := range nodes[0].all() {
		for _, b := range nodes[1].all() {
			if a.Index == b.Index && (a.DB != b.DB || a.Term != b.Term || !a.Time.Equal(b.Time) || fmt.Sprint(a.Statements, a.Results) != fmt.Sprint(b.Statements, b.Results)) {
				t.Errorf("two nodes were told different things of entry %d:\n%+v\n%+v", a.Index, a, b)
			}
		}
	}
}

func TestOnApplyTellsOfAGapAfterACopy(t *testing.T) {
	var seen told
	c := testcluster.New(t, 3, shortLog, func(i int, cfg *colmena.Config) {
		if i == 2 {
			cfg.OnApply = seen.add
		}
	})
	kv(t, c, 3)
	if c.Node(2).IsLeader() {
		if err := c.Node(2).TransferLeadership(limit(t), ""); err != nil {
			t.Fatal(err)
		}
	}
	before := c.Node(2).AppliedIndex()
	c.Stop(2)
	add(t, c.Node(c.Leader()), 40)
	cutLogs(t, c)
	c.Start(2)
	c.WaitReady()
	add(t, c.Node(0), 3)
	c.Until("a gap and what came after", func() bool {
		events := seen.all()
		return len(events) > 0 && events[len(events)-1].Index == c.Node(0).AppliedIndex()
	})
	events := seen.all()
	inOrder(t, 2, events)
	gaps := 0
	for _, e := range events {
		if e.Gap != nil {
			gaps++
			if e.Gap.From > before+1 {
				t.Errorf("the gap begins at %d, told were entries up to %d", e.Gap.From, before)
			}
		}
	}
	if gaps != 1 {
		t.Errorf("%d gaps were told of: %+v", gaps, events)
	}
}

func TestSlowOrPanickingOnApplyHoldsUpNothing(t *testing.T) {
	var seen told
	release := make(chan struct{})
	var events atomic.Int64
	n, err := colmena.New(colmena.Config{DataDir: t.TempDir(),
		OnApply: func(e colmena.ApplyEvent) {
			<-release
			seen.add(e)
			if e.Index%2 == 0 {
				panic("on purpose")
			}
		},
		OnEvent: func(e colmena.Event) {
			if e.Kind == colmena.EventHookPanicked {
				events.Add(1)
				panic("here too")
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	exec(t, n, "CREATE TABLE t(a)")
	const rows = 5000 // more than may wait for a hook
	if testing.Short() {
		close(release)
	}
	for i := range size(rows) {
		exec(t, n, "INSERT INTO t VALUES(?)", i)
	}
	last := n.AppliedIndex()
	if !testing.Short() {
		close(release)
	}
	reached := func() bool {
		all := seen.all()
		if len(all) == 0 {
			return false
		}
		e := all[len(all)-1]
		return e.Index == last || e.Gap != nil && e.Gap.To == last
	}
	deadline := time.Now().Add(testcluster.Timeout)
	for !reached() {
		if time.Now().After(deadline) {
			t.Fatal("not everything was told")
		}
		time.Sleep(5 * time.Millisecond)
	}
	all := seen.all()
	inOrder(t, 0, all)
	covered := int(0)
	for _, e := range all {
		if e.Gap != nil {
			covered += int(e.Gap.To - e.Gap.From + 1)
		} else {
			covered++
		}
	}
	if first := all[0].Index; uint64(covered) < last-first+1 {
		t.Errorf("%d entries were told of, events or gaps; there were %d", covered, last-first+1)
	}
	if events.Load() == 0 {
		t.Error("no event told of the panics")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}
