package logstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mentasystems/colmena/internal/durable"
)

// checkLocked checks the file under its lock, so that a file another process is writing is ErrLocked and not taken for a damaged one.
func checkLocked(path string) (found *layout, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("colmena: opening the log store: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = durable.TryLockFile(f)
	switch {
	case errors.Is(err, durable.ErrLocked):
		return nil, lockedError(path)
	case err != nil:
		return nil, fmt.Errorf("colmena: locking the log store %s: %w", path, err)
	}
	found, err = checkFile(f, path)
	return found, errors.Join(err, durable.UnlockFile(f))
}

// unsyncedSuffix names the file that says that an fsync of the store failed.
const unsyncedSuffix = ".unsynced"

// rewriteUnsynced replaces a file one of whose fsyncs failed by a fresh copy. After such a failure the kernel may count pages as clean that
// never reached the disk: they read well until the power goes, and no later fsync writes them. Raft takes what it finds in the
// log at start for durable and never sends it again, so it has to become durable first.
func rewriteUnsynced(cfg Config) (bool, error) {
	marker := cfg.Path + unsyncedSuffix
	if _, err := os.Stat(marker); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := copyWhole(cfg.Path, cfg.Path+".new"); err != nil {
		return false, fmt.Errorf("colmena: writing the log store %s afresh after a failed fsync: %w", cfg.Path, err)
	}
	if err := os.Remove(marker); err != nil {
		return false, err
	}
	cfg.Logger.Warn("log store written afresh after a failed fsync", "path", cfg.Path)
	return true, durable.SyncDir(filepath.Dir(cfg.Path))
}

// copyWhole replaces path by a durable copy of itself, made under the name temp.
func copyWhole(path, temp string) (err error) {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() {
		if src != nil {
			src.Close()
		}
	}()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	// Read and written, not shared with the old file by a reflink: the new blocks are the point.
	_, err = durable.CopyReaderAt(dst, src, 0, info.Size())
	if err == nil {
		err = durable.SyncOpen(dst)
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	err = src.Close() // Windows does not replace an open file
	src = nil
	if err != nil {
		return err
	}
	return durable.Rename(temp, path)
}
