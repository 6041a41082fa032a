package engine

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// duel plays the same transactions to a group and to plain SQLite.
type duel struct {
	*group
	plain   *plainSQLite
	seed    uint64
	rnd     *rand.Rand
	modes   Modes
	schema  bool // the transaction under way may change the schema
	calm    bool // it is meant to get to its commit
	seq     uint64
	told    []<-chan StepResult // commits that are not answered yet, the oldest first
	history []string
	count   map[string]int
}

// TestSessionsAnswerAsSQLiteDoes runs unusual statements at random, in sessions and units,
// while proposals take their time and sessions are cut. What the machinery of epochs does,
// work ahead, undo, repeat, must not show: each answer is that of plain SQLite, and so is
// what leader and follower hold at the end. A seed repeats the statements, and not when
// proposals and cuts come between them.
func TestSessionsAnswerAsSQLiteDoes(t *testing.T) {
	seed := modelSeed(t)
	d := &duel{group: newGroup(t, 2), plain: newPlainSQLite(t), seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), count: map[string]int{}}
	schema := oracleSchema + fmt.Sprintf("INSERT INTO long VALUES(%d)", d.plain.rowsInAMillisecond())
	d.plain.must(schema)
	d.must(schema)
	d.slowProposals(rand.New(rand.NewPCG(seed, 2)))
	last := time.Now().Add(20 * time.Second) // on a machine that has little time for it
	for end := time.Now().Add(oracleTime()); time.Now().Before(end) || d.missing() != "" && time.Now().Before(last); {
		d.mood()
		if d.rnd.IntN(4) == 0 {
			d.unit()
		} else {
			d.transaction()
		}
	}
	d.hear(0)
	t.Logf("%v, %+v", d.count, d.dbs[0].Stats())
	if what := d.missing(); what != "" {
		d.failf("too little was tried: %s", what)
	}
	d.compareContents()
}

// oracleTime is what the models take, and less where time is short.
func oracleTime() time.Duration {
	if testing.Short() {
		return min(modelTime(), time.Second)
	}
	return modelTime()
}

// slowProposals has most proposals take a while, so that sessions work ahead of them.
func (d *duel) slowProposals(rnd *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.intercept = func(data []byte, done func(error)) bool {
		n := rnd.IntN(12000)
		if n < 1000 {
			return false
		}
		time.AfterFunc(time.Duration(n)*time.Microsecond, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.commitLocked(data)
			done(nil)
		})
		return true
	}
}

// missing tells of what there has not been enough for the test to mean something.
func (d *duel) missing() string {
	d.count["units that ran ahead"] = int(d.dbs[0].Stats().Ahead)
	least := map[string]int{
		"sessions committed": 20, "sessions rolled back": 3, "sessions ended by a statement": 1, "commits refused": 1,
		"units committed": 10, "units refused": 1, "units that ran ahead": 3, "sessions cut": 5, "statements refused": 10,
	}
	for _, g := range oracleGroups {
		least[g.what] = 1
	}
	var s []string
	for what, n := range least {
		if d.count[what] < n {
			s = append(s, fmt.Sprintf("%d %s", d.count[what], what))
		}
	}
	return strings.Join(s, ", ")
}

// failf ends the test with what repeats it and what went before.
func (d *duel) failf(format string, args ...any) {
	d.t.Helper()
	h := d.history[max(0, len(d.history)-40):]
	d.t.Fatalf("COLMENA_SEED=%d: %s\nafter\n%s", d.seed, fmt.Sprintf(format, args...), strings.Join(h, "\n"))
}

// note keeps what failf tells.
func (d *duel) note(format string, args ...any) {
	d.history = append(d.history, fmt.Sprintf(format, args...))
}

// mood chooses what the next transaction is like. Modes are mostly the same, since
// sessions of other modes do not share an epoch.
func (d *duel) mood() {
	d.schema = d.rnd.IntN(8) == 0
	d.calm = !d.schema && d.rnd.IntN(4) > 0
	d.modes = Modes{ForeignKeys: true}
	if d.rnd.IntN(12) == 0 {
		d.modes = Modes{ForeignKeys: d.rnd.IntN(4) > 0, RecursiveTriggers: d.rnd.IntN(2) == 0}
	}
	if d.rnd.IntN(10) == 0 {
		d.dbs[0].cutEach.Store(d.rnd.IntN(5) == 0)
	}
}

// statement chooses one, each of those that suit as likely as another.
func (d *duel) statement(session bool) (sql string, g *oracleGroup) {
	type choice struct {
		sql string
		g   *oracleGroup
	}
	calm := d.calm && d.rnd.IntN(30) > 0
	var all []choice
	for i := range oracleGroups {
		g := &oracleGroups[i]
		if g.calm != calm || g.session && !session || g.schema && !d.schema {
			continue
		}
		for _, sql := range g.sql {
			all = append(all, choice{sql, g})
		}
	}
	c := all[d.rnd.IntN(len(all))]
	return d.withNumbers(c.sql), c.g
}

// withNumbers keeps them few, so that keys collide.
func (d *duel) withNumbers(sql string) string {
	args := make([]any, strings.Count(sql, "%d"))
	for i := range args {
		args[i] = d.rnd.IntN(9)
	}
	return fmt.Sprintf(sql, args...)
}

