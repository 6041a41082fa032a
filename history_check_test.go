package colmena_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func appends(key, value int) listOp          { return listOp{key: key, append: true, value: value} }
func reads(key int, values ...int) listOp    { return listOp{key: key, read: values} }
func done(name string, ops ...listOp) txn    { return txn{name: name, end: math.MaxInt64, ops: ops} }
func aborted(name string, ops ...listOp) txn { return txn{name: name, outcome: txnAborted, ops: ops} }
func unknown(name string, ops ...listOp) txn { return txn{name: name, outcome: txnUnknown, ops: ops} }

// at gives a transaction its time.
func (t txn) at(begin, end int64) txn { t.begin, t.end = begin, end; return t }

// TestHistoryCheckFindsPlantedAnomalies has one history for each anomaly, and right ones
// that come close.
func TestHistoryCheckFindsPlantedAnomalies(t *testing.T) {
	for name, test := range map[string]struct {
		h        history
		want     anomalyKind // "" none
		realTime bool
	}{
		"one after the other":             {h: history{done("a", reads(1), appends(1, 1)), done("b", reads(1, 1), appends(1, 2)), done("c", reads(1, 1, 2))}},
		"own writes":                      {h: history{done("a", appends(1, 1), reads(1, 1), appends(1, 2), reads(1, 1, 2)), done("b", reads(1, 1, 2))}},
		"lost update":                     {h: history{done("a", reads(1), appends(1, 1)), done("b", reads(1), appends(1, 2)), done("c", reads(1, 1, 2))}, want: anomalySingle},
		"lost update that overwrites":     {h: history{done("a", reads(1), appends(1, 1)).at(1, 3), done("b", reads(1), appends(1, 2)).at(2, 4), done("c", reads(1, 2)).at(5, 6)}, want: anomalyG2},
		"blind write that is lost":        {h: history{done("a", appends(1, 1)).at(1, 3), done("b", appends(1, 2)).at(2, 4), done("c", reads(1, 2)).at(5, 6)}, want: anomalySingle, realTime: true},
		"write skew":                      {h: history{done("a", reads(1), reads(2), appends(1, 1)), done("b", reads(1), reads(2), appends(2, 2)), done("c", reads(1, 1), reads(2, 2))}, want: anomalyG2},
		"write skew, unread":              {h: history{done("a", reads(1), reads(2), appends(1, 1)), done("b", reads(1), reads(2), appends(2, 2))}, want: anomalyG2},
		"one misses the other, no skew":   {h: history{done("a", reads(1), reads(2), appends(1, 1)), done("b", reads(1, 1), reads(2), appends(2, 2)), done("c", reads(1, 1), reads(2, 2))}},
		"aborted read":                    {h: history{aborted("a", appends(1, 1)), done("b", reads(1, 1))}, want: anomalyG1a},
		"aborted, unread":                 {h: history{aborted("a", reads(1, 9), appends(1, 1)), done("b", reads(1))}},
		"intermediate read":               {h: history{done("a", appends(1, 1), appends(1, 2)), done("b", reads(1, 1)), done("c", reads(1, 1, 2))}, want: anomalyG1b},
		"intermediate read, own":          {h: history{done("a", appends(1, 1), reads(1, 1), appends(1, 2)), done("c", reads(1, 1, 2))}},
		"stale read":                      {h: history{done("a", appends(1, 1)).at(1, 2), done("b", reads(1)).at(3, 4), done("c", reads(1, 1)).at(5, 6)}, want: anomalySingle, realTime: true},
		"stale read, nobody else reads":   {h: history{done("a", appends(1, 1)).at(1, 2), done("b", reads(1)).at(3, 4)}, want: anomalySingle, realTime: true},
		"old read beside the write":       {h: history{done("a", appends(1, 1)).at(1, 3), done("b", reads(1)).at(2, 4), done("c", reads(1, 1)).at(5, 6)}},
		"read from the future":            {h: history{done("a", appends(1, 1)).at(3, 4), done("b", reads(1, 1)).at(1, 2)}, want: anomalyG1c, realTime: true},
		"writes against time":             {h: history{done("a", appends(1, 1)).at(3, 4), done("b", appends(1, 2)).at(1, 2), done("c", reads(1, 1, 2)).at(5, 6)}, want: anomalyG0, realTime: true},
		"writes in a circle":              {h: history{done("a", appends(1, 1), appends(2, 1)), done("b", appends(1, 2), appends(2, 2)), done("c", reads(1, 1, 2)), done("d", reads(2, 2, 1))}, want: anomalyG0},
		"information in a circle":         {h: history{done("a", appends(1, 1), reads(2, 2)), done("b", appends(2, 2), reads(1, 1))}, want: anomalyG1c},
		"read skew":                       {h: history{done("a", appends(1, 1), appends(2, 2)), done("b", reads(1), reads(2, 2)), done("c", reads(1, 1))}, want: anomalySingle},
		"a circle of three":               {h: history{done("a", reads(1), appends(2, 1)), done("b", reads(2), appends(3, 1)), done("c", reads(3), appends(1, 1)), done("d", reads(1, 1), reads(2, 1), reads(3, 1))}, want: anomalyG2},
		"orders that part":                {h: history{done("a", appends(1, 1)), done("b", appends(1, 2)), done("c", reads(1, 1)), done("d", reads(1, 2, 1))}, want: anomalyOrder},
		"own write is missing":            {h: history{done("a", appends(1, 1), reads(1))}, want: anomalyOwn},
		"a list that changes meanwhile":   {h: history{done("a", appends(1, 1)), done("b", reads(1), reads(1, 1))}, want: anomalyOwn},
		"what nobody wrote":               {h: history{done("a", reads(1, 7))}, want: anomalyGarbage},
		"a value twice":                   {h: history{done("a", appends(1, 1)), done("b", reads(1, 1, 1))}, want: anomalyGarbage},
		"a value that is used again":      {h: history{done("a", appends(1, 1)), done("b", appends(1, 1))}, want: anomalyReused},
		"unknown and happened":            {h: history{unknown("a", appends(1, 1)).at(1, 2), done("b", reads(1, 1)).at(3, 4)}},
		"unknown and happened not":        {h: history{unknown("a", appends(1, 1)).at(1, 2), done("b", reads(1)).at(3, 4)}},
		"unknown, seen and then no more":  {h: history{unknown("a", appends(1, 1)).at(1, 2), done("b", reads(1, 1)).at(3, 4), done("c", reads(1)).at(5, 6)}, want: anomalySingle, realTime: true},
		"unknown, seen before it began":   {h: history{unknown("a", appends(1, 1)).at(5, 6), done("b", reads(1, 1)).at(1, 2)}, want: anomalyG1c, realTime: true},
		"unknown, seen and missed":        {h: history{unknown("a", reads(1), appends(1, 1)), done("b", reads(1), appends(1, 2)), done("c", reads(1, 1, 2))}, want: anomalySingle},
		"what ended long before is older": {h: history{done("a", appends(1, 1)).at(1, 2), done("x", appends(2, 1)).at(3, 4), done("y", appends(3, 1)).at(5, 6), done("b", reads(1)).at(7, 8)}, want: anomalySingle, realTime: true},
	} {
		t.Run(name, func(t *testing.T) {
			found := test.h.check()
			if test.want == "" {
				if len(found) > 0 {
					t.Errorf("found %v", found)
				}
				return
			}
			if !slices.ContainsFunc(found, func(a anomaly) bool { return a.kind == test.want && a.realTime == test.realTime }) {
				t.Errorf("found %v, not %q, in real time %v", found, test.want, test.realTime)
			}
		})
	}
}

