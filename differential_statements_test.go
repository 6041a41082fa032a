package colmena_test

import (
	"fmt"
	"strings"
)

// column is one that can be written to; kind says what it mostly holds: i, t, r, b for
// the types of SQLite, d for a time, o for a boolean, k for the key, x for anything.
type column struct {
	name string
	kind byte
}

// table is one of the tables that the statements are about. They may be dropped, and made
// again, at any time.
type table struct {
	name, create string
	columns      []column
	key          string // what ON CONFLICT may name
}

func cols(spec string) (out []column) {
	for _, s := range strings.Fields(spec) {
		out = append(out, column{s[2:], s[0]})
	}
	return out
}

var tables = []*table{
	{"ti", "CREATE TABLE ti(id INTEGER PRIMARY KEY, a INT, b TEXT COLLATE NOCASE DEFAULT 'dflt', c REAL, d BLOB)", cols("i:id i:a t:b r:c b:d"), "id"},
	{"ta", "CREATE TABLE ta(id INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT UNIQUE, n INT NOT NULL, k INT CONSTRAINT small CHECK(k IS NULL OR k < 15))", cols("i:id t:u i:n i:k"), "u"},
	{"tw", "CREATE TABLE tw(a TEXT, b INT, v, PRIMARY KEY(a, b)) WITHOUT ROWID", cols("t:a i:b x:v"), "a, b"},
	{"tp", "CREATE TABLE tp(id INTEGER PRIMARY KEY, code TEXT UNIQUE, up INT REFERENCES tp(id) ON DELETE CASCADE)", cols("i:id t:code i:up"), "code"},
	{"tc", `CREATE TABLE tc(id INTEGER PRIMARY KEY, p INT REFERENCES tp ON DELETE CASCADE ON UPDATE CASCADE, r INT DEFAULT 3 REFERENCES tp(id) ON DELETE SET DEFAULT)`, cols("i:id i:p i:r"), "id"},
	// A table of its own: where a row violates a deferred and an immediate constraint, SQLite
	// goes on counting the deferred one, and a COMMIT fails though nothing is violated.
	{"te", "CREATE TABLE te(id INTEGER PRIMARY KEY, q TEXT REFERENCES tp(code) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED)", cols("i:id t:q"), "id"},
	{"tg", "CREATE TABLE tg(a INT, b INT, s INT GENERATED ALWAYS AS (a+b) VIRTUAL, m TEXT AS (a||'-'||b) STORED UNIQUE)", cols("i:a i:b"), "m"},
	{"td", "CREATE TABLE td(id INTEGER PRIMARY KEY, d DATE, dt DATETIME, ts timestamp, bo BOOLEAN, vc VARCHAR(20), de DECIMAL(10,2), t TIME)", cols("i:id d:d d:dt d:ts o:bo t:vc r:de t:t"), "id"},
	{"tn", "CREATE TABLE tn(x, y)", cols("x:x x:y"), ""},
	strict,
	{"tl", "CREATE TABLE tl(id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT, n)", cols("t:what x:n"), ""},
	{"tf", "CREATE VIRTUAL TABLE tf USING fts5(title, body)", cols("t:title t:body"), ""},
	{"vi", "CREATE VIEW vi AS SELECT ti.id AS id, ti.a, ta.u || 'x' AS ux FROM ti JOIN ta ON ti.a = ta.n", cols("i:id i:a"), ""},
}

// strict is written to row by row. A statement that meets a value of the wrong type at its
// second row leaves its first one, in SQLite, if it is in a transaction.
var strict = &table{"ts", "CREATE TABLE ts(id INTEGER PRIMARY KEY, i INTEGER, r REAL, x TEXT, b BLOB, y ANY) STRICT", cols("i:id i:i r:r t:x b:b x:y"), "id"}

