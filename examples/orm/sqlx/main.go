// Command sqlx uses sqlx on a cluster of three.
//
// sqlx asks for a driver's name to know the form of its parameters: "sqlite3" stands for
// question marks.
package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/cluster"
)

const schema = `
CREATE TABLE city (
	id         INTEGER PRIMARY KEY,
	name       TEXT NOT NULL UNIQUE,
	country    TEXT NOT NULL,
	population INTEGER,
	founded    DATE
);
CREATE INDEX city_country ON city(country);`

// City is a row of the table.
type City struct {
	ID         int64
	Name       string
	Country    string
	Population *int64
	Founded    *time.Time
}

func main() { cluster.Main(run) }

func open(node *colmena.Node) *sqlx.DB { return sqlx.NewDb(node.DB(), "sqlite3") }

func run(ctx context.Context, node *colmena.Node) error {
	db := open(node)
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}
	millions := int64(3_400_000)
	cities := []City{{Name: "Madrid", Country: "ES", Population: &millions}, {Name: "Cádiz", Country: "ES"}, {Name: "Porto", Country: "PT"}}
	if _, err := db.NamedExecContext(ctx, "INSERT INTO city(name, country, population) VALUES(:name, :country, :population)", cities); err != nil {
		return err
	}
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	var id int64
	if err := tx.GetContext(ctx, &id, "INSERT INTO city(name, country) VALUES(?, ?) RETURNING id", "Évora", "PT"); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	var found []City
	if err := db.SelectContext(ctx, &found, "SELECT * FROM city WHERE country = ? ORDER BY name", "PT"); err != nil {
		return err
	}
	for _, c := range found {
		fmt.Println(c.ID, c.Name)
	}
	return nil
}
