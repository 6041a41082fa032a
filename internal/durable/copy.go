package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// copyChunk bounds one step of a copy, so that the fault hook and an interrupted system call have a say in between.
const copyChunk = 16 << 20

// copyBuffer is the memory a copy through user space takes.
const copyBuffer = 256 << 10

// CopyFd copies n bytes that start at offset off of the file behind srcFd to dst's current position, and returns how many it copied. On Linux
// it lets the file system do it (a reflink where there are any, otherwise without passing through user space). The descriptor stays the
// caller's: it is neither closed nor moved, so that it may be the one SQLite holds its locks on. A source that ends early is
// io.ErrUnexpectedEOF. Nothing is synced.
func CopyFd(dst *os.File, srcFd uintptr, off, n int64) (int64, error) {
	if err := checkRange(off, n); err != nil {
		return 0, err
	}
	done, err := copyInKernel(dst, srcFd, off, n)
	if err == nil && done == n {
		return done, nil
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return done, err
	}
	// Not supported between these two files, or the kernel says the source has ended, which it also says of some special files: reading decides.
	rest, err := CopyReaderAt(dst, fdReader(srcFd), off+done, n-done)
	return done + rest, err
}

// CopyReaderAt copies n bytes that start at offset off of src to dst's current position, and returns how many it copied. A
// source that ends early is io.ErrUnexpectedEOF. Nothing is synced.
func CopyReaderAt(dst *os.File, src io.ReaderAt, off, n int64) (int64, error) {
	if err := checkRange(off, n); err != nil {
		return 0, err
	}
	buf := make([]byte, min(n, copyBuffer))
	var done int64
	for done < n {
		want := min(n-done, int64(len(buf)))
		got, err := src.ReadAt(buf[:want], off+done)
		if got > 0 {
			if err := Fault(OpCopy, dst.Name()); err != nil {
				return done, err
			}
			written, werr := dst.Write(buf[:got])
			done += int64(written)
			if werr != nil {
				return done, werr
			}
		}
		switch {
		case errors.Is(err, io.EOF) && done < n:
			return done, io.ErrUnexpectedEOF
		case err != nil && !errors.Is(err, io.EOF):
			return done, err
		case got == 0 && done < n:
			return done, io.ErrNoProgress
		}
	}
	return done, nil
}

func checkRange(off, n int64) error {
	if off < 0 || n < 0 || off+n < off {
		return fmt.Errorf("durable: cannot copy %d bytes at offset %d", n, off)
	}
	return nil
}

// fdReader reads a descriptor it does not own by position.
type fdReader uintptr

func (r fdReader) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		n, err := preadFd(uintptr(r), p[total:], off+int64(total))
		if err != nil {
			return total, err
		}
		if n == 0 {
			return total, io.EOF
		}
		total += n
	}
	return total, nil
}
