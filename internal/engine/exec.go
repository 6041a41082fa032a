package engine

import (
	"container/list"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/sqltext"
	"github.com/mentasystems/colmena/internal/wire"
)

// executor runs statements on one connection: it prepares them under the policy,
// keeps the prepared ones, binds arguments and collects outcomes. Leader, follower
// and reader share it, so that a statement means the same to all of them. It
// belongs to one goroutine at a time.
type executor struct {
	conn   *sqlite.Conn
	policy policy
	cache  map[string]*list.Element
	lru    *list.List // of *prepared, most recently used first
	// What the statements run since begin did, beyond rows.
	schema   bool     // changed the schema or the planner's statistics
	deferred bool     // set defer_foreign_keys
	needs    []string // items of the library that the unit's statements used
}

const maxCachedStatements = 256

type prepared struct {
	st  *sqlite.Stmt
	sql string
	// judged on first use as a write: nil, or why the text is refused by default
	ownCall *NonDeterministicError
	probed  bool
	calls   []call
	uses    []string // items of the library
	kind    kind
	cached  string // its key in the cache, "" if it is not there
	held    bool   // an open cursor walks it
	lenient bool   // compiled under the rules of a query, on the writer
	defers  bool   // sets defer_foreign_keys
}

func newExecutor(conn *sqlite.Conn, reader bool) *executor {
	x := &executor{conn: conn, cache: map[string]*list.Element{}, lru: list.New()}
	x.policy.reader = reader
	conn.SetAuthorizer(x.policy.authorize)
	return x
}

// runOptions say how one statement string is run.
type runOptions struct {
	trusted bool // a replayed or internal statement: no policy
	pin     bool // the statement's own calls of random() and the clock are pinned, not refused
	rows    int  // collect rows, at most so many bytes; 0 drains them
}

// run executes a statement string to its end. All of it happened or, on an error,
// the caller rolls back; a script stops at its first error. The outcome is what
// SQLite tells after its last statement, of rows that the script changed; the rows are those of the last statement that returned any.
func (x *executor) run(sql string, args wire.Args, o runOptions) (out wire.Outcome, rows *wire.Rows, err error) {
	defer func() { x.policy.trusted = true }()
	if !o.trusted {
		defer func() { err = x.explain(err) }()
		if err := x.withdraw(); err != nil {
			return out, nil, err
		}
	}
	for rest := sql; rest != ""; {
		p, tail, err := x.prepare(rest, o)
		if err != nil {
			return out, nil, err
		}
		if p == nil {
			rest = tail
			continue
		}
		var got *wire.Rows
		changed := out.RowsAffected
		out, got, err = x.runOne(p, args, o.rows)
		if p.kind == kindOther {
			out.RowsAffected = changed // it leaves SQLite's count as it is
		}
		x.release(p)
		if err != nil {
			return out, nil, err
		}
		if got != nil {
			rows = got
		}
		rest = tail
	}
	return out, rows, nil
}

func (x *executor) runOne(p *prepared, args wire.Args, maxRows int) (out wire.Outcome, rows *wire.Rows, err error) {
	if err := bind(p.st, args); err != nil {
		return out, nil, err
	}
	defer p.st.ClearBindings()
	x.schema = x.schema || p.kind == kindSchema
	// SQLite compiles a statement again when the schema has changed, and asks the
	// authorizer again.
	x.policy.begin()
	x.policy.running = true
	defer func() { x.policy.running = false }()
	collect := maxRows > 0 && p.st.ColumnCount() > 0
	for {
		row, err := p.st.Step()
		if err != nil {
			if x.policy.facts.refused != nil && !x.policy.trusted {
				err = x.policy.facts.refused
			} else if x.policy.facts.notReady != nil && !x.policy.trusted {
				err = x.policy.facts.notReady
			}
			return out, nil, err
		}
		if collect && rows == nil {
			rows = &wire.Rows{Columns: columns(p.st)}
		}
		if !row {
			break
		}
		if !collect {
			continue
		}
		rows.Data = appendRow(rows.Data, p.st)
		rows.N++
		if len(rows.Data) > maxRows {
			_ = p.st.Reset()
			return out, nil, &TooLargeError{What: "the result held in memory, in bytes (Config.MaxResultBytes),", Size: len(rows.Data), Most: maxRows}
		}
	}
	if err := p.st.Reset(); err != nil {
		return out, nil, err
	}
	if !x.policy.trusted {
		if err := x.policy.judgeReach(p.kind); err != nil {
			x.drop(p) // as it is compiled now it would not be judged again
			return out, nil, err
		}
	}
	if err := x.used(p); err != nil {
		return out, nil, err
	}
	out.LastInsertID = x.conn.LastInsertRowID()
	if p.kind == kindRows {
		out.RowsAffected = x.conn.Changes()
	}
	return out, rows, nil
}

