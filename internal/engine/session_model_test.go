package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// world is a group whose leadership moves, whose proposals get lost, held up and answered
// late, and whose sessions are cut, while workers keep account of what they were told.
type world struct {
	*group
	rnd     *rand.Rand // guarded by group.mu
	leader  atomic.Int32
	held    []heldProposal // guarded by group.mu: not yet in the leader's log
	quit    chan struct{}
	seqs    atomic.Uint64
	virtual bool // there are virtual tables
}

type heldProposal struct {
	by   int
	data []byte
	done func(error)
}

func modelSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("COLMENA_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("COLMENA_SEED=%d", seed)
	return seed
}

// TestSessionsAgreeWithAModel has sessions and units of several workers run while the
// world does its worst. What was told must be so, what was read in a transaction that
// committed must have been so, and the replicas must be equal.
func TestSessionsAgreeWithAModel(t *testing.T) {
	seed := modelSeed(t)
	for _, virtual := range []bool{true, false} {
		t.Run(fmt.Sprintf("virtual tables %v", virtual), func(t *testing.T) { sessionsAgreeWithAModel(t, seed, virtual) })
	}
}

func sessionsAgreeWithAModel(t *testing.T, seed uint64, virtual bool) {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 0)), quit: make(chan struct{}), virtual: virtual}
	w.group = newGroup(t, 3, func(c *Config) {
		self := int(c.Proposer) - 1
		c.Confirm = func(term uint64, done func(bool)) {
			go func() {
				w.mu.Lock()
				ok := term == w.term && int(w.leader.Load()) == self
				w.mu.Unlock()
				done(ok)
			}()
		}
	})
	w.must("CREATE TABLE kv(w, k, v, PRIMARY KEY(w, k)) WITHOUT ROWID; CREATE TABLE c(n); INSERT INTO c VALUES(0);" +
		"CREATE TABLE log(id INTEGER PRIMARY KEY, w, r DEFAULT(random()), at DEFAULT(datetime('now')));" +
		"CREATE TRIGGER kvlog AFTER INSERT ON kv BEGIN INSERT INTO log(w) VALUES(new.w); END;" +
		"CREATE TABLE p(a, b, c); CREATE INDEX pa ON p(a); CREATE INDEX pbc ON p(b, c); CREATE TABLE o(id INTEGER PRIMARY KEY, x);" +
		"INSERT INTO p WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 60) SELECT i / 2, 1, -i FROM s")
	if virtual {
		w.must("CREATE VIRTUAL TABLE f USING fts5(x); CREATE VIRTUAL TABLE rt USING rtree(id, x0, x1)")
	}
	w.mu.Lock()
	w.intercept = w.fate
	w.mu.Unlock()
	const workers = 4
	var wg sync.WaitGroup
	all := make([]*worker, workers)
	for i := range workers {
		all[i] = &worker{world: w, id: int64(i), rnd: rand.New(rand.NewPCG(seed, uint64(i+1))), kv: map[int64]int64{}}
		wg.Go(all[i].work)
	}
	wg.Go(func() { w.chaos(rand.New(rand.NewPCG(seed, 99))) })
	time.AfterFunc(modelTime(), func() { close(w.quit) })
	wg.Wait()
	w.settle()
	total, commits := int64(0), 0
	for _, k := range all {
		total += k.added
		commits += k.commits
		want := ""
		for _, key := range slices.Sorted(maps.Keys(k.kv)) {
			want += fmt.Sprintf("[%d %d]", key, k.kv[key])
		}
		if got := w.rows("SELECT k, v FROM kv WHERE w = ? ORDER BY k", wire.Int(k.id)); got != want {
			t.Errorf("worker %d: the database holds %s, it was told %s", k.id, got, want)
		}
	}
	if got := w.rows("SELECT n FROM c"); got != fmt.Sprintf("[%d]", total) {
		t.Errorf("counter %s, told %d", got, total)
	}
	ahead := uint64(0)
	for _, d := range w.dbs {
		ahead += d.Stats().Ahead
	}
	t.Logf("%d commits of sessions, counter %d, term %d, entry %d, %d units ran ahead", commits, total, w.term, w.index, ahead)
	if !virtual && ahead == 0 && commits > 200 {
		t.Error("nothing has run ahead")
	}
	if commits == 0 {
		t.Error("no session has committed")
	}
	for i, err := range w.halts {
		if err != nil {
			t.Errorf("replica %d: %v", i, err)
		}
	}
}

func modelTime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("COLMENA_MODEL_TIME")); err == nil {
		return d
	}
	return 3 * time.Second
}

func (w *world) db() *DB { return w.dbs[w.leader.Load()] }

func (w *world) rows(sql string, args ...wire.Value) (s string) {
	for _, row := range w.query(0, sql, args...) {
		s += fmt.Sprint(row)
	}
	return s
}

