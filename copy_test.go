package colmena_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// plain opens a file as every SQLite program does.
func plain(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func lines(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.QueryContext(deadline(t), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for rows.Next() {
		values, ptrs := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range values {
			ptrs[i] = &values[i]
		}
		if err := rows.Scan(ptrs...); err != nil {
			t.Fatal(err)
		}
		line := make([]string, len(values))
		for i, v := range values {
			line[i] = v.String
		}
		out = append(out, strings.Join(line, " | "))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// content is everything a plain file holds: its schema, every value with its type and
// rowid, what its full-text and R-tree tables find, counters and settings.
func content(t *testing.T, path string) string {
	t.Helper()
	db := plain(t, path)
	defer db.Close()
	out := lines(t, db, "PRAGMA integrity_check")
	if len(out) != 1 || out[0] != "ok" {
		t.Errorf("%s: integrity_check: %q", path, out)
	}
	add := func(query string) { out = append(append(out, "-- "+query), lines(t, db, query)...) }
	add("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY type, name")
	add("PRAGMA user_version")
	add("PRAGMA application_id")
	add("PRAGMA journal_mode")
	for _, table := range lines(t, db, "SELECT name FROM pragma_table_list WHERE schema='main' AND type IN ('table', 'virtual') AND name NOT LIKE 'sqlite_s%' ORDER BY name") {
		name := `"` + strings.ReplaceAll(table, `"`, `""`) + `"`
		var columns []string
		for _, c := range lines(t, db, "SELECT name FROM pragma_table_xinfo('"+strings.ReplaceAll(table, "'", "''")+"') WHERE hidden <> 1") {
			c = `"` + strings.ReplaceAll(c, `"`, `""`) + `"`
			columns = append(columns, "typeof("+c+"), quote("+c+")")
		}
		list := strings.Join(columns, ", ")
		if one[int](t, db, "SELECT count(*) FROM pragma_table_list WHERE schema='main' AND name=? AND wr=0", table) == 1 && !strings.Contains(list, `"rowid"`) {
			list = "rowid, " + list
		}
		add("SELECT " + list + " FROM " + name + " ORDER BY 1, 2, 3")
	}
	if one[int](t, db, "SELECT count(*) FROM sqlite_schema WHERE name='sqlite_sequence'") == 1 {
		add("SELECT name, seq FROM sqlite_sequence ORDER BY name")
	}
	if one[int](t, db, "SELECT count(*) FROM sqlite_schema WHERE name='notes'") == 1 {
		add("SELECT rowid, title FROM notes WHERE notes MATCH 'quick' ORDER BY rowid")
		add("SELECT rowid FROM linked WHERE linked MATCH 'text' ORDER BY rowid")
		add("SELECT k, v FROM notes_config ORDER BY k")
		add("SELECT id FROM boxes WHERE x1 >= 2 AND x2 <= 7 ORDER BY id")
	}
	return strings.Join(out, "\n")
}

func sameText(t *testing.T, what, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := "(nothing)", "(nothing)"
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			t.Fatalf("%s: line %d is\n%.400s\nwant\n%.400s", what, i, b, a)
		}
	}
}

func copyTo(t *testing.T, ctx context.Context, n *colmena.Node, db string) (path string, index uint64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "copy.db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	index, err = n.CopyTo(ctx, db, f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path, index
}

func loadFile(t *testing.T, n *colmena.Node, db, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := n.Load(deadline(t), db, f); err != nil {
		t.Fatal(err)
	}
}

// noScratch fails the test if temporary files are left.
func noScratch(t *testing.T, dataDir string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(dataDir, "scratch"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in scratch: %v, %v", left, err)
	}
}

func TestCopyIsAPlainFileOfAConsistentState(t *testing.T) {
	dir := t.TempDir()
	n := single(t, func(c *colmena.Config) { c.DataDir = dir })
	db := n.DB()
	mustExec(t, db, "CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v); CREATE TABLE b(id INTEGER PRIMARY KEY, v); CREATE VIEW both AS SELECT a.v, b.v FROM a JOIN b USING(id)")
	// Writers keep a and b equal; a copy that is torn would show a difference.
	ctx, cancel := context.WithCancel(deadline(t))
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, err := n.ExecMulti(ctx, "", []colmena.Statement{{SQL: "INSERT INTO a(v) VALUES(?)", Args: []any{i}}, {SQL: "INSERT INTO b(v) VALUES(?)", Args: []any{i}}})
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	var last uint64
	for range 5 {
		before := one[int](t, db, "SELECT count(*) FROM a")
		path, index := copyTo(t, deadline(t), n, "")
		if index <= last && index == 0 {
			t.Errorf("index %d after %d", index, last)
		}
		last = index
		copied := plain(t, path)
		if got := one[string](t, copied, "SELECT (SELECT count(*) FROM a) || ' ' || (SELECT count(*) FROM b) || ' ' || (SELECT ifnull(sum(a.v <> b.v), 0) FROM a JOIN b USING(id))"); got != fmt.Sprintf("%[1]s %[1]s 0", strings.Fields(got)[0]) {
			t.Errorf("the copy holds %s", got)
		}
		if got := one[int](t, copied, "SELECT count(*) FROM a"); got < before {
			t.Errorf("the copy holds %d rows, %d were acknowledged", got, before)
		}
		if got := one[int](t, copied, "SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%colmena%' OR name LIKE '%colmena%'"); got != 0 {
			t.Error("something of colmena's is in the copy")
		}
		if got := lines(t, copied, "PRAGMA integrity_check"); len(got) != 1 || got[0] != "ok" {
			t.Error(got)
		}
		if mode := one[string](t, copied, "PRAGMA journal_mode"); mode != "delete" {
			t.Errorf("journal_mode is %s", mode)
		}
		mustExec(t, copied, "INSERT INTO a(v) VALUES(1); VACUUM")
		_ = copied.Close()
	}
	cancel()
	writer.Wait()
	noScratch(t, dir)
}

// Everything applied up to the index is in the copy, and nothing after.
func TestCopyTellsTheIndexItHolds(t *testing.T) {
	n := single(t)
	mustExec(t, n.DB(), "CREATE TABLE a(v)")
	_, first := copyTo(t, deadline(t), n, "")
	_, again := copyTo(t, deadline(t), n, "")
	if first == 0 || first != again || first != n.AppliedIndex() {
		t.Errorf("indexes %d and %d, applied is %d", first, again, n.AppliedIndex())
	}
	mustExec(t, n.DB(), "INSERT INTO a VALUES(1)")
	if _, third := copyTo(t, deadline(t), n, ""); third != first+1 {
		t.Errorf("after one more entry the index is %d, it was %d", third, first)
	}
}

func TestCopyFailsCleanly(t *testing.T) {
	dir := t.TempDir()
	n := single(t, func(c *colmena.Config) { c.DataDir = dir })
	if _, err := n.CopyTo(deadline(t), "nothing", io.Discard); err == nil || !strings.Contains(err.Error(), "no such database") {
		t.Errorf("a database that does not exist: %v", err)
	}
	if _, err := n.CopyTo(deadline(t), "../x", io.Discard); err == nil {
		t.Error("a bad name was accepted")
	}
	mustExec(t, n.DB(), "CREATE TABLE a(v)")
	broken := errors.New("broken pipe")
	if _, err := n.CopyTo(deadline(t), "", failingWriter{broken}); !errors.Is(err, broken) {
		t.Errorf("the writer's error became %v", err)
	}
	ended, cancel := context.WithCancel(deadline(t))
	cancel()
	if _, err := n.CopyTo(ended, "", io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context gave %v", err)
	}
	noScratch(t, dir)
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestCopyFromAFollower(t *testing.T) {
	c := testcluster.New(t, 3)
	mustExec(t, c.Node(c.Leader()).DB(), "CREATE TABLE a(id INTEGER PRIMARY KEY, v)")
	for i := range 20 {
		mustExec(t, c.Node(c.Leader()).DB(), "INSERT INTO a(v) VALUES(?)", i)
		path, index := copyTo(t, deadline(t), c.Node(c.Follower()), "")
		if got := one[int](t, plain(t, path), "SELECT count(*) FROM a"); got != i+1 || index == 0 {
			t.Fatalf("the follower's copy at index %d holds %d rows, %d were acknowledged", index, got, i+1)
		}
	}
}

const richSchema = `
PRAGMA user_version = 77; PRAGMA application_id = -5;
CREATE TABLE plain(a, b TEXT, c REAL, d BLOB, UNIQUE(a, b));
INSERT INTO plain(rowid, a, b, c, d) VALUES(10, 1, 'x', 1, x'00ff'), (-7, NULL, '', 9e999, zeroblob(3)), (9223372036854775806, 1.5, 'nul' || char(0) || 'byte', -0.0, NULL);
DELETE FROM plain WHERE a = 1;
INSERT INTO plain(rowid, a, b) VALUES(3, 9007199254740993, 'ü€𝄞'), (11, -9223372036854775808, CAST(x'ff41' AS TEXT));
CREATE TABLE alias(id INTEGER PRIMARY KEY, v); INSERT INTO alias VALUES(5, 'five'), (-1, 'minus'), (100, NULL);
CREATE TABLE descending(id INTEGER PRIMARY KEY DESC, v); INSERT INTO descending VALUES(50, 'a'), (40, 'b'), (NULL, 'c');
CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO counted(v) VALUES(1), (2), (3); DELETE FROM counted WHERE id > 1;
CREATE TABLE empty_counted(id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO empty_counted VALUES(41); DELETE FROM empty_counted;
CREATE TABLE norowid(k TEXT COLLATE NOCASE, j, v, PRIMARY KEY(k DESC, j)) WITHOUT ROWID; INSERT INTO norowid VALUES('b', 1, 2), ('A', 2, 3), ('a', 1, NULL);
CREATE TABLE strict(i INT, r REAL, t TEXT, b BLOB, a ANY) STRICT; INSERT INTO strict VALUES(1, 2, '3', x'04', 5), (NULL, NULL, NULL, NULL, '5');
CREATE TABLE generated(x INTEGER, y AS (x * 2), z TEXT AS (x || '!') STORED, w DEFAULT (datetime('now')), CHECK(x < 1000)); INSERT INTO generated(x, w) VALUES(1, 'w'), (2, NULL);
CREATE TABLE shadowed(rowid, v); INSERT INTO shadowed(_rowid_, rowid, v) VALUES(30, 'text', 1), (20, 'other', 2);
CREATE TABLE "odd ""name'" ("a b", "select", "c]"); INSERT INTO "odd ""name'" VALUES(1, 2, 3);
CREATE TABLE parent(id INTEGER PRIMARY KEY); CREATE TABLE child(p REFERENCES parent(id)); INSERT INTO child VALUES(99);
CREATE INDEX by_b ON plain(b COLLATE NOCASE DESC) WHERE b IS NOT NULL; CREATE UNIQUE INDEX by_expression ON alias(id + 1, lower(v));
CREATE VIEW seen(one, two) AS SELECT id, v FROM alias; CREATE VIEW dangling AS SELECT * FROM not_there;
CREATE TABLE log(what); CREATE TRIGGER on_alias AFTER INSERT ON alias BEGIN INSERT INTO log VALUES('insert ' || new.id); END;
CREATE TRIGGER on_seen INSTEAD OF INSERT ON seen BEGIN INSERT INTO alias(id, v) VALUES(new.one, new.two); END;
ALTER TABLE alias ADD COLUMN added TEXT NOT NULL DEFAULT 'later';
CREATE VIRTUAL TABLE notes USING fts5(title, body, extra UNINDEXED, tokenize='porter unicode61', prefix='2');
INSERT INTO notes(rowid, title, body, extra) VALUES(7, 'one', 'the quick fox', 1), (3, 'two', 'slow and quickly', x'01'), (9, 'three', 'nothing', NULL);
INSERT INTO notes(notes, rank) VALUES('automerge', 8); INSERT INTO notes(notes, rank) VALUES('rank', 'bm25(10.0, 5.0)');
CREATE TABLE texts(id INTEGER PRIMARY KEY, t); INSERT INTO texts VALUES(1, 'a text'), (5, 'another text'), (6, 'no');
CREATE VIRTUAL TABLE "linked" USING fts5(t, content='texts', content_rowid='id'); INSERT INTO linked(linked) VALUES('rebuild');
CREATE VIRTUAL TABLE words USING fts5vocab(notes, 'row');
CREATE VIRTUAL TABLE boxes USING rtree(id, x1, x2, +label); INSERT INTO boxes VALUES(4, 1.1, 2.2, 'a'), (2, 3, 3.3, NULL), (8, 5, 6.75, x'00');
CREATE VIRTUAL TABLE whole USING rtree_i32(id, x1, x2); INSERT INTO whole VALUES(1, -5, 5);
ANALYZE;
`

func richFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rich.db")
	db := plain(t, path)
	mustExec(t, db, richSchema)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// loads replaces a database by a file with everything in it, and compares the copy that
// is then taken from another node.
func loads(t *testing.T, to, from *colmena.Node) {
	source := richFile(t)
	mustExec(t, to.DB(), "CREATE TABLE old(v); INSERT INTO old VALUES(1)")
	loadFile(t, to, "", source)
	path, _ := copyTo(t, deadline(t), from, "")
	sameText(t, "the copy", content(t, source), content(t, path))
	if got := to.Databases(); len(got) != 1 {
		t.Errorf("databases are %v", got)
	}
	// It is a database like every other: counters go on, triggers fire.
	mustExec(t, from.DB(), "INSERT INTO counted(v) VALUES(9); INSERT INTO seen VALUES(1000, 'new')")
	if got := one[string](t, to.DB(), "SELECT (SELECT max(id) FROM counted) || ' ' || (SELECT group_concat(what) FROM log)"); got != "4 insert 1000" {
		t.Errorf("after a write: %s", got)
	}
	// And again over itself, from a copy.
	path, _ = copyTo(t, deadline(t), to, "")
	loadFile(t, from, "", path)
	after, _ := copyTo(t, deadline(t), to, "")
	sameText(t, "the second copy", content(t, path), content(t, after))
}

func TestLoadKeepsEverythingAPlainFileHolds(t *testing.T) {
	n := single(t)
	loads(t, n, n)
}

func TestLoadThroughAFollower(t *testing.T) {
	c := testcluster.New(t, 3)
	loads(t, c.Node(c.Follower()), c.Node(c.Leader()))
}

// A reader sees the former content or the new one, and never a part; a strong read on
// any node that begins after Load has returned sees the new one.
func TestLoadSwitchesAtOnce(t *testing.T) {
	c := testcluster.New(t, 3)
	loader := c.Node(c.Follower())
	rows := size(3000)
	source := filepath.Join(t.TempDir(), "source.db")
	db := plain(t, source)
	mustExec(t, db, "CREATE TABLE v(id INTEGER PRIMARY KEY, gen, pad)")
	mustExec(t, loader.DB(), "CREATE TABLE v(id INTEGER PRIMARY KEY, gen, pad)")
	mustExec(t, loader.DB(), "INSERT INTO v WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i, 0, '' FROM n", rows)
	c.WaitConverged()
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	var readers sync.WaitGroup
	for i := range 3 {
		for _, level := range []colmena.ConsistencyLevel{colmena.None, colmena.Strong} {
			readers.Go(func() {
				last := -1
				for ctx.Err() == nil {
					var count, low, high int
					err := c.Node(i).DB().QueryRowContext(colmena.WithConsistency(ctx, level), "SELECT count(*), min(gen), max(gen) FROM v").Scan(&count, &low, &high)
					if ctx.Err() != nil {
						return
					}
					if err != nil || count != rows || low != high || low < last {
						t.Errorf("node %d at %v: %d rows of generations %d to %d after %d, %v", i, level, count, low, high, last, err)
						return
					}
					last = low
				}
			})
		}
	}
	for gen := 1; gen <= 3; gen++ {
		mustExec(t, db, "DELETE FROM v")
		mustExec(t, db, "INSERT INTO v WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT i, ?2, randomblob(1000) FROM n", rows, gen)
		// The former database's mark goes beyond that of the new one.
		var touching sync.WaitGroup
		stop := make(chan struct{})
		touching.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = c.Node(0).DB().ExecContext(ctx, "UPDATE v SET pad = 'touched' WHERE id = 1")
				}
			}
		})
		loadFile(t, loader, "", source)
		close(stop)
		for i := range 3 {
			if got, err := number(colmena.WithConsistency(deadline(t), colmena.Strong), c.Node(i), colmena.Strong, "SELECT max(gen) FROM v"); err != nil || got != int64(gen) {
				t.Errorf("node %d reads generation %d after generation %d was loaded, %v", i, got, gen, err)
			}
		}
		if got, err := number(deadline(t), loader, colmena.None, "SELECT max(gen) FROM v"); err != nil || got != int64(gen) {
			t.Errorf("the loading node itself reads generation %d at None, %v", got, err)
		}
		touching.Wait()
	}
	cancel()
	readers.Wait()
}

