package dbconn

import (
	"context"
	"database/sql/driver"
	"strings"

	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
)

// runScript runs a string in which transactions begin or end, statement by statement. Its
// rows are those of the last statement that has any. It is not atomic.
func (c *conn) runScript(ctx context.Context, query string, args []driver.NamedValue, wantRows bool) (last values.RowSource, err error) {
	before := c.commits
	defer func() {
		if err != nil && c.commits != before {
			err = c.errs.Partly(err)
		}
	}()
	last = values.None
	for query != "" {
		var first string
		first, query = sqltext.Split(query)
		if s, ok := sqltext.ParseControl(first); ok {
			if err := c.control(ctx, s, first); err != nil {
				_ = last.Close()
				return nil, err // as it is: callers look at its type
			}
			continue
		}
		if kw, _ := sqltext.FirstKeyword(first); kw == sqltext.None {
			continue
		}
		if err := values.Drain(last); err != nil {
			return nil, err
		}
		if last, err = c.runPlain(ctx, first, args, wantRows); err != nil {
			return nil, err
		}
	}
	return last, nil
}

// control carries out a statement that begins or ends a transaction or savepoint.
func (c *conn) control(ctx context.Context, s sqltext.Control, query string) error {
	if c.tx == nil {
		return c.controlOutside(ctx, s, query)
	}
	switch s.Kind {
	case sqltext.Begin:
		return c.errs.control("cannot start a transaction within a transaction")
	case sqltext.Commit:
		return c.tx.commit(ctx)
	case sqltext.Rollback:
		return c.tx.rollback()
	}
	t, ok := c.tx.(*writeTx)
	if !ok {
		_, err := c.tx.run(ctx, sqltext.Other, query, nil, false)
		return err
	}
	if s.Kind == sqltext.Release && t.saved && len(t.opened) > 0 && t.find(s.Name) == 0 {
		return t.commit(ctx)
	}
	if _, err := t.run(ctx, sqltext.Other, query, nil, false); err != nil {
		return err
	}
	t.note(s)
	return nil
}

func (c *conn) controlOutside(ctx context.Context, s sqltext.Control, query string) error {
	switch s.Kind {
	case sqltext.Commit:
		return c.noTx("commit")
	case sqltext.Rollback:
		return c.noTx("rollback")
	case sqltext.Release, sqltext.RollbackTo:
		return c.errs.control("no such savepoint: " + s.Name)
	case sqltext.Begin:
		return c.begin(ctx, c.cfg.ReadOnly)
	}
	if err := c.begin(ctx, c.cfg.ReadOnly); err != nil {
		return err
	}
	t, ok := c.tx.(*writeTx)
	if !ok {
		c.endTx()
		return c.errs.Refused("SAVEPOINT in a read-only or buffered transaction", "use an interactive one")
	}
	if _, err := t.run(ctx, sqltext.Other, query, nil, false); err != nil {
		c.endTx()
		return err
	}
	t.saved = true
	t.note(s)
	return nil
}

// find is the place of the innermost savepoint of a name, -1 if there is none.
func (t *writeTx) find(name string) int {
	for i := len(t.opened) - 1; i >= 0; i-- {
		if strings.EqualFold(t.opened[i], name) {
			return i
		}
	}
	return -1
}

// note follows what a statement did to the savepoints.
func (t *writeTx) note(s sqltext.Control) {
	if !t.saved {
		return
	}
	i := t.find(s.Name)
	switch {
	case s.Kind == sqltext.Savepoint:
		t.opened = append(t.opened, s.Name)
	case i < 0:
	case s.Kind == sqltext.Release:
		t.opened = t.opened[:i]
	case s.Kind == sqltext.RollbackTo:
		t.opened = t.opened[:i+1]
	}
}
