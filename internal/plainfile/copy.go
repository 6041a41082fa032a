package plainfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mentasystems/colmena/internal/engine"
)

// Databases is the set of databases that copies are made of.
type Databases interface {
	// Get returns a database by name, nil if there is none.
	Get(name string) *engine.DB
	// Watch returns a channel that is closed at the next change of the set.
	Watch() <-chan struct{}
}

// Copier makes copies.
type Copier struct {
	Scratch   Scratch
	Databases Databases
	// Done is closed when the node closes, which then is the error Closed.
	Done   <-chan struct{}
	Closed error
	// Error makes the user's error of what the engine says.
	Error func(error) error
}

// CopyTo writes a consistent state of a database to w, as a plain SQLite file, and
// returns the log index up to which it holds the database's entries.
func (c *Copier) CopyTo(ctx context.Context, name string, w io.Writer) (index uint64, err error) {
	path, remove, err := c.Scratch.file()
	if err != nil {
		return 0, fmt.Errorf("colmena: copy of database %q: %w", name, err)
	}
	defer remove()
	if index, err = c.export(ctx, name, path); err != nil {
		return 0, fmt.Errorf("colmena: copy of database %q: %w", name, err)
	}
	if err := send(ctx, w, path); err != nil {
		return 0, fmt.Errorf("colmena: copy of database %q: %w", name, err)
	}
	return index, nil
}

// export makes a plain file of a database's present state.
func (c *Copier) export(ctx context.Context, name, path string) (uint64, error) {
	for {
		watch := c.Databases.Watch()
		d := c.Databases.Get(name)
		if d == nil {
			return 0, errors.New("there is no such database: nothing was written to it yet")
		}
		err := copyPinned(ctx, d, path)
		if err == nil {
			break
		}
		if !errors.Is(err, engine.ErrClosed) {
			return 0, c.Error(err)
		}
		select { // a copy from the leader is being installed, or the node closes
		case <-watch:
		case <-c.Done:
			return 0, c.Closed
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
