package sqlite

import (
	"database/sql"
	"path/filepath"
	"testing"
)

const createReserved = "PRAGMA writable_schema=ON; CREATE TABLE sqlite_colmena(id INTEGER PRIMARY KEY, term INTEGER, idx INTEGER, data BLOB); PRAGMA writable_schema=RESET"

// A table whose name begins with sqlite_ can be made with a writable schema.
// From then on SQLite itself refuses to change its definition, while rows can
// be changed by anybody: guarding those is the authorizer's part.
func TestReservedTable(t *testing.T) {
	c, path := openWAL(t, Options{})
	wantCode(t, c.Exec(createReserved), Generic)
	must(t, c.DBConfig(ConfigDefensive, false))
	must(t, c.Exec(createReserved))
	must(t, c.DBConfig(ConfigDefensive, true))
	wantQuery(t, c, "PRAGMA writable_schema", "0")
	must(t, c.Exec("INSERT INTO sqlite_colmena VALUES(1,1,2,x'aa') ON CONFLICT(id) DO UPDATE SET term=9; UPDATE sqlite_colmena SET term=term+1"))
	for _, s := range []string{
		"DROP TABLE sqlite_colmena", "ALTER TABLE sqlite_colmena RENAME TO x", "ALTER TABLE sqlite_colmena RENAME COLUMN term TO x",
		"ALTER TABLE sqlite_colmena ADD COLUMN x", "ALTER TABLE sqlite_colmena DROP COLUMN data",
		"CREATE TRIGGER x AFTER UPDATE ON sqlite_colmena BEGIN SELECT 1; END", "CREATE TEMP TRIGGER x AFTER UPDATE ON main.sqlite_colmena BEGIN SELECT 1; END",
		"CREATE INDEX x ON sqlite_colmena(term)", "CREATE TABLE sqlite_other(a)", "CREATE TEMP TABLE SQLITE_colmena(a)",
	} {
		wantCode(t, c.Exec(s), Generic)
	}
	must(t, c.Exec("CREATE TABLE u(a); CREATE INDEX ui ON u(a); INSERT INTO u VALUES(1); ANALYZE; ANALYZE sqlite_colmena"))
	wantQuery(t, c, "SELECT DISTINCT tbl FROM sqlite_stat1", "u")
	must(t, c.Exec("VACUUM"))
	state := "SELECT id, term, idx, hex(data) FROM sqlite_colmena; PRAGMA integrity_check"
	wantQuery(t, c, state, "1|2|2|AA;ok")
	must(t, c.Close())

	c = open(t, path, Options{})
	wantQuery(t, c, state, "1|2|2|AA;ok")
	must(t, c.Exec("DELETE FROM sqlite_colmena WHERE id=2"))
	must(t, c.Close())

	db, err := sql.Open("sqlite", path)
	must(t, err)
	defer db.Close()
	var term int
	var check string
	must(t, db.QueryRow("SELECT term FROM sqlite_colmena").Scan(&term))
	must(t, db.QueryRow("PRAGMA integrity_check").Scan(&check))
	if term != 2 || check != "ok" {
		t.Error(term, check)
	}
	if _, err := db.Exec("DROP TABLE sqlite_colmena"); err == nil {
		t.Error("the driver dropped the table")
	}
}

func TestReservedTableInATransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	c := open(t, path, Options{Create: true, Pinned: true})
	must(t, c.DBConfig(ConfigDefensive, false))
	must(t, c.Exec("BEGIN; PRAGMA writable_schema=ON; CREATE TABLE sqlite_colmena(id INTEGER PRIMARY KEY); PRAGMA writable_schema=OFF"))
	must(t, c.DBConfig(ConfigDefensive, true))
	must(t, c.Exec("INSERT INTO sqlite_colmena VALUES(1); COMMIT"))
	wantCode(t, c.Exec("DROP TABLE sqlite_colmena"), Generic)
	wantQuery(t, c, "SELECT id FROM sqlite_colmena; PRAGMA integrity_check", "1;ok")
}