var triggers = []string{
	"CREATE TRIGGER IF NOT EXISTS g1 AFTER INSERT ON ti BEGIN INSERT INTO tl(what, n) VALUES('ins', new.id); UPDATE tl SET n = n WHERE id = 1; END",
	"CREATE TRIGGER IF NOT EXISTS g2 BEFORE UPDATE OF a ON ti WHEN new.a = 13 BEGIN SELECT RAISE(ABORT, 'thirteen; not'); END",
	"CREATE TRIGGER IF NOT EXISTS g3 BEFORE DELETE ON ti WHEN old.a = 7 BEGIN SELECT RAISE(IGNORE); END",
	"CREATE TRIGGER IF NOT EXISTS g4 AFTER DELETE ON ta BEGIN UPDATE tl SET n = n WHERE id < 3; INSERT INTO tl(what, n) VALUES('del ' || old.u, changes()); END",
	"CREATE TRIGGER IF NOT EXISTS g5 INSTEAD OF INSERT ON vi BEGIN INSERT INTO ti(id, a) VALUES(new.id, new.a); END",
	"CREATE TRIGGER IF NOT EXISTS g6 INSTEAD OF UPDATE ON vi BEGIN UPDATE ti SET a = new.a WHERE id = old.id; END",
	"CREATE TRIGGER IF NOT EXISTS g7 AFTER INSERT ON tn WHEN new.x IS NULL BEGIN DELETE FROM tn WHERE x IS NULL AND y IS NULL; INSERT INTO ta(u, n) VALUES(new.y, 5); END",
}

var indexes = []string{
	"CREATE INDEX IF NOT EXISTS x1 ON ti(lower(b), a DESC)", "CREATE UNIQUE INDEX IF NOT EXISTS x2 ON ti(a) WHERE a > 10", "CREATE UNIQUE INDEX IF NOT EXISTS x3 ON tn(abs(x)) WHERE typeof(x) = 'integer' AND x > -1000",
	"CREATE INDEX IF NOT EXISTS x4 ON td(date(d))", "CREATE INDEX x5 ON tw(v)", "CREATE UNIQUE INDEX x6 ON tl(n)",
}

// schema makes the steps that an episode begins with.
func (g *generator) schema() (steps []*step) {
	for _, t := range tables {
		steps = append(steps, &step{query: t.create, schema: true, stale: spoilsCount(t.create)})
	}
	for _, text := range append(append([]string{}, triggers...), indexes[:4]...) {
		if g.chance(50) {
			steps = append(steps, &step{query: text, schema: true})
		}
	}
	if g.chance(60) {
		steps = append(steps, &step{query: "PRAGMA foreign_keys = ON"})
	}
	return steps
}

// spoilsCount tells of a DDL statement whether SQLite counts rows of its own in it.
func spoilsCount(text string) bool {
	return !strings.HasPrefix(text, "CREATE ") || strings.Contains(text, "VIRTUAL TABLE") || strings.Contains(text, "AS SELECT")
}

// statement makes a step that is no transaction control.
func (g *generator) statement() *step {
	if g.readOnly {
		return g.read()
	}
	switch n := g.IntN(100); {
	case n < 33:
		return g.insert()
	case n < 43:
		return g.update()
	case n < 49:
		return g.remove()
	case n < 72:
		return g.read()
	case n < 79:
		return g.pragma()
	case n < 87:
		return g.ddl()
	case n < 92:
		return g.wrong()
	case n < 94:
		return g.nothing()
	case n < 96:
		return g.wholeTransaction()
	}
	return g.several()
}

func (g *generator) table() *table { return tables[g.IntN(len(tables))] }

