package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "modernc.org/sqlite" // what colmena is compared with

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

var (
	differentialSeed    = flag.Uint64("differential.seed", 0, "seed of TestDifferential, 0 takes one at random")
	differentialEpisode = flag.Int("differential.episode", -1, "the only episode of TestDifferential to run; what differs is told with all that came before")
	differentialCount   = flag.Int("differential.statements", 24_000, "statements of TestDifferential in all; a tenth of them with -short")
)

// An episode is a sequence of statements on a database of its own.
const (
	statementsPerEpisode = 400
	episodesAtATime      = 4 // they share epochs and syncs
)

// TestDifferential runs the same random statements and transactions on colmena and on
// plain SQLite, through modernc.org/sqlite's own database/sql driver, and compares what
// each statement gave and, at the end, all content. A difference ends its episode, which
// can be run again alone.
func TestDifferential(t *testing.T) {
	seed := *differentialSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	episodes := max(2, size(*differentialCount)/statementsPerEpisode)
	var statements atomic.Int64
	// The odd episodes run on a cluster, through a follower; the even ones on a node alone.
	for kind, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			// Its leader stays, however slow the machine: transactions would end with it.
			c := testcluster.New(t, nodes, func(_ int, cfg *colmena.Config) {
				cfg.HeartbeatTimeout, cfg.ElectionTimeout = 5*time.Second, 5*time.Second
			})
			node := c.Node(0)
			if nodes > 1 {
				node = c.Node(c.Follower())
			}
			var wg sync.WaitGroup
			free := make(chan struct{}, episodesAtATime)
			for i := kind; i < episodes; i += 2 {
				if *differentialEpisode >= 0 && *differentialEpisode != i {
					continue
				}
				free <- struct{}{}
				wg.Go(func() {
					defer func() { <-free }()
					e := newEpisode(t, node, seed, i)
					defer e.close()
					e.run()
					statements.Add(int64(e.count))
				})
			}
			wg.Wait()
		})
	}
	t.Logf("%d statements on colmena and on SQLite each", statements.Load())
	if want := int64(size(20_000)); *differentialEpisode < 0 && !t.Failed() && *differentialCount >= 20_000 && statements.Load() < want {
		t.Errorf("only %d statements were compared, %d are promised", statements.Load(), want)
	}
}

// side is one of the two databases that are compared.
type side struct {
	db    *sql.DB
	conn  *sql.Conn
	tx    *sql.Tx
	stmts map[string]*sql.Stmt // by text
	plain bool
	// deferred: foreign keys were deferred. SQLite compiles a check that is deferred so that it comes
	// after the insert, and keeps the statement: so what last_insert_rowid() is after an insert that fails
	// would depend on when the statement was compiled last. From then on each is prepared anew.
	deferred bool
}

func newSide(t *testing.T, db *sql.DB, plain bool) *side {
	t.Helper()
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &side{db: db, conn: conn, stmts: map[string]*sql.Stmt{}, plain: plain}
}

func (s *side) close() {
	if s.tx != nil {
		_ = s.tx.Rollback()
	}
	for _, st := range s.stmts {
		_ = st.Close()
	}
	_ = s.conn.Close()
	_ = s.db.Close()
}

// outcome is what a statement gave.
type outcome struct {
	names []string
	types []columnType // as told on the first row
	rows  []string
	id    int64 // of Exec
	count int64
	err   error
}

type columnType struct {
	database           string
	length             int64
	hasLength          bool
	nullable, hasNulls bool
	scan               reflect.Type
}

// do carries out one step.
func (s *side) do(ctx context.Context, st *step) (o outcome) {
	switch st.kind {
	case stepBegin:
		s.tx, o.err = s.conn.BeginTx(context.WithoutCancel(ctx), &sql.TxOptions{ReadOnly: st.readOnly})
		return o
	case stepCommit, stepRollback:
		end := s.tx.Commit
		if st.kind == stepRollback {
			end = s.tx.Rollback
		}
		o.err = end()
		s.tx = nil
		return o
	}
	s.deferred = s.deferred || strings.HasPrefix(st.query, "PRAGMA defer_foreign_keys = on")
	if st.prepared {
		prepared, err := s.prepare(ctx, st.query)
		if err != nil {
			o.err = err
			return o
		}
		if s.tx != nil && st.throughTx {
			prepared = s.tx.StmtContext(ctx, prepared)
		}
		if !st.rows {
			return execOutcome(prepared.ExecContext(ctx, st.args...))
		}
		return rowsOutcome(prepared.QueryContext(ctx, st.args...))
	}
	var to interface {
		ExecContext(context.Context, string, ...any) (sql.Result, error)
		QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	} = s.conn
	if s.tx != nil {
		to = s.tx
	}
	if !st.rows {
		return execOutcome(to.ExecContext(ctx, st.query, st.args...))
	}
	return rowsOutcome(to.QueryContext(ctx, st.query, st.args...))
}

