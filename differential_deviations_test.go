package colmena_test

import (
	"context"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// deviations are the ways in which colmena is not like modernc.org/sqlite on purpose.
// Everything that a differential test lets pass stands here and nowhere else. normalise
// takes the deviation out of both outcomes.
var deviations = []struct {
	what, why string
	normalise func(st *step, ours, plain *outcome)
}{
	{
		what: "a statement string outside a transaction is atomic",
		why:  "README: a write is one entry. The peer runs such a string between BEGIN and COMMIT: side.around",
	}, {
		what:      "the row count of DDL is 0, and what changes() tells after it is not compared where it counted rows of its own",
		why:       "README: SQLite's counter is stale after DDL, and 0 is reported",
		normalise: staleCount,
	}, {
		what:      "a text without a statement has the result of nothing, for Exec",
		why:       "the peer's driver gives database/sql no result at all, and asking it panics",
		normalise: emptyResult,
	}, {
		what:      "a column type has a ScanType even where the value is NULL or there is no row",
		why:       "SPEC section 4: users of ScanType call reflect.New on it; any, or what the declared type says",
		normalise: untypedColumns,
	}, {
		what:      "what SQLite expects of a plan is not compared",
		why:       "colmena plans without looking at arguments, so that replicas plan alike: DESIGN.md, QPSG",
		normalise: plans,
	}, {
		what:      "rows that no ORDER BY sorts come in any order, and a column type tells of the one that came first",
		why:       "the same; difference sorts them",
		normalise: firstRow,
	}, {
		what:      "an error in the midst of a result comes before its first row, in a transaction and of a write",
		why:       "such results are read to their end where they run, so that no cursor spans epochs",
		normalise: rowsBeforeAnError,
	}, {
		what:      "an argument that is missing is a *SQLError",
		why:       "it comes from the leader, where errors have codes; the message is the peer's",
		normalise: missingArgument,
	}, {
		what: "what is wrong with a writing statement is said when it runs, not by Prepare",
		why:  "the leader judges it, on the schema that it will run on: side.do takes both for one",
	}, {
		what: "an empty BLOB that is scanned is an empty slice, not nil",
		why:  "nil stands for NULL: describeRow shows both alike",
	}, {
		what: "texts in columns of times are read in more forms, those of SQLite's date functions: a small z, blanks before the zone",
		why:  "TimeFormat: the generator makes none of them",
	}, {
		what: "PRAGMA recursive_triggers cannot change in a transaction",
		why:  "it is one value per entry: it is refused, and the generator sets it outside; TestPragmasInATransaction",
	}, {
		what: "an insert that fails by an immediate foreign key forgets that it broke a deferred one too",
		why:  "the peer goes on counting it, and COMMIT fails though nothing is violated: no table of the generator has both",
	}, {
		what: "of a statement that fails on a STRICT table nothing is left",
		why:  "in a transaction the peer leaves the rows before the one whose type is wrong: the generator writes to such a table row by row; TestFailedStatementOnAStrictTableLeavesNothing",
	}, {
		what: "FTS5's segments are not compared",
		why:  "they are written out at savepoints, of which colmena has others: episode.compareContent",
	},
}

// around is do; but a string of several statements outside a transaction is atomic.
func (s *side) around(ctx context.Context, st *step) outcome {
	if !st.atomic {
		return s.do(ctx, st)
	}
	if _, err := s.conn.ExecContext(ctx, "BEGIN"); err != nil {
		return outcome{err: err}
	}
	o := s.do(ctx, st)
	if o.err == nil {
		_, o.err = s.conn.ExecContext(ctx, "COMMIT")
	}
	if o.err != nil {
		if _, err := s.conn.ExecContext(ctx, "ROLLBACK"); err != nil {
			o.err = errors.Join(o.err, err)
		}
	}
	return o
}

func staleCount(st *step, ours, plain *outcome) {
	if st.schema || st.wasStale {
		ours.count, plain.count = 0, 0
	}
}

func plans(st *step, ours, plain *outcome) {
	if strings.HasPrefix(st.query, "EXPLAIN QUERY PLAN") {
		ours.rows, plain.rows = nil, nil
	}
}

func firstRow(st *step, ours, plain *outcome) {
	if st.ordered || len(ours.rows) == 0 || len(plain.rows) == 0 || ours.rows[0] == plain.rows[0] {
		return
	}
	for _, o := range []*outcome{ours, plain} {
		for i := range o.types {
			o.types[i].scan, o.types[i].length, o.types[i].hasLength = nil, 0, false
		}
	}
}

func emptyResult(st *step, ours, plain *outcome) {
	if st.empty && !st.rows {
		ours.id, ours.count, plain.id, plain.count = 0, 0, 0, 0
	}
}

func untypedColumns(_ *step, ours, plain *outcome) {
	for i := range plain.types {
		if plain.types[i].scan == nil && i < len(ours.types) && (ours.types[i].scan == reflect.TypeFor[any]() || len(plain.rows) == 0 && ours.types[i].scan != nil) {
			ours.types[i].scan = nil
		}
	}
}

func rowsBeforeAnError(_ *step, ours, plain *outcome) {
	if ours.err != nil && plain.err != nil {
		*ours, *plain = outcome{err: ours.err}, outcome{err: plain.err}
	}
}

var missing = regexp.MustCompile(`missing (named )?argument .*`)

func missingArgument(_ *step, ours, plain *outcome) {
	var e *colmena.SQLError
	if plain.err != nil && errors.As(ours.err, &e) && e.ExtendedCode == 1 && strings.HasPrefix(plain.err.Error(), "missing ") && slices.Equal(missing.FindStringSubmatch(e.Msg), missing.FindStringSubmatch(plain.err.Error())) {
		ours.err = plain.err
	}
}

func TestFailedStatementOnAStrictTableLeavesNothing(t *testing.T) {
	c := testcluster.New(t, 1)
	db := c.Node(0).DB()
	exec(t, c.Node(0), "CREATE TABLE s(a INTEGER) STRICT")
	tx, err := db.BeginTx(limit(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO s VALUES(1), (2), ('three')"); err == nil {
		t.Error("a text is taken for an INTEGER")
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	wantNumber(t, c.Node(0), colmena.Weak, 0, "SELECT count(*) FROM s")
}
