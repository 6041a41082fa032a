package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVerdictNamesWhatIsWrong plants each kind of fault among writes that are well.
func TestVerdictNamesWhatIsWrong(t *testing.T) {
	row := func(id string) line { return line{ID: id, Text: "as it was written"} }
	record := map[string]told{"a": {written, row("a")}, "b": {written, row("b")}, "c": {outcome: unknown}, "d": {outcome: unknown}, "e": {outcome: notApplied}}
	nodes := []string{"node-1", "node-2"}
	// A capital stands for a row with another text.
	split := func(s string) content {
		c := content{Sum: s}
		for _, id := range strings.Split(s, "") {
			l := row(strings.ToLower(id))
			if l.ID != id {
				l.Text = "garbage"
			}
			c.Rows = append(c.Rows, l)
		}
		return c
	}
	for _, tt := range []struct {
		what, first, second string
		want                verdict
	}{
		{"all well", "abdz", "abdz", verdict{}},
		{"lost on every node", "adz", "adz", verdict{Lost: []string{"b"}}},
		{"lost on one node", "abdz", "adz", verdict{Lost: []string{"b"}, Different: []string{"node-2"}}},
		{"lost of an earlier run", "abd", "abd", verdict{Lost: []string{"z"}}},
		{"altered", "aBdz", "aBdz", verdict{Altered: []string{"b"}}},
		{"altered of an earlier run", "abdZ", "abdZ", verdict{Altered: []string{"z"}}},
		{"doubled", "abdbz", "abdbz", verdict{Doubled: []string{"b"}}},
		{"unknown and doubled", "abddz", "abddz", verdict{Doubled: []string{"d"}}},
		{"not applied and there", "abdez", "abdez", verdict{Ghosts: []string{"e"}}},
		{"written by nobody", "abdyz", "abdyz", verdict{Strange: []string{"y"}}},
		{"in another order", "abdz", "badz", verdict{Different: []string{"node-2"}}},
		{"nothing there", "", "", verdict{Lost: []string{"a", "b", "z"}}},
	} {
		v := judge(record, []line{row("z")}, []content{split(tt.first), split(tt.second)}, nodes)
		if v.Written != 2 || v.Unknown != 2 || v.NotApplied != 1 {
			t.Errorf("%s: counted %+v", tt.what, v)
		}
		if in := strings.Contains(tt.first, "d"); (v.UnknownWritten == 1) != in {
			t.Errorf("%s: %d unknown writes are in the log", tt.what, v.UnknownWritten)
		}
		if !slices.Equal(v.Lost, tt.want.Lost) || !slices.Equal(v.Altered, tt.want.Altered) || !slices.Equal(v.Doubled, tt.want.Doubled) || !slices.Equal(v.Ghosts, tt.want.Ghosts) || !slices.Equal(v.Strange, tt.want.Strange) || !slices.Equal(v.Different, tt.want.Different) {
			t.Errorf("%s: %+v, want %+v", tt.what, v, tt.want)
		}
		if well := tt.what == "all well"; (v.err() == nil) != well {
			t.Errorf("%s: %v", tt.what, v.err())
		}
	}
}

// TestRunWithoutWritesIsNoSuccess: nothing is lost where nothing was written.
func TestRunWithoutWritesIsNoSuccess(t *testing.T) {
	for _, tt := range []struct {
		chaos bool
		v     verdict
		well  bool
	}{
		{true, verdict{Unknown: 9}, false},
		{false, verdict{NotApplied: 9}, false},
		{false, verdict{Written: 9, Unknown: 1}, false},
		{false, verdict{Written: 9, NotApplied: 1}, false},
		{true, verdict{Written: 9, Unknown: 1, NotApplied: 1}, true},
		{false, verdict{Written: 9}, true},
	} {
		if err := (&headless{chaos: tt.chaos}).refused(tt.v); (err == nil) != tt.well {
			t.Errorf("%+v: %v", tt, err)
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
