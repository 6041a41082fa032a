package members

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// joining is what a node says of itself.
func joining(id, incarnation, addr string) Change {
	return Change{Kind: Join, ID: id, Incarnation: incarnation, Addr: addr, Voter: true, Engine: 9, FormatMin: FormatMin, FormatMax: FormatMax, Functions: "f new/1 1\n"}
}

func TestChangesTakeTheirStepsInOrder(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change Change
		want   string
	}{
		{"a new node", joining("e", "ie", "e:1"), "record e; add-learner e"},
		{"a node at another address", joining("b", "ib", "b:2"), "record b"},
		{"a node with other functions", joining("b", "ib", "b:1"), "record b"},
		{"an empty directory", joining("d", "new", "d:1"), "remove d; record d; add-learner d"},
		{"a learner that is to vote does already", Change{Kind: Promote, ID: "d"}, ""},
		{"a voter that is to learn", Change{Kind: Demote, ID: "b"}, "record b; demote b"},
		{"a voter that goes", Change{Kind: Remove, ID: "b"}, "remove b; forget b; drop b"},
		{"leadership", Change{Kind: Transfer, ID: "b"}, "transfer b"},
		{"leadership to whom it is", Change{Kind: Transfer, ID: "a"}, ""},
		{"leadership to anybody", Change{Kind: Transfer}, "transfer "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newLeader(t)
			if err := n.Change(t.Context(), tt.change); err != nil {
				t.Fatal(err)
			}
			want(t, "steps", n.did(), tt.want)
		})
	}
}

func TestALineIsWrittenWhole(t *testing.T) {
	n := newLeader(t)
	if err := n.Change(t.Context(), joining("e", "ie", "e:1")); err != nil {
		t.Fatal(err)
	}
	if m := n.lines["e"]; m != (membership.Record{ID: "e", Incarnation: "ie", Addr: "e:1", Voter: true, Engine: 9, FormatMin: FormatMin, FormatMax: FormatMax, Functions: "f new/1 1\n"}) {
		t.Errorf("a new line %+v", m)
	}
	// What others ask for leaves alone what a node says of itself.
	was := n.lines["b"]
	if err := n.Change(t.Context(), Change{Kind: Demote, ID: "b"}); err != nil {
		t.Fatal(err)
	}
	if was.Voter = false; n.lines["b"] != was {
		t.Errorf("demoted: %+v, want %+v", n.lines["b"], was)
	}
	if err := n.Change(t.Context(), joining("b", "ib", "b:1")); err != nil {
		t.Fatal(err)
	}
	if m := n.lines["b"]; m.Voter || m.Engine != 9 || m.Functions != "f new/1 1\n" {
		t.Errorf("started with other functions: %+v", m)
	}
	n.did()
	if err := n.Change(t.Context(), joining("b", "ib", "b:1")); err != nil || n.did() != "" {
		t.Errorf("the same again: %v", err)
	}
}

func TestRefusedChangesTakeNoStep(t *testing.T) {
	n := newLeader(t)
	long := joining("e", "ie", "e:1")
	long.Functions = strings.Repeat("x", wire.MaxNeedsBytes+1)
	newer := joining("e", "ie", "e:1")
	newer.FormatMin, newer.FormatMax = FormatMax+1, FormatMax+1
	for _, tt := range []struct {
		name   string
		change Change
		want   string
	}{
		{"functions without end", long, "too long"},
		{"other formats", newer, "reads formats"},
		{"the ID of a running node", joining("b", "new", "b:2"), membership.ErrIDInUse.Error()},
		{"no address", joining("e", "ie", ""), membership.ErrInvalid.Error()},
		{"promote a stranger", Change{Kind: Promote, ID: "x"}, membership.ErrUnknownMember.Error()},
		{"demote a stranger", Change{Kind: Demote, ID: "x"}, membership.ErrUnknownMember.Error()},
		{"remove a stranger", Change{Kind: Remove, ID: "x"}, membership.ErrUnknownMember.Error()},
		{"leadership to a learner", Change{Kind: Transfer, ID: "d"}, "cannot lead"},
		{"leadership to a stranger", Change{Kind: Transfer, ID: "x"}, membership.ErrUnknownMember.Error()},
		{"another kind", Change{Kind: 99, ID: "b"}, "unknown change"},
	} {
		if err := n.Change(t.Context(), tt.change); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
		want(t, tt.name, n.did(), "")
	}
	n.leading = false
	wantCode(t, n.Change(t.Context(), Change{Kind: Remove, ID: "b"}), wire.ErrNotLeader)
	want(t, "not leading", n.did(), "")
}

