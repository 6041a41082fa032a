package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// group is a database on several replicas with a log in memory between them, which
// commits what is proposed at once, in order.
type group struct {
	t     *testing.T
	mu    sync.Mutex
	dir   string
	term  uint64
	index uint64
	log   []logged
	dbs   []*DB
	halts []error
	// intercept decides what happens to a proposal: nil commits it.
	intercept func(data []byte, done func(error)) bool
	clock     func() time.Time
	set       []func(*Config)
}

type logged struct {
	mark wire.Mark
	data []byte
}

var (
	errNotProposed = errors.New("not proposed")
	errLost        = errors.New("leadership lost")
)

// newGroup makes a group of n replicas, of which the first leads.
func newGroup(t *testing.T, n int, set ...func(*Config)) *group {
	g := &group{t: t, dir: t.TempDir(), term: 1, set: set}
	g.halts = make([]error, n)
	for i := range n {
		if err := Create(g.path(i), "db", 7); err != nil {
			t.Fatal(err)
		}
		g.dbs = append(g.dbs, nil)
		g.start(i)
	}
	g.dbs[0].Lead(g.term)
	t.Cleanup(g.close)
	return g
}

func (g *group) path(i int) string { return filepath.Join(g.dir, fmt.Sprintf("db%d", i)) }

func (g *group) start(i int) {
	g.t.Helper()
	cfg := Config{Path: g.path(i), Name: "db", Incarnation: 7, Proposer: uint64(i + 1),
		Propose: g.propose, ProposalLost: func(err error) bool { return errors.Is(err, errLost) },
		Halt: func(err error) { g.mu.Lock(); g.halts[i] = err; g.mu.Unlock() },
		Now: func() time.Time {
			if g.clock != nil {
				return g.clock()
			}
			return time.Now()
		}}
	for _, set := range g.set {
		set(&cfg)
	}
	d, err := Open(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dbs[i] = d
	for _, l := range g.log {
		d.Deliver(l.mark, l.data)
	}
}

func (g *group) propose(data []byte, done func(error)) {
	go func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.intercept != nil && g.intercept(data, done) {
			return
		}
		g.commitLocked(data)
		done(nil)
	}()
}

func (g *group) commitLocked(data []byte) {
	g.index++
	l := logged{wire.Mark{Term: g.term, Index: g.index}, data}
	g.log = append(g.log, l)
	for _, d := range g.dbs {
		if d != nil {
			d.Deliver(l.mark, l.data)
		}
	}
}

// close compares every replica with the first and checks each file.
func (g *group) close() {
	for i, d := range g.dbs {
		if d == nil {
			continue
		}
		if g.halts[i] == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			if err := d.Drain(ctx); err != nil {
				g.t.Errorf("replica %d: %v", i, err)
			}
			cancel()
		} else {
			g.t.Logf("replica %d halted: %v", i, g.halts[i])
		}
	}
	var want string
	for i, d := range g.dbs {
		if d == nil {
			continue
		}
		if g.halts[i] == nil {
			got := g.dump(i)
			if want == "" {
				want = got
			} else if got != want {
				g.t.Errorf("replica %d differs:\n%s\nthe first has:\n%s", i, got, want)
			}
		}
		if err := d.Close(); err != nil {
			g.t.Errorf("close replica %d: %v", i, err)
		}
		if _, _, err := Verify(g.path(i)); err != nil {
			g.t.Errorf("replica %d: %v", i, err)
		}
	}
}

// dump is every row of every table, the internal one too: replicas of one log hold
// the same memory of requests.
func (g *group) dump(i int) string {
	g.t.Helper()
	var out string
	tables := g.query(i, "SELECT name, sql FROM sqlite_schema WHERE lower(type)='table' AND name NOT LIKE 'sqlite_stat%' ORDER BY name")
	for _, row := range tables {
		out += fmt.Sprintln(row)
		out += fmt.Sprintln(g.query(i, "SELECT * FROM \""+row[0]+"\""))
	}
	return out
}

func (g *group) query(i int, sql string, args ...wire.Value) [][]string {
	g.t.Helper()
	r, err := g.dbs[i].Reader(context.Background())
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Release()
	c, err := r.Query(sql, makeArgs(args...), wire.PreState{})
	if err != nil {
		g.t.Fatalf("%s: %v", sql, err)
	}
	defer c.Close()
	var rows [][]string
	for {
		ok, err := c.Next()
		if err != nil {
			g.t.Fatalf("%s: %v", sql, err)
		}
		if !ok {
			return rows
		}
		var row []string
		for i := range c.Columns() {
			row = append(row, valueText(c.Value(i)))
		}
		rows = append(rows, row)
	}
}

func valueText(v wire.Value) string {
	switch v.Kind {
	case wire.KindInt:
		return fmt.Sprint(v.Int64())
	case wire.KindFloat:
		return fmt.Sprint(v.Float64())
	case wire.KindNull:
		return "NULL"
	}
	return v.String()
}

func makeArgs(vs ...wire.Value) wire.Args {
	b := wire.NewArgs(len(vs))
	for _, v := range vs {
		b.Add(v)
	}
	return b.Args()
}

func unit(sql string, args ...wire.Value) wire.Unit {
	return wire.Unit{Statements: []wire.Statement{{SQL: sql, Args: makeArgs(args...)}}}
}

func (g *group) exec(sql string, args ...wire.Value) (wire.UnitResult, error) {
	return g.execUnit(unit(sql, args...))
}

func (g *group) execUnit(u wire.Unit) (wire.UnitResult, error) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return g.dbs[0].Exec(ctx, u)
}

func (g *group) must(sql string, args ...wire.Value) wire.UnitResult {
	g.t.Helper()
	r, err := g.exec(sql, args...)
	if err != nil {
		g.t.Fatalf("%s: %v", sql, err)
	}
	return r
}

// restart closes a replica and opens it on its file, with the whole log delivered again.
func (g *group) restart(i int) {
	g.t.Helper()
	if err := g.dbs[i].Close(); err != nil {
		g.t.Fatal(err)
	}
	g.start(i)
}

// foreignEntry is one of another leader: its unit adds row 9 to t.
func foreignEntry(prev wire.Mark, id wire.RequestID) []byte {
	var enc wire.EntryEncoder
	enc.Begin(wire.EntryHeader{DB: 7, Prev: prev, Proposer: 99, Epoch: 1, Engine: sqlite.Fingerprint()})
	u := &wire.EntryUnit{ID: id, Statements: []wire.EntryStatement{{SQL: "INSERT INTO t(rowid, a) VALUES(9, 4)", Outcome: wire.Outcome{RowsAffected: 1, LastInsertID: 9}}}}
	if id.Origin != 0 {
		u.Lowest = 1
	}
	enc.AppendUnit(u)
	return enc.Finish()
}
