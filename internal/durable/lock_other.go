//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly || windows)

package durable

import (
	"errors"
	"os"
)

// Without a lock that ends with its process, two nodes could share a directory unseen; so these platforms are refused.
func lockFile(*os.File) error { return errors.ErrUnsupported }

func unlockFile(*os.File) error { return nil }
