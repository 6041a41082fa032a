package colmena

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/identity"
	"github.com/mentasystems/colmena/internal/wire"
)

// Load replaces a database's content by that of a plain SQLite file, which it reads from
// r: one that CopyTo made, or any other that was closed properly (what a program has left
// in a -wal or -journal file beside it is not read). The database need not exist. A
// name of "" stands for DefaultDatabase. Load can be called on every node.
//
// The file is checked by SQLite, then written into a hidden database through the log, in
// bounded chunks, and at the end the hidden database takes the name, in one step:
// nobody ever sees a part of it, and until then the former content can be read and
// written. What was written to it meanwhile is lost with it. If Load fails or ctx ends
// before that step nothing has changed; the error is ErrOutcomeUnknown if the step itself
// may or may not have been taken. What a crash left of a Load is removed by the next one
// of the same database, or by this node's next one. Of two at once, the later wins.
//
// Tables keep their rows with their rowids, views, triggers, indexes, AUTOINCREMENT
// counters, user_version and application_id are kept, and so are FTS5 and R-tree tables.
// Statistics of ANALYZE, page size and auto_vacuum are not. What cannot be kept is
// refused by name before anything is written: another virtual table, an FTS5 table
// without texts, UTF-16, the rowid 2^63-1. A row of more than 16 MiB ends the load.
//
// Load takes free disk space of the file's size beside that of the new database.
func (n *Node) Load(ctx context.Context, db string, r io.Reader) error {
	if n.isClosed() {
		return ErrClosed
	}
	name, err := checkName(db)
	if err != nil {
		return err
	}
	dir, remove, err := n.scratch()
	if err != nil {
		return fmt.Errorf("colmena: load of database %q: %w", name, err)
	}
	defer remove()
	path := filepath.Join(dir, "db")
	if err := receiveFile(ctx, path, r); err != nil {
		return fmt.Errorf("colmena: load of database %q: reading the file: %w", name, err)
	}
	plain, err := engine.OpenPlain(ctx, path, n.library)
	if err != nil {
		return fmt.Errorf("colmena: load of database %q: %w", name, loadError(err))
	}
	err = n.load(ctx, name, plain)
	if err = errors.Join(err, plain.Close()); err != nil {
		return fmt.Errorf("colmena: load of database %q: %w", name, err)
	}
	return nil
}

// loadChunk is about how much of the content one log entry holds.
const loadChunk = 1 << 20

// loadCleanup bounds how long a failed load tries to drop what it has written.
const loadCleanup = 5 * time.Second

func (n *Node) load(ctx context.Context, name string, plain *engine.Plain) error {
	hidden := n.hiddenName(name)
	defer n.acked.m.Delete(hidden)
	if err := n.beginLoad(ctx, name, hidden); err != nil {
		return err
	}
	err := plain.Units(loadChunk, func(u wire.Unit) error {
		_, err := n.write(ctx, hidden, u)
		return err
	})
	if err == nil {
		err = n.finishLoad(ctx, name, hidden)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadCleanup)
	defer cancel()
	if _, dropErr := n.writeSystem(ctx, systemStatement("DELETE FROM databases WHERE name = ?1", hidden)); dropErr != nil {
		n.log.Warn("a load failed and what it wrote could not be dropped; the next load drops it", "db", name, "err", dropErr)
	}
	return loadError(err)
}

func loadError(err error) error {
	var p *engine.PlainError
	if errors.As(err, &p) {
		return err
	}
	return readError(err)
}

// A hidden database has a name that no user's can have: it begins with a plus sign. It
// goes on with what the database will be called, who loads it, and a random part, so
// that leftovers can be told from loads under way.
const hiddenPrefix = "+"

func isHidden(name string) bool { return strings.HasPrefix(name, hiddenPrefix) }

func (n *Node) hiddenName(target string) string {
	return n.hiddenTarget(target) + n.hiddenOwner() + fmt.Sprintf("%08x.", uint32(n.proposer)) + identity.Random()[:8]
}

func (n *Node) hiddenTarget(target string) string { return hiddenPrefix + digest(target, 16) + "." }
func (n *Node) hiddenOwner() string               { return digest(n.id.NodeID, 12) + "." }

