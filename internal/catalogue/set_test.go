package catalogue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// node is a set and a log in memory, which commits at once what is proposed and hands
// it over as a node's state machine does.
type node struct {
	t   *testing.T
	dir string
	set *Set

	mu       sync.Mutex
	log      [][]byte // entry 1 first
	missed   uint64
	replaced []string
	dropped  []uint64
}

const term = 1

func newNode(t *testing.T) *node {
	n := &node{t: t, dir: t.TempDir()}
	n.open(true)
	t.Cleanup(func() {
		if err := n.set.Close(); err != nil {
			t.Error(err)
		}
	})
	n.set.Lead(term)
	n.exec(SystemName, Schema, "cluster")
	return n
}

func (n *node) open(fresh bool) {
	n.t.Helper()
	n.set = New(Config{Engine: n.engine, Warn: func(msg string, args ...any) { n.t.Log(msg, args) },
		Replaced: func(former, incarnation uint64, name string, index uint64) {
			n.replaced = append(n.replaced, fmt.Sprintf("%d by %d is %s at %d", former, incarnation, name, index))
			if d := n.set.Get(name); d == nil || d.Incarnation() != incarnation {
				n.t.Errorf("%s stands for another database when it is told of", name)
			}
		},
		Dropped: func(incarnation uint64) { n.dropped = append(n.dropped, incarnation) }})
	if err := n.set.Open(n.dir, fresh); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) engine(name string, incarnation uint64, path string) engine.Config {
	return engine.Config{Path: path, Name: name, Incarnation: incarnation, Proposer: 1, Propose: n.propose,
		ProposalLost: func(error) bool { return true }}
}

func (n *node) propose(data []byte, done func(error)) {
	data = slices.Clone(data)
	go func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.log = append(n.log, data)
		n.deliver(uint64(len(n.log)), data)
		done(nil)
	}()
}

func (n *node) deliver(index uint64, data []byte) {
	inc, _, _, _, err := wire.EntryOwner(data)
	if err != nil {
		n.t.Error(err)
		return
	}
	db, known := n.set.Route(inc)
	if db == nil {
		if !known && n.missed == 0 {
			n.missed = index
		}
		return
	}
	db.Deliver(wire.Mark{Term: term, Index: index}, data)
	if inc != 0 || db.Drain(context.Background()) != nil {
		return
	}
	if err := n.set.Reload(); err != nil {
		n.t.Log(err)
		if n.missed == 0 {
			n.missed = index
		}
	}
}

// First, Last and Entry implement Log.
func (n *node) First() (uint64, error) { return 1, nil }
func (n *node) Last() uint64           { return uint64(len(n.log)) }
func (n *node) Entry(index uint64) (uint64, []byte, error) {
	return term, n.log[index-1], nil
}

func (n *node) limit() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) exec(db, sql string, args ...string) {
	n.t.Helper()
	b := wire.NewArgs(len(args))
	for _, a := range args {
		b.Add(wire.Text(a))
	}
	if _, err := n.set.Get(db).Exec(n.limit(), wire.Unit{Statements: []wire.Statement{{SQL: sql, Args: b.Args()}}}); err != nil {
		n.t.Fatalf("%s: %v", sql, err)
	}
	n.mu.Lock() // until the set follows
	defer n.mu.Unlock()
}

func (n *node) names() (names []string) {
	for _, d := range n.set.All() {
		names = append(names, d.Name())
	}
	return names
}

func (n *node) files() (names []string) {
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".db" {
			names = append(names, e.Name())
		}
	}
	return names
}

func want(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestSetFollowsTheSystemDatabase(t *testing.T) {
	n := newNode(t)
	watch := n.set.Watch()
	n.exec("", "INSERT INTO databases(name) VALUES('a'), ('b')")
	select {
	case <-watch:
	default:
		t.Error("a change was not told")
	}
	want(t, "databases", n.names(), []string{"", "a", "b"})
	want(t, "files", n.files(), []string{"db.1.db", "db.2.db", "system.db"})
	n.exec("a", "CREATE TABLE t(v)") // a new database takes writes in the term
	n.exec("", "DELETE FROM databases WHERE name = 'a'")
	want(t, "databases", n.names(), []string{"", "b"})
	want(t, "files", n.files(), []string{"db.2.db", "system.db"})
	if d, known := n.set.Route(1); d != nil || !known {
		t.Error("the number of a dropped database is not known")
	}
	if d, known := n.set.Route(3); d != nil || known {
		t.Error("a number that was never given is known")
	}
	if found, err := n.set.Names(n.limit(), "b"); !found || err != nil {
		t.Error(found, err)
	}
	if !n.set.Follows(uint64(len(n.log))) || n.set.Follows(uint64(len(n.log))+1) {
		t.Error("the set follows another entry than the last")
	}
	n.exec("", "INSERT INTO databases(name) VALUES('a')")
	want(t, "a dropped database's number is not given again: files", n.files(), []string{"db.2.db", "db.3.db", "system.db"})
	if n.set.ClusterID() != "cluster" {
		t.Errorf("cluster %q", n.set.ClusterID())
	}
}

func TestDatabaseTakesTheNameOfAnother(t *testing.T) {
	n := newNode(t)
	n.exec("", "INSERT INTO databases(name) VALUES('a'), ('+hidden')")
	n.exec("+hidden", "CREATE TABLE loaded(v)")
	a, hidden := n.set.Get("a"), n.set.Get("+hidden")
	n.exec("", "DELETE FROM databases WHERE name = 'a'; UPDATE databases SET name = 'a' WHERE name = '+hidden'")
	want(t, "databases", n.names(), []string{"", "a"})
	if n.set.Get("a") != hidden || n.set.NameOf(2, "?") != "a" {
		t.Error("the other database does not bear the name")
	}
	if _, err := a.Reader(n.limit()); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("the former database gives %v", err)
	}
	want(t, "replaced", n.replaced, []string{fmt.Sprint("1 by 2 is a at ", len(n.log))})
	if !slices.Equal(n.dropped, []uint64{1}) {
		t.Errorf("dropped %v", n.dropped)
	}
}

