//go:build !linux

package durable

import (
	"errors"
	"os"
)

func copyInKernel(*os.File, uintptr, int64, int64) (int64, error) {
	return 0, errors.ErrUnsupported
}