func (g *generator) insert() *step {
	t := g.table()
	var b strings.Builder
	or := pick(g, "", "", "", " OR IGNORE", " OR REPLACE", " OR ABORT")
	verb := "INSERT" + or
	if or == "" && g.chance(8) {
		verb = "REPLACE"
	}
	cs := g.columnsOf(t)
	if g.chance(8) {
		b.WriteString("WITH src(v) AS (VALUES(1),(2)) ")
	}
	switch {
	case g.chance(4):
		fmt.Fprintf(&b, "%s INTO %s DEFAULT VALUES", verb, t.name)
	case g.chance(8) && t != strict:
		fmt.Fprintf(&b, "%s INTO %s(%s) SELECT %s FROM ti WHERE a < %s ORDER BY id LIMIT 5", verb, t.name, names(cs), strings.TrimSuffix(strings.Repeat("id + a, ", len(cs)), ", "), g.arg(g.small()))
	default:
		fmt.Fprintf(&b, "%s INTO %s(%s) VALUES", verb, t.name, names(cs))
		for i := range 1 + g.IntN(3)*g.IntN(2) {
			if i > 0 && t == strict {
				break
			}
			if i > 0 {
				b.WriteString(", ")
			}
			var vs []string
			for _, c := range cs {
				if c.name == "id" && g.chance(50) {
					vs = append(vs, "NULL")
				} else {
					vs = append(vs, g.arg(g.valueFor(c)))
				}
			}
			b.WriteString("(" + strings.Join(vs, ", ") + ")")
		}
	}
	if t.key != "" && g.chance(20) {
		c := t.columns[g.IntN(len(t.columns))]
		switch g.IntN(3) {
		case 0:
			b.WriteString(" ON CONFLICT DO NOTHING")
		case 1:
			fmt.Fprintf(&b, " ON CONFLICT(%s) DO UPDATE SET %s = excluded.%s", t.key, c.name, c.name)
		case 2:
			fmt.Fprintf(&b, " ON CONFLICT(%s) DO UPDATE SET %s = %s WHERE %s IS NOT excluded.%s", t.key, c.name, g.arg(g.valueFor(c)), c.name, c.name)
		}
	}
	return g.write(&b, t)
}

// write ends a statement that changes rows, with RETURNING now and then.
func (g *generator) write(b *strings.Builder, t *table) *step {
	rows := g.chance(10)
	if g.chance(25) {
		b.WriteString(" RETURNING " + pick(g, "*", names(t.columns), t.columns[0].name+" AS \"the key\", typeof("+t.columns[0].name+"), 1.5, NULL", "count(*)", "last_insert_rowid()"))
		rows = g.chance(85)
	}
	st := g.run(b.String(), rows)
	st.counts = true
	return st
}

func (g *generator) where(t *table) string {
	if t == strict {
		return "id = " + g.arg(g.small())
	}
	c := t.columns[g.IntN(len(t.columns))]
	v := g.arg(g.valueFor(c))
	return pick(g, c.name+" = "+v, c.name+" > "+v, c.name+" IS NOT "+v, c.name+" IN ("+v+", 3, 'a')", c.name+" BETWEEN 1 AND "+v, "NOT "+c.name+" < "+v, c.name+" LIKE 'a%' OR "+c.name+" = "+v,
		"EXISTS (SELECT 1 FROM tp WHERE tp.id = "+c.name+" AND "+v+" IS NOT NULL)")
}

func (g *generator) update() *step {
	t := g.table()
	c := t.columns[g.IntN(len(t.columns))]
	var b strings.Builder
	fmt.Fprintf(&b, "UPDATE%s %s SET %s = ", pick(g, "", "", "", " OR IGNORE", " OR REPLACE", " OR ABORT"), t.name, c.name)
	b.WriteString(pick(g, g.arg(g.valueFor(c)), c.name+" + 1", c.name+" || 'q'"))
	if g.chance(30) {
		o := t.columns[g.IntN(len(t.columns))]
		fmt.Fprintf(&b, ", %s = %s", o.name, g.arg(g.valueFor(o)))
	}
	if g.chance(90) || t == strict {
		b.WriteString(" WHERE " + g.where(t))
	}
	return g.write(&b, t)
}

func (g *generator) remove() *step {
	t := g.table()
	var b strings.Builder
	b.WriteString("DELETE FROM " + t.name)
	if g.chance(92) {
		b.WriteString(" WHERE " + g.where(t))
	}
	return g.write(&b, t)
}

// read makes a query.
func (g *generator) read() *step {
	t := g.table()
	st := g.query(t)
	st.rows = g.chance(93)
	return st
}

