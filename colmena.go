// Package colmena is distributed SQLite as an embeddable library. An application calls
// New and gets a standard *sql.DB whose writes are replicated by Raft and whose reads
// run on a local SQLite file: no external process, no broker, no cgo.
//
// A node alone behaves like plain SQLite. Three nodes survive the loss of one. Every
// node takes reads and writes; a write finds the leader by itself, is run there first,
// becomes an entry of the replicated log, and returns when a majority has it on disk.
//
// How fresh a read is, and what it needs to be answered, is chosen per handle or per
// query: see ConsistencyLevel.
package colmena

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/consensus"
	"github.com/mentasystems/colmena/internal/delivery"
	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/freshness"
	"github.com/mentasystems/colmena/internal/handlers"
	"github.com/mentasystems/colmena/internal/hooks"
	"github.com/mentasystems/colmena/internal/identity"
	"github.com/mentasystems/colmena/internal/intake"
	"github.com/mentasystems/colmena/internal/leadership"
	"github.com/mentasystems/colmena/internal/lifecycle"
	"github.com/mentasystems/colmena/internal/logstore"
	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/nudge"
	"github.com/mentasystems/colmena/internal/outbox"
	"github.com/mentasystems/colmena/internal/reading"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/transport"
	"github.com/mentasystems/colmena/internal/wire"
)

// Node is one member of a cluster, or a cluster of one. Its methods are safe for
// concurrent use.
type Node struct {
	cfg      Config
	log      *slog.Logger
	proposer uint64 // random, names this process in the entries it proposes

	id *identity.Identity

	group   *lifecycle.Group
	cleanup lifecycle.Cleanups
	dbs     *catalogue.Set
	library *engine.Library // the application's functions and collations
	empty   *engine.Empty   // what is read of a database before its first write
	store   *logstore.Store
	snaps   *snapshot.Store
	gens    *snapshot.Generations
	net     *transport.Transport // nil without Bind
	server  *rpc.Server
	client  *rpc.Client
	raft    *consensus.Raft

	intake   *intake.Intake     // where committed entries go to the databases
	lead     *leadership.Office // who leads, and this node's part in it
	members  *members.Keeper
	writes   *delivery.Service // makes each write happen once
	outbox   *outbox.Outbox    // writes on their way to the leader
	reads    *reading.Reads    // runs queries
	fresh    *freshness.Gauge  // proves how fresh this node's databases are
	handlers *handlers.Set
	hooks    *hooks.Queue[appliedEntry] // nil without Config.OnApply
	nudges   *nudge.Nudger              // tells followers what was committed
	count    nodeCounters

	closeOnce sync.Once
	stopOnce  sync.Once
	closeErr  error
	done      chan struct{} // closed when Close begins

	defaultMu sync.Mutex
	defaultDB *sql.DB
}

// New opens the data directory, or makes it, and starts the node. It returns when
// local state is open and the port listens; it waits for no other node. Close it.
func New(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger, proposer: rand.Uint64(), group: lifecycle.NewGroup(),
		done: make(chan struct{})}
	functions, collations := cfg.library()
	n.library = engine.NewLibrary(functions, collations, n.lackFunction)
	n.empty = engine.NewEmpty(n.done, n.library)
	n.cleanup.Add(func() error { n.empty.Close(); return nil })
	n.cleanup.Add(n.stopGroup)
	if err := n.build(); err != nil {
		close(n.done)
		return nil, errors.Join(err, n.cleanup.Run())
	}
	return n, nil
}

// build makes the parts from the disk upwards, and opens the port last.
func (n *Node) build() error {
	for _, step := range []func() error{n.openDirectory, n.openNetwork, n.openFiles, n.openLog, n.startRaft, n.serve} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) openDirectory() error {
	if err := durable.MkdirAllSync(n.cfg.DataDir, 0o755); err != nil {
		return fmt.Errorf("colmena: data directory: %w", err)
	}
	lock, err := durable.LockDir(n.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("colmena: data directory: %w", err)
	}
	n.cleanup.Add(lock.Unlock)
	n.id, err = identity.Load(n.cfg.DataDir, n.cfg.NodeID)
	return err
}

