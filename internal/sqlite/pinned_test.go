package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

func TestPinnedTime(t *testing.T) {
	c, _ := openWAL(t, Options{Pinned: true})
	wantQuery(t, c, "SELECT CURRENT_TIMESTAMP", "1970-01-01 00:00:00")
	c.SetNow(1234567890123)
	must(t, c.Exec(`CREATE TABLE d(a, b DEFAULT CURRENT_TIMESTAMP, c DEFAULT (strftime('%f'))); INSERT INTO d(a) VALUES(1);
		CREATE VIEW v AS SELECT unixepoch('now','subsec'); ATTACH ':memory:' AS x; CREATE TABLE x.y(a DEFAULT CURRENT_DATE); INSERT INTO x.y DEFAULT VALUES`))
	wantQuery(t, c, "SELECT datetime('now','subsec'), julianday(), time(); SELECT b, c FROM d; SELECT * FROM v; SELECT * FROM x.y; SELECT datetime('NOW','+1 day')",
		"2009-02-13 23:31:30.123|2454876.4802097571|23:31:30;2009-02-13 23:31:30|30.123;1234567890.123;2009-02-13;2009-02-14 23:31:30")
	st := prepare(t, c, "SELECT date(?)")
	for _, ms := range []int64{0, 86400000} {
		c.SetNow(ms)
		must(t, st.BindText(1, []byte("now")))
		if _, err := st.Step(); err != nil || st.ColumnText(0) != fmt.Sprintf("1970-01-0%d", 1+ms/86400000) {
			t.Error(st.ColumnText(0), err)
		}
		must(t, st.Reset())
	}
	other := open(t, "", Options{Memory: true, Pinned: true})
	other.SetNow(1e12)
	wantQuery(t, c, "SELECT date()", "1970-01-02")
}

// The sequence is part of the replicated format: these values never change.
func TestPinnedChanceIsGolden(t *testing.T) {
	c := open(t, "", Options{Memory: true, Pinned: true})
	must(t, c.Exec("CREATE TABLE d(a, b DEFAULT (random())); CREATE VIEW v AS SELECT random() AS r"))
	c.SetSeed(42)
	if c.SeedUsed() {
		t.Error("the seed is used before a draw")
	}
	wantQuery(t, c, "SELECT 1", "1")
	if c.SeedUsed() {
		t.Error("the seed is used by a statement that draws nothing")
	}
	const golden = "1546998764402558742|6990951692964543102|-3321214725393783201|A160B30347AD"
	draw := "SELECT random(), random(), random(), hex(randomblob(6))"
	got, err := query(c, draw)
	must(t, err)
	if got != golden {
		t.Errorf("sequence of seed 42 is %s", got)
	}
	if !c.SeedUsed() {
		t.Error("a draw does not show")
	}
	c.SetSeed(42)
	wantQuery(t, c, draw, got)
	c.SetSeed(43)
	if again, _ := query(c, draw); again == got {
		t.Error("another seed gives the same sequence")
	}
	other := open(t, "", Options{Memory: true, Pinned: true})
	other.SetSeed(42)
	wantQuery(t, other, draw, got)

	c.SetSeed(1)
	must(t, c.Exec("INSERT INTO d(a) VALUES(1),(2)"))
	c.SetSeed(1)
	must(t, c.Exec("INSERT INTO d(a) VALUES(1),(2)"))
	wantQuery(t, c, "SELECT count(DISTINCT b), count(b) FROM d", "2|4")
	wantQuery(t, c, "SELECT count(DISTINCT random()) FROM (SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3)", "3")
	wantQuery(t, c, "SELECT length(randomblob(0)), length(randomblob(NULL)), length(randomblob(-1)), length(randomblob(100001)), typeof(randomblob(1))", "1|1|1|100001|blob")
	c.Limit(LimitLength, 1000)
	wantCode(t, c.Exec("SELECT randomblob(1001)"), TooBig)
}

