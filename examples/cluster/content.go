package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite" // what the result is measured against
)

// content is what a database holds, as far as two of them are compared.
type content struct {
	Tables    []tableRows
	Checksum  string // over the schema and all rows, ordered
	Integrity string // what SQLite's integrity_check says
}

type tableRows struct {
	Name string
	Rows int
}

// contentOf reads a whole database. Values are compared in the form that SQLite itself
// gives them, so that drivers have no part in it.
func contentOf(ctx context.Context, db *sql.DB) (content, error) {
	var c content
	sum := sha256.New()
	if _, err := hashQuery(ctx, db, sum, "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE substr(name, 1, 7) <> 'sqlite_' ORDER BY type, name"); err != nil {
		return c, err
	}
	names, err := column(ctx, db, "SELECT name FROM sqlite_schema WHERE type = 'table' AND (substr(name, 1, 7) <> 'sqlite_' OR name = 'sqlite_sequence') ORDER BY name")
	if err != nil {
		return c, err
	}
	for _, name := range names {
		columns, err := column(ctx, db, "SELECT name FROM pragma_table_info("+quote(name, "'")+")")
		if err != nil {
			return c, err
		}
		var list, order []string
		for i, col := range columns {
			list = append(list, "quote("+quote(col, `"`)+")")
			order = append(order, fmt.Sprint(i+1))
		}
		fmt.Fprintf(sum, "table %q\n", name)
		rows, err := hashQuery(ctx, db, sum, "SELECT "+strings.Join(list, ", ")+" FROM "+quote(name, `"`)+" ORDER BY "+strings.Join(order, ", "))
		if err != nil {
			return c, err
		}
		if name != "sqlite_sequence" {
			c.Tables = append(c.Tables, tableRows{name, rows})
		}
	}
	c.Checksum = fmt.Sprintf("%x", sum.Sum(nil)[:8])
	check, err := column(ctx, db, "PRAGMA integrity_check")
	c.Integrity = strings.Join(check, "; ")
	return c, err
}

func quote(name, q string) string { return q + strings.ReplaceAll(name, q, q+q) + q }

// column returns the first column of a query's rows.
func column(ctx context.Context, db *sql.DB, query string) ([]string, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// hashQuery adds every value of a query's rows to sum and returns how many rows it had.
func hashQuery(ctx context.Context, db *sql.DB, sum hash.Hash, query string) (int, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return 0, err
	}
	values, ptrs := make([]sql.NullString, len(columns)), make([]any, len(columns))
	for i := range values {
		ptrs[i] = &values[i]
	}
	n := 0
	for rows.Next() {
		if err := rows.Scan(ptrs...); err != nil {
			return n, err
		}
		for _, v := range values {
			fmt.Fprintf(sum, "%v %d:%s\n", v.Valid, len(v.String), v.String)
		}
		n++
	}
	return n, rows.Err()
}

// plainContent loads a script, as one string and so past splitScript, into plain SQLite.
func plainContent(ctx context.Context, script string) (c content, err error) {
	dir, err := os.MkdirTemp("", "colmena-plain-")
	if err != nil {
		return c, err
	}
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", filepath.Join(dir, "plain.db"))
	if err != nil {
		return c, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	// Nobody needs this file after a crash.
	if _, err := db.ExecContext(ctx, "PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL"); err != nil {
		return c, err
	}
	if _, err := db.ExecContext(ctx, script); err != nil {
		return c, fmt.Errorf("plain SQLite refuses the script: %w", err)
	}
	return contentOf(ctx, db)
}
