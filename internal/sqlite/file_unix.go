//go:build !windows

package sqlite

import lib "modernc.org/sqlite/lib"

// Every file of a pinned or plain connection is opened by one of SQLite's unix
// VFSes, whose handle is a unixFile.

func filePath(p uintptr) string { return gostring(at[lib.TunixFile](p).FzPath) }

// Fd is the file's descriptor. It must not be closed.
func (f *File) Fd() (uintptr, bool) {
	p, _ := f.handle()
	if p == 0 {
		return 0, false
	}
	fd := at[lib.TunixFile](p).Fh
	return uintptr(fd), fd >= 0
}