// unit runs a statement, or two in one string, outside a session.
func (d *duel) unit() {
	sql, g := d.statement(false)
	if d.rnd.IntN(3) == 0 {
		more, _ := d.statement(false)
		sql += ";" + more
	}
	d.note("unit %+v: %s", d.modes, sql)
	u := unit(sql)
	u.ForeignKeys, u.RecursiveTriggers, u.WantRows = d.modes.ForeignKeys, d.modes.RecursiveTriggers, true
	r, err := d.execUnit(u)
	out, rows, want := d.plain.unit(sql, d.modes)
	if errorText(err) != errorText(want) {
		d.failf("unit %s: %v, SQLite: %v", sql, err, want)
	}
	if err != nil {
		d.count["units refused"]++
		return
	}
	if got := r.Result; got.Outcome != out || rowsText(got.Rows) != rowsText(rows) {
		d.failf("unit %s: %+v, %s, SQLite: %+v, %s", sql, got.Outcome, rowsText(got.Rows), out, rowsText(rows))
	}
	d.count["units committed"]++
	d.count[g.what]++
}

// transaction runs some statements in a session, and ends it in one of the ways there are.
func (d *duel) transaction() {
	s, err := d.dbs[0].Begin(d.t.Context(), SessionOptions{Label: "the test", Modes: d.modes})
	if err != nil {
		d.failf("begin: %v", err)
	}
	d.note("begin %+v", d.modes)
	d.plain.begin(d.modes)
	x := &tx{d.t, s}
	for range d.rnd.IntN(14) {
		switch d.rnd.IntN(30) {
		case 0, 1:
			pause(d.t.Context(), d.rnd, 3)
		case 2:
			d.cut(s)
		}
		if d.step(x) {
			d.count["sessions ended by a statement"]++
			return
		}
	}
	if d.rnd.IntN(6) > 0 {
		d.commit(x)
	} else {
		d.rollback(x)
	}
}

// rollback ends the transaction in both.
func (d *duel) rollback(x *tx) {
	d.note("rollback")
	d.plain.must("ROLLBACK")
	if r := x.s.Rollback(d.t.Context()); r.Err != nil || !r.Over {
		d.failf("rollback: %+v", r)
	}
	d.count["sessions rolled back"]++
}

// cut has somebody else want the owner with no transaction open, as a checkpoint does, and
// counts it if the session's work had to be undone for that.
func (d *duel) cut(s *Session) {
	undone := false
	if err := d.dbs[0].Do(d.t.Context(), func() { undone = len(s.done) > 0 && !s.live }); err != nil {
		d.failf("cut: %v", err)
	}
	if undone {
		d.note("cut")
		d.count["sessions cut"]++
	}
}

// step runs a statement in both, and reports whether it has ended the transaction.
func (d *duel) step(x *tx) (over bool) {
	sql, g := d.statement(true)
	d.note("%s", sql)
	r := x.run(sql)
	rows, want := d.plain.run(sql)
	switch {
	case errorText(r.Err) != errorText(want):
		d.failf("%s: %v, SQLite: %v", sql, r.Err, want)
	case r.Err == nil && rowsText(r.Rows) != rowsText(rows):
		d.failf("%s: %s, SQLite: %s", sql, rowsText(r.Rows), rowsText(rows))
	case r.Over != d.plain.c.Autocommit():
		d.failf("%s: over %v, SQLite: %v", sql, r.Over, d.plain.c.Autocommit())
	case r.State != d.plain.state:
		d.failf("%s: it remembers %+v, SQLite: %+v", sql, r.State, d.plain.state)
	}
	if r.Err != nil {
		d.count["statements refused"]++
	}
	if (r.Err != nil) == g.fails {
		d.count[g.what]++
	}
	return r.Over
}

// commit asks for the end of a session and does not wait for it if it will succeed: the
// next transactions run ahead of it.
func (d *duel) commit(x *tx) {
	d.note("commit")
	d.seq++
	told := x.commits(wire.RequestID{Origin: 9, Seq: d.seq})
	if want := d.plain.commit(); want != nil {
		if r := <-told; errorText(r.Err) != errorText(want) || r.Over {
			d.failf("commit: %+v, SQLite: %v", r, want)
		}
		d.count["commits refused"]++
		d.rollback(x) // it is still open, in SQLite too
		return
	}
	d.told = append(d.told, told)
	d.hear(d.rnd.IntN(20))
}

// hear waits for the answers to commits until so many are left.
func (d *duel) hear(left int) {
	for len(d.told) > left {
		if r := soon(d.t, d.told[0]); r.Err != nil || !r.Over {
			d.failf("a commit that SQLite did: %+v", r)
		}
		d.told = d.told[1:]
		d.count["sessions committed"]++
	}
}

// compareContents compares every row and the schema of both replicas with plain SQLite.
// sqlite_colmena is the engine's own.
func (d *duel) compareContents() {
	queries := []string{"SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid", "PRAGMA user_version", "PRAGMA application_id"}
	for _, row := range d.plain.query("SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'sqlite_colmena'") {
		q := fmt.Sprintf("SELECT * FROM %q", row[0])
		if strings.HasPrefix(row[0], "sqlite_stat") {
			q += " ORDER BY tbl, idx, rowid" // ANALYZE takes tables as they lie in SQLite's memory
		}
		queries = append(queries, q)
	}
	for i, db := range d.dbs {
		if err := db.Drain(d.t.Context()); err != nil {
			d.failf("replica %d: %v", i, err)
		}
		for _, q := range queries {
			if got, want := fmt.Sprint(d.query(i, q)), fmt.Sprint(d.plain.query(q)); got != want {
				d.failf("replica %d: %s: %s, SQLite: %s", i, q, got, want)
			}
		}
	}
}
