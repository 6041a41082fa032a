// Package intake takes committed entries in, in the order of the log, and routes them to their databases: each has a queue and a goroutine of its own,
// so databases apply in parallel and a slow one does not hold up the others. An entry of the system database is waited for, because it decides which
// databases there are.
//
// It never skips an entry (H2). One that cannot reach its database halts the node, which goes on when everything from there has been read from the log
// again.
package intake

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// Database is where entries go: an *engine.DB.
type Database interface {
	Name() string
	Deliver(mark wire.Mark, data []byte) bool // false if it has stopped
	Drain(ctx context.Context) error          // until everything delivered is applied
}

// Hooks are told what becomes of entries before the databases have them: a hooks.Queue.
type Hooks interface {
	Register(db uint64, name string, index uint64, size int)
	Stopped(db uint64)
	Skipped(index uint64)
	GoOn(index uint64, stopped func(db uint64) bool)
	Installed(index uint64)
	Closed()
}

// Config is what an Intake needs of its node.
type Config struct {
	// Route finds the database of an entry, nil if it was dropped, or, unless known, has never been heard of.
	Route func(incarnation uint64) (db Database, known bool)
	// Shown reports whether hooks are told of a database of that name.
	Shown func(name string) bool
	Hooks Hooks
	// Reload has the set of databases follow the system database, and Changed is called when it has.
	Reload  func() error
	Changed func()
	// Delivered is called after each entry, when Applied says so.
	Delivered func()
	// GoOn brings back the databases that stopped, and hands them what they missed, from an entry on, if that is not 0. Stopped reports which have not
	// come back. GoneOn is called when the node goes on.
	GoOn    func(ctx context.Context, missed uint64) error
	Stopped func(incarnation uint64) bool
	GoneOn  func()
	// Halted is told what kept an entry from the database, or "log", it was for.
	Halted func(name string, err error)
	Done   <-chan struct{} // closed when the node closes
	Logger *slog.Logger
}

// Intake is where the log enters a node's databases. Its methods may be called from several goroutines at once.
type Intake struct {
	cfg     Config
	applied atomic.Uint64 // last index handed to the databases
	halted  atomic.Pointer[error]

	delivering sync.Mutex    // held while entries are handed to the databases
	missed     atomic.Uint64 // the first entry that did not reach its database, 0 if none; written while delivering is held
}

// New returns an intake that has taken nothing in.
func New(cfg Config) *Intake { return &Intake{cfg: cfg} }

// StartAt tells up to which index the databases hold everything, before the first entry.
func (in *Intake) StartAt(index uint64) { in.applied.Store(index) }

// Applied is the last index that was handed to the databases.
func (in *Intake) Applied() uint64 { return in.applied.Load() }

// Missing reports whether entries were delivered that reached no database.
func (in *Intake) Missing() bool { return in.missed.Load() != 0 }

// Halted is why this node has stopped, nil while it goes on.
func (in *Intake) Halted() error {
	if e := in.halted.Load(); e != nil {
		return *e
	}
	return nil
}

// Halt stops the node: its log is kept, and it must not lead. The first reason counts.
func (in *Intake) Halt(err error) { in.halted.CompareAndSwap(nil, &err) }

// Deliver takes an entry in. One that is no command is raft's own.
func (in *Intake) Deliver(mark wire.Mark, command bool, data []byte) {
	in.delivering.Lock()
	defer in.delivering.Unlock()
	if command {
		if name, err := in.route(mark, data); err != nil {
			in.miss(mark.Index, name, err)
		}
	}
	in.applied.Store(mark.Index)
	in.cfg.Delivered()
}

func (in *Intake) route(mark wire.Mark, data []byte) (name string, err error) {
	inc, _, _, _, err := wire.EntryOwner(data)
	if err != nil {
		return "log", fmt.Errorf("entry %d/%d cannot be read: %w", mark.Term, mark.Index, err)
	}
	db, known := in.cfg.Route(inc)
	switch {
	case db == nil && known:
		return "", nil // of a database that was dropped
	case db == nil:
		return "log", fmt.Errorf("entry %v belongs to database %d, which this node does not know", mark, inc)
	}
	if inc != 0 && in.cfg.Shown(db.Name()) {
		in.cfg.Hooks.Register(inc, db.Name(), mark.Index, len(data))
	}
	if !db.Deliver(mark, data) {
		in.cfg.Hooks.Stopped(inc)
	}
	if inc != 0 {
		return "", nil
	}
	if err := db.Drain(context.Background()); err != nil {
		return "", nil // halted, and reported
	}
	if err := in.cfg.Reload(); err != nil {
		return "system", err
	}
	in.cfg.Changed()
	return "", nil
}

// miss notes that entries from index on did not reach their databases, and halts: before this node goes on they must be read from the log again. What
// it does not take in while it closes is read again at the next start.
func (in *Intake) miss(index uint64, name string, err error) {
	select {
	case <-in.cfg.Done:
		return
	default:
	}
	if from := in.missed.Load(); from == 0 || index < from {
		in.missed.Store(index)
	}
	in.cfg.Hooks.Skipped(index)
	in.Halt(err)
	in.cfg.Halted(name, err)
}

// Install has a received copy become the node's state, which holds everything up to the index that install returns. Nothing is delivered meanwhile.
func (in *Intake) Install(install func() (covered uint64, err error)) error {
	in.delivering.Lock()
	defer in.delivering.Unlock()
	covered, err := install()
	if err != nil {
		in.cfg.Hooks.Closed()
		// What the databases had not applied when they were closed is read again, if they were opened where they had been.
		in.miss(1, "system", fmt.Errorf("a copy from the leader could not be installed: %w", err))
		return err
	}
	in.halted.Store(nil)
	in.missed.Store(0) // the copy holds them
	in.applied.Store(max(in.applied.Load(), covered))
	in.cfg.Hooks.Installed(in.applied.Load())
	in.cfg.Changed()
	return nil
}

// retry is how often a node that stopped for a local reason is tried again.
const retry = time.Second

// Run has a node go on that stopped because of this machine: a full disk, an I/O error. The files are opened anew, and what was delivered since their
// marks is read from the log again, so nothing is skipped. A replica that parted from the others stays stopped.
func (in *Intake) Run(ctx context.Context) {
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if in.Halted() == nil {
			continue
		}
		if err := in.goOn(ctx); err != nil {
			in.cfg.Logger.Warn("this node cannot go on yet", "err", err)
			continue
		}
		in.halted.Store(nil)
		in.cfg.GoneOn()
		in.cfg.Logger.Info("this node goes on")
	}
}

// goOn brings back everything that stopped, or tells what keeps it from that. The log's goroutine delivers nothing meanwhile.
func (in *Intake) goOn(ctx context.Context) error {
	in.delivering.Lock()
	defer in.delivering.Unlock()
	if err := in.cfg.GoOn(ctx, in.missed.Load()); err != nil {
		return err
	}
	in.missed.Store(0)
	in.cfg.Hooks.GoOn(in.applied.Load(), in.cfg.Stopped)
	return nil
}