func TestLoadRefusesWhatItCannotKeep(t *testing.T) {
	dir := t.TempDir()
	n := single(t, func(c *colmena.Config) { c.DataDir = dir })
	mustExec(t, n.DB(), "CREATE TABLE kept(v); INSERT INTO kept VALUES(1)")
	before, _ := copyTo(t, deadline(t), n, "")
	make := func(schema string) []byte {
		path := filepath.Join(t.TempDir(), "bad.db")
		db := plain(t, path)
		mustExec(t, db, schema)
		_ = db.Close()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := make("CREATE TABLE a(v, w); INSERT INTO a VALUES(1, 2); CREATE INDEX i ON a(v)")
	damaged := bytes.Clone(good)
	for i := range 60 {
		damaged[len(damaged)-i-1] ^= 0x55
	}
	files, err := filepath.Glob(filepath.Join(dir, "generations", "*", "db.*.db"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	for _, c := range []struct {
		name, want string
		file       []byte
	}{
		{"nothing", "not an SQLite database", nil},
		{"text", "not an SQLite database", []byte(strings.Repeat("hello ", 1000))},
		{"cut short", "", good[:len(good)-4096]},
		{"damaged", "", damaged},
		{"only a header", "", good[:100]},
		{"utf-16", "UTF-16", make("PRAGMA encoding='UTF-16le'; CREATE TABLE a(v)")},
		{"last rowid", `"a" has a row with the rowid 9223372036854775807`, make("CREATE TABLE a(v); INSERT INTO a(rowid, v) VALUES(9223372036854775807, 1)")},
		{"no rowid name", `"a" has columns called rowid`, make("CREATE TABLE a(rowid, _rowid_, oid); INSERT INTO a VALUES(1, 2, 3)")},
		{"contentless", `"f" keeps no texts`, make("CREATE VIRTUAL TABLE f USING fts5(t, content=''); INSERT INTO f(rowid, t) VALUES(1, 'x')")},
		{"contentless unindexed", `"f" keeps no texts`, make("CREATE VIRTUAL TABLE f USING fts5(t, u UNINDEXED, content='', contentless_unindexed=1); INSERT INTO f(rowid, t, u) VALUES(1, 'x', 'y')")},
		{"other module", `uses the module "geopoly"`, make("CREATE VIRTUAL TABLE g USING geopoly(a)")},
		{"large row", `table "a": the row whose rowid is "7"`, make("CREATE TABLE a(v); INSERT INTO a(rowid, v) VALUES(7, zeroblob(17000000))")},
	} {
		err := n.Load(deadline(t), "", bytes.NewReader(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "colmena: load of database") {
			t.Errorf("%s: %v", c.name, err)
		}
		t.Log(err)
	}
	broken := errors.New("broken pipe")
	if err := n.Load(deadline(t), "", io.MultiReader(bytes.NewReader(good), failingReader{broken})); !errors.Is(err, broken) {
		t.Errorf("the reader's error became %v", err)
	}
	after, _ := copyTo(t, deadline(t), n, "")
	sameText(t, "after refusals the database", content(t, before), content(t, after))
	if left, _ := filepath.Glob(filepath.Join(dir, "generations", "*", "db.*.db")); len(left) != 1 {
		t.Errorf("database files are %v", left)
	}
	noScratch(t, dir)
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func TestLoadThatIsCutShortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	n := single(t, func(c *colmena.Config) { c.DataDir = dir })
	mustExec(t, n.DB(), "CREATE TABLE kept(v); INSERT INTO kept VALUES(1)")
	source := filepath.Join(t.TempDir(), "big.db")
	db := plain(t, source)
	mustExec(t, db, "CREATE TABLE v(a); INSERT INTO v WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000) SELECT randomblob(1000) FROM n")
	_ = db.Close()
	files := func() int {
		left, _ := filepath.Glob(filepath.Join(dir, "generations", "*", "db.*.db"))
		return len(left)
	}
	f, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	done := make(chan error)
	go func() { done <- n.Load(ctx, "", f) }()
	began := time.Now()
	for files() < 2 { // until the hidden database is there
		if time.Since(began) > testcluster.Timeout {
			t.Fatal("no second database file")
		}
		select {
		case err := <-done:
			t.Fatal("the load ended early:", err)
		case <-time.After(100 * time.Microsecond):
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the load ended with %v", err)
	}
	if got := one[int](t, n.DB(), "SELECT count(*) FROM kept"); got != 1 {
		t.Error("the former content is gone")
	}
	for began = time.Now(); files() != 1; time.Sleep(time.Millisecond) {
		if time.Since(began) > testcluster.Timeout {
			t.Fatalf("%d database files are left", files())
		}
	}
	loadFile(t, n, "", source)
	if got := one[int](t, n.DB(), "SELECT count(*) FROM v"); got != 8000 {
		t.Errorf("%d rows were loaded", got)
	}
}

// A hook is told that what it was told before is void.
func TestLoadTellsHooksOfTheGap(t *testing.T) {
	events := make(chan colmena.ApplyEvent, 1000)
	n := single(t, func(c *colmena.Config) { c.OnApply = func(e colmena.ApplyEvent) { events <- e } })
	mustExec(t, n.DB(), "CREATE TABLE a(v)")
	loadFile(t, n, "", richFile(t))
	mustExec(t, n.DB(), "INSERT INTO log VALUES('last')")
	var got []string
	for len(got) == 0 || !strings.Contains(got[len(got)-1], "last") {
		select {
		case e := <-events:
			got = append(got, fmt.Sprintf("%s gap=%t %q", e.DB, e.Gap != nil, e.Statements))
			if e.Gap != nil && (e.Gap.From == 0 || e.Gap.To < e.Gap.From) {
				t.Errorf("gap %+v", *e.Gap)
			}
		case <-deadline(t).Done():
			t.Fatalf("events are %v", got)
		}
	}
	want := `[default gap=false ["CREATE TABLE a(v)"] default gap=true [] default gap=false ["INSERT INTO log VALUES('last')"]]`
	if fmt.Sprint(got) != want {
		t.Errorf("events are\n%v, want\n%v", got, want)
	}
}

// A node that comes back after a load, or starts again, finds the new content.
func TestLoadSurvivesRestartsAndSnapshots(t *testing.T) {
	c := testcluster.New(t, 3)
	mustExec(t, c.Node(0).DB(), "CREATE TABLE old(v)")
	down := c.Follower()
	c.Stop(down)
	source := richFile(t)
	loadFile(t, c.Node(c.Leader()), "other", source)
	loadFile(t, c.Node(c.Follower()), "", source)
	if err := c.Node(c.Leader()).Snapshot(deadline(t)); err != nil {
		t.Fatal(err)
	}
	c.Start(down)
	for i := range 3 {
		if i != down {
			c.Stop(i)
			c.Start(i)
		}
	}
	c.WaitReady()
	want := content(t, source)
	for i := range 3 {
		for _, name := range []string{"", "other"} {
			path, _ := copyTo(t, deadline(t), c.Node(i), name)
			sameText(t, fmt.Sprintf("node %d, database %q", i, name), want, content(t, path))
		}
	}
}
