package freshness

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

func reach(t *testing.T, n *node, confirm bool, want string) {
	t.Helper()
	if leader, err := n.Reach(t.Context(), "db", confirm); err != nil || leader != want {
		t.Errorf("node %s: %q, %v; want %q", n.id, leader, err, want)
	}
}

func TestReachWaitsAMomentForTheLeadersMark(t *testing.T) {
	cluster(t, 3, func(t *testing.T, nodes []*node) {
		for _, n := range nodes {
			reach(t, n, false, "")
			reach(t, n, true, "")
		}
		nodes[0].db("db").apply(11)
		began := time.Now()
		reach(t, nodes[1], false, "1")
		if d := time.Since(began); d != LocalPatience {
			t.Errorf("it was waited for %v", d)
		}
		done := started(func() error { _, err := nodes[1].Reach(t.Context(), "db", true); return err })
		if !waits(done) {
			t.Error("the mark was not waited for")
		}
		nodes[1].db("db").apply(11)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A database of the same name is another one, after a drop or a load.
func TestReachTellsDatabasesOfOneNameApart(t *testing.T) {
	cluster(t, 2, func(t *testing.T, nodes []*node) {
		l, f := nodes[0], nodes[1]
		l.locked(func() { l.dbs["db"] = &database{incarnation: 8, mark: wire.Mark{Index: 3}} })
		reach(t, f, false, "1") // it stands at 10, of the former one
		l.locked(func() { delete(l.dbs, "db") })
		reach(t, f, false, "1") // dropped there, and not here yet
		done := started(func() error {
			leader, err := f.Reach(t.Context(), "db", false)
			return errors.Join(err, map[bool]error{false: errors.New(leader)}[leader == ""])
		})
		f.locked(func() { delete(f.dbs, "db") })
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A node that has won meanwhile, or knows no leader, is told to ask again.
func TestReachAsksAgainWhenTheLeaderHasGone(t *testing.T) {
	cluster(t, 2, func(t *testing.T, nodes []*node) {
		f := nodes[1]
		f.locked(func() { f.leader = "" })
		if leader, err := f.reach(t.Context(), "db", position{wire.Mark{Index: 99}, 7}); leader != "2" || err != nil {
			t.Errorf("%q, %v", leader, err)
		}
	})
}

// All who ask while a question is out share the next one.
func TestQuestionsAreShared(t *testing.T) {
	cluster(t, 3, func(t *testing.T, nodes []*node) {
		hold := make(chan struct{})
		nodes[2].locked(func() { nodes[2].cut = true })
		nodes[1].locked(func() { nodes[1].holdTerms = hold })
		var all []chan error
		for range 20 {
			all = append(all, started(func() error { _, err := nodes[1].Reach(t.Context(), "db", true); return err }))
		}
		if got := get(nodes[0], func() int { return nodes[0].marks }); got != 1 {
			t.Errorf("%d questions are out", got)
		}
		close(hold)
		for _, done := range all {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if got := get(nodes[0], func() int { return nodes[0].marks }); got != 2 {
			t.Errorf("%d questions were asked", got)
		}
		if got := get(nodes[0], func() int { return nodes[0].opened }); got != 1 {
			t.Errorf("%d streams were opened", got)
		}
	})
}

// The set must follow what the system database says before a mark counts.
func TestMarkWaitsForTheSetOfDatabases(t *testing.T) {
	cluster(t, 2, func(t *testing.T, nodes []*node) {
		l := nodes[0]
		l.locked(func() { l.system = 12 })
		done := started(func() error { _, err := nodes[1].Reach(t.Context(), "db", false); return err })
		if !waits(done) {
			t.Fatal("the set was not waited for")
		}
		l.locked(func() { l.follows = 12 })
		if err := <-done; err != nil {
			t.Error(err)
		}
		halted := errors.New("halted")
		l.locked(func() { l.system, l.halted = 13, halted })
		if err := l.AwaitSystem(t.Context()); err != halted {
			t.Error(err)
		}
		var w *wire.Error
		if _, err := nodes[1].Reach(t.Context(), "db", false); !errors.As(err, &w) || w.Msg != "halted" {
			t.Error(err)
		}
	})
}

// H22, H23: with confirm the leader first hands over what is committed, and settles it.
func TestConfirmedMarkCoversWhatIsCommitted(t *testing.T) {
	cluster(t, 3, func(t *testing.T, nodes []*node) {
		l := nodes[0]
		d := l.db("db")
		l.locked(func() { l.committed, l.commands = 11, true })
		var at position
		done := started(func() (err error) { at, err = l.leaderMark(t.Context(), "db", true); return err })
		if !waits(done) {
			t.Fatal("what is committed was not waited for")
		}
		d.mu.Lock()
		d.delivered = 11
		d.mu.Unlock()
		l.locked(func() { l.applied = 11 })
		l.Delivered()
		if !waits(done) {
			t.Fatal("what was delivered was not settled")
		}
		d.apply(11)
		if err := <-done; err != nil || at.Index != 11 {
			t.Errorf("%v, %v", at, err)
		}
		l.locked(func() { l.committed, l.commands = 20, false }) // raft's own entries
		if at, err := l.leaderMark(t.Context(), "db", true); err != nil || at.Index != 11 {
			t.Errorf("%v, %v", at, err)
		}
	})
}

// A mark asked while its database is replaced is asked anew of the next one.
func TestMarkOfADatabaseThatIsReplaced(t *testing.T) {
	cluster(t, 1, func(t *testing.T, nodes []*node) {
		l := nodes[0]
		old := l.db("db")
		old.delivered = 11
		var at position
		done := started(func() (err error) { at, err = l.leaderMark(t.Context(), "db", true); return err })
		if !waits(done) {
			t.Fatal("it was not settled")
		}
		l.locked(func() { l.dbs["db"] = &database{incarnation: 9, mark: wire.Mark{Index: 12}} })
		old.close()
		if err := <-done; err != nil || at.incarnation != 9 || at.Index != 12 {
			t.Errorf("%v, %v", at, err)
		}
	})
}

func TestNoLeaderIsFound(t *testing.T) {
	cluster(t, 2, func(t *testing.T, nodes []*node) {
		f := nodes[1]
		for _, change := range []func(){
			func() { f.leader = "" },
			func() { f.leader, f.cut = "1", true }, // it cannot be reached
		} {
			f.locked(change)
			began := time.Now()
			if _, err := f.Reach(t.Context(), "db", false); !errors.Is(err, errNoLeader) || err.Error() != "lost: no leader" {
				t.Error(err)
			}
			if d := time.Since(began); d < time.Second || d > 1100*time.Millisecond {
				t.Errorf("it was looked for %v", d)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := f.Reach(ctx, "db", false); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		close(f.done)
		if _, err := f.Reach(t.Context(), "db", false); !errors.Is(err, errClosed) {
			t.Error(err)
		}
	})
}

// A leader that answers no more is left as soon as there is another.
func TestQuestionsLeaveALeaderThatHangs(t *testing.T) {
	cluster(t, 3, func(t *testing.T, nodes []*node) {
		hung, next, f := nodes[0], nodes[1], nodes[2]
		hung.locked(func() { hung.system = 99 })
		done := started(func() error { _, err := f.Reach(t.Context(), "db", false); return err })
		began := time.Now()
		next.locked(func() { next.leading = 6 })
		f.locked(func() { f.leader = "2" })
		if err := <-done; err != nil || time.Since(began) > 200*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := f.group.StopTimeout(time.Minute); err != nil {
			t.Error(err)
		}
		if _, err := f.askers.ask(t.Context(), markKey{"2", "db", false}); err != errClosed {
			t.Errorf("after the end: %v", err)
		}
	})
}

// A deposed node says so, and the next one is asked.
func TestAskedNodeDoesNotLead(t *testing.T) {
	cluster(t, 3, func(t *testing.T, nodes []*node) {
		nodes[0].locked(func() { nodes[0].leading = 0 })
		var w *wire.Error
		if _, err := nodes[2].askers.ask(t.Context(), markKey{"1", "db", false}); !errors.As(err, &w) || w.Code != wire.ErrNotLeader {
			t.Error(err)
		}
		done := started(func() error { _, err := nodes[2].Reach(t.Context(), "db", true); return err })
		nodes[1].locked(func() { nodes[1].leading = 5 })
		nodes[2].locked(func() { nodes[2].leader = "2" })
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAwaitIndex(t *testing.T) {
	cluster(t, 1, func(t *testing.T, nodes []*node) {
		n := nodes[0]
		if err := n.AwaitIndex(t.Context(), "db", 10); err != nil {
			t.Error(err)
		}
		done := started(func() error { return n.AwaitIndex(t.Context(), "db", 11) })
		if !waits(done) {
			t.Error("the entry was not waited for")
		}
		n.locked(func() { n.applied = 11 }) // of another database
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := n.AwaitIndex(t.Context(), "none", 11); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, db := range []string{"db", "none"} {
			if err := n.AwaitIndex(ctx, db, 12); !errors.Is(err, errNotCaughtUp) || !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		close(n.done)
		if err := n.AwaitIndex(t.Context(), "db", 12); err != errClosed {
			t.Error(err)
		}
	})
}

// H24: a read of this node's own state waits for this node's own writes, not for ever.
func TestOwnWritesAreWaitedFor(t *testing.T) {
	cluster(t, 2, func(t *testing.T, nodes []*node) {
		f := nodes[1]
		if err := f.AwaitOwnWrites(t.Context(), "db"); err != nil {
			t.Error(err)
		}
		f.Acknowledged("db", 12)
		f.Acknowledged("db", 11) // answered late
		done := started(func() error { return f.AwaitOwnWrites(t.Context(), "db") })
		f.db("db").apply(11)
		if !waits(done) {
			t.Error("the write was not waited for")
		}
		f.db("db").apply(12)
		if err := <-done; err != nil {
			t.Error(err)
		}
		f.Acknowledged("db", 13)
		began := time.Now()
		if err := f.AwaitOwnWrites(t.Context(), "db"); !errors.Is(err, errNotCaughtUp) || time.Since(began) < OwnWritesPatience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := f.AwaitOwnWrites(ctx, "db"); err != context.DeadlineExceeded {
			t.Error(err)
		}
		f.Forget("db")
		if err := f.AwaitOwnWrites(t.Context(), "db"); err != nil {
			t.Error(err)
		}
	})
}

func TestCatchUp(t *testing.T) {
	cluster(t, 2, func(t *testing.T, nodes []*node) {
		l, f := nodes[0], nodes[1]
		l.db("db").apply(12)
		done := started(func() error { return f.CatchUp(t.Context(), "db", f.db("db")) })
		if !waits(done) {
			t.Error("the mark was not waited for")
		}
		f.db("db").apply(12)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if age, known := f.proven.age("db"); !known || age != 0 {
			t.Errorf("proven is %v, %v", age, known)
		}
	})
}

// What is proven ages, and is proven anew when it is too old.
func TestProofOfStaleness(t *testing.T) {
	cluster(t, 2, func(t *testing.T, nodes []*node) {
		l, f := nodes[0], nodes[1]
		prove := func(d time.Duration, want error) {
			t.Helper()
			if err := f.Prove(t.Context(), "db", d); !errors.Is(err, want) {
				t.Errorf("at most %v: %v; want %v", d, err, want)
			}
		}
		asked := func() int { return get(l, func() int { return l.marks }) }
		prove(time.Second, nil)
		time.Sleep(time.Second)
		prove(time.Second, nil)
		if asked() != 1 {
			t.Errorf("asked %d times", asked())
		}
		time.Sleep(time.Second)
		prove(time.Second, nil)
		if asked() != 2 {
			t.Errorf("asked %d times", asked())
		}
		l.db("db").apply(11) // what the leader has does not arrive
		time.Sleep(time.Minute)
		prove(time.Second, errStale)
		prove(2*time.Minute, nil)
		f.locked(func() { f.leader = "" })
		prove(time.Second, errStale)
		prove(time.Second, errNoLeader)
		if err := l.Prove(t.Context(), "db", 1); err != nil {
			t.Errorf("the leader is never stale: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.Prove(ctx, "db", 1); err != context.Canceled {
			t.Error(err)
		}
		if err := f.Prove(t.Context(), "other", time.Hour); !errors.Is(err, errStale) {
			t.Errorf("nothing is known of it: %v", err)
		}
	})
}

// An exchange that fails leaves no stream, and says whether to ask again.
func TestExchangeFails(t *testing.T) {
	here, there := link()
	open := func(context.Context) (Stream, error) { return here, nil }
	decode := func([]byte) error { return errors.New("nonsense") }
	_ = there.Send(nil)
	st, err := exchange(t.Context(), t.Context(), nil, open, []byte("q"), decode)
	if st != nil || !errors.Is(err, rpc.ErrInterrupted) {
		t.Errorf("%v, %v", st, err)
	}
	select {
	case <-here.gone:
	default:
		t.Error("the stream is open")
	}
	refused := &wire.Error{Code: wire.ErrRefused}
	st, err = exchange(t.Context(), t.Context(), &failing{refused}, nil, nil, nil)
	if st != nil || err != refused {
		t.Errorf("%v, %v", st, err)
	}
}

type failing struct{ err error }

func (f *failing) Send([]byte) error               { return nil }
func (f *failing) RecvInto([]byte) ([]byte, error) { return nil, f.err }
func (f *failing) Close() error                    { return nil }

func TestAnsweringEndsWithNonsense(t *testing.T) {
	cluster(t, 1, func(t *testing.T, nodes []*node) {
		for _, serve := range []func(Stream) error{nodes[0].ServeTerms, func(st Stream) error { return nodes[0].ServeMarks(t.Context(), st) }} {
			here, there := link()
			_ = here.Send([]byte{1, 2, 3})
			if err := serve(there); err == nil {
				t.Error("no error")
			}
			here.Close()
			if err := serve(there); err != nil {
				t.Errorf("the asker is gone: %v", err)
			}
		}
	})
}
