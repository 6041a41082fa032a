package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVerdictNamesWhatIsWrong plants each kind of fault among writes that are well.
func TestVerdictNamesWhatIsWrong(t *testing.T) {
	told := map[string]outcome{"a": written, "b": written, "c": unknown, "d": unknown, "e": notApplied}
	nodes := []string{"node-1", "node-2"}
	held := func(first, second string) []content {
		split := func(s string) content { return content{IDs: strings.Split(s, ""), Sum: s} }
		return []content{split(first), split(second)}
	}
	for _, tt := range []struct {
		what, first, second string
		want                verdict
	}{
		{"all well", "abd", "abd", verdict{}},
		{"lost on every node", "ad", "ad", verdict{Lost: []string{"b"}}},
		{"lost on one node", "abd", "ad", verdict{Lost: []string{"b"}, Different: []string{"node-2"}}},
		{"doubled", "abdb", "abdb", verdict{Doubled: []string{"b"}}},
		{"unknown and doubled", "abdd", "abdd", verdict{Doubled: []string{"d"}}},
		{"not applied and there", "abde", "abde", verdict{Ghosts: []string{"e"}}},
		{"in another order", "abd", "bad", verdict{Different: []string{"node-2"}}},
		{"nothing there", "", "", verdict{Lost: []string{"a", "b"}}},
	} {
		v := judge(told, held(tt.first, tt.second), nodes)
		if v.Written != 2 || v.Unknown != 2 || v.NotApplied != 1 {
			t.Errorf("%s: counted %+v", tt.what, v)
		}
		if in := strings.Contains(tt.first, "d"); (v.UnknownWritten == 1) != in {
			t.Errorf("%s: %d unknown writes are in the log", tt.what, v.UnknownWritten)
		}
		if !slices.Equal(v.Lost, tt.want.Lost) || !slices.Equal(v.Doubled, tt.want.Doubled) || !slices.Equal(v.Ghosts, tt.want.Ghosts) || !slices.Equal(v.Different, tt.want.Different) {
			t.Errorf("%s: %+v, want %+v", tt.what, v, tt.want)
		}
		if well := tt.what == "all well"; (v.err() == nil) != well {
			t.Errorf("%s: %v", tt.what, v.err())
		}
	}
}

func TestLongestWaitCountsBothEnds(t *testing.T) {
	at := func(s ...float64) (list []time.Time) {
		for _, one := range s {
			list = append(list, time.Unix(0, int64(one*1e9)))
		}
		return list
	}
	for _, tt := range []struct {
		acks     []time.Time
		from, to float64
		want     time.Duration
	}{
		{nil, 1, 3, 2 * time.Second},
		{at(0.5, 1.5, 2, 2.5), 1, 3, time.Second / 2},
		{at(0.5, 1.5, 2.9), 1, 3, 1400 * time.Millisecond},
		{at(1.1), 1, 3, 1900 * time.Millisecond},
		{at(2.9), 1, 3, 1900 * time.Millisecond},
		{at(5), 1, 3, 2 * time.Second},
	} {
		if got := longestWait(tt.acks, at(tt.from)[0], at(tt.to)[0]); got.Round(time.Millisecond) != tt.want {
			t.Errorf("%v from %v to %v: %v, want %v", tt.acks, tt.from, tt.to, got, tt.want)
		}
	}
}

func TestRangesJoinNeighbours(t *testing.T) {
	for _, tt := range []struct {
		in   []int64
		want [][2]int64
	}{
		{nil, [][2]int64{}},
		{[]int64{4}, [][2]int64{{4, 4}}},
		{[]int64{3, 1, 2, 7, 7, 9, 8}, [][2]int64{{1, 3}, {7, 9}}},
	} {
		if got := ranges(tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.in, got, tt.want)
		}
	}
}