func TestTheLeaderHandsOnBeforeItGoes(t *testing.T) {
	for _, kind := range []Kind{Remove, Demote} {
		n := newLeader(t)
		n.progress("c", "ic", 3000)
		wantCode(t, n.Change(t.Context(), Change{Kind: kind, ID: "a"}), wire.ErrNotLeader) // ask the next one
		want(t, "steps", n.did(), "transfer c")
	}
}

func TestAFailedStepEndsTheChange(t *testing.T) {
	n := newLeader(t)
	n.fails["remove b"] = errors.New("no majority")
	err := n.Change(t.Context(), Change{Kind: Remove, ID: "b"})
	if !errors.Is(err, n.fails["remove b"]) || err.Error() != "remove b: no majority" {
		t.Error(err)
	}
	want(t, "steps", n.did(), "remove b")
	if _, ok := n.lines["b"]; !ok {
		t.Error("a node that is still a member is forgotten")
	}
	delete(n.fails, "remove b")
	if err := n.Change(t.Context(), Change{Kind: Remove, ID: "b"}); err != nil {
		t.Error("asked again:", err)
	}
}

func TestLearnersThatCaughtUpArePromoted(t *testing.T) {
	n := newLeader(t)
	n.promote(t.Context())
	want(t, "a learner that does not answer", n.did(), "")
	n.progress("d", "id", n.applied-promoteLag-1)
	n.promote(t.Context())
	want(t, "one that is too far behind", n.did(), "")
	n.progress("d", "new", n.applied)
	n.promote(t.Context())
	want(t, "another directory", n.did(), "")
	n.progress("d", "id", n.applied-promoteLag)
	n.fails["promote d"] = errors.New("later")
	n.promote(t.Context())
	delete(n.fails, "promote d")
	n.promote(t.Context())
	want(t, "one that caught up", n.did(), "promote d; promote d")
	n.promote(t.Context())
	want(t, "a voter", n.did(), "")
}

func TestOneChangeAtATime(t *testing.T) {
	n := newLeader(t)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := n.answers["b"]
	n.answers["b"] = func(method string, req []byte) ([]byte, error) {
		once.Do(func() { close(held); <-release })
		return slow(method, req)
	}
	first := make(chan error, 1)
	go func() { first <- n.Change(t.Context(), joining("e", "ie", "e:1")) }()
	<-held
	if n.changing.TryLock() {
		t.Error("another change may begin beside one")
		n.changing.Unlock()
	}
	close(release)
	if err := errors.Join(<-first, n.Change(t.Context(), joining("f", "if", "f:1"))); err != nil {
		t.Error(err)
	}
	want(t, "steps", n.did(), "record e; add-learner e; record f; add-learner f")
}

func TestOwnLineIsWrittenOnce(t *testing.T) {
	n := newLeader(t)
	if err := n.RecordSelf(t.Context()); err != nil || n.did() != "" {
		t.Errorf("a line that is right was written: %v", err)
	}
	n.addr = "a:2"
	if err := n.RecordSelf(t.Context()); err != nil || n.did() != "record a" || n.lines["a"] != n.line(true) {
		t.Errorf("%v, %+v", err, n.lines["a"])
	}
}

