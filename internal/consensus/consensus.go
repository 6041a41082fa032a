// Package consensus is raft as a node runs it: on the node's own log, snapshots and transport, with a state machine that is a few functions. What
// waits on raft waits under a context, members are known by ID alone (H25), and nothing of raft's own types comes out.
package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/logstore"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/transport"
	"github.com/mentasystems/colmena/internal/wire"
)

// Config is what raft runs on and for.
type Config struct {
	NodeID string

	HeartbeatTimeout, ElectionTimeout time.Duration
	SnapshotInterval                  time.Duration
	SnapshotThreshold, TrailingLogs   uint64

	Log       *logstore.Store
	Snapshots *snapshot.Store
	Transport raft.Transport // nil for a node that is alone
	Machine   Machine
	Logger    *slog.Logger
}

// Machine is what raft hands committed entries to. One goroutine calls Deliver and Restore, and Snapshot between two entries.
type Machine struct {
	// Deliver takes an entry. One that is no command is raft's own.
	Deliver func(mark wire.Mark, command bool, data []byte)
	// Snapshot decides whether the log may be cut; persist, which is called beside Deliver, then writes down what stands for what is cut.
	Snapshot func() (persist func(io.Writer) error, err error)
	// Restore makes a copy that was received and staged the node's state.
	Restore func(staged io.Reader) error
}

// Raft is a node's raft. Its methods may be called from several goroutines at once.
type Raft struct {
	cfg   Config
	conf  *raft.Config
	net   raft.Transport
	raft  *raft.Raft
	ended chan struct{} // closed when raft has shut down
	asked atomic.Int32  // how many answers of raft are waited for
}

const (
	// hurry is by how much timeouts are shortened to have a node stand for election at once.
	hurry = time.Millisecond

	// commitTimeout is how soon an idle follower learns by itself that an entry was committed; usually the leader's nudge tells it at once.
	commitTimeout = 50 * time.Millisecond
)

// New returns raft that does not run yet.
func New(cfg Config) *Raft {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(cfg.NodeID)
	conf.HeartbeatTimeout, conf.ElectionTimeout = cfg.HeartbeatTimeout+hurry, cfg.ElectionTimeout+hurry
	conf.LeaderLeaseTimeout = min(cfg.HeartbeatTimeout, conf.LeaderLeaseTimeout)
	conf.CommitTimeout = commitTimeout
	conf.SnapshotInterval, conf.SnapshotThreshold = cfg.SnapshotInterval, cfg.SnapshotThreshold
	conf.TrailingLogs = cfg.TrailingLogs
	conf.NoSnapshotRestoreOnStart = true // the files are the snapshot; they were checked when they were opened
	conf.Logger = transport.HCLog(cfg.Logger)
	conf.NoLegacyTelemetry = true
	r := &Raft{cfg: cfg, conf: conf, net: cfg.Transport, ended: make(chan struct{})}
	if r.net == nil {
		_, r.net = raft.NewInmemTransport(raft.ServerAddress(cfg.NodeID))
	}
	return r
}

// Form makes the node the only voter of a new cluster. A call that was cut short may be made again.
func (r *Raft) Form() error {
	log := r.cfg.Log
	// A start that was cut short may have left a part of this; it is empty of data.
	exists, err := raft.HasExistingState(log, log, r.cfg.Snapshots)
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil || last > 0 {
		return err
	}
	if exists {
		// Term 1 was stored and the configuration was not: raft would refuse to go on.
		if err := log.SetUint64([]byte("CurrentTerm"), 0); err != nil {
			return err
		}
	}
	err = raft.BootstrapCluster(r.conf, log, log, r.cfg.Snapshots, r.net, raft.Configuration{Servers: []raft.Server{{
		ID: r.conf.LocalID, Address: raft.ServerAddress(r.cfg.NodeID)}}})
	if err != nil {
		return fmt.Errorf("colmena: bootstrap: %w", err)
	}
	durable.CrashPoint("bootstrap.before-formed")
	return nil
}

// Start runs raft. Until it has returned nil no other method but Form may be called.
func (r *Raft) Start() error {
	log := r.cfg.Log
	err := log.Contain(func() (err error) {
		r.raft, err = raft.NewRaft(r.conf, &fsm{r.cfg.Machine}, logstore.WithBoundary(log.Log(), r.cfg.Snapshots), log.Stable(), r.cfg.Snapshots, r.net)
		return err
	})
	if err != nil {
		return fmt.Errorf("colmena: raft: %w", err)
	}
	if err := r.hurryElection(); err != nil {
		return errors.Join(err, r.Stop(context.Background(), func() {}))
	}
	return nil
}

// hurryElection has a node that is its cluster's only voter stand for election at once: nobody else can be the leader it would wait to hear from.
// raft looks at its timer anew when the timeout is made shorter.
func (r *Raft) hurryElection() error {
	servers := r.Servers()
	if len(servers) != 1 || servers[0].ID != r.cfg.NodeID || !servers[0].Voter {
		return nil
	}
	rc := r.raft.ReloadableConfig()
	rc.HeartbeatTimeout, rc.ElectionTimeout = r.cfg.HeartbeatTimeout, r.cfg.ElectionTimeout
	return r.raft.ReloadConfig(rc)
}

