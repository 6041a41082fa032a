package members

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// Change makes a change of the list; this node must lead. Where the leader itself is to go, it hands leadership on and says that it does not
// lead: the next leader is to be asked again. Asking again is harmless, and finishes what was cut short.
func (k *Keeper) Change(ctx context.Context, c Change) error {
	k.changing.Lock()
	defer k.changing.Unlock()
	if !k.raft.Leading() {
		return notLeader(doesNotLead)
	}
	if err := checkFunctionList(c.Functions); err != nil {
		return err
	}
	steps, err := k.plan(k.view(ctx), c)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if err := k.run(ctx, s, c); err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
		if s.Kind == membership.StepTransfer && c.Kind != Transfer {
			return notLeader("this node has handed leadership on")
		}
	}
	return nil
}

// plan is what a change takes.
func (k *Keeper) plan(v membership.View, c Change) ([]membership.Step, error) {
	switch c.Kind {
	case Join:
		return k.planJoin(v, c)
	case Promote:
		return membership.Promote(v, c.ID)
	case Demote:
		return membership.Demote(v, c.ID)
	case Remove:
		return membership.Remove(v, c.ID)
	case Transfer:
		return membership.Transfer(v, c.ID)
	}
	return nil, fmt.Errorf("colmena: unknown change of members %d", c.Kind)
}

func (k *Keeper) planJoin(v membership.View, c Change) ([]membership.Step, error) {
	if err := k.checkFormats(c); err != nil {
		return nil, err
	}
	steps, err := membership.Join(v, membership.JoinRequest{ID: c.ID, Incarnation: c.Incarnation, Addr: c.Addr, Voter: c.Voter})
	if m, refresh := k.refreshed(c); err == nil && len(steps) == 0 && refresh {
		steps = []membership.Step{{Kind: membership.StepRecord, ID: m.ID, Member: entry(m)}}
	}
	return steps, err
}

// refreshed reports whether a member's line must be written anew though the node is at its old address: it was started with other functions, or
// by another build.
func (k *Keeper) refreshed(c Change) (membership.Record, bool) {
	old, ok := k.table.Member(c.ID)
	if !ok || old.Incarnation != c.Incarnation {
		return old, false
	}
	now := old
	now.Functions, now.Engine, now.FormatMin, now.FormatMax = c.Functions, c.Engine, c.FormatMin, c.FormatMax
	return old, now != old
}

// checkFunctionList bounds what a node says of itself.
func checkFunctionList(list string) error {
	if len(list) > wire.MaxNeedsBytes || !utf8.ValidString(list) {
		return &wire.Error{Code: wire.ErrTooLarge, Msg: "the list of a node's functions is too long, or no text"}
	}
	return nil
}

// run carries a step out.
func (k *Keeper) run(ctx context.Context, s membership.Step, c Change) error {
	k.log.Info("membership", "step", s.String())
	switch s.Kind {
	case membership.StepRecord:
		return k.table.Exec(ctx, recordUnit(k.record(s.Member, c)))
	case membership.StepForget:
		err := k.table.Exec(ctx, forgetUnit(s.ID))
		k.Book.forget(s.ID)
		k.net.Drop(s.ID)
		return err
	case membership.StepAddLearner:
		return k.raft.AddLearner(ctx, s.ID)
	case membership.StepPromote:
		return k.raft.AddVoter(ctx, s.ID)
	case membership.StepDemote:
		return k.raft.Demote(ctx, s.ID)
	case membership.StepRemove:
		return k.raft.Remove(ctx, s.ID)
	case membership.StepTransfer:
		return k.raft.Transfer(ctx, s.ID)
	}
	return fmt.Errorf("colmena: unknown step %v", s)
}

// record is the whole line that a step writes: what a node says of its build and functions is taken from its own request alone.
func (k *Keeper) record(e membership.Member, c Change) membership.Record {
	m := membership.Record{ID: e.ID, Incarnation: e.Incarnation, Addr: e.Addr, Voter: e.WantsVoter,
		Engine: c.Engine, FormatMin: c.FormatMin, FormatMax: c.FormatMax, Functions: c.Functions}
	if old, ok := k.table.Member(m.ID); ok && c.Kind != Join {
		m.Engine, m.FormatMin, m.FormatMax, m.Functions = old.Engine, old.FormatMin, old.FormatMax, old.Functions
	}
	return m
}

// RecordSelf writes the leader's own line, if the table has another or none.
func (k *Keeper) RecordSelf(ctx context.Context) error {
	if m, ok := k.table.Member(k.self.NodeID); ok && m == k.line(m.Voter) {
		return nil
	}
	return k.table.Exec(ctx, recordUnit(k.line(true)))
}

// promoteLag is how many entries a learner may lack to be made a voter.
const promoteLag = 1000

// promote makes voters of learners that have caught up.
func (k *Keeper) promote(ctx context.Context) {
	waiting := func(s membership.Server) bool {
		m, ok := k.table.Member(s.ID)
		return ok && m.Voter && !s.Voter
	}
	if !slices.ContainsFunc(k.raft.Servers(), waiting) {
		return
	}
	k.changing.Lock()
	defer k.changing.Unlock()
	for _, s := range membership.Promotions(k.view(ctx), promoteLag) {
		if err := k.run(ctx, s, Change{}); err != nil {
			k.log.Warn("promotion", "member", s.ID, "err", err)
		}
	}
}

// view is what decisions are made from. Every other node of the configuration is asked how far it is.
func (k *Keeper) view(ctx context.Context) membership.View {
	v := membership.View{Leader: k.self.NodeID, Applied: k.raft.Applied(), Servers: k.raft.Servers(), Progress: map[string]membership.Progress{}}
	for _, m := range k.table.Members() {
		v.Members = append(v.Members, entry(m))
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, s := range v.Servers {
		if s.ID == k.self.NodeID {
			continue
		}
		wg.Go(func() {
			p, err := k.progressOf(ctx, s.ID)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			v.Progress[s.ID] = membership.Progress{Incarnation: p.Incarnation, Applied: p.Applied, Reachable: true}
		})
	}
	wg.Wait()
	return v
}

// entry is what decisions need of a line.
func entry(m membership.Record) membership.Member {
	return membership.Member{ID: m.ID, Incarnation: m.Incarnation, Addr: m.Addr, WantsVoter: m.Voter}
}

func recordUnit(m membership.Record) wire.Unit {
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

func forgetUnit(id string) wire.Unit {
	args := wire.NewArgs(1)
	args.Add(wire.Text(id))
	return wire.Unit{Statements: []wire.Statement{{SQL: "DELETE FROM members WHERE id = ?", Args: args.Args()}}}
}
