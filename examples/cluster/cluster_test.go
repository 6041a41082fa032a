package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/colmenatest"
)

func TestMain(m *testing.M) {
	if os.Getenv(nodeEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestLoadSurvivesTheLeader runs the whole demonstration: it fails if a statement is
// lost or doubled, or if the nodes differ.
func TestLoadSurvivesTheLeader(t *testing.T) {
	var out strings.Builder
	dir := t.TempDir()
	d := demo{out: &out, name: "test data", script: ownScript(ownSeed, 80), dir: dir}
	if err := d.run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log("\n" + out.String())
	for _, want := range []string{"kill -9 node-", "started again", "rows of ledger", "OK: nothing lost, nothing doubled, all nodes equal, and equal to plain SQLite"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDifferencesAreReported holds that a statement too many, or a word of content, is
// told apart from what was expected.
func TestDifferencesAreReported(t *testing.T) {
	ctx := t.Context()
	base := "CREATE TABLE t(a); INSERT INTO t VALUES(1);"
	same, err := plainContent(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{base + "INSERT INTO t VALUES(1)", "CREATE TABLE t(a); INSERT INTO t VALUES('1');", "CREATE TABLE t(a, b); INSERT INTO t(a) VALUES(1);"} {
		c, err := plainContent(ctx, other)
		if err != nil {
			t.Fatal(err)
		}
		if c.Checksum == same.Checksum {
			t.Errorf("%s: the same checksum as %s", other, base)
		}
	}
	if doubled, err := plainContent(ctx, base+"INSERT INTO t VALUES(1)"); err != nil || slices.Equal(doubled.Tables, same.Tables) {
		t.Errorf("a doubled row is not counted: %v, %v", doubled.Tables, err)
	}
}

// TestNodesReadLikePlainSQLite holds that content does not depend on whose it is: a script
// that a cluster took through a follower is read alike on every node and in plain SQLite.
func TestNodesReadLikePlainSQLite(t *testing.T) {
	t.Parallel()
	script := ownScript(ownSeed, 40)
	want, err := plainContent(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := splitScript(script)
	if err != nil {
		t.Fatal(err)
	}
	c := colmenatest.NewCluster(t, 3)
	conn, err := c.DB(c.Follower()).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, st := range list {
		if _, err := conn.ExecContext(t.Context(), st.sql); err != nil {
			t.Fatalf("line %d: %v", st.line, err)
		}
	}
	c.WaitConverged()
	for i := range c.Len() {
		got, err := contentOf(t.Context(), c.OpenDB(i, "", colmena.None))
		if err != nil || got.Checksum != want.Checksum || got.Integrity != "ok" || !slices.Equal(got.Tables, want.Tables) {
			t.Errorf("node %d: %v, %v; plain SQLite has %v", i, got, err, want)
		}
	}
}

// TestErrorsSayWhatToDoNext brings about each kind of error of a write.
func TestErrorsSayWhatToDoNext(t *testing.T) {
	t.Parallel()
	c := colmenatest.NewCluster(t, 3, func(_ int, cfg *colmena.Config) { cfg.LeaderWait = -1 })
	follower := c.Follower()
	write := func(sql string) errorKind {
		exec := func(ctx context.Context, sql string) error {
			_, err := c.DB(follower).ExecContext(ctx, sql)
			return err
		}
		_, err := handle(t.Context(), c.Node(follower), exec, request{Op: "exec", SQL: sql})
		if err == nil {
			return kindNone
		}
		return kindOf(err)
	}
	const insert = "INSERT INTO t VALUES(1)"
	if kind := write("CREATE TABLE t(a UNIQUE)"); kind != kindNone {
		t.Fatal(kind)
	}
	c.FailNext(colmena.ErrOutcomeUnknown)
	if kind := write(insert); kind != kindUnknown {
		t.Errorf("an unknown outcome is %q", kind)
	}
	if kind := write(insert); kind != kindNone {
		t.Errorf("the write that was not sent is %q when it is sent", kind)
	}
	for _, sql := range []string{insert, "INSERT INTO t VALUES(random())", "VACUUM"} {
		if kind := write(sql); kind != kindRefused {
			t.Errorf("%s is %q", sql, kind)
		}
	}
	for i := range c.Len() {
		if i != follower {
			c.Kill(i)
		}
	}
	deadline := time.Now().Add(colmenatest.Timeout)
	for _, led := c.Node(follower).Leader(); led && time.Now().Before(deadline); _, led = c.Node(follower).Leader() {
		time.Sleep(5 * time.Millisecond)
	}
	if kind := write("INSERT INTO t VALUES(2)"); kind != kindAgain {
		t.Errorf("a write without a leader is %q", kind)
	}
}

// TestFailureIsReported holds that a script the cluster cannot take is no success.
func TestFailureIsReported(t *testing.T) {
	var out strings.Builder
	d := demo{out: &out, name: "test data", script: "CREATE TABLE t(a);\nINSERT INTO t VALUES(random());\n", dir: filepath.Join(t.TempDir(), "nodes")}
	if err := d.run(); err == nil || !strings.Contains(err.Error(), "line 2: refused") {
		t.Fatalf("%v\n%s", err, out.String())
	}
}

func TestScriptIsSplitBySQLitesRules(t *testing.T) {
	for _, c := range []struct {
		script  string
		want    []string
		skipped int
	}{
		{"", nil, 0},
		{" ;; -- nothing\n/* ; */ ;", nil, 0},
		{"SELECT 1", []string{"SELECT 1"}, 0},
		{"SELECT 1; SELECT 2;", []string{"SELECT 1;", "SELECT 2;"}, 0},
		{"SELECT ';', 'it''s; ok', \"a;\"\"b\", [c;], `d;`; SELECT 2", []string{"SELECT ';', 'it''s; ok', \"a;\"\"b\", [c;], `d;`;", "SELECT 2"}, 0},
		{"SELECT 1 -- ; no\n;SELECT /* ; */ 2;", []string{"SELECT 1 -- ; no\n;", "SELECT /* ; */ 2;"}, 0},
		{"begin transaction; SELECT 1; Commit; BEGIN; END;", []string{"SELECT 1;"}, 4},
		{"CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT CASE WHEN 1 THEN 2 END; END; SELECT 3;",
			[]string{"CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT CASE WHEN 1 THEN 2 END; END;", "SELECT 3;"}, 0},
		{"create /* a */ temp trigger y delete on t begin select 1; end ; SELECT 3;", []string{"create /* a */ temp trigger y delete on t begin select 1; end ;", "SELECT 3;"}, 0},
		{"CREATE TABLE trigger_log(a); SELECT 1;", []string{"CREATE TABLE trigger_log(a);", "SELECT 1;"}, 0},
		{"CREATE TABLE \"trigger\"(a); SELECT 1;", []string{"CREATE TABLE \"trigger\"(a);", "SELECT 1;"}, 0},
		{"SELECT 'open; SELECT 2;", []string{"SELECT 'open; SELECT 2;"}, 0},
		{"\uFEFFSELECT 1;", []string{"SELECT 1;"}, 0},
	} {
		list, skipped, err := splitScript(c.script)
		var got []string
		for _, st := range list {
			got = append(got, st.sql)
		}
		if err != nil || !slices.Equal(got, c.want) || skipped != c.skipped {
			t.Errorf("%q:\n%q, %d skipped, %v; want\n%q, %d skipped", c.script, got, skipped, err, c.want, c.skipped)
		}
	}
	if _, _, err := splitScript("BEGIN;\nINSERT INTO t VALUES(1);\nROLLBACK;"); err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("a script that rolls back is taken: %v", err)
	}
	if list, _, _ := splitScript("SELECT '\n';\n\n-- x\nSELECT 2;"); len(list) != 2 || list[0].line != 1 || list[1].line != 5 {
		t.Errorf("lines: %v", list)
	}
}

// TestOwnScriptSplitsAsSQLiteReadsIt compares a script run whole with the same script
// run statement by statement.
func TestOwnScriptSplitsAsSQLiteReadsIt(t *testing.T) {
	script := ownScript(7, 20)
	list, _, err := splitScript(script)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, st := range list {
		fmt.Fprintln(&b, st.sql)
	}
	whole, err := plainContent(context.Background(), script)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := plainContent(context.Background(), b.String())
	if err != nil || parts.Checksum != whole.Checksum {
		t.Errorf("%v; %v and %v", err, whole, parts)
	}
}