// Stop ends raft, and what waits for it. When that takes longer than ctx, because a delivery is waited for, unblock is called.
func (r *Raft) Stop(ctx context.Context, unblock func()) error {
	defer close(r.ended)
	ended := make(chan error, 1)
	r.letAnswer()
	shutdown := r.raft.Shutdown()
	// Raft waits for its calls before it closes its network, and a peer that hangs, or that
	// is closing itself and waits for us, answers none until the call's own timeout.
	if network, ok := r.net.(raft.WithClose); ok {
		_ = network.Close() // raft's own Close of it reports what fails
	}
	go func() { ended <- shutdown.Error() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	unblock()
	return <-ended
}

// Watch calls changed when the leader, or what this node is, may have changed, until ctx ends.
func (r *Raft) Watch(ctx context.Context, changed func()) {
	changes := make(chan raft.Observation, 16)
	observer := raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	r.raft.RegisterObserver(observer)
	defer r.raft.DeregisterObserver(observer)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case <-r.raft.LeaderCh():
		}
		changed()
	}
}

// Term is the present term.
func (r *Raft) Term() uint64 { return r.raft.CurrentTerm() }

// LeadingTerm is the term in which raft holds this node for the leader, 0 if it does not.
func (r *Raft) LeadingTerm() uint64 {
	term := r.raft.CurrentTerm()
	if r.raft.State() != raft.Leader || r.raft.CurrentTerm() != term {
		return 0
	}
	return term
}

// Leader is the ID of the leader, "" while none is known.
func (r *Raft) Leader() string {
	_, id := r.raft.LeaderWithID()
	return string(id)
}

// Role is leader, candidate, follower, learner (a follower without a vote) or shutdown.
func (r *Raft) Role() string {
	if state := r.raft.State(); state != raft.Follower || !slices.ContainsFunc(r.Servers(), func(s membership.Server) bool { return s.ID == r.cfg.NodeID && !s.Voter }) {
		return strings.ToLower(state.String())
	}
	return "learner"
}

// LastContact is when the leader was heard, zero for never.
func (r *Raft) LastContact() time.Time { return r.raft.LastContact() }

// Committed is the last index known to be committed.
func (r *Raft) Committed() uint64 { return r.raft.CommitIndex() }

// Servers is the present configuration.
func (r *Raft) Servers() (list []membership.Server) {
	f := r.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	for _, s := range f.Configuration().Servers {
		list = append(list, membership.Server{ID: string(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	return list
}

// Voters are the IDs of those who vote.
func (r *Raft) Voters() (ids []string) {
	for _, s := range r.Servers() {
		if s.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// Others are the IDs of the other nodes, learners among them.
func (r *Raft) Others() (ids []string) {
	for _, s := range r.Servers() {
		if s.ID != r.cfg.NodeID {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// Barrier waits until everything before it was delivered. It fails where this node does not lead.
func (r *Raft) Barrier(ctx context.Context) error {
	var within time.Duration
	if by, ok := ctx.Deadline(); ok {
		within = time.Until(by)
	}
	return r.wait(ctx, r.raft.Barrier(within))
}

// Snapshot has the machine take a snapshot, if there is anything new.
func (r *Raft) Snapshot(ctx context.Context) error {
	err := r.wait(ctx, r.raft.Snapshot())
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// Transfer hands leadership to the voter id, or to the one that is most caught up if id is "".
func (r *Raft) Transfer(ctx context.Context, id string) error {
	if id == "" {
		return r.wait(ctx, r.raft.LeadershipTransfer())
	}
	return r.wait(ctx, r.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id)))
}

// AddLearner, AddVoter, Demote and Remove change the configuration and wait until the change is agreed on.
func (r *Raft) AddLearner(ctx context.Context, id string) error {
	return r.wait(ctx, r.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, 0))
}

// AddVoter makes a node a voter.
func (r *Raft) AddVoter(ctx context.Context, id string) error {
	return r.wait(ctx, r.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, 0))
}

// Demote makes a voter a learner.
func (r *Raft) Demote(ctx context.Context, id string) error {
	return r.wait(ctx, r.raft.DemoteVoter(raft.ServerID(id), 0, 0))
}

// Remove takes a node out.
func (r *Raft) Remove(ctx context.Context, id string) error {
	return r.wait(ctx, r.raft.RemoveServer(raft.ServerID(id), 0, 0))
}

// Nudge tells a node of what was committed: it sends what raft itself sends, an AppendEntries without entries. It reports whether that node had the
// entry.
func (r *Raft) Nudge(id string, committed wire.Mark) bool {
	self := raft.ServerID(r.cfg.NodeID)
	req := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: r.net.EncodePeer(self, raft.ServerAddress(self))},
		Term:      committed.Term, PrevLogEntry: committed.Index, PrevLogTerm: committed.Term, LeaderCommitIndex: committed.Index,
	}
	var resp raft.AppendEntriesResponse
	err := r.net.AppendEntries(raft.ServerID(id), raft.ServerAddress(id), req, &resp)
	return err == nil && resp.Success
}

// wait waits for a future under a context.
func (r *Raft) wait(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	r.asked.Add(1)
	go func() {
		defer r.asked.Add(-1)
		done <- f.Error()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// askedGrace is how long raft is left to answer what it was asked before it is ended: what it
// has not looked at by then it never answers, and whoever waits for that waits for ever.
const askedGrace = 20 * time.Millisecond

func (r *Raft) letAnswer() {
	for end := time.Now().Add(askedGrace); r.asked.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}
