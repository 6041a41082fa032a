package engine

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// A database file states its own mark (invariant 1). Its table sqlite_colmena holds
// in row 0 the term and index of the last entry applied, and with it the state that
// goes with the mark; in row n the results of the units of entry n, while they may
// still be asked for. Entry and mark are written in one SQLite transaction.
//
// SQLite compares the kind of a schema's row without regard to case, and those who list
// the tables of a database, to drop or dump them all, ask for 'table': they do not see it.
const (
	createInternal = `PRAGMA writable_schema=ON;
CREATE TABLE sqlite_colmena(id INTEGER PRIMARY KEY, term INTEGER NOT NULL, idx INTEGER NOT NULL, data BLOB NOT NULL);
UPDATE sqlite_schema SET type='TABLE' WHERE name='sqlite_colmena';
PRAGMA writable_schema=OFF;`
	sqlSetMark  = "UPDATE sqlite_colmena SET term=?1, idx=?2, data=?3 WHERE id=0"
	sqlSetEpoch = "INSERT INTO sqlite_colmena(id, term, idx, data) VALUES(?2, ?1, ?2, ?3)"
	sqlDelEpoch = "DELETE FROM sqlite_colmena WHERE id BETWEEN 1 AND ?1"
	sqlState    = "SELECT id, term, idx, data FROM sqlite_colmena ORDER BY id"
)

// markVersion is the format of row 0's data.
const markVersion = 1

