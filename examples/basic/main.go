// Command basic is the first program of the README: one node, one table, one query.
// Run it twice: the rows are still there.
package main

import (
	"fmt"
	"log"

	"github.com/mentasystems/colmena"
)

func main() {
	node, err := colmena.New(colmena.Config{DataDir: "./data"})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()

	db := node.DB() // an ordinary *sql.DB
	if _, err := db.Exec("CREATE TABLE IF NOT EXISTS visits(id INTEGER PRIMARY KEY, name TEXT)"); err != nil {
		log.Fatal(err)
	}
	res, err := db.Exec("INSERT INTO visits(name) VALUES(?)", "gopher")
	if err != nil {
		log.Fatal(err)
	}
	id, _ := res.LastInsertId()
	var count int
	if err := db.QueryRow("SELECT count(*) FROM visits").Scan(&count); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("node %s inserted row %d; the table in ./data now has %d\n", node.ID(), id, count)
}