func TestPlansOfPinnedConnectionIgnoreBoundValues(t *testing.T) {
	c := open(t, "", Options{Memory: true, Pinned: true})
	must(t, c.Exec("CREATE TABLE t(a); CREATE INDEX i ON t(a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 200) INSERT INTO t SELECT i%3 FROM n; ANALYZE"))
	st := prepare(t, c, "SELECT * FROM t WHERE a=?")
	for i := range int64(3) {
		must(t, st.BindInt64(1, i))
		_, err := st.Step()
		must(t, err)
		must(t, st.Reset())
		must(t, st.ClearBindings())
	}
	if st.reprepare != 0 {
		t.Errorf("compiled again %d times", st.reprepare)
	}
}

func TestPinnedConnectionsLeakNothing(t *testing.T) {
	tls := libc.NewTLS()
	defer tls.Close()
	registered := func() (names []string) {
		for p := lib.Xsqlite3_vfs_find(tls, 0); p != 0; p = at[lib.Tsqlite3_vfs](p).FpNext {
			names = append(names, gostring(at[lib.Tsqlite3_vfs](p).FzName))
		}
		return names
	}
	path := filepath.Join(t.TempDir(), "x.db")
	cycle := func() {
		c, err := Open(path, Options{Create: true, Pinned: true})
		must(t, err)
		must(t, c.Exec("CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(random())"))
		prepare(t, c, "SELECT ? FROM t")
		must(t, c.Close())
	}
	cycle()
	before, memory := registered(), lib.Xsqlite3_memory_used(tls)
	for range 200 {
		cycle()
	}
	for range 20 {
		if _, err := Open(filepath.Join(path, "no"), Options{Pinned: true}); err == nil {
			t.Fatal("opened")
		}
	}
	if after := registered(); len(after) != len(before) {
		t.Errorf("registered VFSes: %v, before %v", after, before)
	}
	if after := lib.Xsqlite3_memory_used(tls); after > memory {
		t.Errorf("SQLite holds %d bytes, before %d", after, memory)
	}
	noLocalTime.Range(func(k, _ any) bool { t.Errorf("a TLS is left: %v", k); return true })
	for i, c := range *callbacks.conns.Load() {
		if c != nil {
			t.Errorf("connection %d is left in the registry", i)
		}
	}
}

// The child runs in a zone that is not UTC, given as a rule so that it needs
// no zone files.
func init() { children["localtime"] = localTimeChild }

const localTimeQuery = "SELECT datetime('2020-01-15 12:00','localtime'), datetime('2020-07-15 12:00','localtime'), datetime('2020-07-15 12:00','utc'), datetime('2060-07-15 12:00','localtime'), datetime('1950-01-15 12:00','localtime')"

func localTimeChild() error {
	plain, err := Open("", Options{Memory: true})
	if err != nil {
		return err
	}
	pin, err := Open("", Options{Memory: true, Pinned: true})
	if err != nil {
		return err
	}
	out, err := query(plain, localTimeQuery)
	fmt.Println(out, err)
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return err
	}
	var s [5]string
	err = db.QueryRow(localTimeQuery).Scan(&s[0], &s[1], &s[2], &s[3], &s[4])
	fmt.Println(strings.Join(s[:], "|"), err)
	out, err = query(pin, "SELECT datetime('2020-01-15','utc')")
	fmt.Println(out, err)
	out, err = query(pin, "SELECT datetime('now','localtime')")
	fmt.Println(out, err)
	out, err = query(pin, "SELECT datetime('now','utc')")
	fmt.Println(out, err)
	return errors.Join(pin.Close(), plain.Close(), db.Close())
}

func TestLocalTime(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("zone rules in TZ are POSIX")
	}
	const local = "2020-01-15 07:00:00|2020-07-15 08:00:00|2020-07-15 16:00:00|2060-07-15 08:00:00|1950-01-15 07:00:00 <nil>\n"
	const refused = " SQL logic error: local time unavailable (1)\n"
	want := local + local + refused + refused + "1970-01-01 00:00:00 <nil>\n"
	if got := runChild(t, "localtime", "TZ=EST5EDT,M3.2.0,M11.1.0"); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestLocalTimeWithoutPinning(t *testing.T) {
	c := openMemory(t)
	if _, err := query(c, localTimeQuery); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("TZ") == "UTC" {
		wantQuery(t, c, "SELECT datetime('2020-01-15 12:00','localtime')", "2020-01-15 12:00:00")
	}
}
