package durable

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// The operations a hook is asked about. OpAppend is a write to a log store's file.
const (
	OpCreate  = "create"
	OpWrite   = "write"
	OpSync    = "fsync"
	OpRename  = "rename"
	OpSyncDir = "syncdir"
	OpMkdir   = "mkdir"
	OpRemove  = "remove"
	OpCopy    = "copy"
	OpAppend  = "append"
)

// A Hook is called before each file operation with its kind (one of the Op constants) and the path it is for; what it returns other than
// nil becomes the result of the operation, which is then not carried out. It may be called from several goroutines at once.
type Hook func(op, path string) error

var hook atomic.Pointer[Hook]

// SetHook installs h for the whole process until restore is called. It exists for tests (EIO, ENOSPC at each step) and is nil otherwise.
func SetHook(h Hook) (restore func()) {
	var next *Hook
	if h != nil {
		next = &h
	}
	previous := hook.Swap(next)
	return func() { hook.Store(previous) }
}

// Fault asks the hook, if there is one, whether an operation is to fail. Rooms that write files themselves call it before each step.
func Fault(op, path string) error {
	if h := hook.Load(); h != nil {
		return (*h)(op, path)
	}
	return nil
}

// CrashPointEnv is the environment variable, read once at process start, that arms one crash point: "name", or
// "name:3" for the third time that it is passed.
const CrashPointEnv = "COLMENA_CRASHPOINT"

// crashSpec is the armed crash point.
type crashSpec struct {
	name string
	left atomic.Int64 // passes until it fires
}

var crash atomic.Pointer[crashSpec]

func init() {
	crash.Store(parseCrashPoint(os.Getenv(CrashPointEnv)))
}

// parseCrashPoint returns nil for the empty string. A count that is no positive number counts as 1.
func parseCrashPoint(s string) *crashSpec {
	if s == "" {
		return nil
	}
	name, count, _ := strings.Cut(s, ":")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		n = 1
	}
	spec := &crashSpec{name: name}
	spec.left.Store(n)
	return spec
}

// CrashPoint kills the process on the spot, as the kernel would (no deferred function runs, nothing is flushed), if COLMENA_CRASHPOINT
// named this point when the process started. Otherwise it costs one atomic load. Names are "room.operation.moment".
func CrashPoint(name string) {
	spec := crash.Load()
	if spec == nil || spec.name != name || spec.left.Add(-1) != 0 {
		return
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		os.Exit(137) // the next best: still no deferred function
	}
	select {} // the signal is on its way; nothing after the point may run
}
