package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/durable"
)

const (
	manifestName = "manifest"
	docKind      = "snapshot"
	docVersion   = 1
	tmpSuffix    = ".tmp"

	stateReference = "reference" // the live files are the snapshot
	stateStaged    = "staged"    // received, verified and synced in a stage; not live yet
)

// document is the content of a snapshot's manifest file.
type document struct {
	ID                 string      `json:"id"`
	State              string      `json:"state"`
	Stage              string      `json:"stage"` // base name, of the stage while staged, and kept afterwards
	RaftVersion        int         `json:"raft_version"`
	Index              uint64      `json:"index"`
	Term               uint64      `json:"term"`
	ConfigurationIndex uint64      `json:"configuration_index"`
	Servers            []docServer `json:"servers"`
	Manifest           []byte      `json:"manifest"`
}

type docServer struct {
	Suffrage int    `json:"suffrage"`
	ID       string `json:"id"`
	Address  string `json:"address"`
}

func (d *document) meta() *raft.SnapshotMeta {
	m := &raft.SnapshotMeta{
		Version: raft.SnapshotVersion(d.RaftVersion), ID: d.ID, Index: d.Index, Term: d.Term,
		ConfigurationIndex: d.ConfigurationIndex, Size: int64(len(d.Manifest)),
	}
	for _, server := range d.Servers {
		m.Configuration.Servers = append(m.Configuration.Servers, raft.Server{
			Suffrage: raft.ServerSuffrage(server.Suffrage), ID: raft.ServerID(server.ID), Address: raft.ServerAddress(server.Address),
		})
	}
	return m
}

// entry is a manifest that was read.
type entry struct {
	doc      document
	manifest *Manifest
	key      snapshotKey
}

// unreadable is a manifest that was not.
type unreadable struct {
	id  string
	key snapshotKey
	err error
}

// snapshotKey orders snapshots; it is what the ID says.
type snapshotKey struct {
	term, index uint64
	stamp       int64
}

func (k snapshotKey) compare(o snapshotKey) int {
	return cmp.Or(cmp.Compare(k.term, o.term), cmp.Compare(k.index, o.index), cmp.Compare(k.stamp, o.stamp))
}

func snapshotID(term, index uint64, stamp int64) string {
	return fmt.Sprintf("%d-%d-%d", term, index, stamp)
}

// parseID is the inverse of snapshotID; other spellings are no IDs, so an ID never leads out of the directory.
func parseID(id string) (k snapshotKey, ok bool) {
	parts := strings.Split(id, "-")
	if len(parts) != 3 {
		return k, false
	}
	var errs [3]error
	k.term, errs[0] = strconv.ParseUint(parts[0], 10, 64)
	k.index, errs[1] = strconv.ParseUint(parts[1], 10, 64)
	k.stamp, errs[2] = strconv.ParseInt(parts[2], 10, 64)
	return k, errors.Join(errs[:]...) == nil && snapshotID(k.term, k.index, k.stamp) == id
}

func (s *Store) path(id string) string { return filepath.Join(s.cfg.Dir, id) }

// load reads one published manifest.
func (s *Store) load(id string) (*entry, error) {
	key, ok := parseID(id)
	if !ok {
		return nil, fmt.Errorf("%q is no snapshot ID", id)
	}
	e := &entry{key: key}
	if err := durable.LoadDoc(filepath.Join(s.path(id), manifestName), docKind, docVersion, &e.doc); err != nil {
		return nil, err
	}
	d := &e.doc
	switch {
	case d.ID != id || d.Term != key.term || d.Index != key.index:
		return nil, fmt.Errorf("%w: the manifest belongs to snapshot %q", ErrDamaged, d.ID)
	case d.State != stateReference && d.State != stateStaged || d.RaftVersion != 1:
		return nil, fmt.Errorf("%w: state %q, raft version %d", ErrDamaged, d.State, d.RaftVersion)
	case d.State == stateStaged && (!strings.HasPrefix(d.Stage, readyPrefix) || filepath.Base(d.Stage) != d.Stage):
		return nil, fmt.Errorf("%w: the manifest names %q as its stage", ErrDamaged, d.Stage)
	}
	var err error
	e.manifest, err = DecodeManifest(d.Manifest)
	return e, err
}

