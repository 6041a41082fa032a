// Package durable writes files so that they survive a power cut: whole or not at all, and known to be
// on disk when the call returns. It also holds what else must be exact about files: the directory lock, page-faithful
// copies, checksummed small documents, and the seams through which tests inject disk errors and crashes.
//
// None of these functions may be used on a live SQLite file: opening and closing one with the os package drops
// the POSIX locks that SQLite holds on it for the whole process.
package durable

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tempPrefix starts the name of every temporary file WriteFile makes, so that RemoveTemps recognises what a crash left.
const tempPrefix = ".colmena-tmp-"

// WriteFile replaces path by data, whole or not at all: it writes a temporary in the same directory, syncs it, renames it
// over path and syncs the directory. When it returns nil the new content survives a power cut. When it returns an error the
// file holds either the old content or the new, never a mixture; which of the two is unknown only if the error
// comes from the last step (the directory's sync). perm is subject to the umask.
func WriteFile(path string, data []byte, perm fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, tempPrefix+filepath.Base(path)+"-"+randomSuffix())
	if err := Fault(OpCreate, path); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	open := true
	defer func() {
		if err == nil {
			return
		}
		if open {
			f.Close()
		}
		os.Remove(temp) // after the rename this names nothing and is harmless
	}()
	if err := Fault(OpWrite, path); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	CrashPoint("durable.write")
	if err := syncOpen(f, path); err != nil {
		return err
	}
	open = false
	if err := f.Close(); err != nil {
		return err
	}
	CrashPoint("durable.rename.before")
	return Rename(temp, path)
}

// Rename moves oldPath to newPath, replacing it, and makes the move durable by syncing the directories of both names.
// Both must be on the same file system.
func Rename(oldPath, newPath string) error {
	if err := Fault(OpRename, newPath); err != nil {
		return err
	}
	if err := renameReplace(oldPath, newPath); err != nil {
		return err
	}
	CrashPoint("durable.rename.after")
	oldDir, newDir := filepath.Dir(oldPath), filepath.Dir(newPath)
	if err := SyncDir(newDir); err != nil {
		return err
	}
	if oldDir != newDir {
		return SyncDir(oldDir)
	}
	return nil
}

// ReadFileMax reads path whole. A file of more than limit bytes is an error (ErrTooLarge) and is never read into memory.
func ReadFileMax(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("durable: %s is a directory, a file was expected", path)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("durable: %s has %d bytes, at most %d are read: %w", path, info.Size(), limit, ErrTooLarge)
	}
	// The file may grow between Stat and the reads, and special files state no size: the limit holds for what is read as well.
	data := make([]byte, 0, info.Size()+1)
	for {
		n, err := f.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if int64(len(data)) > limit {
			return nil, fmt.Errorf("durable: %s grew beyond %d bytes while it was read: %w", path, limit, ErrTooLarge)
		}
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
	}
}

// ErrTooLarge is wrapped by the errors for files beyond the size their reader or writer allows.
var ErrTooLarge = errors.New("file too large")

// SyncFile makes the content of an existing file durable.
func SyncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := syncOpen(f, path); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// SyncOpen makes the content of an open file durable. It is f.Sync behind the fault seam.
func SyncOpen(f *os.File) error { return syncOpen(f, f.Name()) }

// syncOpen syncs f, naming it path to the fault hook.
func syncOpen(f *os.File, path string) error {
	if err := Fault(OpSync, path); err != nil {
		return err
	}
	return f.Sync()
}

// SyncDir makes the entries of a directory durable: names created, renamed and removed. On Windows, where directories
// cannot be synced and the journal of NTFS orders such changes, it does nothing but call the fault hook.
func SyncDir(dir string) error {
	if err := Fault(OpSyncDir, dir); err != nil {
		return err
	}
	return syncDir(dir)
}

// MkdirAllSync creates dir and its missing parents and makes them durable: the parent of each directory it created is synced.
func MkdirAllSync(dir string, perm fs.FileMode) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: dir, Err: errors.New("exists and is not a directory")}
	case err == nil:
		// An earlier call may have made it and failed to sync its parent, so the parent is synced again. A parent that
		// this process may not read was not made by it.
		if err := SyncDir(filepath.Dir(dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MkdirAllSync(parent, perm); err != nil {
			return err
		}
	}
	if err := Fault(OpMkdir, dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// RemoveAllSync removes path and everything beneath it and makes the removal durable. A path that does not exist is no error.
// A crash midway leaves a part of the tree: what must vanish at once is renamed first.
func RemoveAllSync(path string) error {
	if err := Fault(OpRemove, path); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	err := SyncDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not even the parent is there
	}
	return err
}

// RemoveTemps removes the temporaries that WriteFile left in dir when the process was killed. Only the holder of
// the directory's lock may call it, and before it writes anything.
func RemoveTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) && e.Type().IsRegular() {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func randomSuffix() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b[:])
}
