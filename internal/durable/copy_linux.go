package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// copyInKernel copies as much as copy_file_range will. errors.ErrUnsupported means the rest has to be copied by reading and writing; a
// short count without an error means that the source ended as the kernel sees it.
func copyInKernel(dst *os.File, srcFd uintptr, off, n int64) (int64, error) {
	conn, err := dst.SyscallConn()
	if err != nil {
		return 0, err
	}
	var done int64
	for done < n {
		if err := Fault(OpCopy, dst.Name()); err != nil {
			return done, err
		}
		at := off + done
		var step int
		var stepErr error
		if err := conn.Control(func(dstFd uintptr) {
			step, stepErr = unix.CopyFileRange(int(srcFd), &at, int(dstFd), nil, int(min(n-done, copyChunk)), 0)
		}); err != nil {
			return done, err
		}
		switch {
		case errors.Is(stepErr, unix.EINTR):
			continue
		case stepErr != nil && notForThese(stepErr):
			return done, errors.ErrUnsupported
		case stepErr != nil:
			return done, &os.PathError{Op: "copy_file_range", Path: dst.Name(), Err: stepErr}
		case step == 0:
			return done, nil
		}
		done += int64(step)
	}
	return done, nil
}

// notForThese reports whether the error says that copy_file_range does not serve these two files or this kernel (EPERM and EBADF are
// also what a sandbox or a destination in append mode give); a real failure shows again when reading and writing.
func notForThese(err error) bool {
	for _, e := range []error{unix.ENOSYS, unix.EXDEV, unix.EINVAL, unix.EOPNOTSUPP, unix.EPERM, unix.EBADF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