func (s *side) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	if st := s.stmts[query]; st != nil {
		if !s.deferred {
			return st, nil
		}
		_ = st.Close()
		delete(s.stmts, query)
	}
	st, err := s.conn.PrepareContext(ctx, query)
	if err == nil {
		s.stmts[query] = st
	}
	return st, err
}

func execOutcome(res sql.Result, err error) (o outcome) {
	if o.err = err; err != nil {
		return o
	}
	defer func() { _ = recover() }() // the peer's result of a text without a statement is nil
	o.id, _ = res.LastInsertId()
	o.count, _ = res.RowsAffected()
	return o
}

func rowsOutcome(rows *sql.Rows, err error) (o outcome) {
	if o.err = err; err != nil {
		return o
	}
	defer rows.Close()
	if o.names, o.err = rows.Columns(); o.err != nil {
		return o
	}
	types, err := rows.ColumnTypes()
	if err != nil {
		o.err = err
		return o
	}
	for _, ct := range types {
		c := columnType{database: ct.DatabaseTypeName(), scan: ct.ScanType()}
		c.length, c.hasLength = ct.Length()
		c.nullable, c.hasNulls = ct.Nullable()
		o.types = append(o.types, c)
	}
	values, dest := make([]any, len(o.names)), make([]any, len(o.names))
	for i := range values {
		dest[i] = &values[i]
	}
	for rows.Next() {
		if o.err = rows.Scan(dest...); o.err != nil {
			return o
		}
		o.rows = append(o.rows, describeRow(values))
	}
	o.err = rows.Err()
	return o
}

func describeRow(values []any) string {
	var b strings.Builder
	for _, v := range values {
		switch m := v.(type) {
		case time.Time:
			v = "time " + m.UTC().Format(time.RFC3339Nano)
		case []byte:
			v = fmt.Sprintf("blob %x", m) // an empty one is nil for the peer
		}
		fmt.Fprintf(&b, "%T(%#v) ", v, v)
	}
	return b.String()
}

// episode is the run of one sequence.
type episode struct {
	t           *testing.T
	name        string
	ours, plain *side
	gen         *generator
	count       int
	log         []string
}

func newEpisode(t *testing.T, node *colmena.Node, seed uint64, i int) *episode {
	t.Helper()
	e := &episode{t: t, name: fmt.Sprintf("episode %d of seed %d", i, seed), gen: newGenerator(rand.New(rand.NewPCG(seed, uint64(i))))}
	plain, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "plain.db")+"?_time_format=sqlite&_pragma=journal_mode(wal)&_pragma=synchronous(off)")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := node.OpenDB(fmt.Sprintf("e%d", i))
	if err != nil {
		t.Fatal(err)
	}
	e.plain, e.ours = newSide(t, plain, true), newSide(t, ours, false)
	return e
}

func (e *episode) close() {
	e.ours.close()
	e.plain.close()
}

func (e *episode) run() {
	for _, st := range e.gen.schema() {
		if !e.step(st) {
			return
		}
	}
	for e.count < statementsPerEpisode {
		if !e.step(e.gen.next()) {
			return
		}
	}
	for e.gen.inTx() {
		if !e.step(e.gen.end()) {
			return
		}
	}
	e.compareContent()
}