func (g *generator) query(t *table) *step {
	w := func() string { return g.where(t) }
	v := func() string { return g.arg(g.value()) }
	switch g.IntN(22) {
	case 0:
		return g.run("SELECT count(*), sum(a), avg(a), min(b), max(c), group_concat(DISTINCT a) FROM (SELECT * FROM ti ORDER BY id)", true)
	case 1:
		return g.run("SELECT id, a, row_number() OVER w, lag(a, 1, -1) OVER w, sum(a) OVER (PARTITION BY a % 3 ORDER BY id ROWS 2 PRECEDING) FROM ti WINDOW w AS (ORDER BY id) ORDER BY id", true).inOrder()
	case 2:
		return g.run("WITH RECURSIVE up(id, depth) AS (SELECT id, 0 FROM tp WHERE up IS NULL UNION SELECT tp.id, depth + 1 FROM tp JOIN up ON tp.up = up.id WHERE depth < 5) SELECT * FROM up ORDER BY depth, id", true).inOrder()
	case 3:
		return g.run("SELECT tc.*, tp.code AS \"the code\" FROM tp LEFT JOIN tc ON tc.p = tp.id WHERE tp.id > "+g.arg(g.small()), true)
	case 4:
		return g.run("SELECT rowid, title, highlight(tf, 0, '<', '>') FROM tf WHERE tf MATCH "+g.arg(pick(g, "red", "blue OR a", "fish*", "\"", "title:green"))+" ORDER BY rowid", true).inOrder()
	case 5:
		return g.run("SELECT d, dt, ts, bo, vc, de, t, d || '', max(dt), typeof(ts) FROM td GROUP BY id", true)
	case 6:
		return g.run("SELECT "+v()+" AS v, typeof("+v()+"), quote("+v()+"), length("+v()+")", true)
	case 7:
		return g.counters()
	case 8:
		return g.run("SELECT "+pick(g, "9223372036854775807 + 1, -9223372036854775808, 0x10", "1/0, 1e400, -1e400, 0.1+0.2", "x'' = '', x'00', zeroblob(3), '' IS NULL", "CAST('12abc' AS INT), CAST(1e20 AS INT), 'a' < 1, 5 % 0",
			"json('{\"a\":[1,2]}') -> '$.a', json_extract('[1,null,\"x\"]', '$[1]')", "date('2024-01-31', '+1 month'), unixepoch('2024-05-06'), strftime('%W', '2024-05-06')",
			"abs(-9223372036854775808)", "json('{')", "printf('%.3f|%05d', 1.5, 42), hex('é'), unicode('日'), instr('abc', 'c')", "sqlite_version() IS NOT NULL"), true)
	case 9:
		return g.run("VALUES(1, "+v()+"), ("+v()+", 'x')", true).inOrder()
	case 10:
		return g.run("SELECT a, b FROM tg UNION ALL SELECT a, b FROM tw EXCEPT SELECT x, y FROM tn", true)
	case 11:
		return g.run("EXPLAIN QUERY PLAN SELECT * FROM "+t.name+" WHERE "+w(), true).notAgain() // kept, it would tell of a schema that is gone
	case 12:
		return g.run("SELECT key, value, type, atom FROM json_each("+g.arg(pick(g, `[1,2.5,"x",null,true]`, `{"a":{"b":1}}`, "[1"))+")", true).inOrder()
	case 13:
		return g.run("SELECT * FROM "+t.name+" WHERE 0", true)
	case 14:
		return g.run("SELECT id, abs(CASE WHEN id > 4 THEN -9223372036854775808 ELSE id END) FROM ti ORDER BY id", true).inOrder()
	case 15:
		return g.run("SELECT * FROM sqlite_sequence", true)
	case 16:
		return g.run("SELECT name, sql FROM sqlite_schema WHERE type = "+g.arg(pick(g, "trigger", "index", "view"))+" AND name NOT LIKE '%colmena%' ORDER BY name", true).inOrder()
	}
	return g.run("SELECT "+pick(g, "*", "count(*)", names(g.columnsOf(t)), "*, "+v())+" FROM "+t.name+pick(g, "", "", " WHERE "+w(), " AS z WHERE "+w()), true)
}

func (s *step) inOrder() *step {
	s.ordered = true
	return s
}

