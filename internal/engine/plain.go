package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// Plain is a plain SQLite file whose content is to be written into a database. It
// belongs to one goroutine.
type Plain struct {
	ctx      context.Context
	conn     *sqlite.Conn
	tables   []*plainTable // ordinary ones first, then virtual ones, each in the file's order
	indexes  []string      // CREATE statements
	views    []string
	triggers []string
	settings []string
	sequence bool // some table counts its rowids in sqlite_sequence

	out   func(wire.Unit) error
	limit int // bytes after which a unit is handed out
	unit  wire.Unit
	bytes int // of unit, a repeated text counted once, as it is stored
	full  int // of unit, as wire.Unit.Size counts
	args  wire.ArgsBuilder
}

// plainTable is a table whose rows are copied.
type plainTable struct {
	name, create string
	module       string   // of a virtual table, in lower case
	columns      []string // those that are stored, in the form SQL takes; the rowid first where it is none of them
	norows       bool     // it has no rows of its own
}

// A PlainError says why a file cannot be taken over.
type PlainError struct{ Msg string }

func (e *PlainError) Error() string { return e.Msg }

func unfit(format string, args ...any) error { return &PlainError{fmt.Sprintf(format, args...)} }

const plainMagic = "SQLite format 3\x00"

// OpenPlain opens a file that is not in use, has SQLite look it through, and finds what
// it holds. It refuses what could not be copied faithfully. Close it.
func OpenPlain(ctx context.Context, path string, lib *Library) (*Plain, error) {
	if err := checkMagic(path); err != nil {
		return nil, err
	}
	conn, err := sqlite.Open(path, sqlite.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	p := &Plain{ctx: ctx, conn: conn}
	conn.SetProgress(progressOps, func() bool { return ctx.Err() != nil })
	if err := lib.install(conn, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := p.examine(); err != nil {
		return nil, errors.Join(p.wrap(err), conn.Close())
	}
	return p, nil
}

// Close closes the file.
func (p *Plain) Close() error { return p.conn.Close() }

func (p *Plain) wrap(err error) error {
	if err != nil && p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	return err
}

func checkMagic(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [len(plainMagic)]byte
	if _, err := io.ReadFull(f, b[:]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if string(b[:]) != plainMagic {
		return unfit("it is not an SQLite database file")
	}
	return nil
}

func (p *Plain) examine() error {
	if err := p.conn.DBConfig(sqlite.ConfigTrustedSchema, false); err != nil {
		return err
	}
	damage, err := p.text("PRAGMA integrity_check(1)")
	if err != nil {
		return err
	}
	if damage != "ok" {
		return unfit("the file is damaged: %s", damage)
	}
	if enc, err := p.text("PRAGMA encoding"); err != nil || enc != "UTF-8" {
		return errors.Join(err, unfit("its texts are stored as %s, which sort otherwise than UTF-8: copy it into a UTF-8 database first", enc))
	}
	if err := p.readSchema(); err != nil {
		return err
	}
	for _, pragma := range []string{"user_version", "application_id"} {
		v, err := p.text("PRAGMA " + pragma)
		if err != nil {
			return err
		}
		p.settings = append(p.settings, "PRAGMA "+pragma+"="+v)
	}
	for _, t := range p.tables {
		if err := p.examineTable(t); err != nil {
			return err
		}
	}
	return nil
}

func (p *Plain) readSchema() error {
	kinds := map[string]string{}
	err := p.each("SELECT name, type FROM pragma_table_list WHERE schema='main'", func(st *sqlite.Stmt) error {
		kinds[st.ColumnText(0)] = st.ColumnText(1)
		return nil
	})
	if err != nil {
		return err
	}
	var virtual []*plainTable
	err = p.each("SELECT type, name, sql FROM sqlite_schema ORDER BY rowid", func(st *sqlite.Stmt) error {
		kind, name, sql := st.ColumnText(0), st.ColumnText(1), st.ColumnText(2)
		switch {
		case strings.EqualFold(name, internalTable):
			return unfit("it is a replica's own file, not a copy: take one with Node.CopyTo")
		case name == "sqlite_sequence":
			p.sequence = true
		case strings.HasPrefix(strings.ToLower(name), "sqlite_") || kinds[name] == "shadow":
			// An index of a constraint, statistics, or the inside of a virtual table.
		case kind == "index":
			p.indexes = append(p.indexes, sql)
		case kind == "view":
			p.views = append(p.views, sql)
		case kind == "trigger":
			p.triggers = append(p.triggers, sql)
		case kind != "table":
			return unfit("it holds %q, of the unknown kind %q", name, kind)
		case kinds[name] == "virtual":
			virtual = append(virtual, &plainTable{name: name, create: sql, module: moduleOf(sql)})
		default:
			p.tables = append(p.tables, &plainTable{name: name, create: sql})
		}
		return nil
	})
	p.tables = append(p.tables, virtual...)
	return err
}

var (
	// A virtual table's name may be quoted in four ways.
	virtualUsing = regexp.MustCompile("(?is)^CREATE\\s+VIRTUAL\\s+TABLE\\s+(?:\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\\[[^\\]]*\\]|'(?:[^']|'')*'|[^\\s\"'`\\[]+)\\s+USING\\s+[\"'`\\[]?(\\w+)")
	contentless  = regexp.MustCompile(`(?i)\bcontentless_\w+\s*=`)
)

func moduleOf(sql string) string {
	m := virtualUsing.FindStringSubmatch(sql)
	if m == nil {
		return ""
	}
	return strings.ToLower(m[1])
}

// examineTable finds a table's columns and refuses one that cannot be copied.
func (p *Plain) examineTable(t *plainTable) error {
	switch t.module {
	case "", "fts5", "rtree", "rtree_i32":
	case "fts5vocab":
		t.norows = true
		return nil
	default:
		return unfit("the virtual table %q uses the module %q, whose content cannot be copied: drop it, and make it again after the load", t.name, t.module)
	}
	if strings.HasPrefix(strings.ToUpper(t.create), "CREATE VIRTUAL") != (t.module != "") {
		return unfit("the definition of table %q cannot be read", t.name)
	}
	var names []string
	integerKey, keys := false, 0
	err := p.each("SELECT name, type, pk, hidden FROM pragma_table_xinfo("+quoteText(t.name)+")", func(st *sqlite.Stmt) error {
		if st.ColumnInt64(3) != 0 {
			return nil // generated, or a virtual table's own
		}
		names = append(names, st.ColumnText(0))
		t.columns = append(t.columns, quoteName(st.ColumnText(0)))
		if st.ColumnInt64(2) != 0 {
			keys++
			integerKey = integerKey || strings.EqualFold(st.ColumnText(1), "INTEGER")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if t.module == "fts5" {
		return p.examineText(t)
	}
	if t.module != "" {
		return nil // the first column of an R-tree is its rowid
	}
	without, err := p.text("SELECT wr FROM pragma_table_list WHERE schema='main' AND name=" + quoteText(t.name))
	if err != nil || without != "0" {
		return err
	}
	rowid := ""
	for _, name := range []string{"rowid", "_rowid_", "oid"} {
		if rowid == "" && !slices.ContainsFunc(names, func(c string) bool { return strings.EqualFold(c, name) }) {
			rowid = name
		}
	}
	switch {
	case rowid != "":
		t.columns = append([]string{rowid}, t.columns...)
	case !integerKey || keys != 1:
		return unfit("table %q has columns called rowid, _rowid_ and oid, so that its rowids cannot be told: rename one", t.name)
	default:
		return nil
	}
	last, err := p.text("SELECT ifnull(max(" + rowid + "), 0) FROM " + quoteName(t.name))
	if err == nil && last == fmt.Sprint(int64(math.MaxInt64)) {
		return unfit("table %q has a row with the rowid %s, after which SQLite draws rowids at random: give it another", t.name, last)
	}
	return err
}

// examineText refuses a full-text table that keeps no texts: they cannot be read back.
func (p *Plain) examineText(t *plainTable) error {
	test := make([]string, len(t.columns))
	for i, c := range t.columns {
		test[i] = c + " IS NOT NULL"
	}
	row, err := p.text("SELECT 1 FROM " + quoteName(t.name) + " LIMIT 1")
	if err != nil {
		return err
	}
	filled := ""
	if row != "" && !contentless.MatchString(t.create) {
		filled, err = p.text("SELECT 1 FROM " + quoteName(t.name) + " WHERE " + strings.Join(test, " OR ") + " LIMIT 1")
	}
	if err == nil && row != "" && filled == "" {
		return unfit("the full-text table %q keeps no texts (content=''), so that it cannot be copied: drop it, and make it again after the load", t.name)
	}
	t.columns = append([]string{"rowid"}, t.columns...)
	return err
}

const (
	// maxUnitRows bounds the rows of one unit, beside its bytes.
	maxUnitRows = 8192
	// maxUnitFull keeps a unit below what wire.Unit.Check allows.
	maxUnitFull = wire.MaxEntryBytes / 2
)

// Units hands out the content as units of about size bytes, to be run in order on an
// empty database, without foreign keys. It stops at the first error of out.
func (p *Plain) Units(size int, out func(wire.Unit) error) error {
	p.limit, p.out, p.unit, p.bytes, p.full = size, out, wire.Unit{Pin: true}, 0, 0
	err := errors.Join(p.units(), p.ctx.Err())
	return p.wrap(err)
}

func (p *Plain) units() error {
	virtual := len(p.tables)
	for i, t := range p.tables {
		if t.module != "" {
			virtual = min(virtual, i)
		}
	}
	// Indexes come before the rows: made after them, each would be one statement that
	// takes as long as its table is large.
	for _, t := range p.tables[:virtual] {
		if err := p.add(t.create); err != nil {
			return err
		}
	}
	if err := p.addAll(p.indexes); err != nil {
		return err
	}
	for _, t := range p.tables[virtual:] {
		if err := p.add(t.create); err != nil {
			return err
		}
	}
	for _, t := range p.tables {
		if err := p.rows(t); err != nil {
			return fmt.Errorf("table %q: %w", t.name, err)
		}
	}
	if err := p.sequences(); err != nil {
		return err
	}
	for _, list := range [][]string{p.views, p.triggers, p.settings} {
		if err := p.addAll(list); err != nil {
			return err
		}
	}
	return p.flush()
}

// rows copies the rows of a table.
func (p *Plain) rows(t *plainTable) error {
	if t.norows {
		return nil
	}
	if t.module == "fts5" {
		if err := p.textSettings(t); err != nil {
			return err
		}
	}
	list := strings.Join(t.columns, ",")
	insert := "INSERT INTO " + quoteName(t.name) + "(" + list + ") VALUES(?" + strings.Repeat(",?", len(t.columns)-1) + ")"
	return p.each("SELECT "+list+" FROM "+quoteName(t.name), func(st *sqlite.Stmt) error {
		p.args.Reset()
		for i := range t.columns {
			p.args.Add(columnValue(st, i))
		}
		err := p.addArgs(insert, p.args.Args())
		var big *wire.LimitError
		if errors.As(err, &big) {
			return fmt.Errorf("the row whose %s is %.100q: %w", t.columns[0], st.ColumnText(0), err)
		}
		return err
	})
}

// textSettings copies how a full-text table was configured.
func (p *Plain) textSettings(t *plainTable) error {
	name := quoteName(t.name)
	return p.each("SELECT k, v FROM "+quoteName(t.name+"_config")+" WHERE k <> 'version'", func(st *sqlite.Stmt) error {
		p.args.Reset()
		p.args.Add(columnValue(st, 0))
		p.args.Add(columnValue(st, 1))
		return p.addArgs("INSERT INTO "+name+"("+name+", rank) VALUES(?, ?)", p.args.Args())
	})
}

// sequences copies how far AUTOINCREMENT has counted.
func (p *Plain) sequences() error {
	if !p.sequence {
		return nil
	}
	first := true
	return p.each("SELECT name, seq FROM sqlite_sequence", func(st *sqlite.Stmt) error {
		name := st.ColumnText(0)
		if !slices.ContainsFunc(p.tables, func(t *plainTable) bool { return t.name == name }) {
			return nil
		}
		if first {
			first = false
			if err := p.add("DELETE FROM sqlite_sequence"); err != nil {
				return err
			}
		}
		p.args.Reset()
		p.args.Add(columnValue(st, 0))
		p.args.Add(columnValue(st, 1))
		return p.addArgs("INSERT INTO sqlite_sequence(name, seq) VALUES(?, ?)", p.args.Args())
	})
}

func (p *Plain) addAll(list []string) error {
	for _, sql := range list {
		if err := p.add(sql); err != nil {
			return err
		}
	}
	return nil
}

func (p *Plain) add(sql string) error { return p.addArgs(sql, nil) }

// addArgs adds a statement, and hands out the unit when it is large enough.
func (p *Plain) addArgs(sql string, args wire.Args) error {
	s := wire.Statement{SQL: sql, Args: args}
	if err := s.Check(); err != nil {
		return err
	}
	one := wire.Unit{Statements: []wire.Statement{s}}
	if p.full+one.Size() > maxUnitFull {
		if err := p.flush(); err != nil {
			return err
		}
	}
	if n := len(p.unit.Statements); n == 0 || p.unit.Statements[n-1].SQL != sql {
		p.bytes += len(sql)
	}
	p.bytes += len(args)
	p.full += one.Size()
	p.unit.Statements = append(p.unit.Statements, s)
	if p.bytes < p.limit && len(p.unit.Statements) < maxUnitRows {
		return nil
	}
	return p.flush()
}

func (p *Plain) flush() error {
	if len(p.unit.Statements) == 0 {
		return nil
	}
	if err := p.ctx.Err(); err != nil {
		return err
	}
	err := p.out(p.unit)
	p.unit.Statements = make([]wire.Statement, 0, len(p.unit.Statements))
	p.bytes, p.full = 0, 0
	return err
}

// each calls row for every row of a query.
func (p *Plain) each(sql string, row func(*sqlite.Stmt) error) error {
	st, _, err := p.conn.Prepare(sql)
	if err != nil {
		return err
	}
	defer st.Finalize()
	for {
		more, err := st.Step()
		if err != nil || !more {
			return err
		}
		if err := row(st); err != nil {
			return err
		}
	}
}

// text is the first column of a query's first row, "" without one.
func (p *Plain) text(sql string) (string, error) {
	st, _, err := p.conn.Prepare(sql)
	if err != nil {
		return "", err
	}
	defer st.Finalize()
	more, err := st.Step()
	if err != nil || !more {
		return "", err
	}
	return st.ColumnText(0), nil
}

func quoteName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
func quoteText(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
