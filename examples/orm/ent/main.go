// Command ent uses an ent client on a cluster of three. The client in gen is generated
// from schema: see gen/generate.go.
//
// ent wants foreign keys to be on, which is an option of the handle.
package main

import (
	"context"
	"fmt"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/ent/gen"
	"github.com/mentasystems/colmena/examples/orm/ent/gen/player"
	"github.com/mentasystems/colmena/examples/orm/internal/cluster"
)

func main() { cluster.Main(run) }

// open makes a client of a handle of its own, which Close of the client closes.
func open(node *colmena.Node) (*gen.Client, error) {
	db, err := node.OpenDB("", colmena.ForeignKeys(true))
	if err != nil {
		return nil, err
	}
	return gen.NewClient(gen.Driver(entsql.OpenDB(dialect.SQLite, db))), nil
}

func run(ctx context.Context, node *colmena.Node) error {
	client, err := open(node)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Schema.Create(ctx); err != nil {
		return err
	}
	captain, err := client.Player.Create().SetName("Ada").SetEmail("ada@example.org").SetScore(7).SetBadges([]string{"first"}).Save(ctx)
	if err != nil {
		return err
	}
	team := []*gen.PlayerCreate{
		client.Player.Create().SetName("Bob").SetEmail("bob@example.org").SetCaptain(captain),
		client.Player.Create().SetName("Cleo").SetEmail("cleo@example.org").SetCaptain(captain).SetScore(12),
	}
	if err := client.Player.CreateBulk(team...).Exec(ctx); err != nil {
		return err
	}
	if err := client.Player.Create().SetName("Eve").SetEmail(captain.Email).Exec(ctx); !gen.IsConstraintError(err) {
		return fmt.Errorf("a second player of one address: %v", err)
	}
	best, err := client.Player.Query().Where(player.HasCaptainWith(player.Name("Ada")), player.ScoreGT(10)).WithCaptain().Only(ctx)
	if err != nil {
		return err
	}
	fmt.Println(best.Name, "plays for", best.Edges.Captain.Name)
	return nil
}
