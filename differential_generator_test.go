package colmena_test

import (
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

type stepKind int

const (
	stepRun stepKind = iota
	stepBegin
	stepCommit
	stepRollback
)

// step is one call on a connection.
type step struct {
	kind      stepKind
	query     string
	args      []any
	rows      bool // by Query, else by Exec
	ordered   bool // the rows come in an order that the statement asks for
	prepared  bool // by a statement that is prepared once and kept
	throughTx bool // ... and taken into the transaction with Tx.Stmt
	readOnly  bool
	once      bool      // not to be done again later
	several   bool      // several statements, none of which begins or ends a transaction
	atomic    bool      // ... outside a transaction
	schema    bool      // the last statement changes the schema
	stale     bool      // SQLite's row count means nothing from here on
	counts    bool      // ... and from here on it does
	wasStale  bool      // ... or meant nothing before it
	empty     bool      // no statement
	control   []control // if it succeeds
	failed    []control // if it fails
}

// control is what a step does to transactions.
type control struct {
	kind string // BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE, ROLLBACK TO
	name string
}

func (s *step) String() string {
	switch s.kind {
	case stepBegin:
		return fmt.Sprintf("BeginTx(read-only %v)", s.readOnly)
	case stepCommit:
		return "Tx.Commit"
	case stepRollback:
		return "Tx.Rollback"
	}
	how := "Exec"
	if s.rows {
		how = "Query"
	}
	if s.prepared {
		how = "Stmt." + how
	}
	text := s.query
	if len(text) > 600 {
		text = text[:600] + "..."
	}
	args := fmt.Sprintf("%#v", s.args)
	if len(args) > 400 {
		args = args[:400] + "..."
	}
	return fmt.Sprintf("%s %q %s", how, text, args)
}

// generator makes the steps of an episode, and follows which transaction it is in.
type generator struct {
	*rand.Rand
	tx       bool // a sql.Tx is open
	readOnly bool
	open     bool     // SQLite is in a transaction
	saved    []string // open savepoints
	saves    bool     // the transaction was begun by SAVEPOINT
	queue    []*step  // what comes next; nil stands for counters
	args     []any
	style    int
	kept     []*step // steps by prepared statements, to be done again
	stale    bool    // SQLite's row count means nothing now
	fts      bool    // the transaction has written to an FTS5 table
}

func newGenerator(r *rand.Rand) *generator { return &generator{Rand: r} }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) inTx() bool { return g.tx || g.open }

// next makes the next step.
func (g *generator) next() *step {
	if len(g.queue) > 0 {
		st := g.queue[0]
		if g.queue = g.queue[1:]; st == nil {
			return g.counters()
		}
		return st
	}
	switch {
	case g.tx && !g.open: // it was ended by a statement
		return g.end()
	case !g.inTx() && g.chance(10):
		return g.begin()
	case g.inTx() && g.chance(7):
		return g.end()
	case g.tx && !g.readOnly && g.chance(2):
		return g.another()
	case g.chance(5) && !g.readOnly:
		return g.savepoint()
	}
	if len(g.kept) > 0 && g.chance(12) {
		again := *pick(g, g.kept...)
		again.throughTx = g.tx && g.chance(50)
		if !g.readOnly || again.rows && strings.HasPrefix(again.query, "SELECT") {
			return &again
		}
	}
	st := g.statement()
	if st.rows && g.readOnly {
		return st
	}
	if g.chance(12) && !st.empty && len(st.control)+len(st.failed) == 0 && !st.once && len(g.kept) < 30 {
		st.prepared, st.throughTx = true, g.tx && g.chance(50)
		g.kept = append(g.kept, st)
	}
	if g.chance(10) {
		g.queue = append(g.queue, nil)
	}
	return st
}

// begin makes a step that begins a transaction, in one of the ways there are.
func (g *generator) begin() *step {
	switch {
	case g.chance(60):
		return &step{kind: stepBegin, readOnly: g.chance(20)}
	case g.chance(60):
		return &step{query: pick(g, "BEGIN", "begin immediate", "BEGIN EXCLUSIVE TRANSACTION;", "/* x */ BEGIN DEFERRED -- y"), control: []control{{kind: "BEGIN"}}}
	}
	return &step{query: "SAVEPOINT one", control: []control{{"SAVEPOINT", "one"}}}
}

