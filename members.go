package colmena

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/identity"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// Format versions of what nodes write for one another: entries, copies and calls. A
// node reads all from formatMin to formatMax; the leader writes the newest that every
// Member, learners included, reads.
const (
	formatMin uint16 = 1
	formatMax uint16 = 1
)

// WriteFormat is the version that nodes write: the newest that every member on record
// reads, learners included, and this node itself.
func (s *databases) WriteFormat() uint16 {
	v := formatMax
	for _, m := range s.Members() {
		v = min(v, m.FormatMax)
	}
	return v
}

// CheckFormats keeps a node out that could not read what the cluster writes.
func (s *databases) CheckFormats(c memberChange) error {
	if v := s.WriteFormat(); c.FormatMin > v || c.FormatMax < v {
		return fmt.Errorf("colmena: node %q reads formats %d to %d, and the cluster writes %d: start it with a version that reads that", c.ID, c.FormatMin, c.FormatMax, v)
	}
	return nil
}

// Member is a node of the cluster.
type Member struct {
	ID     string
	Addr   string // address other nodes reach it at, "" while unknown
	Voter  bool   // it counts for majorities
	Leader bool
	// Promoting says that the node does not vote yet and will when it has caught up.
	Promoting bool
}

// Members lists the cluster's nodes, sorted by ID, as the leader knows them.
func (n *Node) Members(ctx context.Context) ([]Member, error) {
	var out []Member
	err := n.onLeader(ctx, func(ctx context.Context) error {
		out = n.membersHere()
		return nil
	}, func(ctx context.Context, leader string) error {
		return n.control(ctx, leader, methodMembers, nil, &out)
	})
	return out, err
}

