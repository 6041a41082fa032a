package main

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

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

// filled is a handle of a follower with three cities.
func filled(t *testing.T) *sqlx.DB {
	t.Helper()
	db := open(clustertest.Follower(t))
	db.MustExecContext(clustertest.Context(t), schema)
	db.MustExec("INSERT INTO city VALUES(1,'Madrid','ES',3400000,'0865-01-01'),(2,'Cádiz','ES',NULL,NULL),(3,'Porto','PT',230000,'1123-05-06')")
	return db
}

func TestStructScans(t *testing.T) {
	db := filled(t)
	var porto City
	must(t, db.Get(&porto, "SELECT * FROM city WHERE name = ?", "Porto"))
	if porto.ID != 3 || *porto.Population != 230000 || !porto.Founded.Equal(time.Date(1123, 5, 6, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v", porto)
	}
	var cadiz City
	if must(t, db.Get(&cadiz, "SELECT * FROM city WHERE id = 2")); cadiz.Population != nil || cadiz.Founded != nil {
		t.Errorf("%+v", cadiz)
	}
	if err := db.Get(&porto, "SELECT * FROM city WHERE id = 9"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("no city: %v", err)
	}
	query, args, err := sqlx.In("SELECT name FROM city WHERE id IN (?) AND country = ? ORDER BY id", []int{1, 2, 3}, "ES")
	must(t, err)
	var names []string
	if must(t, db.Select(&names, db.Rebind(query), args...)); len(names) != 2 || names[1] != "Cádiz" {
		t.Errorf("%v", names)
	}
	rows, err := db.Queryx("SELECT name, population, founded FROM city ORDER BY id")
	must(t, err)
	defer rows.Close()
	var maps []map[string]any
	for rows.Next() {
		m := map[string]any{}
		must(t, rows.MapScan(m))
		maps = append(maps, m)
	}
	must(t, rows.Err())
	if _, isTime := maps[2]["founded"].(time.Time); len(maps) != 3 || maps[0]["population"] != int64(3400000) || maps[1]["population"] != nil || !isTime {
		t.Errorf("%v", maps)
	}
	slice, err := db.QueryRowx("SELECT id, name FROM city WHERE id = 1").SliceScan()
	if must(t, err); slice[0] != int64(1) || slice[1] != "Madrid" {
		t.Errorf("%v", slice)
	}
}

func TestNamedStatements(t *testing.T) {
	db := filled(t)
	res, err := db.NamedExec("INSERT INTO city(name, country) VALUES(:name, :country)", []City{{Name: "Braga", Country: "PT"}, {Name: "Faro", Country: "PT"}})
	must(t, err)
	n, _ := res.RowsAffected()
	if id, _ := res.LastInsertId(); n != 2 || id != 5 {
		t.Errorf("%d rows, last %d", n, id)
	}
	_, err = db.NamedExec("UPDATE city SET population = :p WHERE name = :name", map[string]any{"p": 190000, "name": "Braga"})
	must(t, err)
	st, err := db.PrepareNamed("SELECT * FROM city WHERE country = :country AND population > :least ORDER BY id")
	must(t, err)
	defer st.Close()
	for _, want := range []struct {
		least, rows int
	}{{0, 2}, {200000, 1}, {1000000, 0}} {
		var cities []City
		if must(t, st.Select(&cities, map[string]any{"country": "PT", "least": want.least})); len(cities) != want.rows {
			t.Errorf("above %d: %v", want.least, cities)
		}
	}
	if _, err := db.NamedExec("INSERT INTO city(name, country) VALUES(:name, 'PT')", City{Name: "Faro"}); !colmena.IsUnique(err) {
		t.Errorf("a second Faro: %v", err)
	}
}

func TestTransactionSeesItsOwnWrites(t *testing.T) {
	db := filled(t)
	tx := db.MustBegin()
	defer tx.Rollback()
	st, err := tx.Preparex("INSERT INTO city(name, country) VALUES(?, ?)")
	must(t, err)
	for _, name := range []string{"Soria", "León"} {
		st.MustExec(name, "ES")
	}
	rows, err := tx.NamedQuery("INSERT INTO city(name, country) VALUES(:name, 'FR') RETURNING *", []City{{Name: "Pau"}, {Name: "Gap"}})
	must(t, err)
	var returned []City
	must(t, sqlx.StructScan(rows, &returned))
	if _, err := tx.Exec("INSERT INTO city(name, country) VALUES('Soria', 'ES')"); !colmena.IsUnique(err) {
		t.Errorf("a second Soria: %v", err)
	}
	var inside, outside int
	must(t, tx.Get(&inside, "SELECT count(*) FROM city"))
	must(t, db.Get(&outside, "SELECT count(*) FROM city"))
	if inside != 7 || outside != 3 || len(returned) != 2 || returned[1].Name != "Gap" {
		t.Errorf("%d inside, %d outside, returned %v", inside, outside, returned)
	}
	must(t, tx.Commit())
	must(t, db.Get(&outside, "SELECT count(*) FROM city"))
	if outside != 7 {
		t.Errorf("%d after Commit", outside)
	}
	undone := db.MustBegin()
	undone.MustExec("DELETE FROM city")
	must(t, undone.Rollback())
	if must(t, db.Get(&outside, "SELECT count(*) FROM city")); outside != 7 {
		t.Errorf("%d after Rollback", outside)
	}
}
