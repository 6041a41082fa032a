package membership

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// three is a healthy cluster: a leads, b and c vote, d learns.
func three() View {
	return View{
		Leader: "a", Applied: 100,
		Servers: []Server{{"a", true}, {"b", true}, {"c", true}, {"d", false}},
		Members: []Member{
			{"a", "ia", "a:1", true}, {"b", "ib", "b:1", true}, {"c", "ic", "c:1", true}, {"d", "id", "d:1", true},
		},
		Progress: map[string]Progress{"b": {"ib", 90, true}, "c": {"ic", 99, true}, "d": {"id", 40, true}},
	}
}

// lost marks nodes as out of reach.
func lost(v View, ids ...string) View {
	for _, id := range ids {
		p := v.Progress[id]
		p.Reachable = false
		v.Progress[id] = p
	}
	return v
}

func one() View {
	return View{Leader: "a", Applied: 10, Servers: []Server{{"a", true}}, Members: []Member{{"a", "ia", "a:1", true}}}
}

func TestJoin(t *testing.T) {
	bare := three()
	bare.Members = slices.DeleteFunc(bare.Members, func(m Member) bool { return m.ID == "a" })
	cut := three() // a replacement of b was cut short after the removal
	cut.Servers = slices.DeleteFunc(cut.Servers, func(s Server) bool { return s.ID == "b" })
	two := three()
	two.Servers, two.Members = two.Servers[:2], two.Members[:2]
	answering := lost(three())
	answering.Progress["b"] = Progress{"ib2", 0, true}

	tests := []struct {
		name string
		view View
		req  JoinRequest
		want string
		err  error
	}{
		{"a new node enters as a learner", three(), JoinRequest{"e", "ie", "e:1", true}, "record e incarnation=ie addr=e:1 voter=true; add-learner e", nil},
		{"a new node that will not vote", one(), JoinRequest{"e", "ie", "e:1", false}, "record e incarnation=ie addr=e:1 voter=false; add-learner e", nil},
		{"a known node changes nothing", three(), JoinRequest{"b", "ib", "b:1", true}, "", nil},
		{"a known node at a new address", three(), JoinRequest{"b", "ib", "b:2", true}, "record b incarnation=ib addr=b:2 voter=true", nil},
		{"a restart does not change the wish to vote", three(), JoinRequest{"b", "ib", "b:2", false}, "record b incarnation=ib addr=b:2 voter=true", nil},
		{"the leader itself", three(), JoinRequest{"a", "ia", "a:9", true}, "record a incarnation=ia addr=a:9 voter=true", nil},
		{"the leader itself before its line is written", bare, JoinRequest{"a", "ia", "a:1", true}, "record a incarnation=ia addr=a:1 voter=true", nil},
		{"a join that was cut short", View{Leader: "a", Servers: one().Servers, Members: append(one().Members, Member{"b", "ib", "b:1", true})},
			JoinRequest{"b", "ib", "b:1", true}, "add-learner b", nil},
		{"a replacement that was cut short", cut, JoinRequest{"b", "ib2", "b:1", true}, "record b incarnation=ib2 addr=b:1 voter=true; add-learner b", nil},
		{"an empty directory loses its vote first", lost(three(), "b"), JoinRequest{"b", "ib2", "b:1", true},
			"remove b; record b incarnation=ib2 addr=b:1 voter=true; add-learner b", nil},
		{"an empty directory that answers itself already", answering, JoinRequest{"b", "ib2", "b:1", true},
			"remove b; record b incarnation=ib2 addr=b:1 voter=true; add-learner b", nil},
		{"an empty learner", lost(three(), "d"), JoinRequest{"d", "id2", "d:1", true},
			"remove d; record d incarnation=id2 addr=d:1 voter=true; add-learner d", nil},
		{"of two voters the leader remains", lost(two, "b"), JoinRequest{"b", "ib2", "b:1", true},
			"remove b; record b incarnation=ib2 addr=b:1 voter=true; add-learner b", nil},
		{"an empty voter while another is away", lost(three(), "b", "c"), JoinRequest{"b", "ib2", "b:1", true}, "", ErrNoQuorum},
		{"the ID of a running node", three(), JoinRequest{"b", "ib2", "b:7", true}, "", ErrIDInUse},
		{"the leader's own ID", one(), JoinRequest{"a", "ia2", "a:7", true}, "", ErrIDInUse},
		{"no ID", three(), JoinRequest{"", "ie", "e:1", true}, "", ErrInvalid},
		{"no incarnation", three(), JoinRequest{"e", "", "e:1", true}, "", ErrInvalid},
		{"no address", three(), JoinRequest{"e", "ie", "", true}, "", ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			steps, err := Join(tt.view, tt.req)
			check(t, steps, err, tt.want, tt.err)
		})
	}
}