func TestJoinsArePassedOnToTheLeader(t *testing.T) {
	n := newLeader(t)
	n.leader, n.leading = "b", false
	var got Change
	n.answers["b"] = func(_ string, req []byte) ([]byte, error) {
		return nil, rpc.DecodeControl(req, &got)
	}
	newcomer := wire.Hello{NodeID: "e", Incarnation: "ie"}
	serve := func(c Change) error { return n.ServeChange(t.Context(), newcomer, rpc.EncodeControl(&c)) }
	if err := serve(joining("e", "ie", "e:1")); err != nil || got != joining("e", "ie", "e:1") {
		t.Errorf("%v, %+v", err, got)
	}
	want(t, "done", n.did(), "call change of b")
	wantCode(t, serve(Change{Kind: Remove, ID: "c"}), wire.ErrNotLeader)
	n.leader = ""
	wantCode(t, serve(joining("e", "ie", "e:1")), wire.ErrNotLeader)
	want(t, "done", n.did(), "")
	if err := n.ServeChange(t.Context(), newcomer, []byte{0xc1}); err == nil {
		t.Error("garbage is taken")
	}
}

// TestWhoMayAskForAChange: whoever is no member may ask for its own entrance and for nothing else, and only the leader takes a member's word for
// the entrance of another.
func TestWhoMayAskForAChange(t *testing.T) {
	newcomer, asMember, replaced := wire.Hello{NodeID: "e", Incarnation: "ie"}, wire.Hello{NodeID: "c", Incarnation: "ic"}, wire.Hello{NodeID: "c", Incarnation: "old"}
	for _, tt := range []struct {
		name   string
		peer   wire.Hello
		change Change
		leader string         // what is done by the leader
		code   wire.ErrorCode // or its refusal
		other  string         // what is done by another member
		denied wire.ErrorCode // or its refusal
	}{
		{"its own entrance", newcomer, joining("e", "ie", "e:1"), "record e; add-learner e", 0, "call change of a", 0},
		{"its own line, with an empty directory", wire.Hello{NodeID: "d", Incarnation: "new"}, joining("d", "new", "d:1"), "remove d; record d; add-learner d", 0, "call change of a", 0},
		{"a member's address", newcomer, joining("d", "id", "e:1"), "", wire.ErrRefused, "", wire.ErrRefused},
		{"a member's place", newcomer, joining("d", "new", "e:1"), "", wire.ErrRefused, "", wire.ErrRefused},
		{"the entrance of another", newcomer, joining("f", "if", "e:1"), "", wire.ErrRefused, "", wire.ErrRefused},
		{"a removal", newcomer, Change{Kind: Remove, ID: "d"}, "", wire.ErrRefused, "", wire.ErrNotLeader},
		{"a removal, by a replaced node", replaced, Change{Kind: Remove, ID: "d"}, "", wire.ErrRefused, "", wire.ErrNotLeader},
		{"a member passes a join on", asMember, joining("e", "ie", "e:1"), "record e; add-learner e", 0, "", wire.ErrNotLeader},
		{"a replaced node passes a join on", replaced, joining("e", "ie", "e:1"), "", wire.ErrRefused, "", wire.ErrRefused},
		{"a member removes another", asMember, Change{Kind: Remove, ID: "d"}, "remove d; forget d; drop d", 0, "", wire.ErrNotLeader},
	} {
		for _, leading := range []bool{true, false} {
			n := newLeader(t)
			n.leading = leading
			n.answers["a"] = func(string, []byte) ([]byte, error) { return nil, nil }
			err := n.ServeChange(t.Context(), tt.peer, rpc.EncodeControl(&tt.change))
			done, code := tt.other, tt.denied
			if leading {
				done, code = tt.leader, tt.code
			}
			want(t, tt.name, n.did(), done)
			if code != 0 {
				wantCode(t, err, code)
			} else if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
	}
}