// prepare returns the first statement of sql and what follows it. The statement is
// nil when sql starts with nothing but blanks and comments up to the next one.
func (x *executor) prepare(sql string, o runOptions) (*prepared, string, error) {
	x.policy.trusted, x.policy.running = o.trusted, false
	held := false
	if e := x.cache[sql]; e != nil {
		p := e.Value.(*prepared)
		if held = p.held || p.lenient && !x.policy.reader; !held {
			x.lru.MoveToFront(e)
			return p, "", x.admit(p, o)
		}
	}
	x.policy.begin()
	st, tail, err := x.conn.Prepare(sql)
	if verdict := x.policy.judge(kindOf(sql, false)); verdict != nil && !o.trusted {
		if st != nil {
			_ = st.Finalize()
		}
		return nil, "", verdict
	}
	if err != nil {
		return nil, "", err
	}
	if st == nil {
		return nil, tail, nil
	}
	f := &x.policy.facts
	p := &prepared{st: st, sql: sql[:len(sql)-len(tail)]}
	p.kind = kindOf(p.sql, st.ReadOnly())
	x.deferred = x.deferred || f.deferred
	if f.computes() {
		p.calls = append(p.calls, f.calls...)
	}
	p.uses = append(p.uses, f.uses...)
	p.lenient, p.defers = x.policy.session && x.policy.reader, f.deferred
	if strings.TrimSpace(tail) == "" {
		tail = ""
		// Some pragmas act while they are compiled, savepoints are for sessions only, and EXPLAIN does not see that
		// the schema has changed.
		if !held && !f.pragma && p.kind != kindSavepoint && !st.IsExplain() {
			x.keep(p, sql)
		}
	}
	if err := x.admit(p, o); err != nil {
		x.release(p)
		return nil, "", err
	}
	return p, tail, nil
}

// admit refuses a write that uses what not every node has, or whose own text is not
// deterministic, unless it is pinned.
func (x *executor) admit(p *prepared, o runOptions) error {
	if !o.trusted && !x.policy.reader {
		for _, item := range p.uses {
			if err := x.policy.lib.gate(item); err != nil {
				return err
			}
		}
	}
	if o.trusted || o.pin || x.policy.reader || len(p.calls) == 0 || p.st.ReadOnly() {
		return nil
	}
	if !p.probed {
		p.ownCall = ownCall(p.sql, p.calls, func(nth int) int { return x.probe(p.sql, nth) })
		p.probed = true
	}
	if p.ownCall != nil {
		return p.ownCall
	}
	return nil
}

func (x *executor) probe(sql string, nth int) int {
	x.policy.begin()
	x.policy.deny = nth
	st, _, err := x.conn.Prepare(sql)
	x.policy.deny = 0
	if st != nil {
		_ = st.Finalize()
	}
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Offset
	}
	return -1
}

func (x *executor) keep(p *prepared, key string) {
	p.cached = strings.Clone(key)
	p.sql = p.cached[:len(p.sql)]
	x.cache[p.cached] = x.lru.PushFront(p)
	for x.lru.Len() > maxCachedStatements {
		e := x.lru.Back()
		old := e.Value.(*prepared)
		x.lru.Remove(e)
		delete(x.cache, old.cached)
		old.cached = ""
		if !old.held {
			_ = old.st.Finalize()
		}
	}
}

func (x *executor) release(p *prepared) {
	p.held = false
	if p.cached == "" {
		_ = p.st.Finalize()
	}
}

// discard drops a statement, from the cache too.
func (x *executor) discard(p *prepared) {
	x.drop(p)
	x.release(p)
}

// drop takes a statement out of the cache; it is still to be released.
func (x *executor) drop(p *prepared) {
	if e := x.cache[p.cached]; p.cached != "" && e != nil && e.Value.(*prepared) == p {
		x.lru.Remove(e)
		delete(x.cache, p.cached)
	}
	p.cached = ""
}

// forget drops every prepared statement.
func (x *executor) forget() {
	for e := x.lru.Front(); e != nil; e = e.Next() {
		_ = e.Value.(*prepared).st.Finalize()
	}
	x.lru.Init()
	clear(x.cache)
}

// bind gives a statement its arguments as modernc.org/sqlite does: a parameter
// ?NNN or $NNN takes the argument of that number, a named one the argument of its
// name, an anonymous one that of its position. Every statement of a script sees
// all arguments.
func bind(st *sqlite.Stmt, args wire.Args) error {
	n := st.ParamCount()
	if n == 0 {
		return nil
	}
	r, err := args.Reader()
	if err != nil {
		return err
	}
	if sequential(st, n) {
		return bindSequence(st, n, &r)
	}
	return bindNamed(st, n, &r)
}

