package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

const (
	serialKeys  = 8
	serialLists = 2
	// A journal row numbers each transaction that wrote: what is in it tells a transaction
	// that only reads where it stands among those that write.
	serialSchema = `CREATE TABLE journal(id INTEGER PRIMARY KEY AUTOINCREMENT, tx INTEGER NOT NULL UNIQUE);
CREATE TABLE kv(k INTEGER PRIMARY KEY, v INTEGER NOT NULL CHECK(v >= 0));
CREATE TABLE item(id INTEGER PRIMARY KEY AUTOINCREMENT, tx INTEGER NOT NULL, name TEXT UNIQUE);
CREATE TABLE lists(k INTEGER PRIMARY KEY, vs TEXT NOT NULL);
WITH c(x) AS (VALUES(0),(1),(2),(3),(4),(5),(6),(7)) INSERT INTO kv SELECT x, 100 FROM c;
WITH c(x) AS (VALUES(0),(1)) INSERT INTO lists SELECT x, '' FROM c`
	serialBase = "SELECT coalesce(max(id), 0) FROM journal"
)

// serialOutcome is what a client was told of its transaction.
type serialOutcome int

const (
	serialCommitted  serialOutcome = iota
	serialRolledBack               // as it wished, and what it had read held
	serialAborted
	serialUnknown
)

// serialStep is a statement string and what its client was told.
type serialStep struct {
	sql   string
	args  []any
	query bool
	told  string // "" if it was not told
}

// serialTx is all that a client knows of one transaction.
type serialTx struct {
	tag        int64
	name       string // who ran it, and how
	buffered   bool   // its statements see nothing of one another before the commit
	writes     bool   // it has, or would have, an entry
	begin, end int64
	outcome    serialOutcome
	steps      []serialStep
	ops        []listOp
	base       int64 // the newest row of the journal as it saw it
	err        error
}

// serialLoad has clients on all nodes run random transactions.
type serialLoad struct {
	t       *testing.T
	c       *testcluster.Cluster
	started time.Time
	quit    chan struct{}
	wg      sync.WaitGroup
	tags    atomic.Int64
	commits atomic.Int64
	last    atomic.Int64 // when a transaction was last committed
	longest atomic.Int64 // nanoseconds between two

	mu      sync.Mutex
	txs     []*serialTx
	strange []error // that say nothing of the outcome
}

func startSerialLoad(t *testing.T, c *testcluster.Cluster, clients int) *serialLoad {
	t.Helper()
	exec(t, c.Running()[0], serialSchema)
	rnd := random(t)
	l := &serialLoad{t: t, c: c, started: time.Now(), quit: make(chan struct{})}
	for w := range clients {
		own := rand.New(rand.NewPCG(rnd.Uint64(), uint64(w)))
		l.wg.Go(func() { l.client(own, w) })
	}
	return l
}

// await waits until so many more transactions were committed.
func (l *serialLoad) await(commits int) {
	l.t.Helper()
	want := l.commits.Load() + int64(commits)
	l.c.Until(fmt.Sprintf("%d more commits", commits), func() bool { return l.commits.Load() >= want })
}

func (l *serialLoad) stop() {
	close(l.quit)
	l.wg.Wait()
}

func (l *serialLoad) now() int64 { return int64(time.Since(l.started)) }

// serialPatience is how long a transaction may take.
const serialPatience = 4 * time.Second

