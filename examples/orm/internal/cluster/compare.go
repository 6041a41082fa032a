package cluster

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/mentasystems/colmena"
)

// Compare waits until all nodes have applied the same, and then compares the schema and
// every row of every database as each node has them in its own file.
func (c *Cluster) Compare(ctx context.Context) error {
	if err := until(ctx, func() (bool, error) { return c.converged(ctx) }); err != nil {
		return fmt.Errorf("the nodes do not converge: %w", err)
	}
	return c.compare(ctx)
}

// compare compares what the nodes have now.
func (c *Cluster) compare(ctx context.Context) error {
	first := c.nodes[0]
	for _, n := range c.nodes {
		if got, want := n.Databases(), first.Databases(); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%s has databases %v, %s has %v", n.ID(), got, first.ID(), want)
		}
	}
	for _, name := range first.Databases() {
		want, err := dump(ctx, first, name)
		if err != nil {
			return fmt.Errorf("%s, database %s: %w", first.ID(), name, err)
		}
		for _, n := range c.nodes[1:] {
			got, err := dump(ctx, n, name)
			if err != nil {
				return fmt.Errorf("%s, database %s: %w", n.ID(), name, err)
			}
			if w, g, differ := difference(want, got); differ {
				return fmt.Errorf("database %s: %s has\n%s\nwhere %s has\n%s", name, n.ID(), g, first.ID(), w)
			}
		}
	}
	return nil
}

func (c *Cluster) converged(ctx context.Context) (bool, error) {
	for _, n := range c.nodes {
		if err := n.WaitReady(ctx); err != nil {
			return false, err
		}
		if n.AppliedIndex() != c.nodes[0].AppliedIndex() {
			return false, nil
		}
	}
	return true, nil
}

// difference gives the first lines that differ.
func difference(want, got []string) (w, g string, differ bool) {
	for i := range max(len(want), len(got)) {
		w, g = "(nothing)", "(nothing)"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			return w, g, true
		}
	}
	return "", "", false
}

// dump lists the schema and every row of a database in one node's file.
func dump(ctx context.Context, n *colmena.Node, name string) ([]string, error) {
	db, err := n.OpenDB(name, colmena.None)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	check, err := lines(ctx, db, "PRAGMA integrity_check")
	if err != nil {
		return nil, err
	}
	if len(check) != 1 || check[0] != "|ok" {
		return nil, fmt.Errorf("integrity_check: %v", check)
	}
	out, err := lines(ctx, db, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
	if err != nil {
		return nil, err
	}
	tables, err := lines(ctx, db, "SELECT name FROM sqlite_schema WHERE lower(type)='table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name")
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		rows, err := lines(ctx, db, `SELECT * FROM "`+strings.ReplaceAll(t[1:], `"`, `""`)+`"`)
		if err != nil {
			return nil, err
		}
		out = append(append(out, "table"+t), rows...)
	}
	return out, nil
}

// lines runs a query and writes each row as a line.
func lines(ctx context.Context, db *sql.DB, query string) ([]string, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	var out []string
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		var line strings.Builder
		for _, v := range values {
			fmt.Fprintf(&line, "|%v", v)
		}
		out = append(out, line.String())
	}
	return out, rows.Err()
}
