package colmena

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mentasystems/colmena/internal/engine"
)

// scratchPrefix begins the name of every directory made in scratch. What a crash leaves
// of them is removed at the next start, as the snapshot store does with its own copies.
const scratchPrefix = "copy-db-"

// scratch makes a directory for temporary files on the databases' file system.
func (n *Node) scratch() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp(filepath.Join(n.cfg.DataDir, "scratch"), scratchPrefix)
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			n.log.Warn("a temporary directory is left behind", "path", dir, "err", err)
		}
	}, err
}

// CopyTo writes a consistent state of a database to w, as a plain SQLite file that every
// SQLite program opens, and returns the log index up to which it holds the database's
// entries. Writers go on meanwhile. A name of "" stands for DefaultDatabase.
//
// The copy is made on this node, of a state as fresh as the context's consistency level
// asks of a read; at None it needs no leader. It takes free disk space of the size of
// the database until it returns.
func (n *Node) CopyTo(ctx context.Context, db string, w io.Writer) (index uint64, err error) {
	if n.isClosed() {
		return 0, ErrClosed
	}
	name, err := checkName(db)
	if err != nil {
		return 0, err
	}
	if err := n.freshenHere(ctx, name, n.readMode(ctx, &dbOptions{})); err != nil {
		return 0, err
	}
	dir, remove, err := n.scratch()
	if err != nil {
		return 0, fmt.Errorf("colmena: copy of database %q: %w", name, err)
	}
	defer remove()
	path := filepath.Join(dir, "db")
	if index, err = n.exportTo(ctx, name, path); err != nil {
		return 0, fmt.Errorf("colmena: copy of database %q: %w", name, err)
	}
	if err := streamFile(ctx, w, path); err != nil {
		return 0, fmt.Errorf("colmena: copy of database %q: %w", name, err)
	}
	return index, nil
}

// exportTo makes a plain file of a database's present state.
func (n *Node) exportTo(ctx context.Context, name, path string) (uint64, error) {
	for {
		watch := n.dbs.Watch()
		d := n.dbs.Get(name)
		if d == nil {
			return 0, errors.New("there is no such database: nothing was written to it yet")
		}
		err := copyPinned(ctx, d, path)
		if err == nil {
			break
		}
		if !errors.Is(err, engine.ErrClosed) {
			return 0, readError(err)
		}
		select { // a copy from the leader is being installed, or the node closes
		case <-watch:
		case <-n.done:
			return 0, ErrClosed
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if err := engine.Fold(path); err != nil {
		return 0, err
	}
	m, err := engine.Export(path)
	return m.Index, err
}

// copyPinned copies a database's files while they are frozen.
func copyPinned(ctx context.Context, d *engine.DB, path string) error {
	pin, err := d.Pin(ctx)
	if err != nil {
		return err
	}
	defer pin.Release()
	for _, part := range []struct {
		path string
		copy func(context.Context, *os.File) error
	}{{path, pin.CopyMain}, {path + "-wal", pin.CopyWAL}} {
		f, err := os.OpenFile(part.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(part.copy(ctx, f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func streamFile(ctx context.Context, w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, &contextReader{ctx, f})
	return err
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