// fate decides what becomes of a proposal. The group's lock is held.
func (w *world) fate(data []byte, done func(error)) bool {
	_, proposer, _, _, err := wire.EntryOwner(data)
	if err != nil {
		done(err)
		return true
	}
	by, leads := int(proposer)-1, false
	leads = by == int(w.leader.Load())
	switch n := w.rnd.IntN(60); {
	case n == 0 || !leads && n < 30:
		done(errNotProposed)
	case n == 1 || !leads:
		w.held = append(w.held, heldProposal{by, data, done})
	case n == 2:
		w.commitLocked(data)
		done(errLost)
	case n == 3:
		done(errLost)
	case n < 50: // it takes its time
		h := heldProposal{by, data, done}
		w.held = append(w.held, h)
		time.AfterFunc(time.Duration(w.rnd.IntN(8000))*time.Microsecond, func() { w.arrive(h) })
	default:
		return false
	}
	return true
}

// arrive commits a proposal that took its time, unless its fate was another one meanwhile.
func (w *world) arrive(h heldProposal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.held, func(o heldProposal) bool { return &o.data[0] == &h.data[0] })
	if i < 0 || h.by != int(w.leader.Load()) {
		return
	}
	w.held = slices.Delete(w.held, i, i+1)
	w.commitLocked(h.data)
	h.done(nil)
}

// move gives leadership to a replica. What had not reached the log of a former leader may
// be there before it is deposed, never, or when it leads again.
func (w *world) move(to int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	from := int(w.leader.Load())
	kept := w.held[:0]
	for _, h := range w.held {
		switch n := w.rnd.IntN(3); {
		case h.by == from && n == 0:
			w.commitLocked(h.data)
			h.done(nil)
		case n == 1:
			h.done(errNotProposed)
		default:
			kept = append(kept, h)
		}
	}
	w.held = kept
	w.dbs[from].StepDown()
	w.term++
	w.leader.Store(int32(to))
	kept = w.held[:0]
	for _, h := range w.held {
		if h.by == to { // taken without a word about the term in which it was made
			w.commitLocked(h.data)
			h.done(nil)
		} else {
			kept = append(kept, h)
		}
	}
	w.held = kept
	w.dbs[to].Lead(w.term)
}

func (w *world) chaos(rnd *rand.Rand) {
	for {
		select {
		case <-w.quit:
			return
		case <-time.After(time.Duration(rnd.IntN(8000)) * time.Microsecond):
		}
		switch rnd.IntN(6) {
		case 0:
			w.move(rnd.IntN(len(w.dbs)))
		case 1:
			w.db().cutEach.Store(rnd.IntN(2) == 0)
		case 2:
			_ = w.db().Drain(w.t.Context())
		default:
			ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Millisecond)
			_ = w.db().Do(ctx, func() {})
			cancel()
		}
	}
}

// settle ends what is under way.
func (w *world) settle() {
	w.mu.Lock()
	w.intercept = nil
	for _, h := range w.held {
		h.done(errNotProposed)
	}
	w.held = nil
	w.mu.Unlock()
	w.move(0)
	for _, d := range w.dbs {
		if err := d.Drain(w.t.Context()); err != nil && d.Err() == nil {
			w.t.Error(err)
		}
	}
}

// worker is a client that writes under keys of its own, and counts with all others.
type worker struct {
	*world
	id      int64
	rnd     *rand.Rand
	kv      map[int64]int64 // what it was told is committed
	added   int64           // to the counter
	commits int
}

func (k *worker) work() {
	for {
		select {
		case <-k.quit:
			return
		default:
		}
		if k.rnd.IntN(4) == 0 {
			k.unit()
		} else {
			k.transaction()
		}
	}
}

func (k *worker) newID() wire.RequestID { return wire.RequestID{Origin: 3, Seq: k.seqs.Add(1)} }

func (k *worker) unit() {
	sql := "UPDATE c SET n = n + 1"
	if k.virtual {
		sql += "; INSERT INTO f VALUES('unit')"
	}
	u := unit(sql)
	u.ID, u.Lowest = k.newID(), 1
	ctx, cancel := context.WithTimeout(k.t.Context(), 50*time.Millisecond)
	_, err := k.db().Exec(ctx, u)
	cancel()
	if errors.Is(err, ErrUnknown) {
		err = k.resolve(u.ID)
	}
	var over *AbortedError
	switch {
	case err == nil:
		k.added++
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrNotLeading), errors.Is(err, ErrCanceled), errors.As(err, &over):
	default:
		k.t.Errorf("a unit: %v", err)
	}
}