// end makes a step that ends the transaction.
func (g *generator) end() *step {
	roll := g.chance(35)
	if g.tx && (g.chance(95) || !g.open || g.readOnly) {
		if roll {
			return &step{kind: stepRollback}
		}
		return &step{kind: stepCommit}
	}
	switch {
	case roll:
		return &step{query: pick(g, "ROLLBACK", "rollback transaction;"), control: []control{{kind: "ROLLBACK"}}}
	case g.saves && g.chance(60):
		return &step{query: "RELEASE " + g.saved[0], control: []control{{"RELEASE", g.saved[0]}}}
	}
	return &step{query: pick(g, "COMMIT", "END", "commit transaction ;"), control: []control{{kind: "COMMIT"}}}
}

// another makes a step that puts another transaction in the place of that of a sql.Tx.
func (g *generator) another() *step {
	end := pick(g, "COMMIT", "ROLLBACK")
	return &step{query: end + "; BEGIN", control: []control{{kind: end}, {kind: "BEGIN"}}}
}

// savepoint makes a step about savepoints, and now and then one that is misplaced.
func (g *generator) savepoint() *step {
	name := pick(g, "one", "Two", "\"three 3\"")
	kind := pick(g, "SAVEPOINT", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "ROLLBACK TO")
	if !g.open {
		kind = pick(g, "RELEASE", "ROLLBACK TO", "COMMIT", "ROLLBACK")
		if kind == "COMMIT" || kind == "ROLLBACK" {
			return &step{query: kind, control: []control{{kind: kind}}}
		}
	} else if g.chance(5) {
		return &step{query: "BEGIN", control: []control{{kind: "BEGIN"}}}
	}
	text := kind + " " + name
	if kind == "ROLLBACK TO" {
		text = pick(g, "ROLLBACK TO ", "ROLLBACK TRANSACTION TO SAVEPOINT ") + name
	}
	return &step{query: text, rows: g.chance(20), control: []control{{kind, strings.Trim(name, "\"")}}}
}

// learn follows what a step did to transactions.
func (g *generator) learn(st *step, err error) {
	// What FTS5 has gathered it writes out at savepoints and at the end, and counts it.
	g.fts = g.fts && g.open || strings.Contains(st.query, " tf")
	defer func() { g.stale = g.stale || g.flushes(st) }()
	switch st.kind {
	case stepBegin:
		if err == nil {
			g.tx, g.open, g.readOnly = true, true, st.readOnly
		}
	case stepCommit, stepRollback: // a commit that fails is rolled back by the drivers
		g.tx, g.readOnly = false, false
		g.ended()
	}
	if err != nil {
		g.stale = g.stale || st.several // it was said when it was committed, or before
		for _, c := range st.failed {
			g.apply(c)
		}
		return
	}
	g.stale = st.stale || g.stale && !st.counts
	for _, c := range st.control {
		g.apply(c)
	}
}

// flushes reports whether FTS5 may write out what it has gathered at a step.
func (g *generator) flushes(st *step) bool { return g.fts && (!st.counts || st.several) }

// counters makes a query for what a connection remembers of its last write.
func (g *generator) counters() *step {
	if g.stale {
		return &step{rows: true, once: true, query: "SELECT last_insert_rowid()"}
	}
	return &step{rows: true, once: true, query: "SELECT changes(), last_insert_rowid()"}
}

func (g *generator) ended() { g.open, g.saves, g.saved = false, false, nil }

func (g *generator) apply(c control) {
	at := -1
	for i, name := range g.saved {
		if strings.EqualFold(name, c.name) {
			at = i
		}
	}
	switch c.kind {
	case "BEGIN":
		g.open = true
	case "COMMIT", "ROLLBACK":
		g.ended()
	case "SAVEPOINT":
		if !g.open {
			g.open, g.saves = true, true
		}
		g.saved = append(g.saved, c.name)
	case "RELEASE":
		if g.saved = g.saved[:max(at, 0)]; g.saves && at == 0 {
			g.ended()
		}
	case "ROLLBACK TO":
		g.saved = g.saved[:at+1]
	}
}

// run makes a step of a text that was composed with arg.
func (g *generator) run(query string, rows bool) *step {
	st := &step{query: query, args: g.args, rows: rows}
	g.args = nil
	g.style = g.IntN(6)
	return st
}

