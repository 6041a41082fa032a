// Package membership decides how a cluster's members change: who may join, how, and who may go. It is pure: a decision takes a View of the cluster
// and returns the steps to take, which the leader runs in order, stopping at the first that fails. Every decision is made from the two tables
// together (raft's configuration and the replicated members table), so a change that was cut short between two steps is finished by asking again.
//
// A node that comes back with an empty directory has the same ID and another incarnation. It has forgotten its vote and its log, so it must not go on
// as the voter it was: the old vote is removed, and it enters as a learner that is promoted when it has caught up.
package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	// ErrUnknownMember: there is no member with that ID.
	ErrUnknownMember = errors.New("colmena: no such member")
	// ErrLastVoter: the change would leave the cluster without a voter.
	ErrLastVoter = errors.New("colmena: the last voter can be neither removed nor demoted")
	// ErrNoQuorum: the change cannot be agreed on, or nothing could be afterwards: too few of the voters that would remain can be reached.
	ErrNoQuorum = errors.New("colmena: too few voters would remain within reach to form a majority")
	// ErrIDInUse: another running node has this ID.
	ErrIDInUse = errors.New("colmena: node ID is in use by another running node")
	// ErrNoSuccessor: leadership must move first, and no other voter can take it.
	ErrNoSuccessor = errors.New("colmena: no other voter is within reach to take over leadership")
	// ErrInvalid: a node ID, incarnation or address is malformed.
	ErrInvalid = errors.New("colmena: invalid member")
)

// Server is a line of raft's configuration.
type Server struct {
	ID    string
	Voter bool
}

// Member is a line of the replicated members table.
type Member struct {
	ID          string
	Incarnation string // tells the directory of this node from an earlier or another one under the same ID
	Addr        string
	WantsVoter  bool // a learner that wants to vote is promoted when it has caught up
}

// Progress is what the leader knows of a node at this moment.
type Progress struct {
	Incarnation string // of the node that answers under the ID
	Applied     uint64 // the last index it reports as applied by itself
	Reachable   bool   // it answered within the leader's failure timeout
}

// View is what a decision is made from.
type View struct {
	Leader   string // the ID of this node, which is the leader and counts as reachable
	Applied  uint64 // the leader's own applied index
	Servers  []Server
	Members  []Member
	Progress map[string]Progress // by ID; a node that is not in it is not reachable
}

// StepKind is what a step does.
type StepKind uint8

const (
	// StepRecord writes Step.Member to the members table.
	StepRecord StepKind = iota + 1
	// StepForget removes ID from the members table.
	StepForget
	// StepAddLearner is raft's AddNonvoter.
	StepAddLearner
	// StepPromote is raft's AddVoter for a learner.
	StepPromote
	// StepDemote is raft's DemoteVoter.
	StepDemote
	// StepRemove is raft's RemoveServer.
	StepRemove
	// StepTransfer moves leadership to ID. It is always the only step: the request is then made again, of the new leader.
	StepTransfer
)