// client keeps to one node while it runs: on one that is cut off every transaction waits.
func (l *serialLoad) client(rnd *rand.Rand, w int) {
	for {
		select {
		case <-l.quit:
			return
		default:
		}
		nodes := l.c.Running()
		if len(nodes) == 0 {
			continue
		}
		patience := serialPatience
		if rnd.IntN(20) == 0 {
			patience = time.Duration(rnd.IntN(6000)) * time.Microsecond
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		l.one(ctx, rnd, nodes[w%len(nodes)])
		cancel()
	}
}

// one runs one transaction, of one of the kinds there are.
func (l *serialLoad) one(ctx context.Context, rnd *rand.Rand, n *colmena.Node) {
	switch p := rnd.IntN(20); {
	case p < 8:
		l.plain(ctx, rnd, n)
	case p < 11:
		l.inTx(ctx, rnd, n)
	case p < 13:
		l.asText(ctx, rnd, n)
	case p < 15:
		l.buffered(ctx, rnd, n)
	case p < 19:
		l.single(ctx, rnd, n)
	default:
		l.snapshot(ctx, rnd, n)
	}
}

func (l *serialLoad) newTx(n *colmena.Node, kind string, writes bool) *serialTx {
	tag := l.tags.Add(1)
	return &serialTx{tag: tag, name: fmt.Sprintf("%s %d of %s", kind, tag, n.ID()), writes: writes, begin: l.now(), base: -1}
}

// keep takes a transaction up once its client knows what became of it.
func (l *serialLoad) keep(x *serialTx, err error) {
	x.end, x.err = l.now(), err
	switch {
	case err == nil:
		l.commits.Add(1)
		l.longest.Store(max(l.longest.Load(), x.end-l.last.Swap(x.end)))
	case errors.Is(err, errSerialRollback):
		x.outcome = serialRolledBack
	case errors.Is(err, colmena.ErrOutcomeUnknown):
		x.outcome = serialUnknown
	default:
		x.outcome = serialAborted
	}
	known := err == nil || x.outcome != serialAborted || colmena.SafeToRetry(err) || errors.Is(err, colmena.ErrClosed) || errors.Is(err, sql.ErrTxDone)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.txs = append(l.txs, x)
	if !known {
		l.strange = append(l.strange, fmt.Errorf("%s: %w", x.name, err))
	}
}

// errSerialRollback says that a client rolled its transaction back, and was told so.
var errSerialRollback = errors.New("rolled back")

// plain is an interactive transaction as most applications write it.
func (l *serialLoad) plain(ctx context.Context, rnd *rand.Rand, n *colmena.Node) {
	x := l.newTx(n, "transaction", rnd.IntN(4) > 0)
	tx, err := n.DB().BeginTx(ctx, nil)
	if err != nil {
		l.keep(x, err)
		return
	}
	if err := x.body(ctx, rnd, tx); err != nil {
		_ = tx.Rollback()
		l.keep(x, err)
		return
	}
	if rnd.IntN(5) > 0 {
		l.keep(x, tx.Commit())
		return
	}
	if err = tx.Rollback(); err == nil {
		err = errSerialRollback
	}
	l.keep(x, err)
}

// inTx has InTx run the transaction until it is committed. What it gave up must not happen.
func (l *serialLoad) inTx(ctx context.Context, rnd *rand.Rand, n *colmena.Node) {
	var last *serialTx
	began := l.now()
	err := colmena.InTx(ctx, n.DB(), nil, func(tx *sql.Tx) error {
		if last != nil {
			l.keep(last, fmt.Errorf("%w: it is run again", colmena.ErrNotApplied))
			began = last.end
		}
		last = l.newTx(n, "InTx", true)
		last.begin = began
		return last.body(ctx, rnd, tx)
	})
	if last != nil {
		l.keep(last, err)
	}
}

// asText begins and commits by statements.
func (l *serialLoad) asText(ctx context.Context, rnd *rand.Rand, n *colmena.Node) {
	x := l.newTx(n, "BEGIN", rnd.IntN(3) > 0)
	conn, err := n.DB().Conn(ctx)
	if err != nil {
		l.keep(x, err)
		return
	}
	defer conn.Close()
	if _, err = conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err == nil {
		err = x.body(ctx, rnd, conn)
	}
	if err != nil {
		l.keep(x, err)
		return
	}
	_, err = conn.ExecContext(ctx, "COMMIT")
	l.keep(x, err)
}

// buffered knows its counts when it is committed.
func (l *serialLoad) buffered(ctx context.Context, rnd *rand.Rand, n *colmena.Node) {
	x := l.newTx(n, "buffered transaction", true)
	x.buffered = true
	tx, err := n.DB().BeginTx(colmena.WithTxMode(ctx, colmena.TxBuffered), nil)
	if err != nil {
		l.keep(x, err)
		return
	}
	var results []sql.Result
	add := func(query string, args ...any) {
		res, e := tx.ExecContext(ctx, query, args...)
		err = errors.Join(err, e)
		x.steps, results = append(x.steps, serialStep{sql: query, args: args}), append(results, res)
	}
	add("UPDATE kv SET v = v - ? WHERE k = ?", rnd.IntN(30), rnd.IntN(serialKeys)) // may fail
	add("UPDATE kv SET v = v + ? WHERE k = ?", rnd.IntN(30), rnd.IntN(serialKeys))
	add("INSERT INTO item(tx, name) VALUES(?, ?)", x.tag, x.someName(rnd))
	add("UPDATE lists SET vs = vs || ',' || ? WHERE k = ?", x.appends(rnd.IntN(serialLists)), x.ops[0].key)
	add(x.journal())
	if err == nil {
		err = tx.Commit()
	} else {
		_ = tx.Rollback()
	}
	for i := range x.steps {
		if err == nil {
			x.steps[i].told, err = tellResult(x.steps[i].sql, results[i])
		}
	}
	l.keep(x, err)
}

// single is one statement string outside a transaction, which is atomic too.
func (l *serialLoad) single(ctx context.Context, rnd *rand.Rand, n *colmena.Node) {
	x := l.newTx(n, "single write", true)
	step := serialStep{}
	key := rnd.IntN(serialLists)
	switch rnd.IntN(4) {
	case 0:
		step.sql, step.query = x.journal()+" RETURNING id", true
	case 1:
		step.sql = x.journal() + fmt.Sprintf("; INSERT INTO kv VALUES(%d, 0)", rnd.IntN(serialKeys)) // fails
	default:
		step.sql = fmt.Sprintf("UPDATE kv SET v = v + 1 WHERE k = %d; UPDATE lists SET vs = vs || ',%d' WHERE k = %d; ", rnd.IntN(serialKeys), x.appends(key), key) + x.journal()
	}
	told, err := step.run(ctx, n.DB())
	step.told = told
	x.steps = append(x.steps, step)
	if errors.Is(err, errRows) {
		err = errors.Join(colmena.ErrOutcomeUnknown, err) // it ran, and its rows were not read
	}
	l.keep(x, err)
}

// errRows says that a statement has run, and that its rows could not be read to their end:
// database/sql ends them, with the bare error of the context.
var errRows = errors.New("rows")

// snapshot is a read-only transaction.
func (l *serialLoad) snapshot(ctx context.Context, rnd *rand.Rand, n *colmena.Node) {
	x := l.newTx(n, "snapshot", false)
	tx, err := n.DB().BeginTx(colmena.WithConsistency(ctx, colmena.Strong), &sql.TxOptions{ReadOnly: true})
	if err == nil {
		err = errors.Join(x.body(ctx, rnd, tx), tx.Commit())
	}
	l.keep(x, err)
}

func (x *serialTx) journal() string { return fmt.Sprintf("INSERT INTO journal(tx) VALUES(%d)", x.tag) }

// someName is a name that another transaction may have taken.
func (x *serialTx) someName(rnd *rand.Rand) string {
	return fmt.Sprint("name", rnd.Int64N(2*x.tag+10))
}

// appends notes that a list is appended to, and returns with what.
func (x *serialTx) appends(key int) int {
	v := int(x.tag)*1000 + len(x.steps)
	x.ops = append(x.ops, listOp{key: key, append: true, value: v})
	return v
}

// querier is a transaction, a connection in one, or a handle.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// run runs a step and tells what came of it.
func (s *serialStep) run(ctx context.Context, q querier) (told string, err error) {
	if !s.query {
		res, err := q.ExecContext(ctx, s.sql, s.args...)
		if err != nil {
			return "", err
		}
		return tellResult(s.sql, res)
	}
	rows, err := q.QueryContext(ctx, s.sql, s.args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return "", err
	}
	told = "rows"
	for rows.Next() {
		values, ptrs := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			ptrs[i] = &values[i]
		}
		if err := rows.Scan(ptrs...); err != nil {
			return "", err
		}
		for _, v := range values {
			told += fmt.Sprintf("|%v", v)
		}
	}
	if err := rows.Err(); err != nil {
		return "", fmt.Errorf("%w: %w", errRows, err)
	}
	return told, nil
}