// arg puts a value into a statement: as a literal or as a parameter, in the style of the
// statement.
func (g *generator) arg(v any) string {
	if g.style == 0 || g.chance(20) && len(g.args) == 0 {
		if lit, ok := literal(v); ok {
			return lit
		}
		if g.style == 0 {
			return "NULL"
		}
	}
	n := len(g.args) + 1
	switch g.style {
	case 1, 2:
		g.args = append(g.args, v)
		return "?"
	case 3:
		g.args = append(g.args, v)
		return fmt.Sprintf("?%d", n)
	case 4:
		g.args = append(g.args, v)
		return fmt.Sprintf("$%d", n)
	}
	name := fmt.Sprintf("p%d", n)
	g.args = append(g.args, sql.Named(name, v))
	return pick(g, ":", "@", "$") + name
}

func literal(v any) (string, bool) {
	switch v := v.(type) {
	case nil:
		return "NULL", true
	case int64:
		if v == math.MinInt64 {
			return "-9223372036854775808", true
		}
		return fmt.Sprint(v), true
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) {
			return "", false
		}
		return fmt.Sprintf("%.17e", v), true
	case string:
		if strings.ContainsRune(v, 0) {
			return "", false
		}
		return "'" + strings.ReplaceAll(v, "'", "''") + "'", true
	case []byte:
		return fmt.Sprintf("x'%x'", v), v != nil
	case bool:
		return strings.ToUpper(fmt.Sprint(v)), true
	}
	return "", false
}

var words = []string{"a", "b", "C", "red", "Green", "blue fish", "", "é", "日本", "x'y", "10", "1.5", "2024-05-06", "%", "_"}

// value makes a value of any kind, small ones above all, so that they meet again.
func (g *generator) value() any {
	switch g.IntN(16) {
	case 0:
		return nil
	case 1:
		return pick[int64](g, 1<<62+1, math.MinInt64, 1<<53+1, -1<<31, 1<<32) // the highest rowid is refused
	case 2:
		return pick(g, 0.5, -1.25, 1e300, math.Copysign(0, -1), 3.0, 9.3e18, math.Inf(1), math.NaN(), 1e-320, 123456789.123456789)
	case 3:
		return pick(g, []byte{}, []byte{0, 255}, []byte("abc"), []byte(nil))
	case 4:
		return g.chance(50)
	case 5, 6, 7, 8:
		return pick(g, words...)
	case 9:
		return pick(g, "nul\x00l", strings.Repeat("long ", g.IntN(400)), "\xff\xfe")
	}
	return g.small()
}

func (g *generator) small() any { return int64(g.IntN(20)) }

// moment makes something for a column that is declared as a time.
func (g *generator) moment() any {
	zone := pick(g, time.UTC, time.FixedZone("", 5400), time.FixedZone("", -7*3600))
	t := time.Date(1970+g.IntN(80), time.Month(1+g.IntN(12)), 1+g.IntN(28), g.IntN(24), g.IntN(60), g.IntN(60), pick(g, 0, 0, 500_000_000, 123456789), zone)
	switch g.IntN(8) {
	case 0:
		return pick(g, "2024-05-06", "2024-05-06 07:08", "2024-05-06T07:08:09Z", "2024-05-06 07:08:09.25+02:00", "2024-05-06 07:08:09 +0000 UTC", "not a time", "", "2024-02-30", "2024-5-6", "12:00", "0000-00-00 00:00:00", "2024-05-06 24:00:00")
	case 1:
		return t.Format(time.DateTime)
	case 2:
		return t.Format(time.RFC3339Nano)
	case 3:
		return g.value()
	case 4:
		return t.Unix()
	}
	return t
}

// valueFor makes a value that a column will mostly take.
func (g *generator) valueFor(c column) any {
	if g.chance(12) {
		return g.value()
	}
	switch c.kind {
	case 'i':
		return g.small()
	case 't':
		return pick(g, words...)
	case 'r':
		return pick[any](g, 0.5, 2.25, -7.5, int64(3))
	case 'b':
		return []byte(pick(g, words...))
	case 'd':
		return g.moment()
	case 'o':
		return g.chance(50)
	}
	return g.value()
}

// columnsOf picks some of a table's columns, in any order, at least one.
func (g *generator) columnsOf(t *table) []column {
	cs := slices.Clone(t.columns)
	g.Shuffle(len(cs), func(i, j int) { cs[i], cs[j] = cs[j], cs[i] })
	if g.chance(40) {
		cs = cs[:1+g.IntN(len(cs))]
	}
	return cs
}

func names(cs []column) string {
	var out []string
	for _, c := range cs {
		out = append(out, c.name)
	}
	return strings.Join(out, ", ")
}