// sequential reports whether all parameters are anonymous, the common case.
func sequential(st *sqlite.Stmt, n int) bool {
	for i := 1; i <= n; i++ {
		if st.ParamName(i) != "" {
			return false
		}
	}
	return true
}

func bindSequence(st *sqlite.Stmt, n int, r *wire.ValueReader) error {
	for i := 1; i <= n; i++ {
		_, v, ok, err := r.Next()
		if err != nil {
			return err
		}
		if !ok {
			return &ArgumentError{Msg: fmt.Sprintf("missing argument with index %d", i)}
		}
		if err := bindValue(st, i, v); err != nil {
			return err
		}
	}
	return nil
}

func bindNamed(st *sqlite.Stmt, n int, r *wire.ValueReader) error {
	type arg struct {
		name string
		v    wire.Value
	}
	var all []arg
	for {
		name, v, ok, err := r.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		all = append(all, arg{name, v})
	}
	for i := 1; i <= n; i++ {
		name, found := st.ParamName(i), -1
		if name == "" {
			found = i - 1
		} else {
			if name[0] == '?' || name[0] == '$' {
				if k, err := strconv.Atoi(name[1:]); err == nil {
					found = k - 1
				}
			}
			for j := range all {
				if all[j].name == name[1:] && (found < 0 || j < found) {
					found = j
				}
			}
		}
		if found < 0 || found >= len(all) {
			if name != "" {
				return &ArgumentError{Msg: fmt.Sprintf("missing named argument %q", name[1:])}
			}
			return &ArgumentError{Msg: fmt.Sprintf("missing argument with index %d", i)}
		}
		if err := bindValue(st, i, all[found].v); err != nil {
			return err
		}
	}
	return nil
}

// An ArgumentError says which argument a statement lacks. Nothing was applied.
type ArgumentError struct{ Msg string }

func (e *ArgumentError) Error() string { return e.Msg }

func bindValue(st *sqlite.Stmt, i int, v wire.Value) error {
	switch v.Kind {
	case wire.KindInt:
		return st.BindInt64(i, v.Int64())
	case wire.KindFloat:
		return st.BindFloat64(i, v.Float64())
	case wire.KindText:
		return st.BindText(i, v.B)
	case wire.KindBlob:
		return st.BindBlob(i, v.B)
	}
	return st.BindNull(i)
}

func columns(st *sqlite.Stmt) []wire.Column {
	cs := make([]wire.Column, st.ColumnCount())
	for i := range cs {
		cs[i] = wire.Column{Name: st.ColumnName(i), DeclType: st.ColumnDeclType(i)}
	}
	return cs
}

func appendRow(b []byte, st *sqlite.Stmt) []byte {
	for i := range st.ColumnCount() {
		b = wire.AppendValue(b, columnValue(st, i))
	}
	return b
}

// columnValue views a column; it is valid until the statement's next step.
func columnValue(st *sqlite.Stmt, i int) wire.Value {
	switch st.ColumnType(i) {
	case sqlite.TypeInt:
		return wire.Int(st.ColumnInt64(i))
	case sqlite.TypeFloat:
		return wire.Float(st.ColumnFloat64(i))
	case sqlite.TypeText:
		return wire.Value{Kind: wire.KindText, B: st.ColumnBytes(i)}
	case sqlite.TypeBlob:
		return wire.Value{Kind: wire.KindBlob, B: st.ColumnBytes(i)}
	}
	return wire.Null()
}

// kind says what a statement's outcome consists of. It follows from the text alone, so
// that it is the same on every replica: SQLite's own counters go stale, and the
// authorizer also reports what virtual tables do when they are connected.
type kind int

const (
	kindOther  kind = iota
	kindRows        // inserts, updates or deletes rows: the row count means something
	kindSchema      // changes the schema or the planner's statistics
	kindVacuum
	kindSavepoint // begins or ends a savepoint of the user's
)

func kindOf(sql string, readOnly bool) kind {
	switch strings.ToUpper(sqltext.FirstWord(sql)) {
	case "INSERT", "UPDATE", "DELETE", "REPLACE":
		return kindRows
	case "WITH":
		if !readOnly {
			return kindRows
		}
	case "CREATE", "DROP", "ALTER", "ANALYZE", "REINDEX":
		return kindSchema
	case "VACUUM":
		return kindVacuum
	case "SAVEPOINT", "RELEASE", "ROLLBACK":
		return kindSavepoint
	}
	return kindOther
}
