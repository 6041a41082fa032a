package dbconn

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// bufferedTx collects statements.
type bufferedTx struct {
	c     *conn
	ctx   context.Context // of its begin
	pin   bool
	stmts []wire.Statement
	own   int             // how many of them its client did not send
	done  *[]wire.Outcome // of the statements, once they are committed
	size  int
}

func (t *bufferedTx) run(_ context.Context, kw sqltext.Keyword, query string, args wire.Args, wantRows bool) (values.RowSource, error) {
	switch {
	case kw == sqltext.None:
		return values.None, nil
	case wantRows:
		return nil, t.c.errs.Refused("a query in a buffered transaction", "query outside it, or use an interactive transaction")
	case kw != sqltext.Write:
		return nil, t.c.errs.Refused("a statement that does not begin with a writing keyword, in a buffered transaction", "use an interactive transaction")
	}
	st := wire.Statement{SQL: strings.Clone(query), Args: append(wire.Args(nil), args...)}
	if err := st.Check(); err != nil {
		return nil, t.c.errs.TooLarge(err)
	}
	// As wire.Unit.Check, which looks at all of them, will at the end.
	one := wire.Unit{Statements: []wire.Statement{st}}
	n := t.size + one.Size() - new(wire.Unit).Size()
	if n > maxBufferedBytes || len(t.stmts) >= wire.MaxUnitStatements {
		return nil, t.c.errs.Limit(fmt.Sprintf("too large: a buffered transaction of %d statements and %d bytes, the limits are %d and %d", len(t.stmts)+1, n, wire.MaxUnitStatements, maxBufferedBytes))
	}
	t.size = n
	t.stmts = append(t.stmts, st)
	if t.done == nil {
		t.done = new([]wire.Outcome)
	}
	return values.None, nil
}

// maxBufferedBytes leaves room in an entry for what else is in it.
const maxBufferedBytes = wire.MaxEntryBytes - 1<<20

// result is that of the newest statement.
func (t *bufferedTx) result() driver.Result { return &bufferedResult{t.done, len(t.stmts) - 1} }

type bufferedResult struct {
	done *[]wire.Outcome
	i    int
}

var errNotCommitted = errors.New("colmena: the counts of a statement in a buffered transaction are not known before it is committed: read them after Commit, or use an interactive transaction")

func (r *bufferedResult) outcome() (wire.Outcome, error) {
	if r.done == nil || r.i >= len(*r.done) {
		return wire.Outcome{}, errNotCommitted
	}
	return (*r.done)[r.i], nil
}

func (r *bufferedResult) LastInsertId() (int64, error) {
	o, err := r.outcome()
	return o.LastInsertID, err
}

func (r *bufferedResult) RowsAffected() (int64, error) {
	o, err := r.outcome()
	return o.RowsAffected, err
}

// Commit implements driver.Tx.
func (t *bufferedTx) Commit() error { return t.c.commitTx(t.ctx) }

func (t *bufferedTx) commit(ctx context.Context) error {
	t.c.tx = nil
	if len(t.stmts) == t.own {
		return nil
	}
	c := t.c
	res, err := c.host.Write(ctx, wire.Unit{
		ForeignKeys: c.pragmas.ForeignKeys, RecursiveTriggers: c.pragmas.RecursiveTriggers, Pin: t.pin, WantEach: true,
		Pre: c.pre, HasPre: c.pre != (wire.PreState{}), Statements: t.stmts})
	if err != nil {
		return err
	}
	c.commits++
	*t.done = res.Result.Each
	c.pre = wire.PreState{LastInsertID: res.Result.LastInsertID, Changes: res.Result.RowsAffected}
	return nil
}

// Rollback implements driver.Tx.
func (t *bufferedTx) Rollback() error { return t.c.rollbackTx() }

func (t *bufferedTx) rollback() error {
	t.c.tx = nil
	return nil
}

func (t *bufferedTx) drop() {}
