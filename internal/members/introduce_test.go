package members

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestANodeJoinsThroughWhoeverAnswers(t *testing.T) {
	n := newNode(t, "e", "down:1", "new:1", "self:1", "b:1")
	n.greeting["new:1"] = wire.Hello{NodeID: "x"} // has no cluster itself
	n.greeting["self:1"] = wire.Hello{NodeID: "e", ClusterID: "cluster"}
	n.greeting["b:1"] = wire.Hello{NodeID: "b", ClusterID: "cluster"}
	var got Change
	n.answers["b:1"] = func(_ string, req []byte) ([]byte, error) {
		want(t, "cluster at the call", n.id.ClusterID(), "cluster")
		return nil, rpc.DecodeControl(req, &got)
	}
	(&introducer{k: n.Keeper}).introduce(t.Context())
	if got != joinOf(n.line(true)) || got.Kind != Join || got.Addr != "e:1" || got.Functions != "f own/1 1\n" {
		t.Errorf("asked for %+v", got)
	}
	if done := n.did(); strings.Count(done, "greet") != 8 || !strings.HasSuffix(done, "call change of b:1") {
		t.Error(done)
	}
	// A cluster is adopted for good.
	n.answers["b:1"] = func(string, []byte) ([]byte, error) { return nil, errors.New("not now") }
	err := n.join(t.Context(), joinOf(n.line(true)))
	for _, part := range []string{"via down:1: nobody answers", "via self:1: that is this node itself", "via b:1: not now"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v; want %q", err, part)
		}
	}
}

// member makes a node a member of a cluster that a leads.
func member(t *testing.T, n *node) *introducer {
	t.Helper()
	if err := n.id.Join("cluster"); err != nil {
		t.Fatal(err)
	}
	n.leader, n.servers = "a", []membership.Server{{ID: "a", Voter: true}, {ID: n.id.NodeID, Voter: true}}
	n.lines["a"] = membership.Record{ID: "a", Incarnation: "ia", Addr: "a:1", Voter: true, FormatMin: FormatMin, FormatMax: FormatMax}
	n.lines[n.id.NodeID] = n.line(true)
	in := &introducer{k: n.Keeper}
	in.introduce(t.Context())
	want(t, "a member in good order does", n.did(), "")
	return in
}

func TestAMemberTellsWhatChanged(t *testing.T) {
	n := newNode(t, "b")
	in := member(t, n)
	n.cfg.Voter = false // its wish to vote is on record, and not taken from a restart
	in.introduce(t.Context())
	want(t, "another wish", n.did(), "")
	n.addr = "b:2"
	var got Change
	n.answers["a"] = func(_ string, req []byte) ([]byte, error) { return nil, rpc.DecodeControl(req, &got) }
	in.introduce(t.Context())
	want(t, "another address", n.did(), "call change of a")
	if got.Addr != "b:2" || !got.Voter {
		t.Errorf("%+v", got)
	}
	n.leader, n.leading = "b", true
	in.introduce(t.Context())
	want(t, "as the leader", n.did(), "record b")
}

func TestWithoutALeaderMembersGreetOneAnother(t *testing.T) {
	n := newNode(t, "b")
	in := member(t, n)
	n.leader = ""
	in.introduce(t.Context())
	want(t, "done", n.did(), "greet a:1")
}

func TestARemovedNodeStaysOutAndSaysSoOnce(t *testing.T) {
	lonely := func(in *introducer) { in.lonely = time.Now().Add(-2 * lonelyAfter) }
	t.Run("while it ran", func(t *testing.T) {
		n := newNode(t, "b", "a:1")
		in := member(t, n)
		n.servers, n.leader = n.servers[:1], ""
		in.introduce(t.Context())
		if n.removed != 0 {
			t.Error("said at once")
		}
		for range 3 {
			lonely(in)
			in.introduce(t.Context())
		}
		if n.removed != 1 || n.did() != "" {
			t.Errorf("told %d times, done %s", n.removed, n.did())
		}
	})
	t.Run("while it was down", func(t *testing.T) {
		n := newNode(t, "b")
		in := member(t, n)
		n.leader = ""
		leader := newLeader(t)
		n.answers["a:1"] = func(string, []byte) ([]byte, error) { return leader.ServeList(t.Context(), nil) }
		for range 2 {
			lonely(in)
			in.introduce(t.Context())
		}
		if n.removed != 0 {
			t.Error("it is a member")
		}
		leader.servers = leader.servers[:1]
		leader.leading = false // one that does not lead does not know
		lonely(in)
		in.introduce(t.Context())
		if n.removed != 0 {
			t.Error("a node that does not lead was believed")
		}
		leader.leading = true
		for range 2 {
			lonely(in)
			in.introduce(t.Context())
		}
		if n.removed != 1 {
			t.Errorf("told %d times", n.removed)
		}
	})
	t.Run("before it heard that it was let in", func(t *testing.T) {
		n := newNode(t, "e", "a:1")
		leader := newLeader(t)
		n.greeting["a:1"] = wire.Hello{NodeID: "a", ClusterID: "cluster"}
		serve := func(_ string, req []byte) ([]byte, error) {
			return nil, leader.ServeChange(t.Context(), n.Hello(wire.PurposeRPC), req)
		}
		n.answers["a:1"] = serve
		in := &introducer{k: n.Keeper}
		in.introduce(t.Context())
		if err := leader.Change(t.Context(), Change{Kind: Remove, ID: "e"}); err != nil {
			t.Fatal(err)
		}
		leader.did()
		n.answers["a:1"] = func(method string, req []byte) ([]byte, error) {
			if method == MethodList {
				return leader.ServeList(t.Context(), nil)
			}
			return serve(method, req)
		}
		for range 3 {
			in.introduce(t.Context())
			lonely(in)
		}
		if n.removed != 1 || leader.did() != "" {
			t.Errorf("told %d times", n.removed)
		}
	})
	t.Run("and comes back with Join", func(t *testing.T) {
		n := newNode(t, "b", "a:1")
		member(t, n)
		n.leader = ""
		n.greeting["a:1"] = wire.Hello{NodeID: "a", ClusterID: "cluster"}
		n.answers["a:1"] = func(string, []byte) ([]byte, error) { return nil, nil }
		in := &introducer{k: n.Keeper, lonely: time.Now().Add(-2 * lonelyAfter)} // started again
		in.introduce(t.Context())
		if done := n.did(); !strings.HasSuffix(done, "call change of a:1") || n.removed != 0 {
			t.Error(done)
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	n := newLeader(t)
	n.progress("d", "id", n.applied)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); n.Run(ctx) }()
	deadline := time.Now().Add(10 * time.Second)
	for n.did() != "promote d" {
		if time.Now().After(deadline) {
			t.Fatal("a learner that caught up is not promoted")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}