// step carries out one step on both sides and compares. It returns false if they differ.
func (e *episode) step(st *step) bool {
	ctx, cancel := context.WithTimeout(e.t.Context(), testcluster.Timeout)
	defer cancel()
	st.atomic = st.several && !e.gen.open
	st.wasStale = e.gen.stale && !st.counts || e.gen.flushes(st)
	ours := e.ours.do(ctx, st)
	plain := e.plain.around(ctx, st)
	e.count++
	e.log = append(e.log, fmt.Sprintf("%s  -> %v", st, plain.err))
	for _, d := range deviations {
		if d.normalise != nil {
			d.normalise(st, &ours, &plain)
		}
	}
	if diff := difference(st, ours, plain); diff != "" {
		e.fail(diff)
		return false
	}
	e.gen.learn(st, plain.err)
	return true
}

func (e *episode) fail(diff string) {
	last := e.log
	if *differentialEpisode < 0 {
		last = last[max(0, len(last)-20):]
	}
	e.t.Errorf("%s: after %d statements: %s\nthe last ones:\n%s", e.name, e.count, diff, strings.Join(last, "\n"))
}

func difference(st *step, ours, plain outcome) string {
	switch {
	case (ours.err == nil) != (plain.err == nil) || ours.err != nil && errorText(ours.err) != errorText(plain.err):
		return fmt.Sprintf("error\n got %v\nwant %v", ours.err, plain.err)
	case ours.err != nil:
		return ""
	case !slices.Equal(ours.names, plain.names):
		return fmt.Sprintf("columns\n got %q\nwant %q", ours.names, plain.names)
	case !slices.Equal(ours.types, plain.types):
		return fmt.Sprintf("column types\n got %v\nwant %v", ours.types, plain.types)
	case ours.id != plain.id || ours.count != plain.count:
		return fmt.Sprintf("LastInsertId, RowsAffected\n got %d, %d\nwant %d, %d", ours.id, ours.count, plain.id, plain.count)
	}
	if !st.ordered {
		slices.Sort(ours.rows)
		slices.Sort(plain.rows)
	}
	if !slices.Equal(ours.rows, plain.rows) {
		return fmt.Sprintf("rows\n got %q\nwant %q", ours.rows, plain.rows)
	}
	return ""
}

// errorText is the extended code and the message of SQLite's errors.
func errorText(err error) string {
	var coded interface{ Code() int }
	if errors.As(err, &coded) {
		return fmt.Sprintf("%d %v", coded.Code(), err)
	}
	return err.Error()
}

// compareContent compares the schemas and every row of every table.
func (e *episode) compareContent() {
	schema := &step{kind: stepRun, rows: true, query: "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name <> 'sqlite_colmena' AND tbl_name <> 'sqlite_colmena' ORDER BY type, name"}
	if !e.step(schema) {
		return
	}
	rows, err := e.plain.conn.QueryContext(e.t.Context(), "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '*_data' AND name NOT GLOB '*_idx'")
	if err != nil {
		e.t.Error(err)
		return
	}
	var tables []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			e.t.Error(err)
		}
		tables = append(tables, name)
	}
	if err := rows.Err(); err != nil {
		e.t.Error(err)
	}
	for _, name := range tables {
		table := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
		if !e.step(&step{kind: stepRun, rows: true, query: "SELECT * FROM " + table + where(name)}) || !e.step(&step{kind: stepRun, rows: true, query: "SELECT " + e.quoted(table) + " FROM " + table + where(name)}) {
			return
		}
	}
	e.step(&step{kind: stepRun, rows: true, query: "PRAGMA integrity_check"})
	e.step(&step{kind: stepRun, rows: true, query: "PRAGMA foreign_key_check"})
	e.step(&step{kind: stepRun, rows: true, query: "PRAGMA user_version"})
}

// where leaves out what ANALYZE tells of FTS5's segments.
func where(table string) string {
	if strings.HasPrefix(table, "sqlite_stat") {
		return " WHERE tbl NOT GLOB 'tf_*'"
	}
	return ""
}

// quoted lists a table's columns as they are stored, without a driver's reading of them.
func (e *episode) quoted(table string) string {
	rows, err := e.plain.conn.QueryContext(e.t.Context(), "SELECT * FROM "+table)
	if err != nil {
		e.t.Error(err)
		return "1"
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		e.t.Error(err)
	}
	for i, name := range names {
		names[i] = `quote("` + strings.ReplaceAll(name, `"`, `""`) + `")`
	}
	return strings.Join(names, ", ")
}
