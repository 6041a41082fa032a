package sqlite

import lib "modernc.org/sqlite/lib"

func filePath(p uintptr) string { return gostring(at[lib.TwinFile](p).FzPath) }

// Fd is false: handles of this platform are opened in a way that Go's file
// functions do not expect.
func (f *File) Fd() (uintptr, bool) { return 0, false }