// Create makes the file of a new database, complete or not at all. A file that is
// there already with the same incarnation is kept: it was made before a crash.
func Create(path, name string, incarnation uint64) error {
	if _, err := os.Stat(path); err == nil {
		_, inc, err := ReadMark(path)
		if err == nil && inc != incarnation {
			err = fmt.Errorf("%s belongs to incarnation %d, not %d", path, inc, incarnation)
		}
		return err
	}
	tmp := path + ".new"
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(tmp + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := createFile(tmp, incarnation); err != nil {
		return fmt.Errorf("create database %q: %w", name, err)
	}
	durable.CrashPoint("create.before-rename")
	if err := durable.SyncFile(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func createFile(path string, incarnation uint64) (err error) {
	c, err := sqlite.Open(path, sqlite.Options{Create: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.DBConfig(sqlite.ConfigDefensive, false); err != nil {
		return err
	}
	if err := c.Exec("PRAGMA journal_mode=WAL;" + createInternal); err != nil {
		return err
	}
	st, _, err := c.Prepare("INSERT INTO sqlite_colmena(id, term, idx, data) VALUES(0, 0, 0, ?1)")
	if err != nil {
		return err
	}
	defer st.Finalize()
	if err := st.BindBlob(1, appendMarkState(nil, incarnation, 0, newRequestMemory())); err != nil {
		return err
	}
	if _, err := st.Step(); err != nil {
		return err
	}
	if err := st.Reset(); err != nil {
		return err
	}
	_, _, err = c.Checkpoint(sqlite.Truncate)
	return err
}

func appendMarkState(b []byte, incarnation uint64, time int64, m *requestMemory) []byte {
	b = append(b, markVersion)
	b = binary.AppendUvarint(b, incarnation)
	b = binary.AppendVarint(b, time)
	return m.appendOrigins(b)
}

func parseMarkState(b []byte) (incarnation uint64, time int64, origins []byte, err error) {
	if len(b) == 0 || b[0] != markVersion {
		return 0, 0, nil, errors.New("the file's own mark is damaged or of a format this version does not know")
	}
	b = b[1:]
	incarnation, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, 0, nil, errOrigins
	}
	b = b[n:]
	time, n = binary.Varint(b)
	if n <= 0 {
		return 0, 0, nil, errOrigins
	}
	return incarnation, time, b[n:], nil
}

// ReadMark opens a database file that is not in use and returns what it states.
func ReadMark(path string) (m wire.Mark, incarnation uint64, err error) {
	c, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return m, 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return readMark(c)
}

func readMark(c *sqlite.Conn) (m wire.Mark, incarnation uint64, err error) {
	st, _, err := c.Prepare("SELECT term, idx, data FROM sqlite_colmena WHERE id=0")
	if err != nil {
		return m, 0, fmt.Errorf("the file states no mark: it is not a colmena database: %w", err)
	}
	defer st.Finalize()
	row, err := st.Step()
	if err != nil {
		return m, 0, err
	}
	if !row {
		return m, 0, errors.New("the file states no mark")
	}
	m = wire.Mark{Term: uint64(st.ColumnInt64(0)), Index: uint64(st.ColumnInt64(1))}
	incarnation, _, _, err = parseMarkState(st.ColumnBytes(2))
	return m, incarnation, err
}

// openWriter opens the writer connection and loads what the file states.
func (d *DB) openWriter() (err error) {
	if _, err := os.Stat(d.cfg.Path); err != nil {
		return err
	}
	d.w, err = sqlite.Open(d.cfg.Path, sqlite.Options{Pinned: true, BusyTimeout: writerBusyTimeout, CacheBytes: d.cfg.CacheBytes})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = d.w.Close()
		}
	}()
	err = d.w.Exec("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; PRAGMA foreign_keys=OFF; PRAGMA temp_store=MEMORY; " +
		fmt.Sprintf("PRAGMA journal_size_limit=%d", d.cfg.WALBytes))
	if err != nil {
		return err
	}
	if err := d.loadState(); err != nil {
		return err
	}
	if err := d.prepareInternal(); err != nil {
		return err
	}
	d.x = newExecutor(d.w, false)
	d.x.policy.trusted = true
	if err := d.x.use(d.cfg.Library); err != nil {
		return err
	}
	if err := d.findVirtual(); err != nil {
		return err
	}
	d.w.SetProgress(progressOps, d.progress)
	d.w.SetPreupdate(func(c sqlite.Change) {
		if c.NewRowID == math.MaxInt64 && c.Op != sqlite.OpDelete {
			d.maxRowID = true
		}
	})
	return nil
}

func (d *DB) loadState() error {
	d.memory = newRequestMemory()
	st, _, err := d.w.Prepare(sqlState)
	if err != nil {
		return fmt.Errorf("the file is not a colmena database: %w", err)
	}
	defer st.Finalize()
	for first := true; ; first = false {
		row, err := st.Step()
		if err != nil {
			return err
		}
		if !row && first {
			return errors.New("the file states no mark")
		}
		if !row {
			return st.Reset()
		}
		id := st.ColumnInt64(0)
		mark := wire.Mark{Term: uint64(st.ColumnInt64(1)), Index: uint64(st.ColumnInt64(2))}
		data := append([]byte(nil), st.ColumnBytes(3)...)
		switch {
		case first && id != 0:
			return errors.New("the file states no mark")
		case first:
			if err := d.loadMark(mark, data); err != nil {
				return err
			}
		default:
			rs, err := wire.DecodeStoredResults(data)
			if err != nil {
				return fmt.Errorf("results of entry %d: %w", id, err)
			}
			d.memory.restore(mark, rs, len(data))
		}
	}
}

func (d *DB) loadMark(mark wire.Mark, data []byte) error {
	inc, time, origins, err := parseMarkState(data)
	if err != nil {
		return err
	}
	if inc != d.cfg.Incarnation {
		return fmt.Errorf("the file belongs to incarnation %d of a database, expected %d", inc, d.cfg.Incarnation)
	}
	d.mark.Store(&mark)
	d.time = time
	return d.memory.loadOrigins(origins)
}

func (d *DB) prepareInternal() error {
	for _, p := range []struct {
		st  **sqlite.Stmt
		sql string
	}{
		{&d.begin, "BEGIN IMMEDIATE"}, {&d.commit, "COMMIT"}, {&d.rollback, "ROLLBACK"},
		{&d.save, "SAVEPOINT " + unitSavepoint}, {&d.release, "RELEASE " + unitSavepoint}, {&d.undo, "ROLLBACK TO " + unitSavepoint},
		{&d.saveAhead, "SAVEPOINT " + aheadSavepoint}, {&d.releaseAhead, "RELEASE " + aheadSavepoint}, {&d.undoAhead, "ROLLBACK TO " + aheadSavepoint},
		{&d.saveStatement, "SAVEPOINT " + statementSavepoint}, {&d.releaseStatement, "RELEASE " + statementSavepoint}, {&d.undoToStatement, "ROLLBACK TO " + statementSavepoint},
		{&d.setMark, sqlSetMark}, {&d.setEpoch, sqlSetEpoch}, {&d.delEpoch, sqlDelEpoch},
	} {
		st, _, err := d.w.Prepare(p.sql)
		if err != nil {
			return err
		}
		*p.st = st
	}
	return nil
}

const (
	unitSavepoint      = reservedPrefix + "unit"
	statementSavepoint = reservedPrefix + "statement"
	aheadSavepoint     = reservedPrefix + "ahead"
	// reservedPrefix begins the names of savepoints that are not the user's.
	reservedPrefix    = "colmena_"
	writerBusyTimeout = 5e9 // nanoseconds
)

// closeWriter ends the open transaction and closes the connection. When the last
// connection of the file closes, SQLite moves what is left of the log into it.
func (d *DB) closeWriter() error {
	if d.x != nil {
		d.x.forget()
	}
	err := d.rollbackOpen()
	for _, st := range []*sqlite.Stmt{d.begin, d.commit, d.rollback, d.save, d.release, d.undo, d.saveAhead, d.releaseAhead, d.undoAhead, d.saveStatement, d.releaseStatement, d.undoToStatement, d.setMark, d.setEpoch, d.delEpoch} {
		if st != nil {
			_ = st.Finalize()
		}
	}
	return errors.Join(err, d.w.Close())
}

// runInternal runs one of the owner's own statements.
func (d *DB) runInternal(st *sqlite.Stmt) error {
	d.x.policy.trusted = true
	_, err := st.Step()
	return errors.Join(err, st.Reset())
}

// setModes switches what holds for a whole entry. SQLite switches the enforcement of
// foreign keys outside transactions only (H7).
func (d *DB) setModes(m Modes) error {
	if d.modes == m {
		return nil
	}
	if err := d.w.DBConfig(sqlite.ConfigForeignKeys, m.ForeignKeys); err != nil {
		return err
	}
	d.modes.ForeignKeys = m.ForeignKeys
	if d.modes.RecursiveTriggers != m.RecursiveTriggers {
		pragma := "PRAGMA recursive_triggers=OFF"
		if m.RecursiveTriggers {
			pragma = "PRAGMA recursive_triggers=ON"
		}
		d.x.policy.trusted = true
		if err := d.w.Exec(pragma); err != nil {
			return err
		}
		d.modes.RecursiveTriggers = m.RecursiveTriggers
	}
	return nil
}

// writeEpoch stores what must be remembered of an entry and returns in drop the
// entry up to which older results may go.
func (d *DB) writeEpoch(mark wire.Mark, rs []wire.StoredResult, drop *uint64) error {
	d.buf = d.buf[:0]
	if len(rs) > 0 {
		d.buf = wire.AppendStoredResults(d.buf, rs)
		if err := d.bindRun(d.setEpoch, mark, d.buf); err != nil {
			return err
		}
	}
	*drop = max(*drop, d.memory.remember(mark, rs, len(d.buf)))
	return nil
}

// writeMark writes the file's own mark into the open transaction.
func (d *DB) writeMark(mark wire.Mark, drop uint64) error {
	if drop > 0 {
		if err := d.delEpoch.BindInt64(1, int64(drop)); err != nil {
			return err
		}
		if err := d.runInternal(d.delEpoch); err != nil {
			return err
		}
	}
	d.buf = appendMarkState(d.buf[:0], d.cfg.Incarnation, d.time, d.memory)
	return d.bindRun(d.setMark, mark, d.buf)
}

func (d *DB) bindRun(st *sqlite.Stmt, mark wire.Mark, data []byte) error {
	if err := st.BindInt64(1, int64(mark.Term)); err != nil {
		return err
	}
	if err := st.BindInt64(2, int64(mark.Index)); err != nil {
		return err
	}
	if err := st.BindBlob(3, data); err != nil {
		return err
	}
	return d.runInternal(st)
}

func newRand() *rand.ChaCha8 {
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // it never fails
	return rand.NewChaCha8(seed)
}
