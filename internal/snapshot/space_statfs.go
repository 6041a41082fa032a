//go:build linux || darwin || freebsd

package snapshot

import (
	"math"

	"golang.org/x/sys/unix"
)

// freeSpace is the number of bytes an unprivileged process may still write in the file system of dir.
func freeSpace(dir string) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false
	}
	blocks, size := uint64(st.Bavail), uint64(st.Bsize)
	if size == 0 || blocks > math.MaxInt64/size {
		return 0, false
	}
	return int64(blocks * size), true
}
