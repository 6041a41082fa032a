// Package samecontent tells whether two SQLite databases hold the same. Both are read
// row by row, side by side, each inside one read-only transaction, so neither is held in
// memory and neither moves meanwhile.
package samecontent

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math"
	"strings"
)

// Diff describes the first difference between two databases, "" if there is none: in the
// schema, in user_version and application_id, or in a row of a table. Rowids count, and so
// do a value's type and the shadow tables of virtual tables.
func Diff(ctx context.Context, a, b *sql.DB) (string, error) {
	ta, err := a.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return "", err
	}
	defer func() { _ = ta.Rollback() }()
	tb, err := b.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return "", err
	}
	defer func() { _ = tb.Rollback() }()
	for _, query := range []string{
		"SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name, tbl_name",
		"SELECT 'user_version', user_version FROM pragma_user_version",
		"SELECT 'application_id', application_id FROM pragma_application_id",
	} {
		if d, err := diffRows(ctx, ta, tb, query); err != nil || d != "" {
			return d, err
		}
	}
	// rootpage is 0 for virtual tables: what those hold is in tables of their own.
	tables, err := texts(ctx, ta, "SELECT name FROM sqlite_schema WHERE lower(type) = 'table' AND rootpage > 0 ORDER BY name")
	if err != nil {
		return "", err
	}
	for _, table := range tables {
		query, err := everyRow(ctx, ta, table)
		if err != nil {
			return "", err
		}
		if d, err := diffRows(ctx, ta, tb, query); err != nil || d != "" {
			if d != "" {
				d = "table " + table + ": " + d
			}
			return d, err
		}
	}
	return "", nil
}

// Check has SQLite examine a database's file. A nil error says that it is sound.
func Check(ctx context.Context, db *sql.DB) error {
	found, err := texts(ctx, db, "PRAGMA integrity_check")
	if err != nil {
		return err
	}
	if len(found) != 1 || found[0] != "ok" {
		return fmt.Errorf("integrity_check: %s", strings.Join(found, "; "))
	}
	return nil
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// everyRow makes the query for all rows of a table, in the order of their keys.
func everyRow(ctx context.Context, q querier, table string) (string, error) {
	columns, err := texts(ctx, q, "SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 1 ORDER BY cid", table)
	if err != nil {
		return "", err
	}
	keys, err := texts(ctx, q, "SELECT name FROM pragma_table_xinfo(?) WHERE pk > 0 ORDER BY pk", table)
	if err != nil {
		return "", err
	}
	withoutRowid, err := texts(ctx, q, "SELECT name FROM pragma_table_list WHERE schema = 'main' AND name = ? AND wr", table)
	if err != nil {
		return "", err
	}
	var list, order []string
	rowid := freeAlias(columns)
	switch {
	case len(withoutRowid) == 0 && rowid != "":
		list, order = append(list, rowid), append(order, rowid)
	case len(keys) > 0:
		for _, k := range keys {
			order = append(order, quoted(k))
		}
	default: // the columns hide the rowid by every name it has
		for _, c := range columns {
			order = append(order, quoted(c))
		}
	}
	for _, c := range columns {
		list = append(list, "+"+quoted(c)) // an expression has no declared type: no driver reads a text as a time
	}
	return "SELECT " + strings.Join(list, ", ") + " FROM main." + quoted(table) + " ORDER BY " + strings.Join(order, ", "), nil
}

// freeAlias is a name of the rowid that no column has taken, "" if there is none.
func freeAlias(columns []string) string {
	for _, alias := range []string{"rowid", "_rowid_", "oid"} {
		taken := false
		for _, c := range columns {
			taken = taken || strings.EqualFold(c, alias)
		}
		if !taken {
			return alias
		}
	}
	return ""
}

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// texts returns the first column of a query's rows.
func texts(ctx context.Context, q querier, query string, args ...any) (out []string, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, fmt.Errorf("%s: %w", query, err)
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// diffRows compares the rows of one query.
func diffRows(ctx context.Context, a, b querier, query string) (string, error) {
	ca, err := openCursor(ctx, a, query)
	if err != nil {
		return "", err
	}
	defer ca.rows.Close()
	cb, err := openCursor(ctx, b, query)
	if err != nil {
		return "", err
	}
	defer cb.rows.Close()
	for n := 1; ; n++ {
		moreA, err := ca.next()
		if err != nil {
			return "", fmt.Errorf("%s: %w", query, err)
		}
		moreB, err := cb.next()
		if err != nil {
			return "", fmt.Errorf("%s: %w", query, err)
		}
		if !moreA && !moreB {
			return "", nil
		}
		if moreA != moreB || !equal(ca.values, cb.values) {
			return fmt.Sprintf("row %d is %s in the one and %s in the other", n, ca.line(moreA), cb.line(moreB)), nil
		}
	}
}

// cursor is a query's rows, one at a time.
type cursor struct {
	rows         *sql.Rows
	values, ptrs []any
}

func openCursor(ctx context.Context, q querier, query string) (*cursor, error) {
	rows, err := q.QueryContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	columns, err := rows.Columns()
	if err != nil {
		rows.Close()
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	c := &cursor{rows: rows, values: make([]any, len(columns)), ptrs: make([]any, len(columns))}
	for i := range c.values {
		c.ptrs[i] = &c.values[i]
	}
	return c, nil
}

func (c *cursor) next() (bool, error) {
	if !c.rows.Next() {
		return false, c.rows.Err()
	}
	return true, c.rows.Scan(c.ptrs...)
}

// lineBytesMax is how much of a row is shown.
const lineBytesMax = 300

func (c *cursor) line(there bool) string {
	if !there {
		return "missing"
	}
	var parts []string
	for _, v := range c.values {
		switch v := v.(type) {
		case nil:
			parts = append(parts, "NULL")
		case string:
			parts = append(parts, fmt.Sprintf("%.*q", lineBytesMax, v))
		case []byte:
			parts = append(parts, fmt.Sprintf("x'%.*x'", lineBytesMax, v))
		case float64:
			parts = append(parts, fmt.Sprintf("%#g", v))
		default:
			parts = append(parts, fmt.Sprint(v))
		}
	}
	s := "(" + strings.Join(parts, ", ") + ")"
	if len(s) > lineBytesMax {
		s = s[:lineBytesMax] + "…"
	}
	return s
}

func equal(a, b []any) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !same(a[i], b[i]) {
			return false
		}
	}
	return true
}

// same compares two of SQLite's values, bit by bit.
func same(a, b any) bool {
	switch a := a.(type) {
	case []byte:
		b, ok := b.([]byte)
		return ok && bytes.Equal(a, b)
	case float64:
		b, ok := b.(float64)
		return ok && math.Float64bits(a) == math.Float64bits(b)
	}
	if _, blob := b.([]byte); blob {
		return false
	}
	return a == b
}
