package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

func TestHazard08ReturningIsDrained(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY)")
	for _, want := range []bool{true, false} {
		u := unit("INSERT INTO t(a) VALUES(NULL), (NULL), (NULL) RETURNING a")
		u.WantRows = want
		r, err := g.execUnit(u)
		if err != nil || (r.Result.Rows != nil) != want || r.Result.RowsAffected != 3 {
			t.Fatalf("rows wanted %v: %+v, %v", want, r.Result, err)
		}
	}
	if err := g.dbs[1].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := g.query(1, "SELECT count(*) FROM t"); got[0][0] != "6" {
		t.Errorf("the follower has %s rows", got[0][0])
	}
}

// An error that rests on another unit's uncommitted row is no answer before that row
// is decided: here the epoch is lost, so the row never was.
func TestHazard09ErrorIsAnsweredWhenWhatItRestsOnIsDecided(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a UNIQUE)")
	hold := make(chan struct{})
	var lost atomic.Bool
	g.mu.Lock()
	g.intercept = func(_ []byte, done func(error)) bool {
		if lost.Swap(true) {
			return false
		}
		go func() { <-hold; done(errNotProposed) }()
		return true
	}
	g.mu.Unlock()
	answers := make(chan error, 2)
	first := &Unit{Req: unit("INSERT INTO t VALUES(1)"), Done: func(u *Unit) { answers <- u.Err }}
	second := &Unit{Req: unit("INSERT INTO t VALUES(1)"), Done: func(u *Unit) { answers <- u.Err }}
	g.dbs[0].Submit(first, second)
	select {
	case err := <-answers:
		t.Fatalf("answered %v before the epoch was decided", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(hold)
	for range 2 {
		if err := <-answers; !errors.Is(err, ErrNotLeading) {
			t.Errorf("got %v: nothing of the epoch happened", err)
		}
	}
}

func TestHazard11RowsAffectedAfterDDLIsZero(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	for _, c := range []struct {
		sql  string
		want int64
	}{
		{"INSERT INTO t VALUES(1), (2), (3)", 3},
		{"INSERT INTO t VALUES(4); CREATE TABLE u AS SELECT * FROM t", 0},
		{"UPDATE t SET a = a", 4},
		{"UPDATE t SET a = a; DROP TABLE u", 0},
		{"DELETE FROM t", 4},
		{"CREATE INDEX i ON t(a)", 0},
		{"REINDEX", 0},
		{"ANALYZE", 0},
	} {
		if r := g.must(c.sql); r.Result.RowsAffected != c.want {
			t.Errorf("%s: %d rows affected, want %d", c.sql, r.Result.RowsAffected, c.want)
		}
	}
}

// The entry may come back before the proposal has returned, and a proposal may never
// be answered at all.
func TestHazard13EntryBeforeItsProposalReturns(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	returned := make(chan struct{})
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool {
		g.intercept = nil
		g.commitLocked(data)
		go func() { <-returned; done(nil) }()
		return true
	}
	g.mu.Unlock()
	g.must("INSERT INTO t VALUES(1)")
	close(returned)
}

func TestHazard13CloseWithAProposalThatIsNeverAnswered(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	proposed := make(chan struct{})
	g.mu.Lock()
	g.intercept = func([]byte, func(error)) bool { close(proposed); return true }
	g.mu.Unlock()
	result := make(chan error, 1)
	go func() {
		_, err := g.dbs[0].Exec(context.Background(), unit("INSERT INTO t VALUES(1)"))
		result <- err
	}()
	<-proposed
	if err := g.dbs[0].Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v, want an unknown outcome", err)
	}
	g.dbs[0] = nil
}

// A late loss of leadership does not undo what the log has decided.
func TestHazard13LogWinsOverALateLoss(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool {
		g.intercept = nil
		g.commitLocked(data)
		done(errLost)
		return true
	}
	g.mu.Unlock()
	if _, err := g.exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Errorf("got %v", err)
	}
}

// COMMIT fails on the leader after the log has the entry: the writer is told so, and
// the replica stops and replays it.
func TestHazard14CommitThatFailsLocallyIsASuccess(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	g.dbs[0].failCommit.Store(true)
	if _, err := g.exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Errorf("the entry is in the log; the writer got %v", err)
	}
	if err := g.dbs[0].Err(); !errors.Is(err, ErrHalted) {
		t.Fatalf("the replica goes on: %v", err)
	}
	if _, err := g.exec("INSERT INTO t VALUES(2)"); !errors.Is(err, ErrHalted) && !errors.Is(err, ErrNotLeading) {
		t.Errorf("a stopped replica answers %v", err)
	}
	g.mu.Lock()
	g.halts[0] = nil
	g.mu.Unlock()
	g.restart(0)
	if err := g.dbs[0].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(g.query(0, "SELECT a FROM t")); got != "[[1]]" {
		t.Errorf("after replaying: %s", got)
	}
}

// Readers that overlap without a pause do not let the write-ahead log grow for ever.
func TestHazard20LogIsResetUnderOverlappingReaders(t *testing.T) {
	if testing.Short() {
		t.Skip("writes tens of megabytes")
	}
	g := newGroup(t, 1)
	d := g.dbs[0]
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				r, err := d.Reader(ctx)
				if err != nil {
					return
				}
				if c, err := r.Query("SELECT sum(length(b)) FROM (SELECT b FROM t ORDER BY a DESC LIMIT 50)", nil, wire.PreState{}); err == nil {
					for ok := true; ok; {
						ok, _ = c.Next()
					}
					c.Close()
				}
				r.Release()
			}
		})
	}
	blob := wire.Blob(make([]byte, 64<<10))
	var most int64
	for range 2500 { // 160 MB through the log
		g.must("INSERT OR REPLACE INTO t VALUES(abs(?) % 500, ?)", wire.Int(int64(len(g.log))), blob)
		if st, err := os.Stat(d.cfg.Path + "-wal"); err == nil {
			most = max(most, st.Size())
		}
	}
	cancel()
	wg.Wait()
	t.Logf("the log grew to %d MiB", most>>20)
	if most > 2*gateFactor*d.cfg.WALBytes {
		t.Errorf("the log grew to %d bytes", most)
	}
}

