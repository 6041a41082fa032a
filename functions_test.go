package colmena_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// reverse is a function, and backwards an order, that SQLite does not have.
func reverse(version string) colmena.Function {
	return colmena.Function{Name: "Reverse", Args: 1, Version: version, Func: func(args []any) (any, error) {
		s, ok := args[0].(string)
		if !ok {
			return nil, errors.New("not a text")
		}
		b := []byte(s)
		slices.Reverse(b)
		return string(b), nil
	}}
}

func backwards(version string) colmena.Collation {
	return colmena.Collation{Name: "backwards", Version: version, Compare: func(a, b string) int { return strings.Compare(b, a) }}
}

func withFunctions(version string) testcluster.Option {
	return func(_ int, c *colmena.Config) {
		c.Functions, c.Collations = []colmena.Function{reverse(version)}, []colmena.Collation{backwards(version)}
	}
}

func texts(t *testing.T, n *colmena.Node, level colmena.ConsistencyLevel, query string) string {
	t.Helper()
	rows, err := n.DB().QueryContext(colmena.WithConsistency(limit(t), level), query)
	if err != nil {
		t.Fatalf("node %s: %s: %v", n.ID(), query, err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func wantTexts(t *testing.T, n *colmena.Node, want, query string) {
	t.Helper()
	if got := texts(t, n, colmena.Weak, query); got != want {
		t.Errorf("node %s: %s: %s; want %s", n.ID(), query, got, want)
	}
}

// wantNotReady wants a write to be refused because of some nodes, and nothing applied.
func wantNotReady(t *testing.T, n *colmena.Node, query string, missing ...string) {
	t.Helper()
	_, err := n.DB().ExecContext(limit(t), query)
	var late *colmena.FunctionNotReadyError
	if !errors.As(err, &late) || !slices.Equal(slices.Sorted(slices.Values(late.Missing)), missing) || late.Name == "" {
		t.Errorf("node %s: %s: %v; want a FunctionNotReadyError of %v", n.ID(), query, err, missing)
	}
	if !colmena.SafeToRetry(err) {
		t.Errorf("%v: not safe to retry", err)
	}
}

func untilWritten(t *testing.T, c *testcluster.Cluster, n *colmena.Node, query string) {
	t.Helper()
	var last error
	defer func() {
		if t.Failed() {
			t.Log(query, last)
		}
	}()
	c.Until("function ready on every node", func() bool {
		_, last = n.DB().ExecContext(limit(t), query)
		var late *colmena.FunctionNotReadyError
		if last != nil && !errors.As(last, &late) {
			t.Fatalf("node %s: %s: %v", n.ID(), query, last)
		}
		return last == nil
	})
}

const everywhere = `CREATE TABLE words(w TEXT CHECK(reverse(w) <> 'bad'), stored AS (reverse(w)) STORED, virtual AS (reverse(w) || '!'));
CREATE INDEX words_reversed ON words(reverse(w));
CREATE INDEX words_backwards ON words(w COLLATE backwards);
CREATE TABLE log(w TEXT, at DEFAULT (reverse('won')));
CREATE VIEW reversed AS SELECT reverse(w) AS r FROM words;
CREATE TRIGGER words_log AFTER INSERT ON words BEGIN INSERT INTO log(w) VALUES(reverse(new.w)); END;`

func checkEverywhere(t *testing.T, n *colmena.Node) {
	t.Helper()
	wantTexts(t, n, "xyz abd abc", "SELECT w FROM words ORDER BY w COLLATE Backwards")
	wantTexts(t, n, "abc", "SELECT w FROM words INDEXED BY words_reversed WHERE reverse(w) = 'cba'")
	wantTexts(t, n, "cba dba zyx", "SELECT r FROM reversed ORDER BY r")
	wantTexts(t, n, "cba/cba! dba/dba! zyx/zyx!", "SELECT stored || '/' || virtual FROM words ORDER BY stored")
	wantTexts(t, n, "cba:now dba:now zyx:now", "SELECT w || ':' || at FROM log ORDER BY w")
	wantTexts(t, n, "ok", "PRAGMA integrity_check")
}

func TestFunctionsOfOneNode(t *testing.T) {
	cfg := colmena.Config{DataDir: t.TempDir(), NonDeterministic: colmena.Pin, Logger: testcluster.Logger(t, 1)}
	withFunctions("1")(0, &cfg)
	cfg.Functions = append(cfg.Functions,
		colmena.Function{Name: "fails", Args: -1, Version: "1", Func: func([]any) (any, error) { return nil, errors.New("no good") }},
		colmena.Function{Name: "panics", Args: 0, Version: "1", Func: func([]any) (any, error) { panic("boom") }})
	cfg.Collations = append(cfg.Collations, colmena.Collation{Name: "panicking", Version: "1", Compare: func(a, b string) int { panic("boom") }})
	n, err := colmena.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { n.Close() }()
	wantTexts(t, n, "cba", "SELECT reverse('abc')") // of a database that is not there yet
	exec(t, n, everywhere)
	exec(t, n, "INSERT INTO words(w) VALUES('abc'), (reverse('zyx')), (reverse(?))", "dba")
	checkEverywhere(t, n)
	for query, want := range map[string]string{
		"INSERT INTO words(w) VALUES('dab')":                                         "CHECK",
		"INSERT INTO words(w) VALUES(fails(1, 2))":                                   "function fails: no good",
		"INSERT INTO words(w) VALUES(panics())":                                      "function panics panicked: boom",
		"INSERT INTO words(w) SELECT w FROM words ORDER BY w COLLATE panicking":      "collation panicking panicked: boom",
		"INSERT INTO words(w) VALUES(reverse(x'00'))":                                "function Reverse: not a text",
		"INSERT INTO words(w) VALUES(reverse())":                                     "wrong number of arguments",
		"INSERT INTO words(w) VALUES(nobody_has_this(1))":                            "no such function: nobody_has_this",
		"INSERT INTO words(w) SELECT w FROM words ORDER BY w COLLATE nobodyhasthis2": "no such collation sequence",
	} {
		var se *colmena.SQLError
		if _, err := n.DB().ExecContext(limit(t), query); !errors.As(err, &se) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", query, err, want)
		}
	}
	if _, err := n.DB().QueryContext(limit(t), "SELECT w FROM words ORDER BY w COLLATE panicking"); err == nil {
		t.Error("a read whose collation panics succeeds")
	}
	checkEverywhere(t, n)

	var copied bytes.Buffer
	if _, err := n.CopyTo(limit(t), "", &copied); err != nil {
		t.Fatal(err)
	}
	if err := n.Load(limit(t), "", &copied); err != nil {
		t.Fatal(err)
	}
	wantTexts(t, n, "xyz abd abc", "SELECT w FROM words ORDER BY w COLLATE backwards")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err = colmena.New(cfg); err != nil {
		t.Fatal(err)
	}
	wantTexts(t, n, "xyz abd abc", "SELECT w FROM words ORDER BY w COLLATE backwards")
}

func TestFunctionConfigIsChecked(t *testing.T) {
	f := func([]any) (any, error) { return nil, nil }
	cfg := colmena.Config{DataDir: t.TempDir(),
		Functions: []colmena.Function{
			{Name: "Random", Version: "1", Func: f}, {Name: "a b", Version: "1", Func: f}, {Name: "twice", Version: "1", Func: f},
			{Name: "TWICE", Version: "1", Func: f}, {Name: "empty", Version: "1"}, {Name: "unversioned", Func: f},
			{Name: "newline", Version: "1\n2", Func: f}, {Name: "many", Version: "1", Args: 101, Func: f}, {Name: "sqlite_x", Version: "1", Func: f},
		},
		Collations: []colmena.Collation{{Name: "nocase", Version: "1", Compare: strings.Compare}, {Name: "nothing", Version: "1"}}}
	n, err := colmena.New(cfg)
	if err == nil {
		n.Close()
		t.Fatal("a bad configuration is taken")
	}
	for _, want := range []string{`Functions[0]: "Random"`, `Functions[1]: name "a b"`, `Functions[3]: "TWICE" is there twice`, `Functions[4]: "empty" has no Func`,
		`Functions[5]: "unversioned": Version ""`, `Functions[6]: "newline": Version`, `Functions[7]: "many": Args 101`, `Functions[8]: "sqlite_x"`,
		`Collations[0]: "nocase"`, `Collations[1]: "nothing" has no Compare`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not reported in\n%v", want, err)
		}
	}
}

func TestFunctionsOfThreeNodes(t *testing.T) {
	c := testcluster.New(t, 3, withFunctions("1"))
	follower := c.Node(c.Follower())
	untilWritten(t, c, follower, everywhere)
	exec(t, follower, "INSERT INTO words(w) VALUES('abc'), (reverse('zyx')), (reverse(?))", "dba")
	c.WaitConverged()
	for _, n := range c.Running() {
		checkEverywhere(t, n)
	}
	// A learner that enters by a copy, and does not have them, holds up such writes only.
	i := c.Add(func(_ int, cfg *colmena.Config) {
		cfg.Functions, cfg.Collations, cfg.JoinAs = nil, nil, colmena.JoinAsNonvoter
	})
	late := c.Node(i)
	c.Until("learner", func() bool {
		members, err := follower.Members(limit(t))
		return err == nil && len(members) == 4 && late.AppliedIndex() >= follower.AppliedIndex()
	})
	for _, n := range []*colmena.Node{follower, late, c.Node(c.Leader())} {
		wantNotReady(t, n, "INSERT INTO words(w) VALUES('no')", late.ID()) // CHECK, indexes, trigger
		wantNotReady(t, n, "INSERT INTO log(w) VALUES('no')", late.ID())   // DEFAULT
		wantNotReady(t, n, "DELETE FROM words WHERE w > 'abc'", late.ID())
		wantNotReady(t, n, "CREATE TABLE more(w TEXT CHECK(reverse(w) <> ''))", late.ID())
		wantNotReady(t, n, "CREATE TABLE more(w TEXT COLLATE backwards)", late.ID())
		exec(t, n, "INSERT INTO log(w, at) VALUES('yes', 'now')")
	}
	if err := follower.RemoveNode(limit(t), late.ID()); err != nil {
		t.Fatal(err)
	}
	c.Stop(i)
	untilWritten(t, c, follower, "INSERT INTO words(w) VALUES('yes')")
}

func TestFunctionThatOneNodeLacks(t *testing.T) {
	versions := []string{"1", "1", ""}
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) {
		if versions[i] != "" {
			withFunctions(versions[i])(i, cfg)
		}
	})
	for _, n := range c.Running() {
		exec(t, n, "CREATE TABLE IF NOT EXISTS t(a TEXT)")
	}
	uses := []string{"INSERT INTO t VALUES(reverse('abc'))", "INSERT INTO t SELECT a FROM t ORDER BY a COLLATE backwards"}
	try := func(missing string) {
		t.Helper()
		for lead := range 3 {
			if err := c.Node(0).TransferLeadership(limit(t), c.Node(lead).ID()); err != nil {
				t.Fatal(err)
			}
			c.Until("the leader chosen", func() bool { return c.Node(lead).IsLeader() })
			for _, n := range c.Running() {
				for _, query := range uses {
					// Of another version the node that has it sees the others as those that lack it.
					if want := missing; lead == 2 && versions[2] != "" {
						wantNotReady(t, n, query, "node-1", "node-2")
					} else {
						wantNotReady(t, n, query, want)
					}
				}
			}
		}
	}
	try("node-3")
	c.Stop(2)
	wantNotReady(t, c.Node(c.Leader()), uses[0], "node-3") // one that is down counts
	restart := func(version string) {
		cfg := c.Config(2)
		withFunctions(version)(2, &cfg)
		cfg.Bind, cfg.Join = "127.0.0.1:0", []string{c.Node(0).Addr()}
		versions[2] = version
		c.StartWith(2, cfg)
		c.WaitReady()
	}
	restart("2")
	c.Until("new line of node 3", func() bool { return c.Node(0).AppliedIndex() == c.Node(2).AppliedIndex() })
	try("node-3")
	c.Stop(2)
	restart("1")
	for _, n := range c.Running() {
		for _, query := range uses {
			untilWritten(t, c, n, query)
		}
	}
	// Another leader has these statements compiled from the log; the gate holds there too.
	exec(t, c.Node(0), "CREATE TABLE never(a NOT NULL)")
	c.WaitConverged()
	c.Stop(2)
	restart("3")
	c.Until("refusal", func() bool {
		_, err := c.Node(0).DB().ExecContext(limit(t), "INSERT INTO never SELECT NULL WHERE reverse('a') = 'a'")
		return errors.As(err, new(*colmena.FunctionNotReadyError))
	})
	next := 1
	if c.Node(1).IsLeader() {
		next = 0
	}
	if err := c.Node(0).TransferLeadership(limit(t), c.Node(next).ID()); err != nil {
		t.Fatal(err)
	}
	c.Until("the leader chosen", func() bool { return c.Node(next).IsLeader() })
	for _, query := range uses {
		wantNotReady(t, c.Node(0), query, "node-3")
	}
}

