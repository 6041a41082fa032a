package members

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// TestMessagesAreGolden pins what other nodes read. A message may get another field, and then another golden line.
func TestMessagesAreGolden(t *testing.T) {
	for _, c := range []struct {
		message any
		golden  string
	}{
		{&Change{Kind: Join, ID: "n", Incarnation: "i", Addr: "a:1", Voter: true, Engine: 1 << 40, FormatMin: 1, FormatMax: 2, Functions: "f x/1 1\n"},
			"89a441646472a3613a31a6456e67696e65cf0000010000000000a9466f726d61744d617802a9466f726d61744d696e01a946756e6374696f6e73a86620782f3120310aa24944a16eab496e6361726e6174696f6ea169a44b696e6401a5566f746572c3"},
		{&progress{Incarnation: "i", Applied: 70000}, "82a74170706c696564ce00011170ab496e6361726e6174696f6ea169"},
		{&[]Member{{ID: "n", Addr: "a:1", Voter: true, Leader: true}, {ID: "l", Promoting: true}},
			"9285a441646472a3613a31a24944a16ea64c6561646572c3a950726f6d6f74696e67c2a5566f746572c385a441646472a0a24944a16ca64c6561646572c2a950726f6d6f74696e67c3a5566f746572c2"},
	} {
		if got := hex.EncodeToString(rpc.EncodeControl(c.message)); got != c.golden {
			t.Errorf("%T: %s", c.message, got)
		}
		golden, err := hex.DecodeString(c.golden)
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(c.message).Elem())
		if err := rpc.DecodeControl(golden, got.Interface()); err != nil || !reflect.DeepEqual(got.Interface(), c.message) {
			t.Errorf("%T: %+v, %v", c.message, got, err)
		}
	}
	if kinds := []Kind{Join, Promote, Demote, Remove, Transfer}; !reflect.DeepEqual(kinds, []Kind{1, 2, 3, 4, 5}) {
		t.Error(kinds)
	}
}

func TestWrittenFormatIsTheNewestEveryMemberReads(t *testing.T) {
	n := newNode(t, "a")
	n.lines["a"] = membership.Record{ID: "a", FormatMin: 1, FormatMax: FormatMax}
	n.lines["b"] = membership.Record{ID: "b", FormatMin: 1, FormatMax: FormatMax + 3}
	if v := n.WriteFormat(); v != FormatMax {
		t.Errorf("writes %d", v)
	}
	if err := n.checkFormats(Change{ID: "new", FormatMin: FormatMax + 1, FormatMax: FormatMax + 2}); err == nil {
		t.Error("a node that cannot read what is written may join")
	}
	if err := n.checkFormats(Change{ID: "new", FormatMin: 1, FormatMax: FormatMax + 2}); err != nil {
		t.Error(err)
	}
	n.lines["learner"] = membership.Record{ID: "learner", FormatMin: 0, FormatMax: FormatMax - 1}
	if v := n.WriteFormat(); v != FormatMax-1 {
		t.Errorf("with an older learner it writes %d", v)
	}
}

func TestListJoinsBothHalves(t *testing.T) {
	n := newLeader(t)
	n.Book.Heard(wire.Hello{NodeID: "b", Incarnation: "ib", Addr: "b:2"})
	delete(n.lines, "c")
	want(t, "list", fmt.Sprint(n.List()), "[{a a:1 true true false} {b b:2 true false false} {c  true false false} {d d:1 false false true}]")
	b, err := n.ServeList(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	other := newNode(t, "b")
	other.answers["a"] = func(string, []byte) ([]byte, error) { return b, nil }
	if list, err := other.ListOf(t.Context(), "a"); err != nil || !reflect.DeepEqual(list, n.List()) {
		t.Errorf("as it travels: %v, %v", list, err)
	}
	n.leading = false
	_, err = n.ServeList(t.Context(), nil)
	wantCode(t, err, wire.ErrNotLeader)
}

func TestWhoMayTalkToANode(t *testing.T) {
	n := newLeader(t)
	good := wire.Hello{Purpose: wire.PurposeRaft, ClusterID: "cluster", NodeID: "b", Incarnation: "ib", FormatMin: FormatMin, FormatMax: FormatMax}
	homeless := newNode(t, "x")
	for _, tt := range []struct {
		name   string
		who    *node
		change func(*wire.Hello)
		want   string // part of the refusal, "" for none
	}{
		{"a member", n, func(*wire.Hello) {}, ""},
		{"whoever asks for entrance", n, func(h *wire.Hello) { h.Purpose, h.ClusterID, h.NodeID = wire.PurposeRPC, "", "new" }, ""},
		{"one that means this node", n, func(h *wire.Hello) { h.WantNodeID, h.WantIncarnation = "a", n.id.Incarnation }, ""},
		{"a member of no cluster's", homeless, func(h *wire.Hello) { h.Purpose = wire.PurposeRPC }, ""},
		{"older formats", n, func(h *wire.Hello) { h.FormatMax = FormatMin - 1 }, "reads formats"},
		{"newer formats", n, func(h *wire.Hello) { h.FormatMin, h.FormatMax = FormatMax+1, FormatMax+1 }, "reads formats"},
		{"another is meant", n, func(h *wire.Hello) { h.WantNodeID = "b" }, `not "b"`},
		{"an earlier directory is meant", n, func(h *wire.Hello) { h.WantIncarnation = "old" }, "another incarnation"},
		{"another cluster", n, func(h *wire.Hello) { h.ClusterID = "other" }, "belongs to cluster cluster"},
		{"consensus without a cluster", n, func(h *wire.Hello) { h.ClusterID = "" }, "consensus"},
		{"consensus with a node without one", homeless, func(*wire.Hello) {}, "consensus"},
		{"a double", n, func(h *wire.Hello) { h.NodeID = "a" }, "another node calls itself"},
		{"consensus with a replaced node", n, func(h *wire.Hello) { h.Incarnation = "old" }, "it was replaced"},
		{"a replaced node that asks for entrance", n, func(h *wire.Hello) { h.Purpose, h.Incarnation = wire.PurposeRPC, "new" }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := good
			tt.change(&h)
			if err := tt.who.CheckPeer(h); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if h := n.Hello(wire.PurposeRaft); h.NodeID != "a" || h.ClusterID != "cluster" || h.Incarnation != n.id.Incarnation || h.Addr != "a:1" || h.Engine != 7 || h.FormatMax != FormatMax {
		t.Errorf("says of itself %+v", h)
	}
	if !n.IsMember(good) || n.IsMember(wire.Hello{NodeID: "b", Incarnation: "old"}) || n.IsMember(wire.Hello{NodeID: "x"}) {
		t.Error("members are told wrongly")
	}
}

func TestWhoLacksAFunction(t *testing.T) {
	n := newLeader(t)
	n.servers = append(n.servers, membership.Server{ID: "e"}) // its line is not there yet
	has := func(ids string) func(string) bool {
		return func(list string) bool { return list != "" && strings.Contains(ids, list[2:3]) }
	}
	for _, tt := range []struct {
		here bool
		ids  string
		want string
	}{
		{true, "bcd", "[e]"}, {true, "b", "[c d e]"}, {true, "", "[b c d e]"}, {false, "bcd", "[a e]"}, {false, "", "[]"},
	} {
		want(t, fmt.Sprintf("%t %q", tt.here, tt.ids), fmt.Sprint(n.Lack(tt.here, has(tt.ids))), tt.want)
	}
	n.servers = n.servers[:4]
	if lack := n.Lack(true, has("bcd")); lack != nil {
		t.Errorf("%v lack what all have", lack)
	}
}
