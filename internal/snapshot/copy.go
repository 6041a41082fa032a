package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/mentasystems/colmena/internal/durable"
)

// Copier is what the store needs from the node to build a full copy for another node.
type Copier interface {
	// Pin freezes all databases, the catalogue included, at one instant for copying. Writers go on.
	Pin(ctx context.Context) (Pinned, error)
}

// Pinned is a frozen view of all databases. It is released as soon as the local copy is made, because the WAL cannot be reset while it is held.
type Pinned interface {
	// Files lists one file per database, each with the mark it has at the pinned instant.
	Files() []PinnedFile
	// Release ends the pin. It may be called more than once.
	Release()
}

// PinnedFile is a page-faithful view of one database: its main file and the WAL up to the pinned frame.
type PinnedFile struct {
	Database Database
	Parts    []Part
}

// Part is one file of a PinnedFile.
type Part struct {
	// Suffix is "" for the main file and "-wal" for the WAL.
	Suffix string
	// Size is the number of bytes Copy writes.
	Size int64
	// Copy writes the part to dst from its beginning: a fast local copy.
	Copy func(ctx context.Context, dst *os.File) error
}

const copyPrefix = "copy-"

// copyReader is what Open returns for a snapshot whose data are the live files: a stream of a local copy. Close removes the copy.
type copyReader struct {
	*streamReader
	store *Store
	dir   string
	once  sync.Once
	err   error
}

func (r *copyReader) Close() error {
	r.once.Do(func() {
		errs := []error{}
		for _, f := range r.files {
			errs = append(errs, f.Close())
		}
		errs = append(errs, os.RemoveAll(r.dir))
		r.err = errors.Join(errs...)
		r.store.copyDone()
	})
	return r.err
}

// openCopy builds the local copy and returns its stream and the stream's exact size.
func (s *Store) openCopy(clusterID string) (_ io.ReadCloser, size int64, err error) {
	var copier Copier
	if s.cfg.Copier != nil {
		copier = s.cfg.Copier()
	}
	if copier == nil {
		return nil, 0, errors.New("snapshot: the node is not running, there is nothing to copy from")
	}
	if err := s.copyBegin(); err != nil {
		return nil, 0, err
	}
	r := &copyReader{store: s}
	defer func() {
		if err != nil {
			if r.streamReader == nil {
				r.streamReader = &streamReader{}
			}
			err = errors.Join(err, r.Close())
		}
	}()
	if r.dir, err = os.MkdirTemp(s.cfg.ScratchDir, copyPrefix); err != nil {
		return nil, 0, err
	}
	m, err := s.copyPinned(copier, clusterID, r.dir)
	if err != nil {
		return nil, 0, err
	}
	r.streamReader = &streamReader{}
	var sizes []int64
	for _, d := range m.Databases {
		f, n, err := s.fold(filepath.Join(r.dir, d.File))
		if err != nil {
			return nil, 0, fmt.Errorf("snapshot: copy of database %q: %w", d.Name, err)
		}
		r.files, sizes = append(r.files, f), append(sizes, n)
	}
	r.streamReader, size = newStreamReader(m.Encode(), r.files, sizes)
	return r, size, nil
}

// copyPinned copies every part into dir while the files are pinned, and nothing else happens under the pin.
func (s *Store) copyPinned(copier Copier, clusterID, dir string) (*Manifest, error) {
	pinned, err := copier.Pin(s.ctx)
	if err != nil {
		return nil, fmt.Errorf("snapshot: freezing the databases for a copy: %w", err)
	}
	defer pinned.Release()
	files := pinned.Files()
	m := &Manifest{ClusterID: clusterID}
	var total int64
	for _, f := range files {
		m.Databases = append(m.Databases, f.Database)
		for _, p := range f.Parts {
			total += p.Size
			if p.Suffix != "" {
				total += p.Size // folding writes it once more
			}
		}
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	if err := s.checkSpace(s.cfg.ScratchDir, total); err != nil {
		return nil, err
	}
	for _, f := range files {
		if len(f.Parts) == 0 {
			return nil, fmt.Errorf("snapshot: database %q has no file to copy", f.Database.Name)
		}
		for _, p := range f.Parts {
			if err := s.copyPart(filepath.Join(dir, f.Database.File), p); err != nil {
				return nil, fmt.Errorf("snapshot: copying database %q: %w", f.Database.Name, err)
			}
		}
	}
	return m, nil
}

func (s *Store) copyPart(path string, p Part) error {
	if p.Suffix != "" && p.Suffix != "-wal" {
		return fmt.Errorf("a part with the suffix %q is unknown", p.Suffix)
	}
	path += p.Suffix
	if err := durable.Fault(durable.OpCopy, path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.Copy(s.ctx, f); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != p.Size {
		return fmt.Errorf("%d bytes were copied, %d were expected", info.Size(), p.Size)
	}
	return f.Close()
}

// fold makes one file of a copied database and opens it.
func (s *Store) fold(path string) (*os.File, int64, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, 0, err
	}
	if s.cfg.Fold != nil {
		if err := s.cfg.Fold(path); err != nil {
			return nil, 0, fmt.Errorf("folding the WAL in: %w", err)
		}
	}
	if err := removeSidecars(path); err != nil {
		return nil, 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// removeSidecars removes what SQLite left beside a closed file. A WAL or a journal that still holds something is an error: the
// main file alone would not be the database.
func removeSidecars(path string) error {
	for _, suffix := range sidecars {
		info, err := os.Stat(path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if suffix != "-shm" && info.Size() > 0 {
			return fmt.Errorf("snapshot: %s still holds %d bytes beside a file that should be complete", path+suffix, info.Size())
		}
		if err := os.Remove(path + suffix); err != nil {
			return err
		}
	}
	return nil
}

// copyBegin counts a copy, of which there may be MaxCopies at once.
func (s *Store) copyBegin() error {
	s.copyMu.Lock()
	defer s.copyMu.Unlock()
	if err := s.ctx.Err(); err != nil {
		return ErrClosed
	}
	if s.copies >= s.cfg.MaxCopies {
		return fmt.Errorf("snapshot: %d copies for other nodes are out already: this one is made when one of them is through", s.copies)
	}
	s.copies++
	return nil
}

func (s *Store) copyDone() {
	s.copyMu.Lock()
	defer s.copyMu.Unlock()
	s.copies--
}

// Sending is the number of copies being made or sent. While there are any the log should not be truncated (FSM.Snapshot should return an error),
// or a follower may find, when its copy is installed, that the entries after it are gone.
func (s *Store) Sending() int {
	s.copyMu.Lock()
	defer s.copyMu.Unlock()
	return s.copies
}

// removeScratch removes the copies that a crash left behind.
func removeScratch(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), copyPrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