// openNetwork binds the port; nothing is accepted before serve.
func (n *Node) openNetwork() error {
	n.lead = n.newOffice()
	n.fresh, n.members, n.nudges = n.newGauge(), n.newMembers(), n.newNudger()
	n.outbox, n.writes, n.handlers = n.newOutbox(), n.newWrites(), n.newHandlers()
	if n.cfg.OnApply != nil {
		n.hooks = hooks.NewQueue[appliedEntry](0, 0)
	}
	n.intake = n.newIntake()
	n.server = rpc.NewServer(rpc.ServerConfig{Logger: n.log, MaxDirect: max(1, n.cfg.MaxConns/4)})
	n.registerMethods()
	if n.cfg.Bind == "" {
		return nil
	}
	net, err := transport.New(transport.Config{
		Bind: n.cfg.Bind, Advertise: n.cfg.Advertise, TLS: n.cfg.TLS, ClusterKeys: n.cfg.ClusterKeys, AllowPlain: n.cfg.AllowPlain,
		Hello: n.members.Hello, Check: n.members.CheckPeer, Resolve: n.members.Book.Resolve, OnPeer: n.members.Book.Heard, OnRPC: n.server.ServeConn,
		Dial: n.cfg.Dial, Logger: n.log, MaxConns: n.cfg.MaxConns,
	})
	if err != nil {
		return err
	}
	n.net = net
	n.client = rpc.NewClient(rpc.ClientConfig{Dial: net.DialRPC, DialDirect: net.DialDirect, Logger: n.log})
	n.members.Connect(n.net, n.client)
	n.cleanup.Add(net.Close)
	n.cleanup.Add(n.server.Close)
	n.cleanup.Add(n.client.Close)
	return nil
}

// openFiles opens snapshots and databases, and finishes what a crash cut short.
func (n *Node) openFiles() error {
	dir := n.cfg.DataDir
	gens, err := snapshot.OpenGenerations(filepath.Join(dir, "generations"))
	if err != nil {
		return err
	}
	n.gens = gens
	n.snaps, err = snapshot.New(snapshot.Config{
		Dir: filepath.Join(dir, "snapshots"), ScratchDir: filepath.Join(dir, "scratch"), Generations: gens, Logger: n.log,
		Copier: func() snapshot.Copier { return n.dbs }, Fold: engine.Fold, Verify: n.library.Verify, Accept: n.acceptCopy,
	})
	if err != nil {
		return err
	}
	n.cleanup.Add(n.snaps.Close)
	if err := n.snaps.Recover(); err != nil {
		return err
	}
	n.dbs = catalogue.New(catalogue.Config{Engine: n.engineConfig, Warn: n.log.Warn, Replaced: n.hooks.Replaced, Dropped: n.hooks.Dropped, Done: n.done, Closed: ErrClosed})
	if err := n.dbs.Open(gens.Current(), !n.id.Formed()); err != nil {
		return err
	}
	n.cleanup.Add(n.dbs.Close)
	if err := gens.Collect(); err != nil {
		return err
	}
	if err := n.snaps.CheckFiles(n.dbs.FileMark); err != nil {
		return err
	}
	n.reads = n.newReads()
	return n.dbs.RemoveStrays()
}

func (n *Node) openLog() (err error) {
	n.store, err = logstore.Open(logstore.Config{
		Path: filepath.Join(n.cfg.DataDir, "raft.db"), StoreID: n.id.StoreID, NoSync: n.cfg.UnsafeNoRaftLogFsync,
		MaxEntryBytes: wire.MaxEntryBytes, Logger: n.log, StallAfter: 2 * n.cfg.ElectionTimeout, Stall: n.diskStalled, Fatal: n.logFailed,
	})
	if err != nil {
		return err
	}
	n.cleanup.Add(n.store.Close)
	first, err := n.store.FirstIndex()
	if err != nil {
		return err
	}
	last, err := n.store.LastIndex()
	if err != nil {
		return err
	}
	if err := n.snaps.CheckLog(first, last); err != nil {
		return err
	}
	if n.id.Formed() && last == 0 {
		if list, err := n.snaps.List(); err != nil || len(list) == 0 {
			return errors.Join(fmt.Errorf("colmena: directory %s belongs to node %q of a cluster, but its log is empty: the log was lost; wipe the directory and join again", n.cfg.DataDir, n.id.NodeID), err)
		}
	}
	return nil
}

