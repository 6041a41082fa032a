package leadership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mentasystems/colmena/internal/lifecycle"
)

var (
	errClosed   = errors.New("closed")
	errNoLeader = errors.New("no leader")
)

// node is what an office is given, and writes down what the office does.
type node struct {
	*Office
	done chan struct{}

	mu        sync.Mutex // guards what follows
	term      uint64     // raft's, while it has this node lead
	leader    string
	voters    []string
	notReady  error
	notBegun  error
	halted    bool
	transfers func(id string) error
	did       []string
}

func (n *node) locked(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

func (n *node) note(format string, args ...any) {
	n.locked(func() { n.did = append(n.did, fmt.Sprintf(format, args...)) })
}

// has compares what was done since it was last asked.
func (n *node) has(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	n.locked(func() {
		if !slices.Equal(n.did, want) {
			t.Errorf("done: %q; want %q", n.did, want)
		}
		n.did = nil
	})
}

func (n *node) LeadingTerm() (term uint64) { n.locked(func() { term = n.term }); return term }
func (n *node) Leader() (id string)        { n.locked(func() { id = n.leader }); return id }
func (n *node) Voters() (ids []string)     { n.locked(func() { ids = n.voters }); return ids }
func (n *node) Barrier(context.Context) error {
	n.note("barrier")
	return nil
}
func (n *node) Lead(term uint64) { n.note("lead %d", term) }
func (n *node) StepDown()        { n.note("step down") }
func (n *node) Drain(context.Context) error {
	n.note("drain")
	return nil
}

func (n *node) Transfer(_ context.Context, id string) error {
	n.note("transfer %q", id)
	n.mu.Lock()
	f := n.transfers
	n.mu.Unlock()
	return f(id)
}

// raft has the node's raft say something else.
func (n *node) raft(term uint64, leader string) {
	n.locked(func() { n.term, n.leader = term, leader })
	n.RaftChanged()
	synctest.Wait()
}

func with(t *testing.T, f func(*testing.T, *node)) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{done: make(chan struct{}), voters: []string{"a", "b", "c"}}
		n.transfers = func(string) error { return nil }
		group := lifecycle.NewGroup()
		n.Office = New(Config{
			NodeID: "a", Raft: n, Databases: n, Wait: time.Second, Group: group, Done: n.done, Logger: slog.New(slog.DiscardHandler),
			Closed: errClosed, NoLeader: errNoLeader,
			Ready:  func() (err error) { n.locked(func() { err = n.notReady }); return err },
			Begun:  func(context.Context) (err error) { n.note("begun"); n.locked(func() { err = n.notBegun }); return err },
			Halted: func() (halted bool) { n.locked(func() { halted = n.halted }); return halted },
			Won:    func(term uint64) { n.note("won %d", term) },
			Lost:   func(term uint64) { n.note("lost %d", term) },
		})
		group.Go("leadership", n.Run)
		synctest.Wait()
		f(t, n)
		group.Stop()
	})
}

var taken = []string{"barrier", "drain", "lead 5", "begun", "won 5"}

func TestLeadershipBeginsWhenEverythingBeforeItIsApplied(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.locked(func() { n.notReady = errors.New("entries are missing") })
		n.raft(5, "a")
		n.has(t, "barrier", "drain")
		if id, _, ok := n.Office.Leader(); ok || n.Leading() {
			t.Errorf("it is not ready, and %q leads", id)
		}
		n.locked(func() { n.notReady = nil })
		time.Sleep(tick) // raft says nothing more
		n.has(t, taken...)
		if id, local, ok := n.Office.Leader(); id != "a" || !local || !ok || n.Term() != 5 {
			t.Errorf("%q, %v, %v, term %d", id, local, ok, n.Term())
		}
		n.raft(0, "b")
		n.has(t, "step down", "lost 5")
		if id, local, ok := n.Office.Leader(); id != "b" || local || !ok {
			t.Errorf("%q, %v, %v", id, local, ok)
		}
	})
}

// A win that cannot be used leaves no database open for writing: nobody would close it.
func TestFailedBeginningClosesTheDatabases(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.locked(func() { n.notBegun = errors.New("the first entry cannot be written") })
		n.raft(5, "a")
		n.has(t, "barrier", "drain", "lead 5", "begun", "step down")
		n.locked(func() { n.notBegun = nil })
		time.Sleep(tick)
		n.has(t, taken...)
	})
}

// H13: what raft says may swallow a loss between two wins.
func TestLossBetweenTwoWinsIsNoticed(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.raft(5, "a")
		n.has(t, taken...)
		n.raft(7, "a")
		n.has(t, "step down", "lost 5", "barrier", "drain", "lead 7", "begun", "won 7")
	})
}