func TestRemoveDemotePromote(t *testing.T) {
	learnerNoWish := three()
	learnerNoWish.Members[3].WantsVoter = false
	rest := three()
	rest.Servers = rest.Servers[:3]
	leaderAndLearner := three()
	leaderAndLearner.Servers = []Server{{"a", true}, {"d", false}}
	swapped := three() // c answers with another directory than the one on record
	swapped.Progress["c"] = Progress{"ic2", 99, true}

	tests := []struct {
		name string
		do   func(View, string) ([]Step, error)
		view View
		id   string
		want string
		err  error
	}{
		{"remove a voter", Remove, three(), "b", "remove b; forget b", nil},
		{"remove a dead voter", Remove, lost(three(), "b"), "b", "remove b; forget b", nil},
		{"remove a learner", Remove, lost(three(), "b", "c"), "d", "remove d; forget d", nil},
		{"remove the leader", Remove, three(), "a", "transfer c", nil},
		{"remove the leader to the one in reach", Remove, lost(three(), "c"), "a", "", ErrNoQuorum},
		{"remove the only voter", Remove, one(), "a", "", ErrLastVoter},
		{"remove the last voter beside a learner", Remove, leaderAndLearner, "a", "", ErrLastVoter},
		{"remove a voter while another is away", Remove, lost(three(), "c"), "b", "", ErrNoQuorum},
		{"remove a voter while another came back empty", Remove, swapped, "b", "", ErrNoQuorum},
		{"remove the rest of a removal", Remove, rest, "d", "forget d", nil},
		{"remove a stranger", Remove, three(), "x", "", ErrUnknownMember},

		{"demote a voter", Demote, three(), "b", "record b incarnation=ib addr=b:1 voter=false; demote b", nil},
		{"demote the leader", Demote, three(), "a", "transfer c", nil},
		{"demote the only voter", Demote, one(), "a", "", ErrLastVoter},
		{"demote a voter while another is away", Demote, lost(three(), "c"), "b", "", ErrNoQuorum},
		{"demote a learner that wished to vote", Demote, three(), "d", "record d incarnation=id addr=d:1 voter=false", nil},
		{"demote a learner", Demote, learnerNoWish, "d", "", nil},
		{"demote a stranger", Demote, three(), "x", "", ErrUnknownMember},

		{"promote a learner", Promote, learnerNoWish, "d", "record d incarnation=id addr=d:1 voter=true", nil},
		{"promote one that wishes already", Promote, three(), "d", "", nil},
		{"promote a stranger", Promote, three(), "x", "", ErrUnknownMember},

		{"hand leadership to a voter", Transfer, three(), "b", "transfer b", nil},
		{"hand it to the leader", Transfer, three(), "a", "", nil},
		{"hand it to anybody", Transfer, three(), "", "transfer ", nil},
		{"hand it to anybody where there is nobody", Transfer, leaderAndLearner, "", "", ErrNoSuccessor},
		{"hand it to a stranger", Transfer, three(), "x", "", ErrUnknownMember},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			steps, err := tt.do(tt.view, tt.id)
			check(t, steps, err, tt.want, tt.err)
		})
	}
}

func TestALearnerCannotLead(t *testing.T) {
	steps, err := Transfer(three(), "d")
	if steps != nil || err == nil || err.Error() != `colmena: node "d" is not a voter of this cluster, so it cannot lead` {
		t.Errorf("%v, %v", steps, err)
	}
}

func TestPromotions(t *testing.T) {
	change := func(f func(m *Member, p *Progress)) View {
		v := three()
		p := v.Progress["d"]
		f(&v.Members[3], &p)
		v.Progress["d"] = p
		return v
	}
	tests := []struct {
		name string
		view View
		want string
	}{
		{"too far behind", three(), ""},
		{"just within", change(func(_ *Member, p *Progress) { p.Applied = 95 }), "promote d"},
		{"just not within", change(func(_ *Member, p *Progress) { p.Applied = 94 }), ""},
		{"ahead of what the leader has applied", change(func(_ *Member, p *Progress) { p.Applied = 200 }), "promote d"},
		{"out of reach", change(func(_ *Member, p *Progress) { p.Applied, p.Reachable = 100, false }), ""},
		{"another directory answers", change(func(_ *Member, p *Progress) { p.Applied, p.Incarnation = 100, "id2" }), ""},
		{"does not want to vote", change(func(m *Member, p *Progress) { p.Applied, m.WantsVoter = 100, false }), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { check(t, Promotions(tt.view, 5), nil, tt.want, nil) })
	}
}

