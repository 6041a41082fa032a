package members

import (
	"context"
	"fmt"

	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Methods that nodes call on one another. Names are only ever added.
const (
	MethodList     = "members"
	MethodChange   = "change"
	MethodProgress = "progress"
)

// Member is a node of the cluster. It travels as a control message, as Change and progress do.
type Member struct {
	ID        string
	Addr      string // address other nodes reach it at, "" while unknown
	Voter     bool   // it counts for majorities
	Leader    bool
	Promoting bool // it does not vote yet and will when it has caught up
}

// Kind is what a Change is to do. Append-only.
type Kind uint8

// Kinds of changes.
const (
	Join Kind = iota + 1
	Promote
	Demote
	Remove
	Transfer
)

// Change is a change of the list that is asked for. All but Kind and ID is what a joining node says of itself.
type Change struct {
	Kind                 Kind
	ID                   string
	Incarnation, Addr    string
	Voter                bool
	Engine               uint64
	FormatMin, FormatMax uint16
	Functions            string
}

// progress is how far a node is.
type progress struct {
	Incarnation string
	Applied     uint64
}

func notLeader(msg string) error { return &wire.Error{Code: wire.ErrNotLeader, Msg: msg} }

const doesNotLead = "this node does not lead"

// Ask has another node, the leader, make a change.
func (k *Keeper) Ask(ctx context.Context, leader string, c Change) error {
	_, err := k.net.Call(ctx, leader, MethodChange, rpc.EncodeControl(&c))
	return err
}

// ServeChange makes a change that another node asks for, or passes it on to the leader: a joining node may ask any member.
//
// Who asks is what the handshake established, with TLS by a certificate that may be bound to the node's ID. A node that is no member can ask for
// nothing but its own entrance. The first member it asks holds it to that; the leader, which is asked by a member then, takes the member's word,
// as it does for every other change: members are trusted, they can write to the members table by themselves. Only the leader is sure who is a
// member, so nobody else passes on what was passed on to it.
func (k *Keeper) ServeChange(ctx context.Context, peer wire.Hello, req []byte) error {
	var c Change
	if err := rpc.DecodeControl(req, &c); err != nil {
		return fmt.Errorf("request for a change of members: %w", err)
	}
	leader, local, ok := k.raft.Leader()
	own := c.Kind == Join && c.ID == peer.NodeID
	switch {
	case !own && (local || c.Kind == Join) && !k.IsMember(peer):
		return &wire.Error{Code: wire.ErrRefused, Msg: fmt.Sprintf("a change of member %q by node %q", c.ID, peer.NodeID),
			Detail: "it is no member of the cluster, or was replaced, and can only join, under its own NodeID"}
	case ok && local:
		return k.Change(ctx, c)
	case ok && own:
		return k.Ask(ctx, leader, c)
	}
	return notLeader(doesNotLead)
}

// ListOf is the list as another node, the leader, knows it.
func (k *Keeper) ListOf(ctx context.Context, leader string) (list []Member, err error) {
	b, err := k.net.Call(ctx, leader, MethodList, nil)
	if err != nil {
		return nil, err
	}
	return list, rpc.DecodeControl(b, &list)
}

func (k *Keeper) listAt(ctx context.Context, addr string) (list []Member, err error) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	b, err := k.net.CallAddr(ctx, addr, MethodList, nil)
	if err != nil {
		return nil, err
	}
	return list, rpc.DecodeControl(b, &list)
}

// ServeList tells the list, which only the leader is sure to know.
func (k *Keeper) ServeList(context.Context, []byte) ([]byte, error) {
	if !k.raft.Leading() {
		return nil, notLeader(doesNotLead)
	}
	return rpc.EncodeControl(k.List()), nil
}

// ServeProgress tells how far this node is.
func (k *Keeper) ServeProgress(context.Context, []byte) ([]byte, error) {
	return rpc.EncodeControl(&progress{Incarnation: k.self.Incarnation, Applied: k.raft.Applied()}), nil
}

func (k *Keeper) progressOf(ctx context.Context, id string) (p progress, err error) {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.AnswerTimeout)
	defer cancel()
	b, err := k.net.Call(ctx, id, MethodProgress, nil)
	if err != nil {
		return p, err
	}
	return p, rpc.DecodeControl(b, &p)
}
