package colmena

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/wire"
)

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
	mode, err := n.readMode(ctx, &dbOptions{})
	if err != nil {
		return 0, err
	}
	if err := n.freshenHere(ctx, name, mode); err != nil {
		return 0, err
	}
	c := plainfile.Copier{Scratch: n.scratch(), Databases: n.dbs, Done: n.done, Closed: ErrClosed, Error: readError}
	return c.CopyTo(ctx, name, w)
}

func (n *Node) scratch() plainfile.Scratch {
	return plainfile.Scratch{Dir: filepath.Join(n.cfg.DataDir, "scratch"), Warn: n.log.Warn}
}

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
	l := plainfile.Loader{
		Scratch: n.scratch(), Names: n.hiddenNames(), Library: n.library, Write: n.write, Error: readError,
		Admit: n.admitLoad, Replaced: n.awaitReplaced, Forget: n.fresh.Forget,
	}
	return l.Load(ctx, name, r)
}

func (n *Node) hiddenNames() plainfile.Names {
	return plainfile.Names{NodeID: n.id.NodeID, Process: uint32(n.proposer)}
}

// admitDatabase says no when the cluster holds all the databases that it may.
func (n *Node) admitDatabase() *LimitError {
	if n.dbs.Full() {
		return &LimitError{Msg: fmt.Sprintf("a cluster holds at most %d databases", catalogue.MaxDatabases)}
	}
	return nil
}

func (n *Node) admitLoad() error {
	if err := n.admitDatabase(); err != nil {
		return err
	}
	return nil
}

// awaitReplaced has this node show its own load, as it does every other write of its own.
func (n *Node) awaitReplaced(ctx context.Context, name string, index uint64) {
	wait, cancel := context.WithTimeout(ctx, ownWritesPatience)
	defer cancel()
	if n.awaitApplied(wait, index) != nil {
		n.fresh.Acknowledged(name, index)
	}
}

// awaitApplied waits until this node has been handed everything up to index, and has
// followed what it says of the databases there are.
func (n *Node) awaitApplied(ctx context.Context, index uint64) error {
	for {
		watch := n.dbs.Watch()
		if n.intake.Applied() >= index {
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

// hiddenExists tells, of a hidden database that this node has not opened, whether the
// catalogue knows it. Writing to one never makes it.
func (n *Node) hiddenExists(ctx context.Context, name string) error {
	found, err := n.dbs.Names(ctx, name)
	if err == nil && !found {
		err = &wire.Error{Code: wire.ErrNoDatabase, Msg: "the load was given up, or another load of the same database began"}
	}
	return err
}
