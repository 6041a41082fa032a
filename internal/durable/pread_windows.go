package durable

import (
	"errors"

	"golang.org/x/sys/windows"
)

func preadFd(fd uintptr, p []byte, off int64) (int, error) {
	at := windows.Overlapped{Offset: uint32(off), OffsetHigh: uint32(off >> 32)}
	var n uint32
	err := windows.ReadFile(windows.Handle(fd), p, &n, &at)
	if errors.Is(err, windows.ERROR_HANDLE_EOF) {
		err = nil
	}
	return int(n), err
}
