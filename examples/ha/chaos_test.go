package main

import (
	"math/rand/v2"
	"testing"
)

// TestSeedDrawsTheSameFaults holds that a seed can be taken again, and that chance leaves
// out no fault and no role.
func TestSeedDrawsTheSameFaults(t *testing.T) {
	first, again, other := rand.New(rand.NewPCG(7, 0)), rand.New(rand.NewPCG(7, 0)), rand.New(rand.NewPCG(8, 0))
	kinds, differs := map[faultKind]bool{}, false
	for i := range 300 {
		p := draw(first)
		if q := draw(again); p != q {
			t.Fatalf("plan %d is %+v and %+v", i, p, q)
		}
		differs = differs || p != draw(other)
		role := "follower"
		if p.leader {
			role = "leader"
		}
		if p.alone {
			role = roleLearner
		}
		kinds[faultKind{p.main.name, role}] = true
		if p.main.lasts < p.main.shortest || p.main.lasts > p.main.longest || p.voter >= voters {
			t.Errorf("plan %d: %+v", i, p)
		}
	}
	if !differs {
		t.Error("another seed draws the same")
	}
	if len(kinds) != 3*len(faults) {
		t.Errorf("%d of %d faults were drawn", len(kinds), 3*len(faults))
	}
}
