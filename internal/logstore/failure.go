package logstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/mentasystems/colmena/internal/durable"
)

var (
	// ErrLocked: the file is in use, by another process or by this one.
	ErrLocked = durable.ErrLocked
	// ErrForeign: the store belongs to another node.
	ErrForeign = errors.New("colmena: foreign log store")
	// ErrTooLarge: the entry exceeds Config.MaxEntryBytes. Nothing was written.
	ErrTooLarge = errors.New("colmena: log entry too large")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("colmena: log store is closed")
)

// DamagedError: the file is not what was written to it.
type DamagedError struct {
	Path   string
	Reason string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("colmena: log store %s is damaged: %s: do not repair it; restore this node from the others with an empty directory", e.Path, e.Reason)
}

func isDamaged(err error) bool {
	var d *DamagedError
	return errors.As(err, &d)
}

func lockedError(path string) error {
	return fmt.Errorf("colmena: log store %s is in use by another process or is open twice: %w", path, ErrLocked)
}

func errClosed(path string) error { return fmt.Errorf("%w: %s", ErrClosed, path) }

// panicError marks a write that ended in a panic, after which bolt's locks are in an unknown state.
type panicError struct{ DamagedError }

func (e *panicError) Unwrap() error { return &e.DamagedError }

// contained runs fn, which touches bolt's mapping, and turns what that may end in into an error: a fault (a page the disk cannot
// read, a file cut short by someone) or one of bolt's assertions. Both mean damage. It covers this goroutine only; what bolt walks on a
// goroutine of its own, the rebuilding of its freelist, is why checkFile comes first.
func contained(path string, fn func() error) (err error) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if r := recover(); r != nil {
			err = &panicError{DamagedError{Path: path, Reason: fmt.Sprintf("reading it ended in: %v", r)}}
		}
	}()
	return fn()
}

// transact runs one bolt transaction and decides what its failure means. done runs after a success, before the next transaction may begin.
//
// The rule: a failed write is final. After it the store refuses every further one with the first error until it is opened again, because
// neither bolt nor the kernel says what the disk holds now (a failed fsync marks the lost pages clean). The one exception is a
// disk that is full when bolt writes its pages: bolt writes only pages that no transaction on disk refers to before it writes the meta page, and
// a meta page has its blocks already; so nothing was changed, and the store goes on once there is room. A full disk reported by
// fsync (delayed allocation) is no exception.
func (s *Store) transact(what string, fn func() error, done func()) error {
	defer s.watch.begin()()
	final, err := s.transactLocked(what, fn, done)
	if final {
		s.fatal(err) // no lock is held: the owner may do in there what does not wait
	}
	return err
}

// transactLocked takes the lock. final is true for the one error that ends all writing.
func (s *Store) transactLocked(what string, fn func() error, done func()) (final bool, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.closed {
		return false, errClosed(s.cfg.Path)
	}
	if first := s.Failure(); first != nil {
		return false, first
	}
	if err = durable.Fault(durable.OpAppend, s.cfg.Path); err != nil {
		err = &os.PathError{Op: "write", Path: s.cfg.Path, Err: err}
	} else {
		err = contained(s.cfg.Path, fn)
	}
	if err == nil && !s.cfg.NoSync {
		err = durable.Fault(durable.OpSync, s.cfg.Path)
	}
	if err == nil {
		if done != nil {
			done()
		}
		return false, nil
	}
	var wedge *panicError
	s.wedged = s.wedged || errors.As(err, &wedge)
	err = fmt.Errorf("colmena: log store %s: %s: %w", s.cfg.Path, what, err)
	if isFullWrite(err) {
		s.cfg.Logger.Error("no room for the log store", "path", s.cfg.Path, "error", err)
		return false, err
	}
	s.poison(err)
	return true, err
}

// isFullWrite reports whether a write, not an fsync, found the disk or the quota full. os.File wraps what write returns in a
// PathError; bolt's fdatasync and its growing of the file return other types.
func isFullWrite(err error) bool {
	var p *os.PathError
	if !errors.As(err, &p) || p.Op != "write" {
		return false
	}
	for _, full := range fullErrors {
		if errors.Is(p.Err, full) {
			return true
		}
	}
	return false
}

// poison ends all writing. The marker beside the file makes the next Open write it afresh; if the disk does not take the marker either, the
// file system is most likely read-only by now and there will be no next Open before a repair.
func (s *Store) poison(err error) {
	s.failure.Store(&err)
	if merr := durable.WriteFile(s.cfg.Path+unsyncedSuffix, []byte(err.Error()+"\n"), fileMode); merr != nil {
		s.cfg.Logger.Error("log store could not mark its file as unsynced", "path", filepath.Clean(s.cfg.Path), "error", merr)
	}
}

// fatal tells the owner, once.
func (s *Store) fatal(err error) {
	s.fatalOnce.Do(func() {
		s.cfg.Logger.Error("log store stops", "path", s.cfg.Path, "error", err)
		if s.cfg.Fatal != nil {
			s.cfg.Fatal(err)
		}
	})
}
