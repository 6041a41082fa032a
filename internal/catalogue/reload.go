package catalogue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/engine"
)

// Reload makes the set what the system database now says: it opens what is new and
// closes and removes what was dropped. The log's goroutine calls it after each entry
// of the system database.
func (s *Set) Reload() error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	sys, dir, have := s.sys, s.dir, maps.Clone(s.byInc)
	s.mu.RUnlock()
	return s.loadLocked(sys, dir, have)
}

// loadLocked makes the set what sys says, in one step. have is what is open of it.
func (s *Set) loadLocked(sys *engine.DB, dir string, have map[uint64]*engine.DB) error {
	at := sys.Mark().Index
	cat, err := readContent(sys)
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
	named, err := s.rename(cat, renamed, opened)
	s.publish(cat, sys, dir, opened, at)
	for _, r := range named {
		s.cfg.Replaced(r.former, r.incarnation, r.name, at)
	}
	for inc, d := range have {
		if opened[inc] == nil {
			s.remove(d)
			s.cfg.Dropped(inc)
		}
	}
	return err
}

// rename gives loaded databases their names. All of a load must be applied before any
// of it can be seen; where that fails the former database keeps the name here, until
// the stopped one goes on.
func (s *Set) rename(cat content, renamed []*engine.DB, opened map[uint64]*engine.DB) (named []naming, err error) {
	for _, d := range renamed {
		name := cat.databases[d.Incarnation()]
		if drainErr := d.Drain(context.Background()); drainErr != nil {
			err = errors.Join(err, fmt.Errorf("colmena: database %q was loaded anew, but not on this node: %w", name, drainErr))
			if former := s.Get(name); former != nil {
				opened[former.Incarnation()] = former
			}
			continue
		}
		r := naming{incarnation: d.Incarnation(), name: name}
		if former := s.Get(name); former != nil {
			r.former = former.Incarnation()
		}
		d.Rename(name)
		named = append(named, r)
	}
	return named, err
}

// naming is a database that takes a name, maybe that of another.
type naming struct {
	former, incarnation uint64
	name                string
}

func (s *Set) openOne(dir, name string, inc uint64) (*engine.DB, error) {
	path := filepath.Join(dir, fileName(inc))
	if err := engine.Create(path, name, inc); err != nil {
		return nil, err
	}
	return engine.Open(s.cfg.Engine(name, inc, path))
}

func (s *Set) publish(cat content, sys *engine.DB, dir string, opened map[uint64]*engine.DB, at uint64) {
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
func (s *Set) remove(d *engine.DB) {
	_ = d.Close()
	path := s.path(d)
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.cfg.Warn("a dropped database's file is left behind", "path", path+suffix, "err", err)
		}
	}
}

// RemoveStrays removes database files that the catalogue does not name: of databases
// that were dropped just before a crash. Files of numbers not given yet are kept; the
// log will name them.
func (s *Set) RemoveStrays() error {
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
