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
func (k *Keeper) ServeChange(ctx context.Context, req []byte) ([]byte, error) {
	var c Change
	if err := rpc.DecodeControl(req, &c); err != nil {
		return nil, fmt.Errorf("request for a change of members: %w", err)
	}
	leader, local, ok := k.raft.Leader()
	switch {
	case ok && local:
		return nil, k.Change(ctx, c)
	case ok && c.Kind == Join:
		return nil, k.Ask(ctx, leader, c)
	}
	return nil, notLeader(doesNotLead)
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