func (s *step) notAgain() *step {
	s.once = true
	return s
}

func (g *generator) pragma() *step {
	t := g.table()
	set := fmt.Sprint(g.IntN(1000))
	text := pick(g, "PRAGMA foreign_keys", "PRAGMA foreign_keys = on", "PRAGMA foreign_keys = off", "PRAGMA foreign_keys(1)", "PRAGMA user_version", "PRAGMA user_version = "+set, "PRAGMA application_id = "+set, "PRAGMA application_id",
		"PRAGMA table_info("+t.name+")", "PRAGMA table_xinfo('"+t.name+"')", "PRAGMA index_list("+t.name+")", "PRAGMA index_info(x1)", "PRAGMA foreign_key_list(tc)", "PRAGMA foreign_key_check", "PRAGMA foreign_key_check(tc)",
		"SELECT name, type, pk FROM pragma_table_info("+g.arg(t.name)+")", "PRAGMA recursive_triggers",
		"PRAGMA integrity_check", "PRAGMA journal_mode", "PRAGMA busy_timeout", "PRAGMA encoding", "PRAGMA main.user_version", "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name <> 'sqlite_colmena'",
		"SELECT * FROM pragma_user_version")
	switch {
	case g.chance(90):
	case g.open:
		return g.run(pick(g, "PRAGMA defer_foreign_keys = on", "PRAGMA defer_foreign_keys = on", "PRAGMA defer_foreign_keys"), g.chance(90)).notAgain()
	case g.chance(50): // outside a transaction it is for the one that comes next
		g.queue = append(g.queue, g.begin())
		return g.run("PRAGMA defer_foreign_keys = on", g.chance(90)).notAgain()
	default:
		return g.run("PRAGMA recursive_triggers = "+pick(g, "on", "off"), g.chance(90)).notAgain()
	}
	return g.run(text, g.chance(90))
}

func (g *generator) ddl() *step {
	t := g.table()
	text := pick(g, t.create, t.create, strings.Replace(t.create, " "+t.name, " IF NOT EXISTS "+t.name, 1), pick(g, triggers...), pick(g, indexes...), "DROP INDEX IF EXISTS "+pick(g, "x1", "x2", "x3", "x5"), "DROP INDEX x4",
		"DROP TRIGGER "+pick(g, "g1", "g2", "g3", "g7"), "ALTER TABLE tn ADD COLUMN z"+fmt.Sprint(g.IntN(4))+" INT DEFAULT 5", "ALTER TABLE tn DROP COLUMN z"+fmt.Sprint(g.IntN(4)), "ALTER TABLE tl RENAME COLUMN n TO m", "ALTER TABLE tl RENAME COLUMN m TO n",
		"ALTER TABLE tg RENAME TO tg2", "ALTER TABLE tg2 RENAME TO tg", "CREATE TABLE IF NOT EXISTS copied AS SELECT a, b AS bb, id + 0.5 AS half FROM ti", "DROP TABLE IF EXISTS copied", "REINDEX", "ANALYZE", "DROP VIEW IF EXISTS vi",
		"DROP TABLE "+pick(g, "tn", "tg", "td", "tw", "tc", "nosuch"), "CREATE TABLE bad(a, a)", "CREATE INDEX bad ON ti(nosuch)", "CREATE TABLE sqlite_bad(a)")
	st := g.run(text, g.chance(10))
	st.schema, st.stale = true, spoilsCount(text)
	return st
}

