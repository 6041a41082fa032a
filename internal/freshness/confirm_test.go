package freshness

import (
	"testing"
	"testing/synctest"
	"time"
)

func confirm(t *testing.T, n *node, term uint64) error { return n.confirmer.confirm(t.Context(), term) }

func TestTermNeedsAMajority(t *testing.T) {
	cluster(t, 5, func(t *testing.T, nodes []*node) {
		l := nodes[0]
		if err := confirm(t, l, 5); err != nil {
			t.Error(err)
		}
		nodes[1].locked(func() { nodes[1].term = 6 })
		nodes[2].locked(func() { nodes[2].cut = true })
		if err := confirm(t, l, 5); err != nil {
			t.Errorf("three of five: %v", err)
		}
		nodes[3].locked(func() { nodes[3].term = 6 })
		if err := confirm(t, l, 5); err != errNoLeader {
			t.Errorf("two of five: %v", err)
		}
		l.locked(func() { l.term = 6 })
		if err := confirm(t, l, 5); err != errNoLeader {
			t.Error(err)
		}
	})
}

// One that does not answer is waited for no longer than a round may take, and holds up
// none in which the others suffice.
func TestVoterThatHangs(t *testing.T) {
	cluster(t, 3, func(t *testing.T, nodes []*node) {
		hold := make(chan struct{})
		nodes[1].locked(func() { nodes[1].holdTerms = hold })
		began := time.Now()
		if err := confirm(t, nodes[0], 5); err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		nodes[2].locked(func() { nodes[2].holdTerms = hold })
		began = time.Now()
		if err := confirm(t, nodes[0], 5); err != errNoLeader || time.Since(began) != 500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		close(hold)
	})
}

// H22: an answer to a question that was sent before the read began does not count.
func TestRoundBeginsAfterTheQuestion(t *testing.T) {
	cluster(t, 3, func(t *testing.T, nodes []*node) {
		hold := make(chan struct{})
		for _, n := range nodes[1:] {
			n.locked(func() { n.holdTerms = hold })
		}
		first := started(func() error { return confirm(t, nodes[0], 5) })
		second := started(func() error { return confirm(t, nodes[0], 5) })
		third := started(func() error { return confirm(t, nodes[0], 5) })
		close(hold)
		for _, done := range []chan error{first, second, third} {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		for _, n := range nodes[1:] {
			if got := get(n, func() int { return n.terms }); got != 2 {
				t.Errorf("node %s was asked %d times: once for the first, once for the others together", n.id, got)
			}
		}
	})
}

func TestConfirmTermDoesNotWait(t *testing.T) {
	for _, size := range []int{1, 3} {
		cluster(t, size, func(t *testing.T, nodes []*node) {
			for term, want := range map[uint64]bool{5: true, 4: false} {
				got := make(chan bool, 1)
				nodes[0].ConfirmTerm(term, func(ok bool) { got <- ok })
				if ok := <-got; ok != want {
					t.Errorf("%d nodes, term %d: %v", size, term, ok)
				}
			}
			nodes[0].group.Stop()
			if size > 1 {
				got := make(chan bool, 1)
				nodes[0].ConfirmTerm(5, func(ok bool) { got <- ok })
				if <-got {
					t.Error("confirmed after the end")
				}
			}
		})
	}
}

func TestTooManyVoters(t *testing.T) {
	cluster(t, maxVoters+1, func(t *testing.T, nodes []*node) {
		if err := confirm(t, nodes[0], 5); err == nil || err == errNoLeader {
			t.Error(err)
		}
	})
}