// TestEveryPlanKeepsAVoter runs random requests, cut short at random steps, and holds what no sequence may break.
func TestEveryPlanKeepsAVoter(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		v := one()
		v.Progress = map[string]Progress{}
		for i := range 40 {
			id := string(rune('a' + rng.IntN(5)))
			var steps []Step
			switch rng.IntN(4) {
			case 0:
				steps, _ = Join(v, JoinRequest{id, fmt.Sprintf("i%d", rng.IntN(3)), fmt.Sprintf("%s:%d", id, 1+i), rng.IntN(2) == 0})
			case 1:
				steps, _ = Remove(v, id)
			case 2:
				steps, _ = Demote(v, id)
			case 3:
				for _, m := range v.Members {
					v.Progress[m.ID] = Progress{m.Incarnation, 10, rng.IntN(3) > 0}
				}
				steps = Promotions(v, 5)
			}
			if len(steps) > 0 {
				steps = steps[:1+rng.IntN(len(steps))]
			}
			for _, s := range steps {
				v = run(t, v, s)
			}
			leader, ok := v.server(v.Leader)
			if !ok || !leader.Voter {
				t.Fatalf("after %v the leader %s has no vote: %+v", steps, v.Leader, v.Servers)
			}
		}
	}
}

// run carries a step out as the root would.
func run(t *testing.T, v View, s Step) View {
	v.Servers, v.Members = slices.Clone(v.Servers), slices.Clone(v.Members)
	at := slices.IndexFunc(v.Servers, func(x Server) bool { return x.ID == s.ID })
	switch s.Kind {
	case StepRecord:
		v.Members = append(slices.DeleteFunc(v.Members, func(m Member) bool { return m.ID == s.ID }), s.Member)
	case StepForget:
		v.Members = slices.DeleteFunc(v.Members, func(m Member) bool { return m.ID == s.ID })
	case StepAddLearner:
		if at >= 0 {
			t.Fatalf("%s is added twice", s.ID)
		}
		v.Servers = append(v.Servers, Server{ID: s.ID})
	case StepPromote:
		v.Servers[at].Voter = true
	case StepDemote:
		v.Servers[at].Voter = false
	case StepRemove:
		v.Servers = slices.Delete(v.Servers, at, at+1)
	case StepTransfer:
		v.Leader = s.ID
	}
	return v
}

func TestValidate(t *testing.T) {
	for _, id := range []string{"a", "node-1", "10.0.0.1:7000", "A_b.c", strings.Repeat("x", MaxIDBytes)} {
		if err := ValidateID(id); err != nil {
			t.Errorf("ValidateID(%q) = %v", id, err)
		}
	}
	for _, id := range []string{"", "-a", ".", "..", "a/b", "a b", "é", "a\x00", strings.Repeat("x", MaxIDBytes+1)} {
		if err := ValidateID(id); !errors.Is(err, ErrInvalid) {
			t.Errorf("ValidateID(%q) = %v", id, err)
		}
	}
	for _, addr := range []string{"localhost:1", "10.0.0.1:65535", "[::1]:80", "db-1.internal:7000", "[fe80::1%eth0]:80"} {
		if err := ValidateAddr(addr); err != nil {
			t.Errorf("ValidateAddr(%q) = %v", addr, err)
		}
	}
	for _, addr := range []string{"", "host", "host:", "host:0", "host:65536", "host:http", ":80", "0.0.0.0:80", "[::]:80", "a b:80", "http://x:80",
		"u@h:80", "::1:80", strings.Repeat("x", MaxAddrBytes) + ":80"} {
		if err := ValidateAddr(addr); !errors.Is(err, ErrInvalid) {
			t.Errorf("ValidateAddr(%q) = %v", addr, err)
		}
	}
}

func check(t *testing.T, steps []Step, err error, want string, wantErr error) {
	t.Helper()
	if !errors.Is(err, wantErr) || (err != nil) != (wantErr != nil) {
		t.Fatalf("error %v, want %v", err, wantErr)
	}
	var got []string
	for _, s := range steps {
		got = append(got, s.String())
	}
	if strings.Join(got, "; ") != want {
		t.Errorf("steps\n  %s\nwant\n  %s", strings.Join(got, "; "), want)
	}
}

func TestAddressesOfSettings(t *testing.T) {
	for _, tt := range []struct {
		bind, advertise string
		join            []string
		want            []string // beginnings
	}{
		{"", "", nil, nil},
		{"", "a:1", []string{"b:1"}, []string{`Advertise "a:1" means nothing`, "Join needs Bind"}},
		{"0.0.0.0:0", "a:0", []string{"b:1"}, nil},
		{"a", "b", []string{"c:1", "0.0.0.0:1", "d"}, []string{`Bind "a" is not`, `Advertise "b" is not`, "Join[1]: ", "Join[2]: "}},
	} {
		var got []string
		CheckAddresses(tt.bind, tt.advertise, tt.join, func(format string, args ...any) { got = append(got, fmt.Errorf(format, args...).Error()) })
		if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
			t.Errorf("%q, %q, %q: %q; want %q", tt.bind, tt.advertise, tt.join, got, tt.want)
		}
	}
}