func (n *Node) startRaft() error {
	conf := consensus.Config{
		NodeID: n.id.NodeID, HeartbeatTimeout: n.cfg.HeartbeatTimeout, ElectionTimeout: n.cfg.ElectionTimeout,
		SnapshotInterval: n.cfg.SnapshotInterval, SnapshotThreshold: n.cfg.SnapshotThreshold, TrailingLogs: n.cfg.trailingLogs,
		Log: n.store, Snapshots: n.snaps, Logger: n.log,
		Machine: consensus.Machine{Deliver: n.intake.Deliver, Snapshot: n.takeSnapshot, Restore: n.restore},
	}
	if n.net != nil {
		conf.Transport = n.net.Raft()
	}
	n.raft = consensus.New(conf)
	if err := n.bootstrap(); err != nil {
		return err
	}
	// The files hold what the newest snapshot covers; raft delivers what follows.
	if list, err := n.snaps.List(); err != nil {
		return err
	} else if len(list) > 0 {
		n.intake.StartAt(list[0].Index)
	}
	if err := n.raft.Start(); err != nil {
		return err
	}
	n.cleanup.Add(n.stopRaft)
	return nil
}

// bootstrap forms a cluster of this node alone, if it is asked to and there is none.
func (n *Node) bootstrap() error {
	if n.id.Formed() {
		return nil
	}
	if !n.cfg.Bootstrap && n.cfg.Bind != "" {
		if len(n.cfg.Join) == 0 && n.id.ClusterID() == "" {
			return fmt.Errorf("colmena: directory %s is empty and neither Bootstrap nor Join is set: set Bootstrap on the first node of a new cluster, Join on every other", n.cfg.DataDir)
		}
		return nil
	}
	if cluster := n.id.ClusterID(); cluster != "" && !n.id.Forming() {
		return fmt.Errorf("colmena: directory %s has begun to join cluster %s: set Join to go on with that, or wipe the directory to form another cluster", n.cfg.DataDir, cluster)
	}
	if n.id.ClusterID() == "" {
		if err := n.id.Form(); err != nil {
			return err
		}
	}
	if err := n.raft.Form(); err != nil {
		return err
	}
	return n.id.Enter()
}

// serve starts what runs beside raft, and opens the port.
func (n *Node) serve() error {
	// These use everything else, so they end first.
	n.cleanup.Add(n.stopGroup)
	n.group.Go("raft", func(ctx context.Context) { n.raft.Watch(ctx, n.lead.RaftChanged) })
	n.group.Go("leadership", n.lead.Run)
	n.group.Go("nudge", n.nudges.Run)
	n.group.Go("revive", n.intake.Run)
	if n.cfg.Setup != nil {
		if err := n.cfg.Setup(n); err != nil {
			return err
		}
	}
	n.group.Go("hooks", func(ctx context.Context) { n.hooks.Run(ctx, n.onApply) })
	if n.net != nil {
		n.net.Serve()
		n.group.Go("membership", n.members.Run)
	}
	return nil
}

func (n *Node) engineConfig(name string, incarnation uint64, path string) engine.Config {
	shown, library := name, n.library
	if incarnation == 0 {
		shown, library = "system", nil
	}
	return engine.Config{
		Path: path, Name: name, Incarnation: incarnation, Proposer: n.proposer,
		Propose: func(data []byte, done func(error)) { n.raft.Propose(data, done) }, ProposalLost: consensus.Lost, Confirm: n.fresh.ConfirmTerm,
		Halt: func(err error) {
			n.hooks.Stopped(incarnation)
			n.replicaHalted(n.dbs.NameOf(incarnation, shown), err)
		},
		Applied: func(m wire.Mark, e *wire.Entry) { n.entryApplied(incarnation, m, e) },
		Passed:  func(index uint64) { n.hooks.Passed(incarnation, index) }, Watch: n.cfg.OnApply != nil,
		Library: library, Stop: n.done, Logger: n.log, BatchWindow: n.cfg.BatchWindow, BatchMaxUnits: n.cfg.BatchMaxSize,
		MaxResult: n.cfg.MaxResultBytes, MaxUnitTime: n.cfg.MaxStatementTime, MaxWait: n.cfg.TxWaitTimeout, MaxSessionIdle: n.cfg.TxIdleTimeout, MaxSessionTime: n.cfg.TxTimeout, ReadConns: n.cfg.ReadConns,
	}
}

