// Package catalogue is the set of a node's databases. The system database says which
// there are, and which members; the set opens, closes, renames and removes to follow it.
// It routes entries of the log to them, has them copied together, and brings those back
// that stopped.
package catalogue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// The system database is a database like every other, with incarnation 0 and no name.
// It says which databases and members there are.
const (
	SystemName = ""
	systemFile = "system.db"
	// Schema is the first entry of a cluster. Incarnations and origins are drawn from
	// AUTOINCREMENT columns: a number is never given twice.
	Schema = `CREATE TABLE cluster(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE databases(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE members(id TEXT PRIMARY KEY, incarnation TEXT NOT NULL, addr TEXT NOT NULL, voter INTEGER NOT NULL,
	engine INTEGER NOT NULL, format_min INTEGER NOT NULL, format_max INTEGER NOT NULL, functions TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE instances(origin INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT NOT NULL);
INSERT INTO cluster VALUES('id', ?1), ('schema', 1);`
)

// Config is what a set needs from its node.
type Config struct {
	// Engine makes the configuration of one of its databases.
	Engine func(name string, incarnation uint64, path string) engine.Config
	// Warn logs what is not an error for anybody.
	Warn func(msg string, args ...any)
	// Replaced is told when a database has taken a name, by the entry of the system
	// database at index, and is what the name stands for. former is the incarnation of
	// the one that bore it, 0 for none.
	Replaced func(former, incarnation uint64, name string, index uint64)
	// Dropped is told when a database is gone.
	Dropped func(incarnation uint64)
	// Done is closed when the node closes, and Closed is then the error of what waits.
	Done   <-chan struct{}
	Closed error
}

// Set is the set of open databases, as the system database says. The log's goroutine
// changes it; everybody reads it.
type Set struct {
	cfg    Config
	change sync.Mutex    // held while the set changes; never while an epoch is waited for
	sends  atomic.Uint64 // copies of all databases that were pinned

	mu      sync.RWMutex // guards what follows
	dir     string
	sys     *engine.DB
	byName  map[string]*engine.DB
	byInc   map[uint64]*engine.DB
	highest uint64 // the highest incarnation ever given
	members map[string]membership.Record
	cluster string        // cluster ID as replicated, "" before the first entry
	term    uint64        // term in which this node leads, 0 none
	changed chan struct{} // closed and replaced at every change
	loaded  uint64        // entry of the system database up to which the set follows it
}

// New returns a set without databases; Open follows.
func New(cfg Config) *Set {
	return &Set{cfg: cfg, changed: make(chan struct{})}
}

// fileName does not hold the database's name: Load renames a database, whose file then
// stays where it is.
func fileName(incarnation uint64) string {
	if incarnation == 0 {
		return systemFile
	}
	return fmt.Sprintf("db.%d.db", incarnation)
}

// Open opens the system database in dir and everything it names. fresh says that no
// state is expected there: then the system database is made.
func (s *Set) Open(dir string, fresh bool) error {
	path := filepath.Join(dir, systemFile)
	if fresh {
		if err := engine.Create(path, "system", 0); err != nil {
			return err
		}
	}
	sys, err := engine.Open(s.cfg.Engine(SystemName, 0, path))
	if err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	// Until all of it is open, readers find what was open before, closed, and wait.
	if err := s.loadLocked(sys, dir, nil); err != nil {
		return errors.Join(err, sys.Close())
	}
	return nil
}

func (s *Set) path(d *engine.DB) string {
	return filepath.Join(s.dir, fileName(d.Incarnation()))
}

// NameOf is a database's present name, or name if it is not in the set.
func (s *Set) NameOf(incarnation uint64, name string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if d := s.byInc[incarnation]; d != nil {
		return d.Name()
	}
	return name
}

// Stop begins to close every database and waits for none. What they do not take in any
// more is read from the log again at the next start.
func (s *Set) Stop() {
	for _, d := range s.All() {
		d.Stop()
	}
}

// Close closes every database; open may follow.
func (s *Set) Close() error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	all := s.allLocked()
	s.mu.Unlock()
	var errs []error
	for _, d := range all {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

func (s *Set) allLocked() []*engine.DB {
	var all []*engine.DB
	if s.sys != nil {
		all = append(all, s.sys)
	}
	for _, inc := range slices.Sorted(maps.Keys(s.byInc)) {
		all = append(all, s.byInc[inc])
	}
	return all
}

// All returns every open database, the system database first.
func (s *Set) All() []*engine.DB {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.allLocked()
}

// System returns the system database.
func (s *Set) System() *engine.DB {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.sys
}

// Get returns a database by name, nil if there is none.
func (s *Set) Get(name string) *engine.DB {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if name == SystemName {
		return s.sys
	}
	return s.byName[name]
}

// Route finds the database of an entry. Without one the entry belongs to a database
// that was dropped, unless its number was never given: then this node lacks entries.
func (s *Set) Route(incarnation uint64) (db *engine.DB, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if incarnation == 0 {
		return s.sys, true
	}
	return s.byInc[incarnation], incarnation <= s.highest
}

// Follows reports whether the set is what the system database says at an index.
func (s *Set) Follows(index uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.loaded >= index
}

// Watch returns a channel that is closed at the next change.
func (s *Set) Watch() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// Lead opens every database for writing in a term, and those that come later.
func (s *Set) Lead(term uint64) {
	s.mu.Lock()
	s.term = term
	all := s.allLocked()
	s.mu.Unlock()
	for _, d := range all {
		d.Lead(term)
	}
}

// StepDown closes every database for writing.
func (s *Set) StepDown() {
	s.mu.Lock()
	s.term = 0
	all := s.allLocked()
	s.mu.Unlock()
	for _, d := range all {
		d.StepDown()
	}
}

// Drain waits until everything delivered is applied.
func (s *Set) Drain(ctx context.Context) error {
	for _, d := range s.All() {
		if err := d.Drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Settle waits until everything delivered is applied, and not for writes that run.
func (s *Set) Settle(ctx context.Context) error {
	for _, d := range s.All() {
		if err := errors.Join(d.Settle(ctx), d.Err()); err != nil {
			return err
		}
	}
	return nil
}

// Manifest lists the databases and how far they have come.
func (s *Set) Manifest(clusterID string) *snapshot.Manifest {
	m := &snapshot.Manifest{ClusterID: clusterID}
	for _, d := range s.All() {
		m.Databases = append(m.Databases, describe(d, d.Mark()))
	}
	return m
}

func describe(d *engine.DB, mark wire.Mark) snapshot.Database {
	return snapshot.Database{Name: d.Name(), Incarnation: d.Incarnation(), Mark: mark, File: fileName(d.Incarnation())}
}
