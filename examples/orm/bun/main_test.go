package main

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/migrate"

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

// exec runs a query and checks how many rows it touched.
func exec(t *testing.T, ctx context.Context, want int64, query interface {
	Exec(context.Context, ...any) (sql.Result, error)
}) {
	t.Helper()
	res, err := query.Exec(ctx)
	must(t, err)
	if n, err := res.RowsAffected(); err != nil || n != want {
		t.Errorf("%v: %d rows, %v; want %d", query, n, err, want)
	}
}

// filled is a handle of a follower with two rooms.
func filled(t *testing.T) (*bun.DB, context.Context) {
	t.Helper()
	ctx := clustertest.Context(t)
	db, err := open(clustertest.Follower(t))
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	must(t, create(ctx, db))
	rooms := []Room{{Name: "Attic", Seats: 4}, {Name: "Cellar", Seats: 12, Extras: map[string]any{"piano": true}}}
	_, err = db.NewInsert().Model(&rooms).Exec(ctx)
	if must(t, err); rooms[0].ID != 1 || rooms[1].ID != 2 {
		t.Fatalf("the rooms have IDs %d and %d", rooms[0].ID, rooms[1].ID)
	}
	return db, ctx
}

func count(t *testing.T, ctx context.Context, query *bun.SelectQuery) int64 {
	t.Helper()
	n, err := query.Count(ctx)
	must(t, err)
	return n
}

func TestRelationsHooksAndSoftDeletes(t *testing.T) {
	db, ctx := filled(t)
	from := time.Date(2024, 2, 29, 23, 59, 59, 123456000, time.UTC)
	bookings := []*Booking{{RoomID: 1, From: from}, {RoomID: 2, Who: "Ada", From: from.Add(time.Hour)}, {RoomID: 2, Who: "Bob", From: from}}
	_, err := db.NewInsert().Model(&bookings).Exec(ctx)
	must(t, err)
	if bookings[0].Who != "somebody" || bookings[2].ID != 3 {
		t.Errorf("the hook gave %q, the last ID is %d", bookings[0].Who, bookings[2].ID)
	}
	var one Booking
	must(t, db.NewSelect().Model(&one).Relation("Room").Where("booking.who = ?", "Ada").Scan(ctx))
	if one.Room == nil || one.Room.Name != "Cellar" || one.Room.Extras["piano"] != true || !one.From.Equal(from.Add(time.Hour)) || one.Gone != nil {
		t.Errorf("%+v in %+v", one, one.Room)
	}
	exec(t, ctx, 1, db.NewDelete().Model(&one).WherePK())
	var cellar Room
	must(t, db.NewSelect().Model(&cellar).Relation("Bookings").Where("r.name = ?", "Cellar").Scan(ctx))
	if len(cellar.Bookings) != 1 || cellar.Bookings[0].Who != "Bob" {
		t.Errorf("%+v", cellar.Bookings)
	}
	if n := count(t, ctx, db.NewSelect().Model((*Booking)(nil)).WhereAllWithDeleted()); n != 3 {
		t.Errorf("%d bookings, deleted ones too", n)
	}
	exec(t, ctx, 1, db.NewDelete().Model(&one).WherePK().ForceDelete())
}

func TestUpdatesUpsertsAndReturning(t *testing.T) {
	db, ctx := filled(t)
	upsert := &Room{Name: "Attic", Seats: 5}
	_, err := db.NewInsert().Model(upsert).On("CONFLICT (name) DO UPDATE").Set("seats = EXCLUDED.seats").Returning("*").Exec(ctx)
	if must(t, err); upsert.ID != 1 || upsert.Seats != 5 {
		t.Errorf("%+v", upsert)
	}
	exec(t, ctx, 0, db.NewInsert().Model(&Room{Name: "Attic", Seats: 1}).Ignore())
	var seats []int
	must(t, db.NewUpdate().Model((*Room)(nil)).Set("seats = seats + ?", 10).Where("1 = 1").Returning("seats").Scan(ctx, &seats))
	if slices.Sort(seats); !slices.Equal(seats, []int{15, 22}) {
		t.Errorf("seats %v", seats)
	}
	rooms := []Room{{ID: 1, Seats: 7}, {ID: 2, Seats: 8}}
	exec(t, ctx, 2, db.NewUpdate().With("_data", db.NewValues(&rooms)).Model((*Room)(nil)).TableExpr("_data").Set("seats = _data.seats").Where("r.id = _data.id"))
	var found []map[string]any
	must(t, db.NewSelect().Model((*Room)(nil)).Column("name", "seats").OrderExpr("id DESC").Scan(ctx, &found))
	if len(found) != 2 || found[0]["name"] != "Cellar" || found[0]["seats"] != int64(8) {
		t.Errorf("%v", found)
	}
	var piano bool
	must(t, db.NewRaw("SELECT extras ->> '$.piano' FROM rooms WHERE name IN (?)", bun.List([]string{"Cellar", "Loft"})).Scan(ctx, &piano))
	page, total := []Room{}, int64(0)
	total, err = db.NewSelect().Model(&page).Order("name").Limit(1).Offset(1).ScanAndCount(ctx)
	if must(t, err); !piano || total != 2 || len(page) != 1 || page[0].Name != "Cellar" {
		t.Errorf("piano %v, %d rooms, %v", piano, total, page)
	}
	exists, err := db.NewSelect().Model((*Room)(nil)).Where("name = ?", "Attic").Exists(ctx)
	if must(t, err); !exists {
		t.Error("no attic")
	}
	_, err = db.NewTruncateTable().Model((*Booking)(nil)).Exec(ctx)
	must(t, err)
}