func TestStalledDiskEndsLeadership(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.raft(5, "a")
		n.has(t, taken...)
		n.Stall(true)
		time.Sleep(tick)
		n.has(t, "step down", "lost 5")
		n.Stall(false)
		time.Sleep(tick)
		n.has(t, taken...)
	})
}

func TestResignedLeaderLeadsOnIfNobodyTakesOver(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.raft(5, "a")
		n.has(t, taken...)
		refused := errors.New("b lags")
		during := make(chan struct{})
		n.locked(func() {
			n.transfers = func(string) error {
				time.Sleep(5 * tick / 2) // it leads no more meanwhile
				close(during)
				return refused
			}
		})
		if err := n.Resign(t.Context(), "b"); !errors.Is(err, refused) {
			t.Error(err)
		}
		<-during
		n.has(t, "step down", "lost 5", "drain", `transfer "b"`)
		time.Sleep(tick)
		n.has(t, taken...)
		n.locked(func() { n.transfers = func(string) error { n.raft(0, "c"); return nil } })
		n.HandOver(t.Context())
		n.has(t, "step down", "lost 5", "drain", `transfer ""`)
		n.HandOver(t.Context()) // it leads no more
		n.has(t)
	})
}

// A node that has halted hands on what it wins, once a second at most, and keeps nothing back if it is alone.
func TestHaltedNodeDoesNotKeepWhatItWins(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.locked(func() { n.halted, n.transfers = true, func(string) error { return errors.New("nobody is there") } })
		n.raft(5, "a")
		n.has(t, "step down", "drain", `transfer ""`)
		time.Sleep(giveUpPause - tick)
		n.has(t)
		time.Sleep(3 * tick)
		n.has(t, "step down", "drain", `transfer ""`)
		n.locked(func() { n.voters = []string{"a"} })
		time.Sleep(5 * giveUpPause)
		n.has(t)
	})
}

func TestLeaderIsWaitedForWithinBounds(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		began := time.Now()
		_, _, err := n.Await(t.Context(), n.Deadline())
		if !errors.Is(err, errNoLeader) || !strings.Contains(err.Error(), "node a found none within 1s: 2 of the voters a, b, c must run") || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if _, _, err := n.Await(ctx, n.Deadline()); err != context.DeadlineExceeded {
			t.Error(err)
		}
		got := make(chan string, 1)
		go func() {
			id, _, _ := n.Await(t.Context(), n.Deadline())
			got <- id
		}()
		synctest.Wait()
		at := time.Now()
		n.raft(0, "b")
		if id := <-got; id != "b" || time.Since(at) != 0 {
			t.Errorf("%q after %v", id, time.Since(at))
		}
		close(n.done)
		if _, _, err := n.Await(t.Context(), n.Deadline()); err != errClosed {
			t.Error(err)
		}
	})
}

func TestAskGoesFromLeaderToLeader(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.raft(0, "b")
		var asked []string
		err := n.Ask(t.Context(), n.Deadline(), func(leader string, local bool) bool {
			asked = append(asked, fmt.Sprint(leader, local))
			if leader == "b" {
				go n.raft(5, "a")
			}
			return !local
		})
		if err != nil || !slices.Equal(slices.Compact(asked), []string{"bfalse", "atrue"}) {
			t.Errorf("%q, %v", asked, err)
		}
		began := time.Now()
		if err := n.Ask(t.Context(), n.Deadline(), func(string, bool) bool { return true }); err != errNoLeader || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestContextOfATermEndsWithIt(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.raft(5, "a")
		ctx, cancel := n.During(t.Context(), 5)
		defer cancel()
		old, cancelOld := n.During(t.Context(), 4)
		defer cancelOld()
		synctest.Wait()
		if ctx.Err() != nil || old.Err() == nil {
			t.Errorf("this term: %v, a former one: %v", ctx.Err(), old.Err())
		}
		n.raft(0, "b")
		if synctest.Wait(); ctx.Err() == nil {
			t.Error("the term is over and its context is not")
		}
	})
}

func TestTenureEndsWhenAnotherLeads(t *testing.T) {
	with(t, func(t *testing.T, n *node) {
		n.raft(0, "b")
		ctx := n.Tenure("b")
		if n.Tenure("b") != ctx {
			t.Error("it is not shared")
		}
		n.raft(0, "") // nobody knows yet
		time.Sleep(time.Minute)
		if ctx.Err() != nil {
			t.Error("it ended while no other leads")
		}
		n.raft(0, "c")
		if ctx.Err() != nil {
			t.Error("its last answers are not waited for")
		}
		time.Sleep(answerGrace)
		synctest.Wait()
		if ctx.Err() == nil || n.Tenure("b").Err() != nil {
			t.Error("another leads and it goes on, or a later one has ended")
		}
		n.raft(5, "a") // this node itself
		last := n.Tenure("c")
		time.Sleep(answerGrace)
		if synctest.Wait(); last.Err() == nil {
			t.Error("this node leads and it goes on")
		}
	})
}
