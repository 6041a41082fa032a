// Package logstore keeps Raft's log and its stable values (term and vote) in one bolt file, behind raft.LogStore and
// raft.StableStore. It is hashicorp's raft-boltdb, in its own encoding, with what a node that embeds it needs around it: the file is
// checked before it is mapped, every entry and value carries a checksum, a failed write is final, a store belongs to one node, and
// no error in here takes the application's process down.
package logstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/mentasystems/colmena/internal/durable"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Defaults of Config.
const (
	CacheEntriesDefault  = 512
	CacheBytesDefault    = 64 << 20
	MaxEntryBytesDefault = 64 << 20
	StallAfterDefault    = time.Second
)

const (
	fileMode = 0o600

	// lockTimeout is how long opening waits for the process that holds the file.
	lockTimeout = time.Second

	// initialMap is address space, not memory: as long as the file is smaller, growing it never has to wait for readers.
	initialMap = 256 << 20

	// deleteChunk is how many entries of the log's head one transaction removes, so that appends get their turn in between.
	deleteChunk = 4096

	// wedgedTimeout bounds closing after a transaction that ended in a panic.
	wedgedTimeout = 2 * time.Second

	maxStableKey   = 1 << 10
	maxStableValue = 1 << 20
)

// storeIDKey is where the store keeps whose it is.
var storeIDKey = []byte("colmena/store-id")

// Config describes a store.
type Config struct {
	// Path is the bolt file. Its directory must exist. If the file does not, an empty store is made.
	Path string
	// StoreID names the node incarnation the store belongs to. It is written into a store that has none; a store with another
	// one is refused (ErrForeign). Empty: anyone's store is accepted and none is marked.
	StoreID string
	// CacheEntries is how many of the newest entries are kept in memory. 0 is CacheEntriesDefault, negative none.
	CacheEntries int
	// CacheBytes bounds the data of the cached entries. 0 is CacheBytesDefault, negative unbounded.
	CacheBytes int64
	// NoSync leaves out every fsync. After a power cut the file may be damaged beyond use: for tests only.
	NoSync bool
	// MaxEntryBytes bounds data and extensions of one entry; a larger one is refused (ErrTooLarge). 0 is MaxEntryBytesDefault, negative unbounded.
	MaxEntryBytes int
	// Logger is told what the store repairs and why it stops working. nil: nobody is.
	Logger *slog.Logger
	// Stall is called when a write has run for longer than StallAfter, with the time it has run so far, and with 0 when no write is late
	// any more. It must not block and must not call the store. nil: nobody is told.
	Stall func(d time.Duration)
	// StallAfter: 0 is StallAfterDefault, negative off.
	StallAfter time.Duration
	// Fatal is called once, with the first error after which the store takes no further writes or after which raft cannot go on. It runs on the
	// goroutine that met the error, often raft's main one: it must not wait for anything, raft.Shutdown().Error() least of all. nil: nobody is told.
	Fatal func(err error)
}