func (k StepKind) String() string {
	names := [...]string{"none", "record", "forget", "add-learner", "promote", "demote", "remove", "transfer"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("step-%d", uint8(k))
}

// Step is one change. Member is set for StepRecord only.
type Step struct {
	Kind   StepKind
	ID     string
	Member Member
}

func (s Step) String() string {
	if s.Kind != StepRecord {
		return s.Kind.String() + " " + s.ID
	}
	return fmt.Sprintf("record %s incarnation=%s addr=%s voter=%t", s.ID, s.Member.Incarnation, s.Member.Addr, s.Member.WantsVoter)
}

// JoinRequest is what a node that wants in says of itself.
type JoinRequest struct {
	ID, Incarnation, Addr string
	Voter                 bool
}

// Join decides how a node enters: a new one as a learner; a known one only gets its address updated; one that is known with another incarnation is
// removed and enters anew as a learner. No steps and no error means that all is as it should be. Promotion comes later (Promotions).
func Join(v View, r JoinRequest) ([]Step, error) {
	if err := errors.Join(ValidateID(r.ID), validateIncarnation(r.Incarnation), ValidateAddr(r.Addr)); err != nil {
		return nil, err
	}
	want := Member{ID: r.ID, Incarnation: r.Incarnation, Addr: r.Addr, WantsVoter: r.Voter}
	server, inRaft := v.server(r.ID)
	member, inTable := v.member(r.ID)
	record, enter := Step{Kind: StepRecord, ID: r.ID, Member: want}, Step{Kind: StepAddLearner, ID: r.ID}
	if !inRaft {
		// New, or the rest of a join or replacement that was cut short. The address is recorded first: raft finds the node by it.
		if inTable && member == want {
			return []Step{enter}, nil
		}
		return []Step{record, enter}, nil
	}
	if inTable && member.Incarnation == r.Incarnation {
		if member.Addr == r.Addr {
			return nil, nil
		}
		// The wish to vote is not taken from a restart: promoting and demoting are requests of their own.
		record.Member.WantsVoter = member.WantsVoter
		return []Step{record}, nil
	}
	if !inTable && r.ID == v.Leader {
		// The first node of a cluster, whose own line is not written yet.
		record.Member.WantsVoter = server.Voter
		return []Step{record}, nil
	}
	return v.replace(r, server, record, enter)
}

// replace decides about a node whose ID raft knows and whose incarnation is another than the one on record.
func (v View) replace(r JoinRequest, server Server, record, enter Step) ([]Step, error) {
	p := v.Progress[r.ID]
	if r.ID == v.Leader || p.Reachable && p.Incarnation != r.Incarnation {
		return nil, fmt.Errorf("%w: %s: two nodes have the same ID, or the one it replaces was stopped a moment ago: give the new node another ID, or try again", ErrIDInUse, r.ID)
	}
	if server.Voter {
		if err := v.withoutVote(r.ID); err != nil {
			return nil, fmt.Errorf("%w: node %s comes with an empty directory and has forgotten its vote, which must be removed before it may join: "+
				"bring back other voters, or rebuild the cluster from one node with ForceRecover", err, r.ID)
		}
	}
	return []Step{{Kind: StepRemove, ID: r.ID}, record, enter}, nil
}

// Promotions returns a step for each learner that wants to vote, is within reach, and has applied all but at most lag entries of what the
// leader has, in the order of their IDs. An answer from another incarnation than the one on record does not count.
func Promotions(v View, lag uint64) []Step {
	var steps []Step
	for _, s := range v.Servers {
		m, ok := v.member(s.ID)
		p := v.Progress[s.ID]
		caughtUp := p.Applied >= v.Applied || v.Applied-p.Applied <= lag
		if !s.Voter && ok && m.WantsVoter && p.Reachable && p.Incarnation == m.Incarnation && caughtUp {
			steps = append(steps, Step{Kind: StepPromote, ID: s.ID})
		}
	}
	slices.SortFunc(steps, func(a, b Step) int { return strings.Compare(a.ID, b.ID) })
	return steps
}

// Promote records that a learner is to vote; Promotions does it when it has caught up.
func Promote(v View, id string) ([]Step, error) {
	_, inRaft := v.server(id)
	m, inTable := v.member(id)
	if !inRaft || !inTable {
		return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
	}
	if m.WantsVoter {
		return nil, nil
	}
	m.WantsVoter = true
	return []Step{{Kind: StepRecord, ID: id, Member: m}}, nil
}

// Demote decides how a voter becomes a learner. The wish is recorded first, or the node would be promoted again.
func Demote(v View, id string) ([]Step, error) {
	s, inRaft := v.server(id)
	m, inTable := v.member(id)
	if !inRaft {
		return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
	}
	var steps []Step
	if inTable && m.WantsVoter {
		m.WantsVoter = false
		steps = append(steps, Step{Kind: StepRecord, ID: id, Member: m})
	}
	if !s.Voter {
		return steps, nil
	}
	if err := v.withoutVote(id); err != nil {
		return nil, fmt.Errorf("%w: demoting %s", err, id)
	}
	if id == v.Leader {
		return v.transfer()
	}
	return append(steps, Step{Kind: StepDemote, ID: id}), nil
}

// Remove decides how a member goes. Its line in the members table goes last, so that it can be found until it is out.
func Remove(v View, id string) ([]Step, error) {
	s, inRaft := v.server(id)
	_, inTable := v.member(id)
	forget := Step{Kind: StepForget, ID: id}
	switch {
	case !inRaft && !inTable:
		return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
	case !inRaft:
		return []Step{forget}, nil // the rest of a removal or join that was cut short
	}
	if s.Voter {
		if err := v.withoutVote(id); err != nil {
			return nil, fmt.Errorf("%w: removing %s: bring back other voters, or rebuild the cluster from one node with ForceRecover", err, id)
		}
	}
	if id == v.Leader {
		return v.transfer()
	}
	steps := []Step{{Kind: StepRemove, ID: id}}
	if inTable {
		steps = append(steps, forget)
	}
	return steps, nil
}

// Transfer decides how leadership moves to the voter id, or to any other voter if id is "".
func Transfer(v View, id string) ([]Step, error) {
	step := []Step{{Kind: StepTransfer, ID: id}}
	if id == "" {
		if !slices.ContainsFunc(v.Servers, func(s Server) bool { return s.Voter && s.ID != v.Leader }) {
			return nil, ErrNoSuccessor
		}
		return step, nil
	}
	s, ok := v.server(id)
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: %q", ErrUnknownMember, id)
	case !s.Voter:
		return nil, fmt.Errorf("colmena: node %q is not a voter of this cluster, so it cannot lead", id)
	case id == v.Leader:
		return nil, nil
	}
	return step, nil
}

