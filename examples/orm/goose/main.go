// Command goose runs goose migrations on a cluster of three, with its provider.
//
// One node migrates, through a follower: goose takes no lock on SQLite, so that nodes which
// all migrate at their start would meet.
package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/cluster"
)

//go:embed migrations/*.sql
var files embed.FS

func main() { cluster.Main(run) }

func open(node *colmena.Node, opts ...goose.ProviderOption) (*goose.Provider, error) {
	dir, err := fs.Sub(files, "migrations")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectSQLite3, node.DB(), dir, opts...)
}

func run(ctx context.Context, node *colmena.Node) error {
	provider, err := open(node)
	if err != nil {
		return err
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return err
	}
	for _, r := range results {
		fmt.Println(r)
	}
	if _, err := node.DB().ExecContext(ctx, "INSERT INTO account(holder) VALUES(?); INSERT INTO transfer(debit, credit, amount) VALUES(1, 2, 600)", "Ada"); err != nil {
		return err
	}
	var rich string
	if err := node.DB().QueryRowContext(ctx, "SELECT holder FROM rich").Scan(&rich); err != nil {
		return err
	}
	fmt.Println(rich, "is rich now")
	return nil
}
