package colmena

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// The system database is a database like every other, with incarnation 0 and no name.
// It says which databases and members there are.
const (
	systemName = ""
	systemFile = "system.db"
	// systemSchema is the first entry of a cluster. Incarnations and origins are drawn
	// from AUTOINCREMENT columns: a number is never given twice.
	systemSchema = `CREATE TABLE cluster(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE databases(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE members(id TEXT PRIMARY KEY, incarnation TEXT NOT NULL, addr TEXT NOT NULL, voter INTEGER NOT NULL,
	engine INTEGER NOT NULL, format_min INTEGER NOT NULL, format_max INTEGER NOT NULL, functions TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE instances(origin INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT NOT NULL);
INSERT INTO cluster VALUES('id', ?1), ('schema', 1);`
)

// databases is the set of open databases, as the system database says. The log's
// goroutine changes it; everybody reads it.
type databases struct {
	cfg    func(name string, incarnation uint64, path string) engine.Config
	log    func(msg string, args ...any)
	change sync.Mutex // held while the set changes; never while an epoch is waited for
	// replaced is told when a database has taken the name of another.
	replaced func(name string, index uint64)
	sends    atomic.Uint64 // copies of all databases that were pinned

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
func (s *databases) Open(dir string, fresh bool) error {
	path := filepath.Join(dir, systemFile)
	if fresh {
		if err := engine.Create(path, "system", 0); err != nil {
			return err
		}
	}
	sys, err := engine.Open(s.cfg(systemName, 0, path))
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

func (s *databases) path(d *engine.DB) string {
	return filepath.Join(s.dir, fileName(d.Incarnation()))
}

// NameOf is a database's present name, or name if it is not in the set.
func (s *databases) NameOf(incarnation uint64, name string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if d := s.byInc[incarnation]; d != nil {
		return d.Name()
	}
	return name
}

// Close closes every database; open may follow.
func (s *databases) Close() error {
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

func (s *databases) allLocked() []*engine.DB {
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
func (s *databases) All() []*engine.DB {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.allLocked()
}

// System returns the system database.
func (s *databases) System() *engine.DB {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.sys
}

// Get returns a database by name, nil if there is none.
func (s *databases) Get(name string) *engine.DB {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if name == systemName {
		return s.sys
	}
	return s.byName[name]
}

// Route finds the database of an entry. Without one the entry belongs to a database
// that was dropped, unless its number was never given: then this node lacks entries.
func (s *databases) Route(incarnation uint64) (db *engine.DB, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if incarnation == 0 {
		return s.sys, true
	}
	return s.byInc[incarnation], incarnation <= s.highest
}

// Follows reports whether the set is what the system database says at an index.
func (s *databases) Follows(index uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.loaded >= index
}

// Watch returns a channel that is closed at the next change.
func (s *databases) Watch() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// Reload makes the set what the system database now says: it opens what is new and
// closes and removes what was dropped. The log's goroutine calls it after each entry
// of the system database.
func (s *databases) Reload() error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	sys, dir, have := s.sys, s.dir, maps.Clone(s.byInc)
	s.mu.RUnlock()
	return s.loadLocked(sys, dir, have)
}

// loadLocked makes the set what sys says, in one step. have is what is open of it.
func (s *databases) loadLocked(sys *engine.DB, dir string, have map[uint64]*engine.DB) error {
	at := sys.Mark().Index
	cat, err := readCatalogue(sys)
	if err != nil {
		return fmt.Errorf("colmena: system database: %w", err)
	}
	opened := map[uint64]*engine.DB{}
	var renamed []*engine.DB
	for inc, name := range cat.databases {
		if d := have[inc]; d != nil {
			opened[inc] = d
			if d.Name() != name {
				renamed = append(renamed, d)
			}
			continue
		}
		d, err := s.openOne(dir, name, inc)
		if err != nil {
			for inc, d := range opened {
				if have[inc] == nil {
					_ = d.Close()
				}
			}
			return err
		}
		opened[inc] = d
	}
	err = s.rename(cat, renamed, opened)
	s.publish(cat, sys, dir, opened, at)
	for inc, d := range have {
		if opened[inc] == nil {
			s.remove(d)
		}
	}
	return err
}

// rename gives loaded databases their names. All of a load must be applied before any
// of it can be seen; where that fails the former database keeps the name here, until
// the stopped one goes on.
func (s *databases) rename(cat catalogue, renamed []*engine.DB, opened map[uint64]*engine.DB) (err error) {
	for _, d := range renamed {
		name := cat.databases[d.Incarnation()]
		if drainErr := d.Drain(context.Background()); drainErr != nil {
			err = errors.Join(err, fmt.Errorf("colmena: database %q was loaded anew, but not on this node: %w", name, drainErr))
			if former := s.Get(name); former != nil {
				opened[former.Incarnation()] = former
			}
			continue
		}
		d.Rename(name)
		s.replaced(name, s.System().Mark().Index)
	}
	return err
}

func (s *databases) openOne(dir, name string, inc uint64) (*engine.DB, error) {
	path := filepath.Join(dir, fileName(inc))
	if err := engine.Create(path, name, inc); err != nil {
		return nil, err
	}
	return engine.Open(s.cfg(name, inc, path))
}

func (s *databases) publish(cat catalogue, sys *engine.DB, dir string, opened map[uint64]*engine.DB, at uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sys, s.dir, s.loaded = sys, dir, at
	s.byInc, s.highest, s.members, s.cluster = opened, cat.highest, cat.members, cat.cluster
	s.byName = make(map[string]*engine.DB, len(opened))
	for _, d := range opened {
		s.byName[d.Name()] = d
		if s.term != 0 && d.Leading() != s.term {
			d.Lead(s.term)
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// remove closes a dropped database and removes its files.
func (s *databases) remove(d *engine.DB) {
	_ = d.Close()
	path := s.path(d)
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log("a dropped database's file is left behind", "path", path+suffix, "err", err)
		}
	}
}

// Lead opens every database for writing in a term, and those that come later.
func (s *databases) Lead(term uint64) {
	s.mu.Lock()
	s.term = term
	all := s.allLocked()
	s.mu.Unlock()
	for _, d := range all {
		d.Lead(term)
	}
}

// StepDown closes every database for writing.
func (s *databases) StepDown() {
	s.mu.Lock()
	s.term = 0
	all := s.allLocked()
	s.mu.Unlock()
	for _, d := range all {
		d.StepDown()
	}
}

// Drain waits until everything delivered is applied.
func (s *databases) Drain(ctx context.Context) error {
	for _, d := range s.All() {
		if err := d.Drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Settle waits until everything delivered is applied, and not for writes that run.
func (s *databases) Settle(ctx context.Context) error {
	for _, d := range s.All() {
		if err := errors.Join(d.Settle(ctx), d.Err()); err != nil {
			return err
		}
	}
	return nil
}

// Manifest lists the databases and how far they have come.
func (s *databases) Manifest(clusterID string) *snapshot.Manifest {
	m := &snapshot.Manifest{ClusterID: clusterID}
	for _, d := range s.All() {
		m.Databases = append(m.Databases, describe(d, d.Mark()))
	}
	return m
}

func describe(d *engine.DB, mark wire.Mark) snapshot.Database {
	return snapshot.Database{Name: d.Name(), Incarnation: d.Incarnation(), Mark: mark, File: fileName(d.Incarnation())}
}

// Pin implements snapshot.Copier: every database frozen for copying, each at its own
// mark; one created later comes from the log. A pin waits for an epoch that is out, and
// so for the log's goroutine: the set must stay free to change meanwhile. When a database
// was dropped before it could be pinned, all begin anew, because the system database is
// pinned first and may still name it.
func (s *databases) Pin(ctx context.Context) (snapshot.Pinned, error) {
	for {
		p := &pinnedSet{}
		dropped, err := s.pinAll(ctx, p)
		if err == nil {
			s.sends.Add(1)
			return p, nil
		}
		p.Release()
		if !dropped {
			return nil, err
		}
	}
}

// pinAll adds a pin of every database to p. dropped says that it failed because one of
// them is not in the set any more.
func (s *databases) pinAll(ctx context.Context, p *pinnedSet) (dropped bool, err error) {
	for _, d := range s.All() {
		pin, err := d.Pin(ctx)
		if err != nil {
			now, _ := s.Route(d.Incarnation())
			return errors.Is(err, engine.ErrClosed) && now != d, err
		}
		p.pins = append(p.pins, pin)
		main, wal := pin.Sizes()
		p.files = append(p.files, snapshot.PinnedFile{
			Database: describe(d, pin.Mark),
			Parts:    []snapshot.Part{{Suffix: "", Size: main, Copy: pin.CopyMain}, {Suffix: "-wal", Size: wal, Copy: pin.CopyWAL}},
		})
	}
	return false, nil
}

type pinnedSet struct {
	pins  []*engine.Pin
	files []snapshot.PinnedFile
}

func (p *pinnedSet) Files() []snapshot.PinnedFile { return p.files }

func (p *pinnedSet) Release() {
	for _, pin := range p.pins {
		pin.Release()
	}
}

// catalogue is the content of the system database.
type catalogue struct {
	databases map[uint64]string
	highest   uint64
	members   map[string]membership.Record
	cluster   string
}

func readCatalogue(sys *engine.DB) (c catalogue, err error) {
	c.databases, c.members = map[uint64]string{}, map[string]membership.Record{}
	r, err := sys.Reader(context.Background())
	if err != nil {
		return c, err
	}
	defer r.Release()
	exists := false
	err = scan(r, "SELECT 1 FROM sqlite_schema WHERE name='cluster'", func(*engine.Cursor) { exists = true })
	if err != nil || !exists {
		return c, err
	}
	return c, errors.Join(
		scan(r, "SELECT id, name FROM databases", func(cur *engine.Cursor) {
			c.databases[uint64(cur.Value(0).Int64())] = cur.Value(1).String()
		}),
		scan(r, "SELECT seq FROM sqlite_sequence WHERE name='databases'", func(cur *engine.Cursor) {
			c.highest = uint64(cur.Value(0).Int64())
		}),
		scan(r, "SELECT value FROM cluster WHERE key='id'", func(cur *engine.Cursor) { c.cluster = cur.Value(0).String() }),
		scan(r, "SELECT id, incarnation, addr, voter, engine, format_min, format_max, functions FROM members", func(cur *engine.Cursor) {
			m := membership.Record{ID: cur.Value(0).String(), Incarnation: cur.Value(1).String(), Addr: cur.Value(2).String(), Voter: cur.Value(3).Int64() != 0,
				Engine: uint64(cur.Value(4).Int64()), FormatMin: uint16(cur.Value(5).Int64()), FormatMax: uint16(cur.Value(6).Int64()), Functions: cur.Value(7).String()}
			c.members[m.ID] = m
		}))
}

func scan(r *engine.Reader, sql string, row func(*engine.Cursor)) error {
	c, err := r.Query(sql, nil, wire.PreState{})
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		ok, err := c.Next()
		if err != nil || !ok {
			return err
		}
		row(c)
	}
}

// FileMark tells the snapshot store what a file states, before raft starts.
func (s *databases) FileMark(db snapshot.Database) (wire.Mark, uint64, error) {
	d, known := s.Route(db.Incarnation)
	switch {
	case d != nil:
		return d.Mark(), d.Incarnation(), nil
	case known:
		return wire.Mark{}, 0, snapshot.ErrDropped
	}
	return wire.Mark{}, 0, fs.ErrNotExist
}

// RemoveStrays removes database files that the catalogue does not name: of databases
// that were dropped just before a crash. Files of numbers not given yet are kept; the
// log will name them.
func (s *databases) RemoveStrays() error {
	names := map[string]bool{systemFile: true}
	for _, d := range s.All() {
		names[fileName(d.Incarnation())] = true
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if filepath.Ext(name) == ".new" && names[name[:len(name)-4]] {
			continue
		}
		var inc uint64
		base := name[:len(name)-len(filepath.Ext(name))]
		if _, err := fmt.Sscanf(filepath.Ext(base), ".%d", &inc); err != nil || names[name] || filepath.Ext(name) != ".db" || inc > s.highest {
			continue
		}
		for _, suffix := range []string{"-wal", "-shm", ""} {
			_ = os.Remove(filepath.Join(s.dir, name+suffix))
		}
	}
	return durable.SyncDir(s.dir)
}