// tellResult tells what a statement did. After others than these SQLite's counters are
// those of earlier ones, on whatever connection that was.
func tellResult(query string, res sql.Result) (string, error) {
	word, _, _ := strings.Cut(query, " ")
	if word != "INSERT" && word != "UPDATE" && word != "DELETE" {
		return "done", nil
	}
	rows, err := res.RowsAffected()
	if err != nil {
		return "", err
	}
	told := fmt.Sprint("changed ", rows)
	if strings.Contains(query, "INSERT") && !strings.Contains(query, "ON CONFLICT") {
		id, err := res.LastInsertId()
		if err != nil {
			return "", err
		}
		told += fmt.Sprint(", ID ", id)
	}
	return told, nil
}

// do runs a step of an interactive transaction. SQL errors do not end it: they are something
// that it was told.
func (x *serialTx) do(ctx context.Context, q querier, query bool, text string, args ...any) (string, error) {
	s := serialStep{sql: text, args: args, query: query}
	told, err := s.run(ctx, q)
	var failed *colmena.SQLError
	if errors.As(err, &failed) && !errors.Is(err, colmena.ErrTxAborted) {
		told, err = fmt.Sprint("error ", failed.ExtendedCode), nil
	}
	s.told = told
	x.steps = append(x.steps, s)
	return told, err
}