// A write says in the log what it used: a node that comes back without it, or with
// another version, must not compute something else.
func TestFunctionMissingAtReplay(t *testing.T) {
	var halted atomic.Pointer[error]
	c := testcluster.New(t, 3, withFunctions("1"))
	follower := c.Follower()
	untilWritten(t, c, c.Node(follower), "CREATE TABLE t(a TEXT); CREATE INDEX i ON t(reverse(a)); INSERT INTO t VALUES('abc')")
	c.WaitConverged()
	c.Stop(follower)
	leader := c.Node(c.Leader())
	for i := range 3 {
		exec(t, leader, "INSERT INTO t VALUES(?)", fmt.Sprint("row", i)) // only the index uses it
	}
	exec(t, leader, "INSERT INTO t SELECT a FROM t ORDER BY a COLLATE backwards LIMIT 1")
	for _, version := range []string{"", "2"} {
		cfg := c.Config(follower)
		cfg.Functions, cfg.Collations, cfg.Join, cfg.Bootstrap = nil, nil, []string{leader.Addr()}, false
		if version != "" {
			withFunctions(version)(follower, &cfg)
		}
		halted.Store(nil)
		cfg.OnEvent = func(e colmena.Event) {
			if e.Kind == colmena.EventReplicaHalted {
				halted.CompareAndSwap(nil, &e.Err)
			}
		}
		n := c.StartWith(follower, cfg)
		c.Until("a halt", func() bool { return halted.Load() != nil })
		if err := *halted.Load(); !strings.Contains(err.Error(), "function reverse/1 1") || !strings.Contains(err.Error(), "start the node with it") {
			t.Errorf("version %q: halted by %v", version, err)
		}
		if got := texts(t, n, colmena.None, "SELECT a FROM t"); got != "abc" {
			t.Errorf("version %q: the replica that stopped holds %s", version, got)
		}
		c.Stop(follower)
	}
	c.Start(follower)
	c.WaitConverged()
	wantNumber(t, c.Node(follower), colmena.None, 5, "SELECT count(*) FROM t")
}
