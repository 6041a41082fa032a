//go:build unix

package durable

import (
	"errors"

	"golang.org/x/sys/unix"
)

func preadFd(fd uintptr, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(fd), p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return max(n, 0), err
	}
}