func digest(s string, digits int) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:digits]
}

// beginLoad makes the hidden database, and drops those of earlier loads of the same
// database, and of earlier processes of this node.
func (n *Node) beginLoad(ctx context.Context, name, hidden string) error {
	if len(n.dbs.All()) > maxDatabases {
		return &LimitError{Msg: fmt.Sprintf("a cluster holds at most %d databases", maxDatabases)}
	}
	mine := hiddenPrefix + "%." + n.hiddenOwner() + "%"
	alive := hiddenPrefix + "%." + n.hiddenOwner() + fmt.Sprintf("%08x.%%", uint32(n.proposer))
	_, err := n.writeSystem(ctx,
		systemStatement("DELETE FROM databases WHERE name LIKE ?1 OR name LIKE ?2 AND name NOT LIKE ?3", n.hiddenTarget(name)+"%", mine, alive),
		systemStatement("INSERT INTO databases(name) VALUES(?1)", hidden))
	return err
}

// finishLoad gives the hidden database its name, in one step.
func (n *Node) finishLoad(ctx context.Context, name, hidden string) error {
	res, err := n.writeSystem(ctx,
		systemStatement("DELETE FROM databases WHERE name = ?1 AND EXISTS (SELECT 1 FROM databases WHERE name = ?2)", name, hidden),
		systemStatement("UPDATE databases SET name = ?1 WHERE name = ?2", name, hidden))
	if err != nil {
		return err
	}
	if res.Result.RowsAffected != 1 {
		return errors.New("another load of the same database began meanwhile; this one has changed nothing")
	}
	// This node shows its own write, as after every other.
	wait, cancel := context.WithTimeout(ctx, ownWritesPatience)
	defer cancel()
	if n.awaitApplied(wait, res.Mark.Index) != nil {
		n.acked.note(name, res.Mark.Index)
	}
	return nil
}

// awaitApplied waits until this node has been handed everything up to index, and has
// followed what it says of the databases there are.
func (n *Node) awaitApplied(ctx context.Context, index uint64) error {
	for {
		watch := n.dbs.Watch()
		if n.applied.Load() >= index {
			return nil
		}
		tick := time.NewTimer(localPatience)
		select {
		case <-watch:
		case <-tick.C:
		case <-ctx.Done():
		case <-n.done:
		}
		tick.Stop()
		if ctx.Err() != nil || n.isClosed() {
			return errors.Join(ctx.Err(), ErrNotCaughtUp)
		}
	}
}

func (n *Node) writeSystem(ctx context.Context, stmts ...wire.Statement) (wire.UnitResult, error) {
	return n.write(ctx, systemName, wire.Unit{Statements: stmts})
}

func systemStatement(sql string, args ...string) wire.Statement {
	b := wire.NewArgs(len(args))
	for _, a := range args {
		b.Add(wire.Text(a))
	}
	return wire.Statement{SQL: sql, Args: b.Args()}
}

// hiddenExists tells, of a hidden database that this node has not opened, whether the
// catalogue knows it. Writing to one never makes it.
func (n *Node) hiddenExists(ctx context.Context, name string) error {
	r, err := n.dbs.System().Reader(ctx)
	if err != nil {
		return err
	}
	defer r.Release()
	found := false
	err = scan(r, "SELECT name FROM databases", func(c *engine.Cursor) { found = found || c.Value(0).String() == name })
	if err == nil && !found {
		err = &wire.Error{Code: wire.ErrNoDatabase, Msg: "the load was given up, or another load of the same database began"}
	}
	return err
}

func receiveFile(ctx context.Context, path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, &contextReader{ctx, r})
	return errors.Join(err, f.Close())
}

// replaced tells the hooks that a database has another content than they were told of.
func (q *hookQueue) replaced(db string, index uint64) {
	if q.n.cfg.OnApply == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	from := q.seen[db] + 1
	q.seen[db] = max(q.seen[db], index)
	q.add(ApplyEvent{Index: index, DB: db, Gap: &Gap{From: from, To: index}})
}