func TestTransactionsNest(t *testing.T) {
	db, ctx := filled(t)
	spoiled := errors.New("spoiled")
	err := db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		exec(t, ctx, 1, tx.NewInsert().Model(&Room{Name: "outer"}))
		err := tx.RunInTx(ctx, nil, func(ctx context.Context, inner bun.Tx) error { // a savepoint
			exec(t, ctx, 1, inner.NewInsert().Model(&Room{Name: "inner"}))
			if n := count(t, ctx, inner.NewSelect().Model((*Room)(nil))); n != 4 {
				t.Errorf("the inner transaction sees %d rooms", n)
			}
			return spoiled
		})
		if !errors.Is(err, spoiled) {
			t.Errorf("the inner transaction: %v", err)
		}
		if _, err := tx.NewInsert().Model(&Room{Name: "outer"}).Exec(ctx); !colmena.IsUnique(err) {
			t.Errorf("twice: %v", err)
		}
		if _, err := tx.NewInsert().Model(&Booking{RoomID: 99, From: time.Now()}).Exec(ctx); !colmena.IsForeignKey(err) {
			t.Errorf("a booking of no room: %v", err)
		}
		return tx.RunInTx(ctx, nil, func(ctx context.Context, inner bun.Tx) error {
			exec(t, ctx, 1, inner.NewInsert().Model(&Room{Name: "kept"}))
			return nil
		})
	})
	must(t, err)
	var names []string
	must(t, db.NewSelect().Model((*Room)(nil)).Column("name").Order("id").Scan(ctx, &names))
	if !slices.Equal(names, []string{"Attic", "Cellar", "outer", "kept"}) {
		t.Errorf("%v", names)
	}
}

func TestSchemaChanges(t *testing.T) {
	db, ctx := filled(t)
	for _, query := range []interface {
		Exec(context.Context, ...any) (sql.Result, error)
	}{
		db.NewAddColumn().Model((*Room)(nil)).ColumnExpr("floor INTEGER NOT NULL DEFAULT 2"),
		db.NewCreateIndex().Model((*Room)(nil)).Index("by_floor").Column("floor", "name").Where("floor > 1"),
		db.NewDropIndex().Index("by_floor").IfExists(),
		db.NewDropColumn().Model((*Room)(nil)).Column("extras"),
	} {
		if _, err := query.Exec(ctx); err != nil {
			t.Fatalf("%v: %v", query, err)
		}
	}
	var rooms []map[string]any
	must(t, db.NewRaw("SELECT * FROM rooms ORDER BY id").Scan(ctx, &rooms))
	if len(rooms) != 2 || len(rooms[0]) != 4 || rooms[0]["floor"] != int64(2) {
		t.Errorf("%v", rooms)
	}
	_, err := db.NewDropTable().Model((*Booking)(nil)).IfExists().Exec(ctx)
	must(t, err)
}

func TestMigrations(t *testing.T) {
	db, ctx := filled(t)
	migrations := migrate.NewMigrations()
	must(t, migrations.Discover(fstest.MapFS{
		"20240101000000_desks.tx.up.sql":   {Data: []byte("CREATE TABLE desks(id INTEGER PRIMARY KEY, at DATETIME DEFAULT CURRENT_TIMESTAMP);\n--bun:split\nINSERT INTO desks DEFAULT VALUES;\n")},
		"20240101000000_desks.tx.down.sql": {Data: []byte("DROP TABLE desks;")},
		"20240102000000_lamps.up.sql":      {Data: []byte("ALTER TABLE desks ADD COLUMN lamp TEXT;\n--bun:split\nUPDATE desks SET lamp = 'green';\n")},
		"20240102000000_lamps.down.sql":    {Data: []byte("ALTER TABLE desks DROP COLUMN lamp;")},
	}))
	m := migrate.NewMigrator(db, migrations, migrate.WithMarkAppliedOnSuccess(true))
	must(t, m.Init(ctx))
	must(t, m.Init(ctx))
	must(t, m.Lock(ctx))
	if err := m.Lock(ctx); err == nil {
		t.Error("locked twice")
	}
	group, err := m.Migrate(ctx)
	must(t, err)
	must(t, m.Unlock(ctx))
	var lamp string
	must(t, db.NewRaw("SELECT lamp FROM desks").Scan(ctx, &lamp))
	applied, err := m.AppliedMigrations(ctx)
	must(t, err)
	if lamp != "green" || len(group.Migrations) != 2 || len(applied) != 2 || time.Since(applied[0].MigratedAt).Abs() > time.Hour {
		t.Errorf("lamp %q, group %v, applied %v", lamp, group, applied)
	}
	_, err = m.Rollback(ctx)
	must(t, err)
	var left int
	must(t, db.NewRaw("SELECT count(*) FROM sqlite_schema WHERE name = 'desks'").Scan(ctx, &left))
	if left != 0 {
		t.Error("the rollback left the table")
	}
}