func (c Config) withDefaults() Config {
	if c.CacheEntries == 0 {
		c.CacheEntries = CacheEntriesDefault
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = CacheBytesDefault
	}
	if c.MaxEntryBytes == 0 {
		c.MaxEntryBytes = MaxEntryBytesDefault
	}
	if c.StallAfter == 0 {
		c.StallAfter = StallAfterDefault
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Store is a log store and stable store in one file. Its methods may be called from several goroutines at once and return errors as any
// others do; raft itself is handed Log and Stable, because it answers some errors with a panic.
type Store struct {
	cfg   Config
	bolt  *raftboltdb.BoltStore
	cache *cache
	watch *watchdog
	file  *os.File // bolt's own handle, for reading by position only

	fatalOnce sync.Once
	failure   atomic.Pointer[error] // the error that ended all writing, nil while there is none
	ended     atomic.Pointer[error] // the first error that ended one of raft's goroutines

	// write serialises transactions, so that failure is decided before the next one begins. Guards closed and wedged.
	write  sync.Mutex
	closed bool
	wedged bool // a transaction ended in a panic: bolt may hold its lock for ever
}

// Open checks the file and opens it. A file that is damaged, or is no store at all, is a *DamagedError; one that is in use is ErrLocked; one
// of another node is ErrForeign. An existing file is never taken for a new store, however empty it is: an empty log store is a forgotten vote.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if cfg.Path == "" {
		return nil, errors.New("logstore: Config.Path is empty")
	}
	_, err := os.Stat(cfg.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := create(cfg); err != nil {
			return nil, fmt.Errorf("colmena: creating the log store %s: %w", cfg.Path, err)
		}
	case err != nil:
		return nil, fmt.Errorf("colmena: opening the log store: %w", err)
	}
	layout, err := checkLocked(cfg.Path)
	if err != nil {
		return nil, err
	}
	unsynced, err := rewriteUnsynced(cfg)
	if err != nil {
		return nil, err
	}
	s, err := openBolt(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.admit(layout.stable, unsynced); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// create makes an empty store beside its place and moves it there, so that what stands at Path is always complete.
func create(cfg Config) error {
	temp := cfg.Path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	first := cfg
	first.Path, first.Fatal, first.Stall = temp, nil, nil
	s, err := openBolt(first)
	if err != nil {
		return err
	}
	if cfg.StoreID != "" {
		err = s.Set(storeIDKey, []byte(cfg.StoreID))
	}
	if err := errors.Join(err, s.Close()); err != nil {
		os.Remove(temp)
		os.Remove(temp + unsyncedSuffix)
		return err
	}
	durable.CrashPoint("logstore.create")
	return durable.Rename(temp, cfg.Path)
}

// openBolt maps the file, which has been checked or is new.
func openBolt(cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, watch: newWatchdog(cfg.Stall, cfg.StallAfter), cache: newCache(cfg.CacheEntries, cfg.CacheBytes)}
	options := &bbolt.Options{
		Timeout:        lockTimeout,
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		NoSync:         cfg.NoSync,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, perm)
			s.file = f
			return f, err
		},
	}
	if runtime.GOOS != "windows" && strconv.IntSize == 64 { // Windows would make the file that big
		options.InitialMmapSize = initialMap
	}
	err := contained(cfg.Path, func() (err error) {
		s.bolt, err = raftboltdb.New(raftboltdb.Options{Path: cfg.Path, BoltOptions: options, NoSync: cfg.NoSync})
		return err
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, lockedError(cfg.Path)
	case err != nil:
		return nil, fmt.Errorf("colmena: opening the log store %s: %w", cfg.Path, err)
	}
	return s, nil
}

// admit is the look at the content: stable values (few, all of them), whose store it is, first and last entry. After a rewrite the
// whole log is read.
func (s *Store) admit(stable [][]byte, whole bool) error {
	if err := s.checkStable(stable); err != nil {
		return err
	}
	if s.cfg.StoreID != "" {
		if err := s.adopt(); err != nil {
			return err
		}
	}
	if whole {
		return s.Verify(context.Background())
	}
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, _, err := s.LastEntry()
	if err != nil || first == 0 || first == last {
		return err
	}
	var entry raft.Log
	return s.GetLog(first, &entry)
}

// adopt compares the store's ID with the one that is expected, and writes it if there is none.
func (s *Store) adopt() error {
	id, err := s.StoreID()
	switch {
	case err != nil:
		return err
	case id == "":
		return s.Set(storeIDKey, []byte(s.cfg.StoreID))
	case id != s.cfg.StoreID:
		return fmt.Errorf("%w: %s belongs to store %q, this node is %q: put back its own file, or let it join with an empty directory",
			ErrForeign, s.cfg.Path, id, s.cfg.StoreID)
	}
	return nil
}