// think is a client that takes its time before its next statement, at times.
func think(rnd *rand.Rand) {
	if rnd.IntN(4) == 0 {
		time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
	}
}

func (x *serialTx) body(ctx context.Context, rnd *rand.Rand, q querier) error {
	told, err := x.do(ctx, q, true, serialBase)
	if err != nil {
		return err
	}
	if _, err := fmt.Sscanf(told, "rows|%d", &x.base); err != nil {
		return fmt.Errorf("the journal's newest row: %q: %w", told, err)
	}
	n := 1 + rnd.IntN(5)
	journal := rnd.IntN(n)
	for i := range n {
		think(rnd)
		if x.writes && i == journal {
			if _, err := x.do(ctx, q, false, x.journal()); err != nil {
				return err
			}
		}
		if err := x.step(ctx, rnd, q); err != nil {
			return err
		}
	}
	return nil
}

func (x *serialTx) step(ctx context.Context, rnd *rand.Rand, q querier) (err error) {
	kind := rnd.IntN(17)
	if !x.writes {
		kind = rnd.IntN(3)
	}
	key := rnd.IntN(serialKeys)
	switch kind {
	case 0:
		_, err = x.do(ctx, q, true, "SELECT sum(v), count(*), (SELECT count(*) FROM item) FROM kv")
	case 1:
		_, err = x.do(ctx, q, true, "SELECT id, tx, name FROM item ORDER BY id DESC LIMIT 3")
	case 2, 3:
		_, err = x.readList(ctx, q, rnd.IntN(serialLists))
	case 4, 5, 15, 16:
		err = x.appendRead(ctx, rnd, q)
	case 6:
		list := rnd.IntN(serialLists)
		_, err = x.do(ctx, q, false, "UPDATE lists SET vs = vs || ',' || ? WHERE k = ?", x.appends(list), list)
	case 7:
		err = x.conditional(ctx, rnd, q, key)
	case 8:
		_, err = x.do(ctx, q, false, "UPDATE kv SET v = v - ? WHERE k = ?", rnd.IntN(200), key) // fails below zero
	case 9:
		if _, err = x.do(ctx, q, false, "INSERT INTO item(tx, name) VALUES(?, ?)", x.tag, x.someName(rnd)); err == nil {
			_, err = x.do(ctx, q, true, "SELECT max(id), max(id) - (SELECT seq FROM sqlite_sequence WHERE name = 'item') FROM item")
		}
	case 10:
		_, err = x.do(ctx, q, true, "INSERT INTO item(tx, name) VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET tx = excluded.tx RETURNING id, tx, name", x.tag, x.someName(rnd))
	case 11:
		_, err = x.do(ctx, q, true, "DELETE FROM item WHERE id % 5 = ? AND id < (SELECT max(id) - 5 FROM item) RETURNING id", rnd.IntN(5))
	case 12:
		_, err = x.do(ctx, q, false, "INSERT INTO item(tx, name) VALUES(?, NULL), (?, 'twice'), (?, 'twice')", x.tag, x.tag, x.tag) // fails
	case 13:
		err = x.savepoint(ctx, rnd, q)
	case 14:
		if rnd.IntN(4) == 0 { // ends the transaction
			_, err = x.do(ctx, q, false, "INSERT OR ROLLBACK INTO kv VALUES(?, 1)", key)
		}
	}
	return err
}