// withoutVote reports whether the cluster can do without the vote of id: others remain, and a majority of them is within reach. Raft
// decides the change itself by the majority of those that remain.
func (v View) withoutVote(id string) error {
	remaining, reachable := 0, 0
	for _, s := range v.Servers {
		if !s.Voter || s.ID == id {
			continue
		}
		remaining++
		if v.reachable(s.ID) {
			reachable++
		}
	}
	if remaining == 0 {
		return ErrLastVoter
	}
	if reachable < remaining/2+1 {
		return fmt.Errorf("%w (%d of %d)", ErrNoQuorum, reachable, remaining)
	}
	return nil
}

// transfer moves leadership to the voter within reach that has applied most, of equals the one with the smallest ID.
func (v View) transfer() ([]Step, error) {
	best, found := "", false
	for _, s := range v.Servers {
		if !s.Voter || s.ID == v.Leader || !v.reachable(s.ID) {
			continue
		}
		a, b := v.Progress[s.ID].Applied, v.Progress[best].Applied
		if !found || a > b || a == b && s.ID < best {
			best, found = s.ID, true
		}
	}
	if !found {
		return nil, ErrNoSuccessor
	}
	return []Step{{Kind: StepTransfer, ID: best}}, nil
}

// reachable reports whether the node on record under id answers: another incarnation in its place has not its log.
func (v View) reachable(id string) bool {
	if id == v.Leader {
		return true
	}
	p := v.Progress[id]
	m, ok := v.member(id)
	return p.Reachable && (!ok || m.Incarnation == p.Incarnation)
}

func (v View) server(id string) (Server, bool) {
	i := slices.IndexFunc(v.Servers, func(s Server) bool { return s.ID == id })
	if i < 0 {
		return Server{}, false
	}
	return v.Servers[i], true
}

func (v View) member(id string) (Member, bool) {
	i := slices.IndexFunc(v.Members, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return v.Members[i], true
}
