package main

import (
	"errors"
	"testing"
	"testing/fstest"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"

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

func closeBoth(t *testing.T, m *migrate.Migrate) {
	t.Helper()
	source, db := m.Close()
	must(t, errors.Join(source, db))
}

func TestUpStepsAndDown(t *testing.T) {
	node := clustertest.Follower(t)
	m, err := open(node, files, "migrations")
	must(t, err)
	defer func() { closeBoth(t, m) }()
	at := func(want uint) {
		t.Helper()
		if version, dirty, err := m.Version(); err != nil || dirty || version != want {
			t.Errorf("version %d, dirty %v, %v; want %d", version, dirty, err, want)
		}
	}
	if _, _, err := m.Version(); !errors.Is(err, migrate.ErrNilVersion) {
		t.Errorf("the version of nothing: %v", err)
	}
	must(t, m.Steps(1))
	at(1)
	must(t, m.Up())
	at(2)
	if err := m.Up(); !errors.Is(err, migrate.ErrNoChange) {
		t.Errorf("a second Up: %v", err)
	}
	must(t, m.Migrate(1))
	at(1)
	closeBoth(t, m)
	m, err = open(node, files, "migrations") // another process comes
	must(t, err)
	at(1)
	must(t, m.Force(1))
	must(t, m.Up())
	must(t, m.Down())
	if _, _, err := m.Version(); !errors.Is(err, migrate.ErrNilVersion) {
		t.Errorf("the version after Down: %v", err)
	}
	var left int
	must(t, node.DB().QueryRow("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'note%'").Scan(&left))
	if left != 0 {
		t.Errorf("%d things are left", left)
	}
}

func TestFailedMigrationIsDirtyAndLeavesNothing(t *testing.T) {
	node := clustertest.Follower(t)
	m, err := open(node, fstest.MapFS{
		"m/1_good.up.sql": {Data: []byte("CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1);")},
		"m/2_bad.up.sql":  {Data: []byte("INSERT INTO t VALUES(2); CREATE TABLE u(a); INSERT INTO t VALUES(1);")},
	}, "m")
	must(t, err)
	defer closeBoth(t, m)
	var failed *database.Error
	if err := m.Up(); !errors.As(err, &failed) || !colmena.IsUnique(failed.OrigErr) {
		t.Errorf("%v, want a UNIQUE constraint", err)
	}
	version, dirty, err := m.Version()
	var rows, tables int
	must(t, node.DB().QueryRow("SELECT count(*), (SELECT count(*) FROM sqlite_schema WHERE name='u') FROM t").Scan(&rows, &tables))
	if err != nil || version != 2 || !dirty || rows != 1 || tables != 0 {
		t.Errorf("version %d, dirty %v, %v; %d rows, %d tables of the failed step", version, dirty, err, rows, tables)
	}
	must(t, m.Force(1))
	if version, dirty, err := m.Version(); err != nil || version != 1 || dirty {
		t.Errorf("forced: version %d, dirty %v, %v", version, dirty, err)
	}
}

// TestDropTakesAllAndEndsAtVacuum: Drop takes every table away and then asks for VACUUM,
// which a replica refuses.
func TestDropTakesAllAndEndsAtVacuum(t *testing.T) {
	node := clustertest.Follower(t)
	m, err := open(node, fstest.MapFS{"m/1_both.up.sql": {Data: []byte("CREATE TABLE t(a); CREATE TABLE u(a);")}}, "m")
	must(t, err)
	defer closeBoth(t, m)
	must(t, m.Up())
	var failed *database.Error
	var refused *colmena.RefusedError
	if err := m.Drop(); !errors.As(err, &failed) || !errors.As(failed.OrigErr, &refused) || refused.What != "VACUUM" {
		t.Errorf("Drop: %v, want that VACUUM is refused", err)
	}
	var left int
	must(t, node.DB().QueryRow("SELECT count(*) FROM sqlite_schema WHERE type = 'table'").Scan(&left))
	if left != 0 {
		t.Errorf("%d tables are left", left)
	}
}