// A database whose file cannot be made is made later, and has all its entries then.
func TestGoOnReadsMissedEntriesAgain(t *testing.T) {
	n := newNode(t)
	inTheWay := filepath.Join(n.dir, "db.1.db")
	if err := os.Mkdir(inTheWay, 0o755); err != nil {
		t.Fatal(err)
	}
	n.exec("", "INSERT INTO databases(name) VALUES('a')")
	if n.missed == 0 || n.set.Get("a") != nil {
		t.Fatal("the database was made")
	}
	if err := n.set.GoOn(n.limit(), n, n.missed); err == nil {
		t.Error("the set goes on without the file")
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	// What another leader wrote meanwhile came from the log and reached no database.
	n.mu.Lock()
	var enc wire.EntryEncoder
	enc.Begin(wire.EntryHeader{DB: 1, Proposer: 9, Epoch: 1, Time: 1})
	enc.AppendUnit(&wire.EntryUnit{Time: 1, Statements: []wire.EntryStatement{{SQL: "CREATE TABLE t(v)"}}})
	n.log = append(n.log, slices.Clone(enc.Finish()))
	n.mu.Unlock()
	ended, cancel := context.WithCancel(n.limit())
	cancel()
	if err := n.set.GoOn(ended, n, n.missed); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	if err := n.set.GoOn(n.limit(), n, n.missed); err != nil {
		t.Fatal(err)
	}
	if got := n.set.Get("a").Mark().Index; got != uint64(len(n.log)) {
		t.Errorf("the database is at entry %d of %d", got, len(n.log))
	}
}

func TestReopenOfAReplacedDatabaseIsRefused(t *testing.T) {
	n := newNode(t)
	n.exec("", "INSERT INTO databases(name) VALUES('a')")
	old := n.set.Get("a")
	d, err := n.set.Reopen(old)
	if err != nil || n.set.Get("a") != d || d == old {
		t.Fatal(d, err)
	}
	if _, err := n.set.Reopen(old); err == nil {
		t.Error("one that is not in the set any more was opened anew")
	}
}

func TestStraysAreRemovedAndFilesToComeKept(t *testing.T) {
	n := newNode(t)
	n.exec("", "INSERT INTO databases(name) VALUES('a'), ('b')")
	n.exec("", "DELETE FROM databases WHERE name = 'a'")
	for _, name := range []string{"db.1.db", "db.1.db-wal", "db.9.db", "note.txt"} {
		if err := os.WriteFile(filepath.Join(n.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.set.RemoveStrays(); err != nil {
		t.Fatal(err)
	}
	want(t, "files", n.files(), []string{"db.2.db", "db.9.db", "system.db"})
	if _, err := os.Stat(filepath.Join(n.dir, "db.1.db-wal")); err == nil {
		t.Error("a stray log is left")
	}
}

func TestPinHoldsEveryDatabaseAndIsCounted(t *testing.T) {
	n := newNode(t)
	n.exec("", "INSERT INTO databases(name) VALUES('a')")
	n.exec("a", "CREATE TABLE t(v)")
	p, err := n.set.Pin(n.limit())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	m := n.set.Manifest("cluster")
	if len(p.Files()) != 2 || len(m.Databases) != 2 || n.set.Sends() != 1 {
		t.Fatalf("%d files, %d in the manifest, %d sends", len(p.Files()), len(m.Databases), n.set.Sends())
	}
	for i, f := range p.Files() {
		if f.Database != m.Databases[i] {
			t.Errorf("pinned is %+v, the manifest says %+v", f.Database, m.Databases[i])
		}
		if mark, inc, err := n.set.FileMark(f.Database); err != nil || mark != f.Database.Mark || inc != f.Database.Incarnation {
			t.Errorf("the file of %+v states %v of %d, %v", f.Database, mark, inc, err)
		}
	}
}

func TestMembersAreThoseOfTheSystemDatabase(t *testing.T) {
	n := newNode(t)
	n.exec("", "INSERT INTO members VALUES('b', 'inc', 'addr', 1, 7, 1, 3, 'f'), ('a', '', '', 0, 0, 1, 3, '')")
	if m, ok := n.set.Member("b"); !ok || m != (membership.Record{ID: "b", Incarnation: "inc", Addr: "addr", Voter: true, Engine: 7, FormatMin: 1, FormatMax: 3, Functions: "f"}) {
		t.Errorf("%+v, %t", m, ok)
	}
	if all := n.set.Members(); len(all) != 2 || all[0].ID != "a" {
		t.Errorf("members %+v", all)
	}
}
