package colmena

import (
	"context"
	"fmt"

	"github.com/mentasystems/colmena/internal/times"
	"github.com/mentasystems/colmena/internal/values"
	"github.com/mentasystems/colmena/internal/wire"
)

// ExecMulti runs statements on a database as one atomic write: all of them take effect
// or, when one fails, none. It returns one result per statement, in order. What a
// statement changed, the next one sees; rows that a statement returns are not kept.
// Arguments are those of database/sql: values, driver.Valuer, sql.Named. Foreign keys
// are not enforced, as on a handle opened without ForeignKeys(true). A name of ""
// stands for DefaultDatabase.
//
// Its errors are those of a write: see SafeToRetry. It can be called on every node, and
// happens exactly once.
func (n *Node) ExecMulti(ctx context.Context, db string, stmts []Statement) ([]ExecResult, error) {
	if n.isClosed() {
		return nil, ErrClosed
	}
	name, err := checkName(db)
	if err != nil {
		return nil, err
	}
	if len(stmts) == 0 {
		return nil, ctx.Err()
	}
	u := wire.Unit{Pin: n.pins(ctx), WantEach: true, Statements: make([]wire.Statement, len(stmts))}
	var enc values.Encoder
	for i, s := range stmts {
		args, err := enc.EncodeAny(times.SQLite, s.Args)
		if err != nil {
			return nil, fmt.Errorf("colmena: statement %d: %w", i+1, err)
		}
		u.Statements[i] = wire.Statement{SQL: s.SQL, Args: args}
	}
	res, err := n.write(ctx, name, u)
	if err != nil {
		return nil, err
	}
	if len(res.Result.Each) != len(stmts) {
		return nil, outcomeUnknown(nil, "the leader's answer does not fit the request: %d results came back for %d statements", len(res.Result.Each), len(stmts))
	}
	out := make([]ExecResult, len(stmts))
	for i, o := range res.Result.Each {
		out[i] = ExecResult{LastInsertID: o.LastInsertID, RowsAffected: o.RowsAffected}
	}
	return out, nil
}