// conditional writes what depends on what it reads.
func (x *serialTx) conditional(ctx context.Context, rnd *rand.Rand, q querier, key int) error {
	told, err := x.do(ctx, q, true, "SELECT v FROM kv WHERE k = ?", key)
	if err != nil {
		return err
	}
	v, err := strconv.Atoi(strings.TrimPrefix(told, "rows|"))
	if err != nil {
		return err
	}
	think(rnd)
	if v%2 == 0 {
		_, err = x.do(ctx, q, false, "UPDATE kv SET v = ? WHERE k = ?", v/2+rnd.IntN(100), key)
		return err
	}
	if told, err = x.do(ctx, q, false, "INSERT INTO item(tx, name) VALUES(?, ?)", x.tag, fmt.Sprint("odd", v, "/", key)); err != nil || strings.HasPrefix(told, "error") {
		return err
	}
	_, err = x.do(ctx, q, true, "SELECT last_insert_rowid(), changes()")
	return err
}

func (x *serialTx) readList(ctx context.Context, q querier, key int) (text string, err error) {
	told, err := x.do(ctx, q, true, "SELECT vs FROM lists WHERE k = ?", key)
	if err != nil {
		return "", err
	}
	text = strings.TrimPrefix(told, "rows|")
	values, err := listValues(text)
	x.ops = append(x.ops, listOp{key: key, read: values})
	return text, err
}

func listValues(text string) (values []int, err error) {
	for i, part := range strings.Split(text, ",") {
		if i == 0 {
			continue
		}
		v, err := strconv.Atoi(part)
		if err != nil {
			return nil, fmt.Errorf("a list: %w", err)
		}
		values = append(values, v)
	}
	return values, nil
}

// appendRead writes a list whole that it has read, so that an update which came between
// would be lost.
func (x *serialTx) appendRead(ctx context.Context, rnd *rand.Rand, q querier) error {
	key := rnd.IntN(serialLists)
	text, err := x.readList(ctx, q, key)
	if err != nil {
		return err
	}
	think(rnd)
	think(rnd)
	_, err = x.do(ctx, q, false, "UPDATE lists SET vs = ? WHERE k = ?", fmt.Sprintf("%s,%d", text, x.appends(key)), key)
	return err
}

// savepoint does something that is undone, or kept, or fails half way.
func (x *serialTx) savepoint(ctx context.Context, rnd *rand.Rand, q querier) error {
	if _, err := x.do(ctx, q, false, "SAVEPOINT sp"); err != nil {
		return err
	}
	ops := len(x.ops)
	for range 1 + rnd.IntN(3) {
		if err := x.step(ctx, rnd, q); err != nil {
			return err
		}
	}
	if rnd.IntN(2) == 0 {
		if _, err := x.do(ctx, q, false, "ROLLBACK TO sp"); err != nil {
			return err
		}
		x.ops = x.ops[:ops]
	}
	_, err := x.do(ctx, q, false, "RELEASE sp")
	return err
}