// StoreID returns whose store it is, "" if it has not been marked.
func (s *Store) StoreID() (string, error) {
	id, err := s.Get(storeIDKey)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return "", nil
	}
	return string(id), err
}

// Failure returns the error after which the store takes no more writes, nil if there was none.
func (s *Store) Failure() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Close lets the file go. raft must be shut down before, or its next call fails. Calling it again is allowed.
func (s *Store) Close() error {
	s.write.Lock()
	defer s.write.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if !s.wedged {
		return contained(s.cfg.Path, s.bolt.Close)
	}
	// The transaction that ended in a panic may hold bolt's lock for ever, and bolt's Close wait for it.
	done := make(chan error, 1)
	go func() { done <- contained(s.cfg.Path, s.bolt.Close) }()
	timer := time.NewTimer(wedgedTimeout)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("colmena: log store %s: a write ended in a panic and the file stays open until the process ends", s.cfg.Path)
	}
}

// read runs one of bolt's reading transactions.
func (s *Store) read(fn func() error) error {
	err := contained(s.cfg.Path, fn)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return errClosed(s.cfg.Path)
	}
	return err
}

// FirstIndex implements raft.LogStore.
func (s *Store) FirstIndex() (index uint64, err error) {
	err = s.read(func() (err error) { index, err = s.bolt.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore.
func (s *Store) LastIndex() (index uint64, err error) {
	err = s.read(func() (err error) { index, err = s.bolt.LastIndex(); return err })
	return index, err
}

// LastEntry returns index and term of the last entry, zeros if there is none.
func (s *Store) LastEntry() (index, term uint64, err error) {
	index, err = s.LastIndex()
	if err != nil || index == 0 {
		return 0, 0, err
	}
	var entry raft.Log
	if err := s.GetLog(index, &entry); err != nil {
		return 0, 0, err
	}
	return index, entry.Term, nil
}

// GetLog implements raft.LogStore. An entry that is not there is raft.ErrLogNotFound, one that is not what was stored a *DamagedError.
func (s *Store) GetLog(index uint64, entry *raft.Log) error {
	if s.cache.get(index, entry) {
		return nil
	}
	return s.readLog(index, entry)
}

// readLog is GetLog past the cache.
func (s *Store) readLog(index uint64, entry *raft.Log) error {
	var stored raft.Log
	err := s.read(func() error { return s.bolt.GetLog(index, &stored) })
	switch {
	case errors.Is(err, raft.ErrLogNotFound), errors.Is(err, ErrClosed), isDamaged(err):
		return err
	case err != nil: // it is there and cannot be decoded
		return &DamagedError{Path: s.cfg.Path, Reason: fmt.Sprintf("entry %d cannot be decoded: %v", index, err)}
	}
	if err := unsealEntry(index, &stored); err != nil {
		return &DamagedError{Path: s.cfg.Path, Reason: err.Error()}
	}
	*entry = stored
	return nil
}

// StoreLog implements raft.LogStore.
func (s *Store) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore: all entries in one transaction, on disk when it returns nil. After an error they may be there or not. The entries
// must not be changed afterwards, the cache keeps them.
func (s *Store) StoreLogs(entries []*raft.Log) error {
	sealed := make([]*raft.Log, len(entries))
	for i, entry := range entries {
		if size := len(entry.Data) + len(entry.Extensions); s.cfg.MaxEntryBytes > 0 && size > s.cfg.MaxEntryBytes {
			return fmt.Errorf("%w: entry %d has %d bytes, at most %d are stored", ErrTooLarge, entry.Index, size, s.cfg.MaxEntryBytes)
		}
		sealed[i] = sealEntry(entry)
	}
	durable.CrashPoint("logstore.append.before")
	err := s.transact("append", func() error { return s.bolt.StoreLogs(sealed) }, func() { s.cache.add(entries) })
	durable.CrashPoint("logstore.append.after")
	return err
}

// DeleteRange implements raft.LogStore for what raft does with it: cutting the log's head (compaction) or its tail (a conflict). A range
// in the middle is refused. The head goes in several transactions, so that appends are not held up; a crash in between leaves a shorter
// cut, which raft makes again. Its cost is that of the entries removed, not of the file.
func (s *Store) DeleteRange(low, high uint64) error {
	first, err := s.FirstIndex()
	if err != nil || first == 0 || low > high {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	switch {
	case high < first || low > last:
		return nil
	case low > first && high < last:
		return fmt.Errorf("logstore: entries %d to %d cannot be removed from within the log of %d to %d", low, high, first, last)
	case low > first:
		return s.transact("cutting the tail", func() error {
			s.cache.clear()
			return s.bolt.DeleteRange(low, high)
		}, nil)
	}
	for first != 0 && first <= high {
		end := min(high, first+deleteChunk-1)
		if err := s.transact("cutting the head", func() error {
			s.cache.clearUpTo(end)
			return s.bolt.DeleteRange(first, end)
		}, nil); err != nil {
			return err
		}
		durable.CrashPoint("logstore.compact.chunk")
		// The log may have gaps (raft leaves one after installing a snapshot), so the next chunk begins at what is really next.
		if first, err = s.FirstIndex(); err != nil {
			return err
		}
	}
	return nil
}

// Set implements raft.StableStore.
func (s *Store) Set(key, value []byte) error {
	if len(key) == 0 || len(key) > maxStableKey || len(value) > maxStableValue {
		return fmt.Errorf("logstore: a stable value of %d bytes under a key of %d bytes is not possible", len(value), len(key))
	}
	return s.transact("saving "+string(key), func() error { return s.bolt.Set(key, sealValue(key, value)) }, nil)
}

// Get implements raft.StableStore. A key that is not there is raft-boltdb's ErrKeyNotFound, whose text raft compares.
func (s *Store) Get(key []byte) (value []byte, err error) {
	err = s.read(func() (err error) { value, err = s.bolt.Get(key); return err })
	if err != nil {
		return nil, err
	}
	value, err = unsealValue(key, value)
	if err != nil {
		return nil, &DamagedError{Path: s.cfg.Path, Reason: err.Error()}
	}
	return value, nil
}

// SetUint64 implements raft.StableStore.
func (s *Store) SetUint64(key []byte, value uint64) error { return s.Set(key, encodeUint64(value)) }

// GetUint64 implements raft.StableStore.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, &DamagedError{Path: s.cfg.Path, Reason: fmt.Sprintf("the value of %q is no number", key)}
	}
	return decodeUint64(value), nil
}

// Verify reads the whole store: structure, stable values, every entry. The structure is read while writes wait, the entries are not.
func (s *Store) Verify(ctx context.Context) error {
	layout, err := s.walk()
	if err != nil {
		return err
	}
	if err := s.checkStable(layout.stable); err != nil {
		return err
	}
	var entry raft.Log
	for _, run := range layout.runs {
		for index := run.first; index <= run.last; index++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := s.readLog(index, &entry)
			if errors.Is(err, raft.ErrLogNotFound) {
				// Cut off since the walk, or lost.
				first, ferr := s.FirstIndex()
				last, lerr := s.LastIndex()
				if ferr == nil && lerr == nil && (index < first || index > last) {
					continue
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// walk checks the structure of the open file through bolt's own handle, with no transaction under way.
func (s *Store) walk() (*layout, error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.closed {
		return nil, errClosed(s.cfg.Path)
	}
	return checkFile(s.file, s.cfg.Path)
}

// checkStable verifies the stable values under the keys that the file's structure shows, so that a damaged key is found as
// well: raft would take it for a term that was never saved.
func (s *Store) checkStable(keys [][]byte) error {
	for _, key := range keys {
		if _, err := s.Get(key); err != nil {
			return err
		}
	}
	return nil
}
