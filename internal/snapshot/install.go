package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mentasystems/colmena/internal/wire"
)

const (
	kindStaged     = 'S'
	stagedVersion  = 1
	maxStagedBytes = 128
)

var (
	// ErrNotStaged: FSM.Restore was given something else than a received snapshot.
	ErrNotStaged = errors.New("snapshot: not a received snapshot")
	// ErrDropped is what CheckFiles's callback returns for a database that was dropped after the snapshot.
	ErrDropped = errors.New("snapshot: the database was dropped")
)

// StaleFilesError: a database file does not hold what the newest snapshot says it does, and the log no longer does either. Starting would lose
// acknowledged writes silently, so the start is refused.
type StaleFilesError struct {
	Snapshot         string
	Database         string
	Missing          bool // there is no file
	Has, Needs       wire.Mark
	HasIncarnation   uint64
	NeedsIncarnation uint64
}

func (e *StaleFilesError) Error() string {
	has := fmt.Sprintf("its file is at %s (incarnation %d)", markText(e.Has), e.HasIncarnation)
	if e.Missing {
		has = "its file is missing"
	}
	return fmt.Sprintf("colmena: database %q: %s, but snapshot %s needs it at %s (incarnation %d) or later: the files are older than the snapshot; "+
		"restore them, or remove the data directory so that this node gets a fresh copy from its peers",
		e.Database, has, e.Snapshot, markText(e.Needs), e.NeedsIncarnation)
}

func markText(m wire.Mark) string { return fmt.Sprintf("%d/%d", m.Term, m.Index) }