// scanLocked reads all published manifests, newest first, and names those it could not read, newest first too.
func (s *Store) scanLocked() (found []*entry, damaged []unreadable, err error) {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	for _, de := range entries {
		key, ok := parseID(de.Name())
		if !ok {
			continue
		}
		e, err := s.load(de.Name())
		if err != nil {
			damaged = append(damaged, unreadable{id: de.Name(), key: key, err: err})
			continue
		}
		found = append(found, e)
	}
	slices.SortFunc(found, func(a, b *entry) int { return b.key.compare(a.key) })
	slices.SortFunc(damaged, func(a, b unreadable) int { return b.key.compare(a.key) })
	return found, damaged, nil
}

// publishLocked makes a snapshot exist: whole, durable and at once.
func (s *Store) publishLocked(doc *document) (err error) {
	final, temp := s.path(doc.ID), s.path(doc.ID)+tmpSuffix
	defer func() {
		if err != nil {
			// Neither name may survive a failure: the caller gives up what the manifest speaks of.
			err = errors.Join(err, os.RemoveAll(temp), os.RemoveAll(final))
		}
	}()
	if err := durable.MkdirAllSync(temp, 0o700); err != nil {
		return err
	}
	if err := durable.SaveDoc(filepath.Join(temp, manifestName), docKind, docVersion, doc); err != nil {
		return err
	}
	durable.CrashPoint("snapshot.publish.before-rename")
	if err := durable.Rename(temp, final); err != nil {
		return err
	}
	durable.CrashPoint("snapshot.publish.after-rename")
	return nil
}

// unpublishLocked makes a snapshot cease to exist at once, then removes its directory.
func (s *Store) unpublishLocked(id string) error {
	temp := s.path(id) + tmpSuffix
	if err := durable.Rename(s.path(id), temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.RemoveAllSync(temp)
}

// markReferenceLocked records that a staged snapshot's files are live.
func (s *Store) markReferenceLocked(e *entry) error {
	doc := e.doc
	doc.State = stateReference
	if err := durable.SaveDoc(filepath.Join(s.path(doc.ID), manifestName), docKind, docVersion, &doc); err != nil {
		return err
	}
	e.doc = doc
	durable.CrashPoint("install.reference")
	return nil
}

// reapLocked removes the oldest snapshots beyond the number to retain. Staged ones and those that cannot be read do not count and stay. What
// cannot be removed is tried again after the next snapshot.
func (s *Store) reapLocked() {
	found, _, err := s.scanLocked()
	if err != nil {
		s.cfg.Logger.Warn("old snapshots were not removed", "error", err)
		return
	}
	kept := 0
	for _, e := range found {
		if e.doc.State != stateReference {
			continue
		}
		if kept++; kept <= s.cfg.Retain {
			continue
		}
		durable.CrashPoint("snapshot.reap")
		if err := s.unpublishLocked(e.doc.ID); err != nil {
			s.cfg.Logger.Warn("an old snapshot was not removed", "snapshot", e.doc.ID, "error", err)
		}
	}
}

// removeUnpublished removes what a crash left of publishing and unpublishing.
func (s *Store) removeUnpublished() error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		id, isTemp := strings.CutSuffix(e.Name(), tmpSuffix)
		_, isID := parseID(id)
		switch {
		case isTemp && isID:
			errs = append(errs, durable.RemoveAllSync(s.path(e.Name())))
		case isID && e.IsDir():
			errs = append(errs, durable.RemoveTemps(s.path(e.Name())))
		}
	}
	return errors.Join(errs...)
}
