package engine

import (
	"errors"
	"fmt"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// Export makes a plain SQLite file of a copied and folded database file: the internal
// table goes, and the file leaves WAL mode. It returns the mark the content stands at.
func Export(path string) (wire.Mark, error) {
	m, err := renameInternal(path)
	if err != nil {
		return m, fmt.Errorf("export %s: %w", path, err)
	}
	// A new connection reads the changed schema, in which the table is one like others.
	c, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return m, err
	}
	err = c.Exec("PRAGMA journal_mode=DELETE; PRAGMA foreign_keys=OFF; DROP TABLE " + exportedInternal)
	if err = errors.Join(err, c.Close()); err != nil {
		return m, fmt.Errorf("export %s: %w", path, err)
	}
	return m, nil
}

// exportedInternal is what the internal table is called when it is dropped: SQLite drops
// no table with a name of its own. The name is long and odd so that no user's is hit; if
// one is, the export fails.
const exportedInternal = "colmena_internal_table_of_the_copied_file"

const sqlRenameInternal = `PRAGMA writable_schema=ON;
UPDATE sqlite_schema SET type='table', name='` + exportedInternal + `', tbl_name='` + exportedInternal + `',
	sql='CREATE TABLE ` + exportedInternal + `(id INTEGER PRIMARY KEY, term INTEGER NOT NULL, idx INTEGER NOT NULL, data BLOB NOT NULL)'
	WHERE name='` + internalTable + `';
PRAGMA writable_schema=OFF;`

func renameInternal(path string) (m wire.Mark, err error) {
	c, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if m, _, err = readMark(c); err != nil {
		return m, err
	}
	if err := c.DBConfig(sqlite.ConfigDefensive, false); err != nil {
		return m, err
	}
	return m, c.Exec(sqlRenameInternal)
}
