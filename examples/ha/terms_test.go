package main

import "testing"

// TestRowsBelongToTheTermThatWasSeen holds that a row's leader is what was noted of its
// term, and nothing where nothing was.
func TestRowsBelongToTheTermThatWasSeen(t *testing.T) {
	seen := newTerms()
	seen.led(2, "node-1")
	seen.saw(2, 1)
	seen.saw(2, 5)
	seen.saw(4, 8) // whose leader did not come to note itself
	seen.saw(4, 7)
	for _, tt := range []struct {
		seq    int64
		number uint64
		leader string
	}{{1, 2, "node-1"}, {3, 2, "node-1"}, {5, 2, "node-1"}, {6, 0, ""}, {7, 4, ""}, {8, 4, ""}, {9, 0, ""}} {
		if number, leader := whose(seen.all(), tt.seq); number != tt.number || leader != tt.leader {
			t.Errorf("row %d: term %d of %q, want term %d of %q", tt.seq, number, leader, tt.number, tt.leader)
		}
	}
	news := seen.take()
	if len(news) != 2 || len(seen.take()) != 0 {
		t.Errorf("taken: %v", news)
	}
	seen.giveBack(news)
	seen.led(4, "node-3")
	if _, leader := whose(seen.all(), 8); leader != "node-3" || len(seen.take()) != 2 {
		t.Errorf("row 8 is of %q after its leader was noted", leader)
	}
	for n := range uint64(2 * termsMax) {
		seen.saw(n, int64(n)+1)
	}
	if all := seen.all(); len(all) != termsMax || len(seen.take()) > termsMax {
		t.Errorf("%d terms are remembered", len(all))
	}
}