// encodeStaged is the content of a staged snapshot as raft hands it to FSM.Restore: its ID.
func encodeStaged(id string) []byte {
	b := append([]byte{kindStaged, stagedVersion, byte(len(id))}, id...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// ParseStaged reads what FSM.Restore is given for a received snapshot and returns the ID for Install.
func ParseStaged(r io.Reader) (id string, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxStagedBytes+1))
	if err != nil {
		return "", err
	}
	if len(b) < 7 || len(b) > maxStagedBytes || b[0] != kindStaged {
		return "", ErrNotStaged
	}
	if b[1] != stagedVersion {
		return "", fmt.Errorf("%w: staged snapshot version %d", ErrVersion, b[1])
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum || int(b[2]) != len(body)-3 {
		return "", fmt.Errorf("%w: staged snapshot", ErrDamaged)
	}
	id = string(body[3:])
	if _, ok := parseID(id); !ok {
		return "", fmt.Errorf("%w: %q is no snapshot ID", ErrDamaged, id)
	}
	return id, nil
}

// Install makes a received snapshot the state of this node: it closes the engines, switches to the new generation, records that, and opens the engines
// there. If the switch fails the engines are opened in the old generation and the snapshot is given up, so the node is as it was; after
// ErrPointerUnsure, and if closing failed, they stay closed.
func (s *Store) Install(id string, closeEngines func() error, openEngines func(dir string) error) error {
	s.installMu.Lock()
	defer s.installMu.Unlock()
	g := s.cfg.Generations
	e, err := s.load(id)
	if err != nil {
		return fmt.Errorf("snapshot: installing %s: %w", id, err)
	}
	if e.doc.State != stateStaged {
		return fmt.Errorf("%w: %s is installed already", ErrNotStaged, id)
	}
	stage := filepath.Join(g.dir, e.doc.Stage)
	committed := g.committedFrom() == e.doc.Stage
	if !committed { // all that can be known to fail comes before the engines are closed
		if err := checkStageFiles(stage, e.manifest); err != nil {
			return fmt.Errorf("snapshot: installing %s: %w", id, err)
		}
	}
	if err := closeEngines(); err != nil {
		return fmt.Errorf("snapshot: installing %s: closing the databases: %w", id, err)
	}
	if !committed {
		if err := g.Commit(stage); err != nil {
			err = fmt.Errorf("snapshot: installing %s: %w", id, err)
			if errors.Is(err, ErrPointerUnsure) {
				return err
			}
			s.mu.Lock()
			s.giveUpLocked(e)
			s.mu.Unlock()
			return errors.Join(err, openEngines(g.Current()))
		}
	}
	s.mu.Lock()
	err = s.markReferenceLocked(e)
	s.mu.Unlock()
	// The new generation is live whether or not that could be recorded: the pointer says so, and Recover reads it there.
	if err = errors.Join(err, openEngines(g.Current())); err != nil {
		return fmt.Errorf("snapshot: installing %s: %w", id, err)
	}
	s.afterInstall()
	s.cfg.Logger.Info("installed a received snapshot", "snapshot", id, "generation", filepath.Base(g.Current()))
	return nil
}

// afterInstall frees what the installed snapshot made superfluous. Failures cost disk space only and are met again at the next start.
func (s *Store) afterInstall() {
	if err := s.cfg.Generations.Collect(); err != nil {
		s.cfg.Logger.Warn("the database files of the former generation were not removed", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reapLocked()
}

// Recover finishes or undoes an installation that a crash cut short. Call it before raft.NewRaft and before any engine is opened. Of the received
// snapshots that are not live yet the newest becomes live if it is the newest of all and its stage is whole; the others are given up,
// with which the state is that of the newest snapshot before.
func (s *Store) Recover() error {
	s.installMu.Lock()
	defer s.installMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	found, damaged, err := s.scanLocked()
	if err != nil {
		return err
	}
	live := s.cfg.Generations.committedFrom()
	for i, e := range found {
		if e.doc.State != stateStaged {
			continue
		}
		commit := i == 0
		if e.doc.Stage != live && commit {
			stage := filepath.Join(s.cfg.Generations.dir, e.doc.Stage)
			if err := s.verifyStage(stage, e.manifest); err != nil {
				s.cfg.Logger.Warn("a received snapshot is incomplete and is given up", "snapshot", e.doc.ID, "error", err)
				commit = false
			} else if err := s.cfg.Generations.Commit(stage); err != nil {
				return fmt.Errorf("colmena: finishing the installation of snapshot %s: %w", e.doc.ID, err)
			}
		}
		if commit || e.doc.Stage == live {
			if err := s.markReferenceLocked(e); err != nil {
				return fmt.Errorf("colmena: finishing the installation of snapshot %s: %w", e.doc.ID, err)
			}
			s.cfg.Logger.Info("finished the installation of a received snapshot", "snapshot", e.doc.ID)
			continue
		}
		if err := s.giveUpLocked(e); err != nil {
			return fmt.Errorf("colmena: giving up the received snapshot %s: %w", e.doc.ID, err)
		}
	}
	if err := s.cfg.Generations.Collect(); err != nil {
		return err
	}
	s.recovered = true
	if len(damaged) > 0 {
		return nil // one of them may speak of a stage
	}
	return s.cfg.Generations.sweepReady(func(string) bool { return false })
}

// giveUpLocked removes a staged snapshot, manifest first, so that no manifest speaks of a stage that is gone.
func (s *Store) giveUpLocked(e *entry) error {
	err := s.unpublishLocked(e.doc.ID)
	if err == nil {
		err = s.cfg.Generations.discard(filepath.Join(s.cfg.Generations.dir, e.doc.Stage))
	}
	if err != nil {
		s.cfg.Logger.Warn("a received snapshot that is given up was not removed", "snapshot", e.doc.ID, "error", err)
	}
	return err
}

// discardStagedLocked gives up the staged snapshots other than keep. One whose files are live is kept.
func (s *Store) discardStagedLocked(keep string) {
	found, _, err := s.scanLocked()
	if err != nil {
		s.cfg.Logger.Warn("received snapshots were not looked through", "error", err)
		return
	}
	live := s.cfg.Generations.committedFrom()
	for _, e := range found {
		if e.doc.State != stateStaged || e.doc.ID == keep {
			continue
		}
		if e.doc.Stage == live {
			if err := s.markReferenceLocked(e); err != nil {
				s.cfg.Logger.Warn("an installed snapshot was not recorded as such", "snapshot", e.doc.ID, "error", err)
			}
			continue
		}
		_ = s.giveUpLocked(e) // logs itself; Recover meets it again
	}
}

// noneStagedLocked holds that nothing waits for Recover.
func (s *Store) noneStagedLocked() error {
	found, _, err := s.scanLocked()
	if err != nil {
		return err
	}
	for _, e := range found {
		if e.doc.State == stateStaged {
			return fmt.Errorf("%w: %s", ErrNotRecovered, e.doc.ID)
		}
	}
	return nil
}

// verifyStage checks a received copy: the files the manifest names, no others, each sound and at or past the mark of the manifest.
func (s *Store) verifyStage(stage string, m *Manifest) error {
	if s.cfg.Verify == nil {
		return errors.New("snapshot: this store cannot verify copies")
	}
	for _, d := range m.Databases {
		path := filepath.Join(stage, d.File)
		if _, err := os.Stat(path); err != nil {
			return err
		}
		mark, incarnation, err := s.cfg.Verify(path)
		if err != nil {
			return fmt.Errorf("the copy of database %q: %w", d.Name, err)
		}
		if !reaches(mark, d.Mark) || incarnation != d.Incarnation {
			return fmt.Errorf("%w: the copy of database %q is at %s (incarnation %d), its manifest says %s (incarnation %d)",
				ErrDamaged, d.Name, markText(mark), incarnation, markText(d.Mark), d.Incarnation)
		}
		if err := removeSidecars(path); err != nil {
			return err
		}
	}
	return checkStageFiles(stage, m)
}

// checkStageFiles checks that a stage holds the manifest's files and nothing else.
func checkStageFiles(stage string, m *Manifest) error {
	entries, err := os.ReadDir(stage)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Name()] = e.Type().IsRegular()
	}
	for _, d := range m.Databases {
		if !there[d.File] {
			return fmt.Errorf("%w: %s is missing in %s", ErrDamaged, d.File, stage)
		}
		delete(there, d.File)
	}
	for name := range there {
		return fmt.Errorf("%w: %s does not belong in %s", ErrDamaged, name, stage)
	}
	return nil
}

// CheckFiles holds every database of the newest snapshot against its file, of which mark returns what it states itself: the mark and the incarnation.
// It returns ErrDropped for a database that was dropped since, and fs.ErrNotExist for a missing file. A file that is behind is a *StaleFilesError. Call it
// after Recover and before raft.NewRaft; with no snapshot at all there is nothing to check.
func (s *Store) CheckFiles(mark func(db Database) (wire.Mark, uint64, error)) error {
	e, _, err := s.newest()
	if err != nil || e == nil {
		return err
	}
	for _, d := range e.manifest.Databases {
		has, incarnation, err := mark(d)
		if errors.Is(err, ErrDropped) {
			continue
		}
		stale := &StaleFilesError{Snapshot: e.doc.ID, Database: d.Name, Has: has, Needs: d.Mark, HasIncarnation: incarnation, NeedsIncarnation: d.Incarnation}
		if errors.Is(err, fs.ErrNotExist) {
			stale.Missing = true
			return stale
		}
		if err != nil {
			return fmt.Errorf("colmena: database %q: its file cannot be read: %w", d.Name, err)
		}
		if incarnation != d.Incarnation || !reaches(has, d.Mark) {
			return stale
		}
	}
	return nil
}

// reaches reports whether a file at has holds the entry at needs: not before it, and not of a history in which that index had another term.
func reaches(has, needs wire.Mark) bool {
	if has.Index == needs.Index {
		return has.Term == needs.Term
	}
	return has.Index > needs.Index && has.Term >= needs.Term
}

// CheckLog refuses to start over a gap: first and last are the log's first and last index, 0 if it is empty. The log must continue at the newest snapshot, and where a
// newer snapshot exists that cannot be read, it must still hold everything up to that one. Call it after Recover.
func (s *Store) CheckLog(first, last uint64) error {
	e, damaged, err := s.newest()
	if err != nil {
		return err
	}
	var id string
	var index uint64
	if e != nil {
		id, index = e.doc.ID, e.doc.Index
	}
	if last > 0 && first > index+1 {
		return fmt.Errorf("colmena: the log begins at index %d, but the newest readable snapshot (%q) ends at %d: what lies between is lost on this node: "+
			"remove its data directory so that it gets a fresh copy from its peers", first, id, index)
	}
	for _, d := range damaged {
		if d.key.index > max(index, last) {
			return fmt.Errorf("colmena: snapshot %s cannot be read (%w) and the log ends at index %d already: this node has forgotten entries: "+
				"remove its data directory so that it gets a fresh copy from its peers", d.id, d.err, last)
		}
	}
	return nil
}

// newest is the newest installed snapshot, or nil if there is none at all.
func (s *Store) newest() (*entry, []unreadable, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, damaged, err := s.scanLocked()
	if err != nil {
		return nil, nil, err
	}
	for _, e := range found {
		if e.doc.State == stateReference {
			return e, damaged, nil
		}
		if !s.recovered {
			return nil, nil, fmt.Errorf("%w: %s", ErrNotRecovered, e.doc.ID)
		}
	}
	if len(damaged) > 0 {
		return nil, nil, fmt.Errorf("%w: newest of %d: %w", ErrAllDamaged, len(damaged), damaged[0].err)
	}
	return nil, nil, nil
}