// A replica that has stopped takes what it is given and drops it, so that raft goes on.
func TestHazard27HaltedReplicaDoesNotBlockTheLog(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	if err := g.dbs[1].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.dbs[1].failCommit.Store(true)
	big := strings.Repeat("x", 1<<20)
	for range 100 { // more than MaxLogQueue
		g.must("INSERT INTO t VALUES(?)", wire.Text(big))
	}
	if g.dbs[1].Err() == nil {
		t.Error("the replica did not stop")
	}
}

// Work that was rolled back leaves nothing that later statements can see: what the
// leader ran and a follower did not.
func TestHazard06UndoneWorkLeavesNoTrace(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT, b UNIQUE); CREATE VIRTUAL TABLE f USING fts5(x); CREATE TABLE log(r, c)")
	for i := range 20 {
		g.must("INSERT INTO t(b) VALUES(?)", wire.Int(int64(i+1)))
		g.must("INSERT INTO f(x) VALUES(?)", wire.Text(fmt.Sprint("word", i)))
		for _, sql := range []string{
			"INSERT INTO t(b) VALUES(1000), (1)", "INSERT OR FAIL INTO t(b) VALUES(2000), (1)", "INSERT OR ROLLBACK INTO t(b) VALUES(3000), (1)",
			"INSERT INTO f(x) VALUES('undone'); INSERT INTO t(b) VALUES(1)", "ANALYZE; INSERT INTO t(b) VALUES(1)",
			"CREATE TABLE undone(a); INSERT INTO undone VALUES(1); INSERT INTO t(b) VALUES(1)",
		} {
			if _, err := g.exec(sql); err == nil {
				t.Fatalf("%s: no error", sql)
			}
		}
		g.must("INSERT INTO log VALUES(last_insert_rowid(), changes())")
	}
	if got := fmt.Sprint(g.query(0, "SELECT count(*) FROM f WHERE f MATCH 'undone'")); got != "[[0]]" {
		t.Errorf("rolled back text is found: %s", got)
	}
	if got := fmt.Sprint(g.query(0, "SELECT DISTINCT r, c FROM log")); got != "[[0 0]]" {
		t.Errorf("pre-state leaks: %s", got)
	}
}

func TestHazard18SyncReportsAFailure(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	if err := g.dbs[0].Sync(); err != nil {
		t.Fatal(err)
	}
	g.dbs[0].failCommit.Store(true)
	_, _ = g.exec("INSERT INTO t VALUES(1)")
	if err := g.dbs[0].Sync(); !errors.Is(err, ErrHalted) {
		t.Errorf("a replica that stopped says it is durable: %v", err)
	}
	g.mu.Lock()
	g.halts[0] = errors.New("on purpose")
	g.mu.Unlock()
}

func TestHazard16FileIsMadeWholeOrNotAtAll(t *testing.T) {
	path := t.TempDir() + "/db"
	restore := durable.SetHook(func(op, p string) error {
		if strings.HasSuffix(p, ".new") {
			return errors.New("disk says no")
		}
		return nil
	})
	err := Create(path, "db", 3)
	restore()
	if err == nil {
		t.Fatal("no error")
	}
	if _, statErr := os.Stat(path); !errors.Is(statErr, os.ErrNotExist) {
		t.Fatalf("a half made file is in place: %v", statErr)
	}
	if err := Create(path, "db", 3); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, "db", 3); err != nil {
		t.Errorf("made again: %v", err)
	}
	if err := Create(path, "db", 4); err == nil {
		t.Error("another incarnation's file was taken over")
	}
}

// Rows that were orphaned while foreign keys were not enforced have SQLite's count of
// violations fall below zero when they find a parent, and a COMMIT asks whether it is zero.
func TestHazard04OrphansAreCountedAsCommitCountsThem(t *testing.T) {
	g := newGroup(t, 3)
	g.must("CREATE TABLE p(id INTEGER PRIMARY KEY, code UNIQUE); CREATE TABLE c(code REFERENCES p(code) DEFERRABLE INITIALLY DEFERRED)")
	g.must("INSERT INTO c VALUES(10), (10)")
	u := unit("INSERT INTO c VALUES(0)")
	u.ForeignKeys = true
	u.Statements = append(u.Statements, wire.Statement{SQL: "INSERT INTO p(code) VALUES(10)"})
	if _, err := g.execUnit(u); !isCode(err, sqlite.Constraint) {
		t.Errorf("a violation beside orphans that find their parent: %v", err)
	}
	s, err := g.dbs[0].Begin(t.Context(), SessionOptions{Modes: Modes{ForeignKeys: true}})
	if err != nil {
		t.Fatal(err)
	}
	x := &tx{t, s}
	x.must("INSERT INTO c VALUES(0)")
	x.must("INSERT INTO p(code) VALUES(10)")
	if r := x.commit(); !isCode(r.Err, sqlite.Constraint) || r.Over {
		t.Errorf("in a session: %+v", r)
	}
	x.must("INSERT INTO c VALUES(1)")
	x.mustCommit()
	if got := fmt.Sprint(g.query(0, "SELECT code FROM c")); got != "[[10] [10] [0] [1]]" {
		t.Errorf("got %s", got)
	}
}