// resolve asks whoever leads what became of a request, until somebody knows.
func (k *worker) resolve(id wire.RequestID) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(k.t.Context(), 100*time.Millisecond)
		_, err := k.db().Exec(ctx, wire.Unit{ID: id, Lowest: 1, Resolve: true})
		cancel()
		if err == nil || errors.Is(err, ErrNotFound) {
			return err
		}
		select {
		case <-k.quit: // nobody moves leadership any more
			k.mu.Lock()
			k.intercept = nil
			k.mu.Unlock()
			k.move(int(k.leader.Load()))
		default:
		}
	}
	return errors.New("not resolved")
}

// play is a transaction under way.
type play struct {
	*tx
	w     *worker
	kv    map[int64]int64
	saved []savepoint
	added int64
	wrong []string // what counts if it commits
}

type savepoint struct {
	name  string
	kv    map[int64]int64
	added int64
}

func (k *worker) transaction() {
	ctx, cancel := context.WithTimeout(k.t.Context(), 200*time.Millisecond)
	s, err := k.db().Begin(ctx, SessionOptions{Label: fmt.Sprint("worker ", k.id)})
	cancel()
	if err != nil {
		return
	}
	p := &play{tx: &tx{k.t, s}, w: k, kv: maps.Clone(k.kv)}
	for range k.rnd.IntN(12) {
		if !p.step() {
			s.Abort()
			return
		}
	}
	switch k.rnd.IntN(8) {
	case 0:
		s.Abort()
		return
	case 1:
		s.Rollback(k.t.Context())
		return
	}
	id := k.newID()
	ctx, cancel = context.WithTimeout(k.t.Context(), time.Duration(10+k.rnd.IntN(200))*time.Millisecond)
	r := s.Commit(ctx, id, 1)
	cancel()
	if errors.Is(r.Err, ErrUnknown) {
		r.Err = k.resolve(id)
	}
	var over *AbortedError
	switch {
	case r.Err == nil:
		for _, what := range p.wrong {
			k.t.Errorf("worker %d committed, and %s", k.id, what)
		}
		k.kv, k.added, k.commits = p.kv, k.added+p.added, k.commits+1
	case errors.Is(r.Err, ErrNotFound), errors.As(r.Err, &over), errors.Is(r.Err, ErrNotLeading):
	default:
		k.t.Errorf("worker %d: commit: %v", k.id, r.Err)
	}
}

// step runs a statement that is chosen at random. It returns false when the transaction
// has ended.
func (p *play) step() bool {
	k, id := int64(p.w.rnd.IntN(6)), wire.Int(p.w.id)
	_, there := p.kv[k]
	switch p.w.rnd.IntN(9) {
	case 0, 1:
		r := p.run("INSERT INTO kv VALUES(?, ?, 0) RETURNING k", id, wire.Int(k))
		if isCode(r.Err, sqlite.Constraint) != there && (r.Err == nil || isCode(r.Err, sqlite.Constraint)) {
			p.wrong = append(p.wrong, fmt.Sprintf("INSERT of key %d, there %v: %v", k, there, r.Err))
		}
		if r.Err == nil {
			p.kv[k] = 0
		}
		return !r.Over
	case 2:
		r := p.run("UPDATE kv SET v = v + 1 WHERE w = ? AND k = ?", id, wire.Int(k))
		if r.Err == nil && there {
			p.kv[k]++
		}
		return p.expect(r)
	case 3:
		r := p.run("DELETE FROM kv WHERE w = ? AND k = ?", id, wire.Int(k))
		delete(p.kv, k)
		return p.expect(r)
	case 4:
		return p.count()
	case 5:
		return p.savepoint()
	case 6:
		return p.look()
	}
	return p.other()
}

// expect is for statements that have no reason to fail.
func (p *play) expect(r StepResult) bool {
	if r.Err != nil {
		p.wrong = append(p.wrong, r.Err.Error())
	}
	return !r.Over && r.Err == nil
}

// count adds to the counter what it reads and one more.
func (p *play) count() bool {
	r := p.run("SELECT n FROM c")
	if !p.expect(r) {
		return false
	}
	v, _, err := wire.ReadValue(r.Rows.Data)
	if err != nil {
		p.t.Error(err)
		return false
	}
	p.added++
	return p.expect(p.run("UPDATE c SET n = ?", wire.Int(v.Int64()+1)))
}

func (p *play) savepoint() bool {
	switch n := p.w.rnd.IntN(3); {
	case n == 0 || len(p.saved) == 0:
		name := fmt.Sprint("s", len(p.saved))
		p.saved = append(p.saved, savepoint{name, maps.Clone(p.kv), p.added})
		return p.expect(p.run("SAVEPOINT " + name))
	case n == 1:
		i := p.w.rnd.IntN(len(p.saved))
		name := p.saved[i].name
		p.saved = p.saved[:i]
		return p.expect(p.run("RELEASE " + name))
	}
	i := p.w.rnd.IntN(len(p.saved))
	p.kv, p.added = maps.Clone(p.saved[i].kv), p.saved[i].added
	p.saved = p.saved[:i+1]
	return p.expect(p.run("ROLLBACK TO " + p.saved[i].name))
}

