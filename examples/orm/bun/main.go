// Command bun uses bun on a cluster of three.
package main

import (
	"context"
	"fmt"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/cluster"
)

// Room has bookings.
type Room struct {
	bun.BaseModel `bun:"table:rooms,alias:r"`

	ID       int64          `bun:",pk,autoincrement"`
	Name     string         `bun:",notnull,unique"`
	Seats    int            `bun:",notnull"`
	Extras   map[string]any `bun:"type:json"`
	Bookings []*Booking     `bun:"rel:has-many,join:id=room_id"`
}

// Booking belongs to a room.
type Booking struct {
	ID     int64 `bun:",pk,autoincrement"`
	RoomID int64 `bun:",notnull"`
	Room   *Room `bun:"rel:belongs-to,join:room_id=id"`
	Who    string
	From   time.Time  `bun:",notnull"`
	Gone   *time.Time `bun:",soft_delete,nullzero"`
}

// BeforeAppendModel is a hook: it fills in what a booking lacks.
func (b *Booking) BeforeAppendModel(_ context.Context, query bun.Query) error {
	if _, ok := query.(*bun.InsertQuery); ok && b.Who == "" {
		b.Who = "somebody"
	}
	return nil
}

func main() { cluster.Main(run) }

// open gives bun a handle whose foreign keys are on.
func open(node *colmena.Node) (*bun.DB, error) {
	db, err := node.OpenDB("", colmena.ForeignKeys(true))
	if err != nil {
		return nil, err
	}
	return bun.NewDB(db, sqlitedialect.New()), nil
}

func create(ctx context.Context, db bun.IDB) error {
	if _, err := db.NewCreateTable().Model((*Room)(nil)).IfNotExists().Exec(ctx); err != nil {
		return err
	}
	_, err := db.NewCreateTable().Model((*Booking)(nil)).IfNotExists().WithForeignKeys().Exec(ctx)
	return err
}

func run(ctx context.Context, node *colmena.Node) error {
	db, err := open(node)
	if err != nil {
		return err
	}
	defer db.Close()
	err = db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if err := create(ctx, tx); err != nil {
			return err
		}
		rooms := []Room{{Name: "Attic", Seats: 4}, {Name: "Cellar", Seats: 12, Extras: map[string]any{"piano": true}}}
		if _, err := tx.NewInsert().Model(&rooms).Exec(ctx); err != nil {
			return err
		}
		_, err := tx.NewInsert().Model(&Booking{RoomID: rooms[1].ID, Who: "Ada", From: time.Now()}).Exec(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var rooms []Room
	if err := db.NewSelect().Model(&rooms).Relation("Bookings").Where("r.seats > ?", 10).Scan(ctx); err != nil {
		return err
	}
	fmt.Println(rooms[0].Bookings[0].Who, "has the", rooms[0].Name, "with", rooms[0].Extras)
	return nil
}