func (n *Node) membersHere() []Member {
	leader, _, _ := n.leader()
	var out []Member
	for _, s := range n.servers() {
		m := Member{ID: string(s.ID), Voter: s.Suffrage == raft.Voter, Leader: string(s.ID) == leader}
		m.Addr, _, _ = n.peers.resolve(m.ID)
		if line, ok := n.dbs.Member(m.ID); ok {
			m.Promoting = line.Voter && !m.Voter
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// AddVoter makes a node a voter: a learner is promoted when it has caught up; a node
// that is not a member yet must join by itself, with Config.Join.
func (n *Node) AddVoter(ctx context.Context, id string) error {
	return n.changeMember(ctx, memberChange{Kind: changePromote, ID: id})
}

// AddNonvoter makes a voter a learner, which receives everything and does not vote.
// It is DemoteVoter.
func (n *Node) AddNonvoter(ctx context.Context, id string) error { return n.DemoteVoter(ctx, id) }

// DemoteVoter makes a voter a learner. The last voter cannot be demoted.
func (n *Node) DemoteVoter(ctx context.Context, id string) error {
	return n.changeMember(ctx, memberChange{Kind: changeDemote, ID: id})
}

// RemoveNode takes a node out of the cluster. It may be down. It stays out, and says so
// in its log and to OnEvent, until it is started again with Config.Join.
func (n *Node) RemoveNode(ctx context.Context, id string) error {
	return n.changeMember(ctx, memberChange{Kind: changeRemove, ID: id})
}

// TransferLeadership hands leadership to the voter id, or to the one that is most
// caught up if id is "".
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	return n.changeMember(ctx, memberChange{Kind: changeTransfer, ID: id})
}

type changeKind uint8

const (
	changeJoin changeKind = iota + 1
	changePromote
	changeDemote
	changeRemove
	changeTransfer
)

// memberChange travels as msgpack. Fields are only ever added.
type memberChange struct {
	Kind                 changeKind
	ID                   string
	Incarnation, Addr    string
	Voter                bool
	Engine               uint64
	FormatMin, FormatMax uint16
	Functions            string
}

func (n *Node) changeMember(ctx context.Context, c memberChange) error {
	return n.onLeader(ctx, func(ctx context.Context) error { return n.changeHere(ctx, c) },
		func(ctx context.Context, leader string) error {
			return n.control(ctx, leader, methodChange, &c, nil)
		})
}

// onLeader runs here if this node leads, and otherwise asks the leader. Calls are
// idempotent, so one that got lost is made again until ctx ends or no leader is found.
func (n *Node) onLeader(ctx context.Context, here func(context.Context) error, there func(context.Context, string) error) error {
	deadline := n.leaderDeadline()
	for {
		watch := n.stateWatch()
		leader, local, err := n.awaitLeader(ctx, deadline)
		if err != nil {
			return noLeader(ctx, err)
		}
		if local {
			err = here(ctx)
		} else {
			err = there(ctx, leader)
		}
		if err == nil || ctx.Err() != nil || !goesToLeader(err) {
			return err
		}
		if err := n.pause(ctx, watch, deadline); err != nil {
			return noLeader(ctx, err)
		}
	}
}

// goesToLeader reports whether a call failed only because it did not reach the leader.
func goesToLeader(err error) bool {
	var w *wire.Error
	if errors.As(err, &w) && w.Code == wire.ErrNotLeader {
		return true
	}
	for _, e := range []error{ErrNoLeader, rpc.ErrNotDelivered, rpc.ErrInterrupted, raft.ErrNotLeader, raft.ErrLeadershipLost, raft.ErrLeadershipTransferInProgress} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func noLeader(ctx context.Context, err error) error {
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrNoLeader) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoLeader, err)
}

// changeHere runs a change on the leader, one at a time.
func (n *Node) changeHere(ctx context.Context, c memberChange) error {
	n.peers.changing.Lock()
	defer n.peers.changing.Unlock()
	if n.leading.Load() == 0 {
		return &wire.Error{Code: wire.ErrNotLeader, Msg: "this node does not lead"}
	}
	if err := checkFunctionList(c.Functions); err != nil {
		return err
	}
	v := n.memberView(ctx)
	var steps []membership.Step
	var err error
	switch c.Kind {
	case changeJoin:
		if err := n.dbs.CheckFormats(c); err != nil {
			return err
		}
		steps, err = membership.Join(v, membership.JoinRequest{ID: c.ID, Incarnation: c.Incarnation, Addr: c.Addr, Voter: c.Voter})
		if m, refresh := n.refreshed(c); err == nil && len(steps) == 0 && refresh {
			steps = []membership.Step{{Kind: membership.StepRecord, ID: m.ID, Member: membership.Member{ID: m.ID, Incarnation: m.Incarnation, Addr: m.Addr, WantsVoter: m.Voter}}}
		}
	case changePromote:
		steps, err = membership.Promote(v, c.ID)
	case changeDemote:
		steps, err = membership.Demote(v, c.ID)
	case changeRemove:
		steps, err = membership.Remove(v, c.ID)
	case changeTransfer:
		if c.ID != "" && !slices.ContainsFunc(v.Servers, func(s membership.Server) bool { return s.ID == c.ID && s.Voter }) {
			return fmt.Errorf("colmena: node %q is not a voter of this cluster, so it cannot lead", c.ID)
		}
		steps = []membership.Step{{Kind: membership.StepTransfer, ID: c.ID}}
	default:
		err = fmt.Errorf("colmena: unknown change of members %d", c.Kind)
	}
	if err != nil {
		return err
	}
	for _, s := range steps {
		if err := n.runStep(ctx, s, c); err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
		if s.Kind == membership.StepTransfer && c.Kind != changeTransfer {
			// The leader cannot go itself: the next one is asked again.
			return &wire.Error{Code: wire.ErrNotLeader, Msg: "this node has handed leadership on"}
		}
	}
	return nil
}

func (n *Node) runStep(ctx context.Context, s membership.Step, c memberChange) error {
	id, addr := raft.ServerID(s.ID), raft.ServerAddress(s.ID) // H25: raft knows members by ID
	n.log.Info("membership", "step", s.String())
	switch s.Kind {
	case membership.StepRecord:
		m := membership.Record{ID: s.Member.ID, Incarnation: s.Member.Incarnation, Addr: s.Member.Addr, Voter: s.Member.WantsVoter, Engine: c.Engine, FormatMin: c.FormatMin, FormatMax: c.FormatMax, Functions: c.Functions}
		if old, ok := n.dbs.Member(m.ID); ok && c.Kind != changeJoin {
			m.Engine, m.FormatMin, m.FormatMax, m.Functions = old.Engine, old.FormatMin, old.FormatMax, old.Functions
		}
		_, err := n.dbs.System().Exec(ctx, recordMember(m))
		return err
	case membership.StepForget:
		args := wire.NewArgs(1)
		args.Add(wire.Text(s.ID))
		_, err := n.dbs.System().Exec(ctx, wire.Unit{Statements: []wire.Statement{{SQL: "DELETE FROM members WHERE id = ?", Args: args.Args()}}})
		n.peers.forget(s.ID)
		return err
	case membership.StepAddLearner:
		return waitFuture(ctx, n.raft.AddNonvoter(id, addr, 0, 0))
	case membership.StepPromote:
		return waitFuture(ctx, n.raft.AddVoter(id, addr, 0, 0))
	case membership.StepDemote:
		return waitFuture(ctx, n.raft.DemoteVoter(id, 0, 0))
	case membership.StepRemove:
		return waitFuture(ctx, n.raft.RemoveServer(id, 0, 0))
	case membership.StepTransfer:
		return n.transfer(ctx, s.ID)
	}
	return fmt.Errorf("colmena: unknown step %v", s)
}

func (n *Node) transfer(ctx context.Context, id string) error {
	if id == n.id.NodeID {
		return nil
	}
	return n.resign(ctx, id)
}

// memberView is what membership decisions are made from.
func (n *Node) memberView(ctx context.Context) membership.View {
	v := membership.View{Leader: n.id.NodeID, Applied: n.applied.Load(), Progress: map[string]membership.Progress{}}
	for _, m := range n.dbs.Members() {
		v.Members = append(v.Members, membership.Member{ID: m.ID, Incarnation: m.Incarnation, Addr: m.Addr, WantsVoter: m.Voter})
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, s := range n.servers() {
		v.Servers = append(v.Servers, membership.Server{ID: string(s.ID), Voter: s.Suffrage == raft.Voter})
		if string(s.ID) == n.id.NodeID || n.client == nil {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, n.cfg.ElectionTimeout)
			defer cancel()
			var p progress
			if err := n.control(ctx, string(s.ID), methodProgress, nil, &p); err == nil {
				mu.Lock()
				v.Progress[string(s.ID)] = membership.Progress{Incarnation: p.Incarnation, Applied: p.Applied, Reachable: true}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return v
}

// progress travels as msgpack.
type progress struct {
	Incarnation string
	Applied     uint64
}

func recordMember(m membership.Record) wire.Unit {
	args := wire.NewArgs(8)
	args.Add(wire.Text(m.ID))
	args.Add(wire.Text(m.Incarnation))
	args.Add(wire.Text(m.Addr))
	voter := int64(0)
	if m.Voter {
		voter = 1
	}
	args.Add(wire.Int(voter))
	args.Add(wire.Int(int64(m.Engine)))
	args.Add(wire.Int(int64(m.FormatMin)))
	args.Add(wire.Int(int64(m.FormatMax)))
	args.Add(wire.Text(m.Functions))
	return wire.Unit{Statements: []wire.Statement{{SQL: "INSERT OR REPLACE INTO members VALUES(?, ?, ?, ?, ?, ?, ?, ?)", Args: args.Args()}}}
}

func (n *Node) selfMember(voter bool) membership.Record {
	m := membership.Record{ID: n.id.NodeID, Incarnation: n.id.Incarnation, Voter: voter, Engine: engineFingerprint(), FormatMin: formatMin, FormatMax: formatMax, Functions: n.library.List()}
	if n.net != nil {
		m.Addr = n.net.Advertised()
	}
	return m
}

func (s *databases) Member(id string) (membership.Record, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m, ok := s.members[id]
	return m, ok
}

func (s *databases) Members() []membership.Record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []membership.Record
	for _, m := range s.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b membership.Record) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (s *databases) ClusterID() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cluster
}

// catalogueChanged follows an entry of the system database.
func (n *Node) catalogueChanged() {
	if !n.id.Formed() && n.dbs.ClusterID() != "" {
		if err := n.id.Enter(); err != nil {
			n.log.Warn("node.json could not be written", "err", err)
		}
	}
	n.stateChanged()
}

// promote makes voters of learners that have caught up.
func (n *Node) promote(ctx context.Context) {
	waiting := false
	for _, s := range n.servers() {
		if m, ok := n.dbs.Member(string(s.ID)); ok && m.Voter && s.Suffrage != raft.Voter {
			waiting = true
		}
	}
	if !waiting {
		return
	}
	n.peers.changing.Lock()
	defer n.peers.changing.Unlock()
	v := n.memberView(ctx)
	for _, s := range membership.Promotions(v, promoteLag) {
		if err := n.runStep(ctx, s, memberChange{}); err != nil {
			n.log.Warn("promotion", "member", s.ID, "err", err)
		}
	}
}

// promoteLag is how many entries a learner may lack to be made a voter.
const promoteLag = 1000

// acceptCopy refuses a copy of another cluster before a byte of it is stored.
func (n *Node) acceptCopy(m *snapshot.Manifest) error {
	if own := n.id.ClusterID(); m.ClusterID != own {
		return fmt.Errorf("the copy belongs to cluster %s, this node to %s", m.ClusterID, own)
	}
	return nil
}

// control calls a method of another node that is not on the hot path.
func (n *Node) control(ctx context.Context, id, method string, req, resp any) error {
	if n.client == nil {
		return rpc.ErrNotDelivered
	}
	b, err := n.client.Call(ctx, id, method, encodeControl(req))
	if err != nil || resp == nil {
		return err
	}
	return codec.NewDecoderBytes(b, &msgpackHandle).Decode(resp)
}

var msgpackHandle codec.MsgpackHandle

func encodeControl(v any) []byte {
	var b []byte
	if v != nil {
		// Encoding plain structs to memory does not fail.
		_ = codec.NewEncoderBytes(&b, &msgpackHandle).Encode(v)
	}
	return b
}

// HasExistingState reports whether dir is a node's data directory.
func HasExistingState(dir string) (bool, error) { return identity.Exists(dir) }

// WipeLocalState removes a node's state from its data directory, which must not be in
// use: the node forgets its databases, its log and its votes. Other files are left alone.
// A directory that is no node's is refused, one that does not exist is nothing to do.
//
// The cluster still counts the node as a member until it is removed or has joined again.
func WipeLocalState(dir string) error { return identity.Wipe(dir) }
