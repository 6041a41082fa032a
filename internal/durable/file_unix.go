//go:build !windows

package durable

import (
	"errors"
	"os"
	"syscall"
)

func renameReplace(oldPath, newPath string) error { return os.Rename(oldPath, newPath) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	// Some network and user-space file systems know no sync of a directory and say so with these two; they have nothing to sync.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