// randomHistory runs transactions one after the other on lists, begun a while before
// and learnt of a while after they ran.
func randomHistory(rnd *rand.Rand, n int) history {
	lists := map[int][]int{}
	var h history
	for i := range n {
		x := txn{name: fmt.Sprint("t", i), begin: int64(i*10 - rnd.IntN(40)), end: int64(i*10 + 1 + rnd.IntN(40))}
		undone := map[int][]int{}
		for j := range 1 + rnd.IntN(5) {
			key := rnd.IntN(4)
			if rnd.IntN(2) == 0 {
				x.ops = append(x.ops, reads(key, slices.Clone(lists[key])...))
				continue
			}
			if _, kept := undone[key]; !kept {
				undone[key] = lists[key]
			}
			x.ops = append(x.ops, appends(key, i*10+j))
			lists[key] = append(slices.Clone(lists[key]), i*10+j)
		}
		happens := true
		switch rnd.IntN(8) {
		case 0:
			x.outcome, happens = txnAborted, false
		case 1:
			x.outcome, happens = txnUnknown, rnd.IntN(2) == 0
		}
		if !happens {
			for key, was := range undone {
				lists[key] = was
			}
		}
		h = append(h, x)
	}
	return h
}

// TestHistoryCheckAgreesWithSerialRuns gives it histories that are right, and the same ones
// with one read made older than what its transaction rests on.
func TestHistoryCheckAgreesWithSerialRuns(t *testing.T) {
	rnd := random(t)
	planted := 0
	for range size(300) {
		h := randomHistory(rnd, 2+rnd.IntN(60))
		if found := h.check(); len(found) > 0 {
			t.Fatalf("a serial history: %v", found)
		}
		// A transaction that began after another's append was acknowledged loses sight of it.
		for i := range h {
			for j := range h[i].ops {
				o := &h[i].ops[j]
				if h[i].outcome != txnCommitted || o.append || len(o.read) == 0 {
					continue
				}
				last := o.read[len(o.read)-1]
				w := slices.IndexFunc(h, func(x txn) bool {
					return slices.ContainsFunc(x.ops, func(o listOp) bool { return o.append && o.value == last })
				})
				if w == i || h[w].outcome != txnCommitted || h[w].end >= h[i].begin {
					continue
				}
				whole := o.read
				o.read = whole[:len(whole)-1]
				if found := h.check(); len(found) == 0 {
					t.Fatalf("%s does not see %d any more, and nothing was found", h[i].name, last)
				}
				o.read = whole
				planted++
			}
		}
	}
	if planted == 0 {
		t.Error("nothing was planted")
	}
	t.Logf("%d planted", planted)
}

func TestHistoryCheckTellsTheCircle(t *testing.T) {
	h := history{done("a", appends(1, 1)).at(1, 2), done("b", reads(1)).at(3, 4)}
	if found := h.check(); len(found) != 1 || !strings.HasSuffix(found[0].String(), "in real time: b -rw-> a -time-> b") {
		t.Errorf("found %v", found)
	}
}
