package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// lockName is the file inside a locked directory. It is never removed: removing it would let two processes lock two files of one name.
const lockName = "lock"

// ErrLocked is what errors.Is finds in the error of LockDir for a directory that is in use.
var ErrLocked = errors.New("directory is locked")

// LockedError says which directory is in use and, where the lock file tells, by whom.
type LockedError struct {
	Dir string
	PID int // the holder's process ID as it wrote it, 0 if unknown
}

func (e *LockedError) Error() string {
	who := "another process"
	switch {
	case e.PID == os.Getpid():
		who = fmt.Sprintf("this process (pid %d), which has it open already", e.PID)
	case e.PID > 0:
		who = fmt.Sprintf("another process (pid %d)", e.PID)
	}
	return fmt.Sprintf("colmena: directory %s is in use by %s: close that one first, or give this node a directory of its own", e.Dir, who)
}

// Is makes errors.Is(err, ErrLocked) true.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// DirLock is the exclusive use of a directory, held until Unlock or the end of the process, however it ends.
type DirLock struct {
	mu   sync.Mutex
	file *os.File // nil once unlocked; guarded by mu
	info os.FileInfo
}

// held lists the lock files this process holds. Where flock is emulated by POSIX record locks (NFS), the kernel grants a process
// its own lock a second time and drops both when one is closed; so the process asks itself before it opens the file.
var held struct {
	sync.Mutex
	infos []os.FileInfo
}

// LockDir takes the exclusive lock of an existing directory without waiting. A directory in use, by another process or by this one,
// is refused with a *LockedError.
func LockDir(dir string) (*DirLock, error) {
	path := filepath.Join(dir, lockName)
	held.Lock()
	defer held.Unlock()
	// Another process may put a new file in the place of the one that was just locked (someone emptied the directory): then try again.
	for range 10 {
		if info, err := os.Stat(path); err == nil && heldLocked(info) {
			return nil, &LockedError{Dir: dir, PID: os.Getpid()}
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lockFile(f); err != nil {
			pid := readPID(f)
			f.Close()
			if errors.Is(err, ErrLocked) {
				return nil, &LockedError{Dir: dir, PID: pid}
			}
			return nil, fmt.Errorf("colmena: locking %s: %w", path, err)
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if now, err := os.Stat(path); err != nil || !os.SameFile(info, now) {
			f.Close()
			continue
		}
		if err := writePID(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("colmena: writing %s: %w", path, err)
		}
		held.infos = append(held.infos, info)
		return &DirLock{file: f, info: info}, nil
	}
	return nil, fmt.Errorf("colmena: locking %s: the file is replaced again and again by someone else", path)
}

// Unlock gives the directory free. Only the first call does anything; calling it on nil is allowed.
func (l *DirLock) Unlock() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	held.Lock()
	defer held.Unlock()
	for i, info := range held.infos {
		if os.SameFile(info, l.info) {
			held.infos = append(held.infos[:i], held.infos[i+1:]...)
			break
		}
	}
	f := l.file
	l.file = nil
	// The process ID goes first, while the lock still keeps others from writing theirs. It is information only, so a failure is none of the caller's.
	_ = f.Truncate(0)
	return errors.Join(unlockFile(f), f.Close())
}

// TryLockFile takes the whole-file lock of an open file without waiting; a file that another process, or another open file of this one, has locked is
// ErrLocked. The lock ends with UnlockFile or with the file.
func TryLockFile(f *os.File) error { return lockFile(f) }

// UnlockFile ends the lock that TryLockFile took.
func UnlockFile(f *os.File) error { return unlockFile(f) }

// heldLocked reports whether this process holds the lock on the file; held must be locked.
func heldLocked(info os.FileInfo) bool {
	for _, h := range held.infos {
		if os.SameFile(h, info) {
			return true
		}
	}
	return false
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// readPID returns 0 for anything that is not a process ID.
func readPID(f *os.File) int {
	var b [24]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}
