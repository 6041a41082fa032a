package plainfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// Loader loads files.
type Loader struct {
	Scratch Scratch
	Names   Names
	Library *engine.Library
	// Write has a unit applied to a database, wherever the leader is. The system
	// database has no name.
	Write func(ctx context.Context, db string, u wire.Unit) (wire.UnitResult, error)
	// Admit refuses another database when there are too many.
	Admit func() error
	// Replaced waits, for a moment, until this node shows what the entry at index has
	// changed: another database under the name.
	Replaced func(ctx context.Context, name string, index uint64)
	// Forget is told that a hidden database is written to no more.
	Forget func(name string)
	// Error makes the user's error of what the engine says.
	Error func(error) error
}

const (
	// chunk is about how much of the content one log entry holds.
	chunk = 1 << 20

	// cleanup bounds how long a failed load tries to drop what it has written.
	cleanup = 5 * time.Second
)

// Load replaces a database's content by that of a plain file, which it reads from r.
func (l *Loader) Load(ctx context.Context, name string, r io.Reader) error {
	path, remove, err := l.Scratch.file()
	if err != nil {
		return fmt.Errorf("colmena: load of database %q: %w", name, err)
	}
	defer remove()
	if err := receive(ctx, path, r); err != nil {
		return fmt.Errorf("colmena: load of database %q: reading the file: %w", name, err)
	}
	plain, err := engine.OpenPlain(ctx, path, l.Library)
	if err != nil {
		return fmt.Errorf("colmena: load of database %q: %w", name, l.error(err))
	}
	err = l.load(ctx, name, plain)
	if err = errors.Join(err, plain.Close()); err != nil {
		return fmt.Errorf("colmena: load of database %q: %w", name, err)
	}
	return nil
}

func (l *Loader) load(ctx context.Context, name string, plain *engine.Plain) error {
	hidden := l.Names.Hidden(name)
	defer l.Forget(hidden)
	if err := l.begin(ctx, name, hidden); err != nil {
		return err
	}
	err := plain.Units(chunk, func(u wire.Unit) error {
		_, err := l.Write(ctx, hidden, u)
		return err
	})
	if err == nil {
		err = l.finish(ctx, name, hidden)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	if _, dropErr := l.writeSystem(ctx, statement("DELETE FROM databases WHERE name = ?1", hidden)); dropErr != nil {
		l.Scratch.Warn("a load failed and what it wrote could not be dropped; the next load drops it", "db", name, "err", dropErr)
	}
	return l.error(err)
}

func (l *Loader) error(err error) error {
	var p *engine.PlainError
	if errors.As(err, &p) {
		return err
	}
	return l.Error(err)
}

// begin makes the hidden database, and drops those of earlier loads of the same
// database, and of earlier processes of this node.
func (l *Loader) begin(ctx context.Context, name, hidden string) error {
	if err := l.Admit(); err != nil {
		return err
	}
	mine := hiddenPrefix + "%." + l.Names.owner() + "%"
	alive := hiddenPrefix + "%." + l.Names.owner() + l.Names.process() + "%"
	_, err := l.writeSystem(ctx,
		statement("DELETE FROM databases WHERE name LIKE ?1 OR name LIKE ?2 AND name NOT LIKE ?3", target(name)+"%", mine, alive),
		statement("INSERT INTO databases(name) VALUES(?1)", hidden))
	return err
}

// finish gives the hidden database its name, in one step.
func (l *Loader) finish(ctx context.Context, name, hidden string) error {
	res, err := l.writeSystem(ctx,
		statement("DELETE FROM databases WHERE name = ?1 AND EXISTS (SELECT 1 FROM databases WHERE name = ?2)", name, hidden),
		statement("UPDATE databases SET name = ?1 WHERE name = ?2", name, hidden))
	if err != nil {
		return err
	}
	if res.Result.RowsAffected != 1 {
		return errors.New("another load of the same database began meanwhile; this one has changed nothing")
	}
	l.Replaced(ctx, name, res.Mark.Index)
	return nil
}

func (l *Loader) writeSystem(ctx context.Context, stmts ...wire.Statement) (wire.UnitResult, error) {
	return l.Write(ctx, "", wire.Unit{Statements: stmts})
}

func statement(sql string, args ...string) wire.Statement {
	b := wire.NewArgs(len(args))
	for _, a := range args {
		b.Add(wire.Text(a))
	}
	return wire.Statement{SQL: sql, Args: b.Args()}
}
