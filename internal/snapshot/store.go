package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/wire"
)

// Defaults of Config.
const (
	DefaultRetain    = 2
	DefaultMaxCopies = 4
)

var (
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("snapshot: the store is closed")
	// ErrNoSpace: the file system has less free space than the operation is known to need; nothing was written.
	ErrNoSpace = errors.New("colmena: not enough free disk space for a copy of the databases")
	// ErrAllDamaged: there are snapshots, and not one can be read.
	ErrAllDamaged = errors.New("colmena: every snapshot manifest of this node is damaged, starting without them would lose data: " +
		"restore the snapshots directory, or remove the data directory so that this node gets a fresh copy from its peers")
	// ErrNotRecovered: a received snapshot awaits Recover.
	ErrNotRecovered = errors.New("snapshot: a received snapshot is not installed yet, call Recover first")
)

// Config is what a Store needs. Dir, Generations and Logger are required.
type Config struct {
	// Dir is the directory of the manifests.
	Dir string
	// Generations are the database files.
	Generations *Generations
	// ScratchDir holds the local copies that are being sent. On the same file system as the databases copies are fast. The store removes
	// what a crash left there (names that begin with "copy-").
	ScratchDir string
	// Copier returns nil until the node can make copies.
	Copier func() Copier
	// Fold is called with the main file of each local copy, its WAL beside it, and must leave one complete file.
	Fold func(path string) error
	// Verify opens a received file, checks its integrity quickly, and returns the mark and incarnation the file states itself. It must leave no
	// WAL with content beside the file.
	Verify func(path string) (mark wire.Mark, incarnation uint64, err error)
	// Accept, if not nil, may refuse a received copy by its manifest (another cluster's, say) before a byte of it is stored.
	Accept func(m *Manifest) error
	// Retain is the number of snapshots to keep; 0 is DefaultRetain.
	Retain int
	// MaxCopies is the number of copies that may be out at once, each as large as all databases; 0 is DefaultMaxCopies.
	MaxCopies int
	// Logger gets what has no error to travel in.
	Logger *slog.Logger
}

// Store implements raft.SnapshotStore. Its methods may be called from several goroutines.
type Store struct {
	cfg    Config
	ctx    context.Context // ends with Close: copies being made stop
	cancel context.CancelFunc
	free   func(dir string) (int64, bool) // free space, if it can be known
	now    func() time.Time

	mu        sync.Mutex // orders publishing, reaping and reading of manifests; held over short disk work only
	lastStamp int64      // milliseconds of the newest ID given out
	recovered bool       // Recover has run: staged snapshots are this process's own
	installMu sync.Mutex // one Install or Recover at a time; taken before mu

	copyMu sync.Mutex
	copies int
}

var _ raft.SnapshotStore = (*Store)(nil)

// New opens the store, creating its directories, and removes what a crash left half done: unpublished manifests and local copies. Call
// Recover and CheckFiles before raft.NewRaft.
func New(cfg Config) (*Store, error) {
	var errs []error
	if cfg.Dir == "" {
		errs = append(errs, errors.New("snapshot: Config.Dir is empty"))
	}
	if cfg.Generations == nil {
		errs = append(errs, errors.New("snapshot: Config.Generations is nil"))
	}
	if cfg.Logger == nil {
		errs = append(errs, errors.New("snapshot: Config.Logger is nil"))
	}
	if cfg.Retain < 0 || cfg.MaxCopies < 0 {
		errs = append(errs, errors.New("snapshot: Config.Retain and Config.MaxCopies cannot be negative"))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if cfg.Retain == 0 {
		cfg.Retain = DefaultRetain
	}
	if cfg.MaxCopies == 0 {
		cfg.MaxCopies = DefaultMaxCopies
	}
	if cfg.ScratchDir == "" {
		cfg.ScratchDir = filepath.Join(cfg.Dir, "scratch")
	}
	for _, dir := range []string{cfg.Dir, cfg.ScratchDir} {
		if err := durable.MkdirAllSync(dir, 0o700); err != nil {
			return nil, fmt.Errorf("colmena: snapshots directory: %w", err)
		}
	}
	s := &Store{cfg: cfg, free: freeSpace, now: time.Now}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, errors.Join(removeScratch(cfg.ScratchDir), s.removeUnpublished())
}

// Close ends the copies being made and refuses new ones. Streams that are out stay readable until they are closed.
func (s *Store) Close() error {
	s.cancel()
	return nil
}

// Create begins a snapshot: the manifest of a local one, or the copy stream another node sends. The sink finds out which from the first byte.
func (s *Store) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("snapshot: raft snapshot version %d, only 1 is supported", version)
	}
	if s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	doc := document{RaftVersion: int(version), Index: index, Term: term, ConfigurationIndex: configurationIndex}
	for _, server := range configuration.Servers {
		doc.Servers = append(doc.Servers, docServer{Suffrage: int(server.Suffrage), ID: string(server.ID), Address: string(server.Address)})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := max(s.now().UnixMilli(), s.lastStamp+1)
	for ; ; stamp++ {
		doc.ID = snapshotID(term, index, stamp)
		if _, err := os.Lstat(s.path(doc.ID)); errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	s.lastStamp = stamp
	return &sink{store: s, doc: doc}, nil
}

// List returns the installed snapshots, newest first. Size is that of the manifest; Open says what a stream will have. Manifests that cannot be
// read are left out, with a warning, and kept; if there are only such it is an error, because raft would take an empty list for an empty node.
func (s *Store) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, damaged, err := s.scanLocked()
	if err != nil {
		return nil, err
	}
	var metas []*raft.SnapshotMeta
	for _, e := range found {
		if e.doc.State == stateReference {
			metas = append(metas, e.doc.meta())
		} else if !s.recovered {
			return nil, fmt.Errorf("%w: %s", ErrNotRecovered, e.doc.ID)
		}
	}
	for _, d := range damaged {
		s.cfg.Logger.Warn("snapshot cannot be read and is left alone", "snapshot", d.id, "error", d.err)
	}
	if len(metas) == 0 && len(damaged) > 0 {
		return nil, fmt.Errorf("%w: newest of %d: %w", ErrAllDamaged, len(damaged), damaged[0].err)
	}
	return metas, nil
}

// Open returns the content of a snapshot. For one whose data are the live files it makes a local copy first, so it takes as long as that,
// and streams the copy; Close removes it. For one that was received and not installed yet it is a few bytes that ParseStaged reads.
func (s *Store) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if s.ctx.Err() != nil {
		return nil, nil, ErrClosed
	}
	e, err := s.load(id)
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot: opening %s: %w", id, err)
	}
	meta := e.doc.meta()
	if e.doc.State == stateStaged {
		b := encodeStaged(id)
		meta.Size = int64(len(b))
		return meta, io.NopCloser(bytes.NewReader(b)), nil
	}
	start := s.now()
	r, size, err := s.openCopy(e.manifest.ClusterID)
	if err != nil {
		return nil, nil, err
	}
	meta.Size = size
	s.cfg.Logger.Info("made a copy of the databases for another node", "snapshot", id, "bytes", size, "took", s.now().Sub(start))
	return meta, r, nil
}

// checkSpace refuses what the file system is known not to hold.
func (s *Store) checkSpace(dir string, need int64) error {
	const margin = 1 << 20
	if free, known := s.free(dir); known && free < need+margin {
		return fmt.Errorf("%w: %d bytes are needed in %s, %d are free", ErrNoSpace, need+margin, dir, free)
	}
	return nil
}