// Addr is the address the node listens on, "" without Bind.
func (n *Node) Addr() string {
	if n.net == nil {
		return ""
	}
	return n.net.Addr()
}

// ID is the node's ID: Config.NodeID, or the random one that stands for it.
func (n *Node) ID() string { return n.id.NodeID }

// AppliedIndex is the index of the last log entry whose effects are in this node's
// databases.
func (n *Node) AppliedIndex() uint64 {
	var most uint64
	for _, d := range n.dbs.All() {
		most = max(most, d.Mark().Index)
	}
	return most
}

// Snapshot makes the databases durable and notes how far they have come, so that the
// log can be cut short. It copies nothing.
func (n *Node) Snapshot(ctx context.Context) error {
	if n.isClosed() {
		return ErrClosed
	}
	return n.raft.Snapshot(ctx)
}

// replicaHalted reports a database that must not go on here.
func (n *Node) replicaHalted(name string, err error) {
	n.intake.Halt(err)
	n.event(Event{Kind: EventReplicaHalted, DB: name, Err: err})
	n.lead.GiveUp()
}

// logFailed is told when the log takes no more writes.
func (n *Node) logFailed(err error) {
	n.intake.Halt(err)
	n.log.Error("the replicated log has failed; this node stops taking part", "err", err)
	n.event(Event{Kind: EventLogFailed, Err: err})
	if n.net != nil {
		n.net.Mute(true)
	}
}

// diskStalled is told when a write of the log hangs, and when it no longer does. A
// leader whose disk hangs would keep its followers quiet with heartbeats for ever (H26).
func (n *Node) diskStalled(d time.Duration) {
	n.lead.Stall(d > 0 && n.net != nil)
	if d > 0 {
		n.log.Warn("the log's disk is stalled", "for", d)
		n.event(Event{Kind: EventDiskStalled})
	}
	if n.net != nil {
		n.net.Mute(d > 0)
	}
}

func (n *Node) isClosed() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

// Shutdown ends the node in good order: writes under way are finished and leadership
// is handed over, so that a planned restart is no outage. Then it closes everything,
// also when ctx ends first.
func (n *Node) Shutdown(ctx context.Context) error {
	n.closeOnce.Do(func() {
		n.lead.HandOver(ctx)
		close(n.done)
		n.closeDefault()
		n.closeErr = n.cleanup.Run()
	})
	return n.closeErr
}

// closeGrace is how long Close tries to end in good order.
const closeGrace = 5 * time.Second

// Close is Shutdown within 5 seconds.
func (n *Node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	return n.Shutdown(ctx)
}

// stopGroup ends the node's goroutines. One that is in the application's code, in a
// hook say, may not end; it is left behind.
func (n *Node) stopGroup() error {
	n.stopOnce.Do(func() {
		if left := n.group.StopTimeout(closeGrace); len(left) > 0 {
			n.log.Warn("closing without waiting any longer", "for", left)
		}
	})
	return nil
}

// stopRaft waits for proposals that are out, because raft may forget to answer one
// that is queued when it stops. A database that replays much holds it up no longer than
// that: raft ends when its goroutine has handed over what it was about to.
func (n *Node) stopRaft() error {
	n.dbs.StepDown()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = n.dbs.Drain(ctx)
	return n.raft.Stop(ctx, n.dbs.Stop)
}

func engineFingerprint() uint64 { return sqlite.Fingerprint() }
