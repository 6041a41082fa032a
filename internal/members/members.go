// Package members keeps the list of a cluster's members. A Keeper is one node's part in that: it makes this node known to the cluster, at the
// address it now has (introduce.go), and while this node leads it changes the list, one change at a time (change.go). What a change takes is
// decided by package membership; the Keeper gathers what is decided from, and carries the steps out. Its Book tells where the members are.
//
// The list has two halves: raft's configuration and the replicated members table. The room is given both, and the calls between nodes, as small
// interfaces.
package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/identity"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// Format versions of what nodes write for one another: entries, copies and calls. A node reads all from FormatMin to FormatMax; the leader
// writes the newest that every member, learners included, reads.
const (
	FormatMin uint16 = 1
	FormatMax uint16 = 1
)

// Table is the replicated members table, as this node has applied it.
type Table interface {
	Member(id string) (membership.Record, bool)
	Members() []membership.Record
	// Exec changes the table. Only the leader can: on another node it fails.
	Exec(ctx context.Context, u wire.Unit) error
}

// Raft is raft's configuration, in which a node's address is its ID (H25), and who leads. The methods that change it wait until the change is
// agreed on.
type Raft interface {
	Servers() []membership.Server
	AddLearner(ctx context.Context, id string) error
	AddVoter(ctx context.Context, id string) error
	Demote(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// Transfer hands leadership to the voter id, or to the one most caught up if id is "".
	Transfer(ctx context.Context, id string) error

	// Leader is where changes go now: to this node (local) or to another. ok is false while there is none.
	Leader() (id string, local, ok bool)
	// Leading reports whether this node leads and takes writes.
	Leading() bool
	// Applied is the last index that this node has applied.
	Applied() uint64
}

// Config is what a Keeper is given of its node.
type Config struct {
	Self  *identity.Identity
	Table Table
	Raft  Raft

	Join      []string // addresses of nodes to ask for entrance
	Voter     bool     // this node wants to vote when it enters
	Engine    uint64   // fingerprint of its SQLite and processor
	Functions string   // what it adds to SQL, in the engine's form

	// AnswerTimeout bounds how long a member may take to say how far it is.
	AnswerTimeout time.Duration
	// Removed is called once when this node finds that it was removed.
	Removed func()
	Logger  *slog.Logger
}

// Keeper is a node's part in the keeping of the list. Its methods are safe for concurrent use.
type Keeper struct {
	Book Book

	self  *identity.Identity
	table Table
	raft  Raft
	net   network
	cfg   Config
	log   *slog.Logger

	changing sync.Mutex // held while members change: one change at a time
}

// NewKeeper returns the keeper of a node that listens nowhere; Connect gives it a network. It asks nothing of its node before it is used.
func NewKeeper(cfg Config) *Keeper {
	k := &Keeper{self: cfg.Self, table: cfg.Table, raft: cfg.Raft, net: nowhere{}, cfg: cfg, log: cfg.Logger}
	k.Book = Book{self: cfg.Self.NodeID, member: cfg.Table.Member}
	return k
}

// List is the cluster's nodes as this node knows them, sorted by ID.
func (k *Keeper) List() []Member {
	leader, _, _ := k.raft.Leader()
	var out []Member
	for _, s := range k.raft.Servers() {
		m := Member{ID: s.ID, Voter: s.Voter, Leader: s.ID == leader}
		m.Addr, _, _ = k.Book.Resolve(m.ID)
		if line, ok := k.table.Member(m.ID); ok {
			m.Promoting = line.Voter && !m.Voter
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Hello is what this node says of itself in every handshake.
func (k *Keeper) Hello(uint8) wire.Hello {
	return wire.Hello{ClusterID: k.self.ClusterID(), NodeID: k.self.NodeID, Incarnation: k.self.Incarnation,
		FormatMin: FormatMin, FormatMax: FormatMax, Engine: k.cfg.Engine, Addr: k.net.Advertised()}
}

// CheckPeer decides who may talk to this node. A node without a cluster may only ask for entrance, which its calls are checked for.
func (k *Keeper) CheckPeer(h wire.Hello) error {
	own := k.self.ClusterID()
	switch {
	case h.FormatMax < FormatMin || h.FormatMin > FormatMax:
		return fmt.Errorf("node %q reads formats %d to %d, this one %d to %d", h.NodeID, h.FormatMin, h.FormatMax, FormatMin, FormatMax)
	case h.WantNodeID != "" && h.WantNodeID != k.self.NodeID:
		return fmt.Errorf("this is node %q, not %q", k.self.NodeID, h.WantNodeID)
	case h.WantIncarnation != "" && h.WantIncarnation != k.self.Incarnation:
		return fmt.Errorf("this is another incarnation of node %q: its directory was emptied since", k.self.NodeID)
	case own != "" && h.ClusterID != "" && h.ClusterID != own:
		return fmt.Errorf("this node belongs to cluster %s, the other one to %s", own, h.ClusterID)
	case h.Purpose == wire.PurposeRaft && (own == "" || h.ClusterID == ""):
		return errors.New("consensus needs both nodes to belong to a cluster")
	case h.NodeID == k.self.NodeID && h.Incarnation != k.self.Incarnation:
		return fmt.Errorf("another node calls itself %q too", h.NodeID)
	}
	if m, ok := k.table.Member(h.NodeID); ok && h.Purpose == wire.PurposeRaft && m.Incarnation != h.Incarnation {
		return fmt.Errorf("node %q is known with another incarnation: it was replaced", h.NodeID)
	}
	return nil
}

// IsMember reports whether a peer is on record as the node it says it is. Only the leader is sure to know.
func (k *Keeper) IsMember(peer wire.Hello) bool {
	m, ok := k.table.Member(peer.NodeID)
	return ok && m.Incarnation == peer.Incarnation
}

// WriteFormat is the version that nodes write: the newest that every member on record reads, learners included, and this node itself.
func (k *Keeper) WriteFormat() uint16 {
	v := FormatMax
	for _, m := range k.table.Members() {
		v = min(v, m.FormatMax)
	}
	return v
}

// checkFormats keeps a node out that could not read what the cluster writes.
func (k *Keeper) checkFormats(c Change) error {
	if v := k.WriteFormat(); c.FormatMin > v || c.FormatMax < v {
		return fmt.Errorf("colmena: node %q reads formats %d to %d, and the cluster writes %d: start it with a version that reads that", c.ID, c.FormatMin, c.FormatMax, v)
	}
	return nil
}

// Lack returns the members whose list of functions has not what is asked for, as their lines in the table say. One without a line has nothing,
// but for this node itself, which here tells of. Where this node lacks it, nil says that all do.
func (k *Keeper) Lack(here bool, has func(list string) bool) []string {
	self, some := k.self.NodeID, here
	var lack []string
	if !here {
		lack = append(lack, self)
	}
	for _, m := range k.table.Members() {
		switch {
		case m.ID == self:
		case has(m.Functions):
			some = true
		default:
			lack = append(lack, m.ID)
		}
	}
	for _, s := range k.raft.Servers() {
		if s.ID == self {
			continue
		}
		if _, ok := k.table.Member(s.ID); !ok {
			lack = append(lack, s.ID)
		}
	}
	if !some {
		return nil
	}
	return lack
}

// line is this node's line as it ought to be.
func (k *Keeper) line(voter bool) membership.Record {
	return membership.Record{ID: k.self.NodeID, Incarnation: k.self.Incarnation, Addr: k.net.Advertised(), Voter: voter,
		Engine: k.cfg.Engine, FormatMin: FormatMin, FormatMax: FormatMax, Functions: k.cfg.Functions}
}
