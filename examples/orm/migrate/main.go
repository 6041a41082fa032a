// Command migrate runs golang-migrate on a cluster of three, with its driver for
// modernc.org/sqlite, which takes any *sql.DB.
package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database/sqlite"
	"github.com/golang-migrate/migrate/v4/source/iofs"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/cluster"
)

//go:embed migrations/*.sql
var files embed.FS

func main() { cluster.Main(run) }

// open makes a Migrate of a handle of its own, which Close of the Migrate closes.
func open(node *colmena.Node, files fs.FS, dir string) (*migrate.Migrate, error) {
	db, err := node.OpenDB("")
	if err != nil {
		return nil, err
	}
	driver, err := sqlite.WithInstance(db, &sqlite.Config{})
	if err != nil {
		return nil, err
	}
	source, err := iofs.New(files, dir)
	if err != nil {
		return nil, err
	}
	return migrate.NewWithInstance("iofs", source, "colmena", driver)
}

func run(ctx context.Context, node *colmena.Node) error {
	m, err := open(node, files, "migrations")
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Up(); err != nil {
		return err
	}
	version, dirty, err := m.Version()
	if err != nil {
		return err
	}
	fmt.Println("version", version, "dirty", dirty)
	db := node.DB()
	if _, err := db.ExecContext(ctx, "INSERT INTO note(text) VALUES(?)", "the third is found"); err != nil {
		return err
	}
	var text string
	if err := db.QueryRowContext(ctx, "SELECT text FROM note_search WHERE note_search MATCH 'third'").Scan(&text); err != nil {
		return err
	}
	fmt.Println(text)
	return nil
}
