// Package plainfile copies whole databases out as plain SQLite files and loads plain
// files into them.
//
// A copy out is made of the database's files while they are pinned, and becomes a plain
// file beside them before it is streamed. A load goes through the log: the content is
// written into a hidden database in bounded chunks, which at the end takes the name of
// the one it replaces, in one step.
package plainfile

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Scratch makes directories for temporary files.
type Scratch struct {
	Dir  string // on the databases' file system
	Warn func(msg string, args ...any)
}

// scratchPrefix begins the name of every directory made in scratch. What a crash leaves
// of them is removed at the next start, as the snapshot store does with its own copies.
const scratchPrefix = "copy-db-"

// file names a file in a directory of its own, which remove removes.
func (s Scratch) file() (path string, remove func(), err error) {
	dir, err := os.MkdirTemp(s.Dir, scratchPrefix)
	return filepath.Join(dir, "db"), func() {
		if err := os.RemoveAll(dir); err != nil {
			s.Warn("a temporary directory is left behind", "path", dir, "err", err)
		}
	}, err
}

func send(ctx context.Context, w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, &contextReader{ctx, f})
	return err
}

func receive(ctx context.Context, path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, &contextReader{ctx, r})
	return errors.Join(err, f.Close())
}

// contextReader ends when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}
