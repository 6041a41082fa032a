package main

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/clustertest"
)

func TestProgram(t *testing.T) {
	if err := run(clustertest.Context(t), clustertest.Follower(t)); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// insertNow is a migration in Go, in goose's transaction.
var insertNow = goose.NewGoMigration(4, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, "INSERT INTO account(holder, balance) VALUES('till', 5)"); err != nil {
		return err
	}
	var n int
	return tx.QueryRowContext(ctx, "SELECT balance FROM account WHERE holder = 'till'").Scan(&n)
}}, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, "DELETE FROM account WHERE holder = 'till'")
	return err
}})

func TestUpAndDownByOneAndByMany(t *testing.T) {
	node, ctx := clustertest.Follower(t), clustertest.Context(t)
	p, err := open(node, goose.WithGoMigrations(insertNow))
	must(t, err)
	version := func(want int64) {
		t.Helper()
		if got, err := p.GetDBVersion(ctx); err != nil || got != want {
			t.Fatalf("version %d, %v; want %d", got, err, want)
		}
	}
	version(0)
	if pending, err := p.HasPending(ctx); err != nil || !pending {
		t.Errorf("pending: %v, %v", pending, err)
	}
	_, err = p.UpByOne(ctx)
	must(t, err)
	version(1)
	_, err = p.UpTo(ctx, 3)
	must(t, err)
	version(3)
	results, err := p.Up(ctx)
	if must(t, err); len(results) != 1 || results[0].Error != nil {
		t.Errorf("%v", results)
	}
	version(4)
	if pending, err := p.HasPending(ctx); err != nil || pending {
		t.Errorf("pending: %v, %v", pending, err)
	}
	status, err := p.Status(ctx)
	must(t, err)
	for _, s := range status { // the table's default is datetime('now'), the same on every node
		if s.State != goose.StateApplied || time.Since(s.AppliedAt).Abs() > time.Hour {
			t.Errorf("%+v", s)
		}
	}
	again, err := p.Up(ctx)
	if must(t, err); len(again) != 0 {
		t.Errorf("a second Up did %v", again)
	}
	_, err = p.Down(ctx)
	must(t, err)
	version(3)
	_, err = p.DownTo(ctx, 0)
	must(t, err)
	version(0)
	var left int
	must(t, node.DB().QueryRow("SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite%' AND name NOT LIKE 'goose%'").Scan(&left))
	if left != 0 {
		t.Errorf("%d things are left after all was taken down", left)
	}
}

func TestFailedMigrationLeavesNothing(t *testing.T) {
	node, ctx := clustertest.Follower(t), clustertest.Context(t)
	p, err := goose.NewProvider(goose.DialectSQLite3, node.DB(), fstest.MapFS{
		"1_good.sql": {Data: []byte("-- +goose Up\nCREATE TABLE t(a UNIQUE);\nINSERT INTO t VALUES(1);\n-- +goose Down\nDROP TABLE t;\n")},
		"2_bad.sql":  {Data: []byte("-- +goose Up\nINSERT INTO t VALUES(2);\nCREATE TABLE u(a);\nINSERT INTO t VALUES(1);\n-- +goose Down\nDROP TABLE u;\n")},
	})
	must(t, err)
	_, err = p.Up(ctx)
	var partial *goose.PartialError
	if !errors.As(err, &partial) || partial.Failed.Source.Version != 2 || !colmena.IsUnique(partial.Err) {
		t.Fatalf("%v, want a PartialError of version 2 for a UNIQUE constraint", err)
	}
	var rows, tables int
	must(t, node.DB().QueryRow("SELECT count(*), (SELECT count(*) FROM sqlite_schema WHERE name='u') FROM t").Scan(&rows, &tables))
	if version, err := p.GetDBVersion(ctx); err != nil || version != 1 || rows != 1 || tables != 0 {
		t.Errorf("version %d, %v; %d rows, %d tables of the failed step", version, err, rows, tables)
	}
}