// wrong makes a statement that fails, or nearly.
func (g *generator) wrong() *step {
	st := g.run(pick(g, "SELEC 1", "SELECT * FROM nosuch", "SELECT nosuch FROM ti", "INSERT INTO nosuch VALUES(1)", "INSERT INTO ti(nosuch) VALUES(1)", "INSERT INTO tn VALUES(1)", "INSERT INTO tn VALUES(1, 2, 3, 4, 5, 6)",
		"SELECT 'abc", "SELECT ?", "INSERT INTO tp(code) VALUES(:nope)", "UPDATE ti SET nosuch = 1", "SELECT abs()", "SELECT nosuch(1)", "INSERT INTO tg(s) VALUES(1)", "SELECT 1 WHERE", "DELETE FROM", "INSERT INTO tn(x, y) VALUES(1, abs(-9223372036854775808))",
		"UPDATE ti SET a = json_extract('{', '$')", "INSERT INTO ti(id) VALUES('text')", "INSERT INTO ta(n) VALUES(NULL)", "INSERT INTO ta(n, k) VALUES(1, 99)", "INSERT INTO tn(x, y) VALUES(1, 2), (2, abs(-9223372036854775808))",
		"SELECT 1 )", "SELECT \"nosuch\" FROM tn", "INSERT INTO ts(i) VALUES('text')", "CREATE TRIGGER bad AFTER INSERT ON nosuch BEGIN SELECT 1; END", "SELECT * FROM tf WHERE tf MATCH '\"'", "RELEASE", "PRAGMA table_info(", "INSERT INTO vi(id) VALUES(3)"), g.chance(50))
	return st
}

// nothing makes a text without a statement, or nearly.
func (g *generator) nothing() *step {
	text := pick(g, "", " ", ";", "-- nothing", "/* nothing */ ;", ";;\n-- x\n;", "SELECT 1 -- x", ";SELECT 1;", "/* x */ SELECT 2; -- y", "\uFEFFSELECT 3")
	return &step{query: text, rows: g.chance(60), empty: !strings.Contains(text, "SELECT")}
}

// several makes a string of several statements, of which at most the last returns rows.
func (g *generator) several() *step {
	var parts []string
	var args []any
	stale := false
	for range 2 + g.IntN(2) {
		g.style = pick(g, 0, 0, 3)
		g.args = args
		before := len(args)
		t := g.table()
		var b strings.Builder
		switch g.IntN(4) {
		case 0:
			fmt.Fprintf(&b, "UPDATE %s SET %s = %s WHERE %s", t.name, t.columns[0].name, g.arg(g.valueFor(t.columns[0])), g.where(t))
			stale = false
		case 1:
			b.WriteString(pick(g, "CREATE TABLE IF NOT EXISTS copied(a, bb, half); INSERT INTO copied VALUES(1, 2, 3)", "DROP TABLE IF EXISTS copied", "ALTER TABLE tn ADD COLUMN z1"))
			stale = true
		default:
			cs := g.columnsOf(t)
			var vs []string
			for _, c := range cs {
				vs = append(vs, g.arg(g.valueFor(c)))
			}
			fmt.Fprintf(&b, "INSERT INTO %s(%s) VALUES(%s)", t.name, names(cs), strings.Join(vs, ", "))
			stale = false
		}
		if len(g.args) > before && g.style == 0 {
			g.args = g.args[:before]
		}
		args = g.args
		parts = append(parts, b.String())
	}
	rows := g.chance(40)
	if rows {
		parts = append(parts, pick(g, "SELECT count(*) FROM ti", "SELECT last_insert_rowid()", "INSERT INTO tn(x) VALUES(1) RETURNING x, y"))
	}
	g.args = args
	st := g.run(strings.Join(parts, pick(g, "; ", ";\n", ";-- x\n")), rows)
	st.several, st.schema, st.stale, st.counts = true, stale && !rows, stale, !stale
	return st
}

// wholeTransaction makes a string that holds a transaction, or leaves one open.
func (g *generator) wholeTransaction() *step {
	g.style, g.args = 0, nil
	insert := "INSERT INTO tn(x, y) VALUES(" + g.arg(g.small()) + ", 1)"
	if g.open {
		return &step{query: "SAVEPOINT w; " + insert + "; " + pick(g, "ROLLBACK TO w; RELEASE w", "RELEASE w"), failed: []control{{"SAVEPOINT", "w"}}}
	}
	return &step{query: "BEGIN; " + insert + "; SAVEPOINT w; DELETE FROM tn; ROLLBACK TO w; " + pick(g, "COMMIT", "ROLLBACK;", "END; -- x"), failed: []control{{kind: "BEGIN"}}}
}