// look compares what the transaction sees of its keys.
func (p *play) look() bool {
	r := p.run("SELECT count(*), coalesce(sum(v), 0) FROM kv WHERE w = ?", wire.Int(p.w.id))
	if !p.expect(r) {
		return false
	}
	sum := int64(0)
	for _, v := range p.kv {
		sum += v
	}
	n, rest, err := wire.ReadValue(r.Rows.Data)
	if err != nil {
		p.t.Error(err)
		return false
	}
	s, _, err := wire.ReadValue(rest)
	if err != nil {
		p.t.Error(err)
		return false
	}
	if n.Int64() != int64(len(p.kv)) || s.Int64() != sum {
		p.wrong = append(p.wrong, fmt.Sprintf("it read %d keys and sum %d, and should have read %d and %d", n.Int64(), s.Int64(), len(p.kv), sum))
	}
	return true
}

// otherStatements may fail. That replicas do the same with them is compared at the end.
var otherStatements = []string{
	"ANALYZE",
	"DROP TABLE sqlite_stat1",
	"DROP TABLE sqlite_stat4",
	"INSERT INTO o(x) SELECT c FROM p WHERE a = abs(random()) % 5 + 1 AND b = 1",
	"INSERT INTO o(x) SELECT c FROM p WHERE a = 3 AND b = 1",
	"INSERT INTO o(x) SELECT p.c FROM p JOIN p AS q ON p.a = q.a AND q.b = p.b WHERE p.a < 4",
	"DELETE FROM o WHERE id IN (SELECT id FROM o ORDER BY x LIMIT 5)",
	"CREATE UNIQUE INDEX bad ON p(b)",
	"CREATE INDEX pac ON p(a, c DESC)",
	"DROP INDEX pac",
	"CREATE TABLE x(a, b)", "DROP TABLE x", "INSERT INTO x SELECT a, c FROM p WHERE b = 1", "ALTER TABLE x ADD COLUMN d DEFAULT 7", "INSERT INTO x(a) SELECT count(*) FROM sqlite_schema",
	"INSERT INTO f VALUES('some words'), ('and others')", "DELETE FROM f WHERE rowid % 3 = 0", "INSERT INTO f(f) VALUES('optimize')", "INSERT INTO f(f, rank) VALUES('pgsz', 64)",
	"INSERT INTO f(rowid, x) VALUES(1, 'a'), (1, 'b')",
	"SELECT count(*) FROM f WHERE f MATCH 'words'",
	"CREATE VIRTUAL TABLE f2 USING fts5(x, y)", "INSERT INTO f2 SELECT x, x FROM f", "DROP TABLE f2",
	"INSERT INTO rt(x0, x1) VALUES(1, 2)", "INSERT INTO rt VALUES(1, 5, 2)", "DELETE FROM rt WHERE id % 2",
	"PRAGMA user_version=5",
	"INSERT INTO log(w) VALUES(7) RETURNING r",
	"INSERT OR FAIL INTO log(id, w) VALUES(NULL, 8), (1, 8), (1, 8)",
	"UPDATE OR REPLACE log SET id = id + 1 WHERE w = 7",
	"SAVEPOINT z; INSERT INTO log(w) VALUES(9); ANALYZE; ROLLBACK TO z; RELEASE z",
	"SAVEPOINT z; CREATE TABLE y(a); INSERT INTO y VALUES(1); ROLLBACK TO z; CREATE TABLE y(b, c); INSERT INTO y VALUES(1, 2); RELEASE z; DROP TABLE y",
}

func (p *play) other() bool {
	sql := otherStatements[p.w.rnd.IntN(len(otherStatements))]
	if !p.w.virtual && strings.HasPrefix(sql, "CREATE VIRTUAL") {
		sql = "INSERT INTO log(w) VALUES(10)"
	}
	switch p.w.rnd.IntN(60) {
	case 0:
		sql = "INSERT OR ROLLBACK INTO c SELECT 1 FROM c; INSERT OR ROLLBACK INTO log(id) VALUES(1), (1)"
	case 1: // stopped on its way, as a client does
		ctx, cancel := context.WithTimeout(p.t.Context(), time.Duration(p.w.rnd.IntN(4000))*time.Microsecond)
		defer cancel()
		r := p.s.Run(ctx, Statement{Statement: wire.Statement{SQL: "INSERT INTO o(x) WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"}})
		return !r.Over
	}
	r := p.s.Run(p.t.Context(), Statement{Statement: wire.Statement{SQL: sql}, Pin: true, WantRows: p.w.rnd.IntN(2) == 0})
	if strings.HasPrefix(sql, "INSERT OR ROLLBACK") {
		return false // its counter is not in the model
	}
	return !r.Over
}
