package plainfile

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

var errUser = errors.New("the user's error")

func asUser(err error) error { return errors.Join(errUser, err) }

func scratch(t *testing.T) Scratch {
	s := Scratch{Dir: t.TempDir(), Warn: func(msg string, args ...any) { t.Error(msg, args) }}
	t.Cleanup(func() {
		if left, err := os.ReadDir(s.Dir); err != nil || len(left) > 0 {
			t.Errorf("left in scratch: %v, %v", left, err)
		}
	})
	return s
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// one is a set with one database, which commits at once what it proposes.
type one struct {
	mu      sync.Mutex
	db      *engine.DB
	changed chan struct{}
}

func (o *one) Get(name string) *engine.DB {
	o.mu.Lock()
	defer o.mu.Unlock()
	if name != "a" {
		return nil
	}
	return o.db
}

func (o *one) Watch() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

func open(t *testing.T, path string) *engine.DB {
	t.Helper()
	if err := engine.Create(path, "a", 1); err != nil {
		t.Fatal(err)
	}
	var d *engine.DB
	index := uint64(0)
	d, err := engine.Open(engine.Config{Path: path, Name: "a", Incarnation: 1, Proposer: 1,
		Propose: func(data []byte, done func(error)) {
			go func() {
				index++
				d.Deliver(wire.Mark{Term: 1, Index: index}, data)
				done(nil)
			}()
		}})
	if err != nil {
		t.Fatal(err)
	}
	d.Lead(1)
	return d
}

func exec(t *testing.T, d *engine.DB, sql string) wire.UnitResult {
	t.Helper()
	res, err := d.Exec(limit(t), wire.Unit{Statements: []wire.Statement{{SQL: sql}}})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// plainCopy is a plain file with a table t of some rows.
func plainCopy(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plain.db")
	c, err := sqlite.Open(path, sqlite.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Exec("CREATE TABLE t(v); INSERT INTO t VALUES(1), (2); CREATE INDEX i ON t(v)")
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCopyIsAPlainFileAndTellsItsIndex(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "db"))
	defer d.Close()
	res := exec(t, d, "CREATE TABLE t AS SELECT 42 AS v")
	c := Copier{Scratch: scratch(t), Databases: &one{db: d}, Error: asUser}
	var out bytes.Buffer
	index, err := c.CopyTo(limit(t), "a", &out)
	if err != nil || index != res.Mark.Index {
		t.Fatalf("index %d, want %d, %v", index, res.Mark.Index, err)
	}
	path := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := engine.OpenPlain(limit(t), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var written []string
	if err := p.Units(1<<20, func(u wire.Unit) error { written = append(written, texts(u)...); return nil }); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(written, "\n"); !strings.Contains(all, "CREATE TABLE t") || strings.Contains(all, "colmena") {
		t.Errorf("the copy holds\n%s", all)
	}
}

func TestCopyWaitsForADatabaseThatIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	d := open(t, path)
	exec(t, d, "CREATE TABLE t(v)")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	set := &one{db: d, changed: make(chan struct{})}
	closed, done := errors.New("closed"), make(chan struct{})
	c := Copier{Scratch: scratch(t), Databases: set, Done: done, Closed: closed, Error: asUser}
	ended, cancel := context.WithCancel(limit(t))
	cancel()
	if _, err := c.CopyTo(ended, "a", &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	type result struct {
		index uint64
		err   error
	}
	got := make(chan result, 1)
	go func() {
		index, err := c.CopyTo(limit(t), "a", &bytes.Buffer{})
		got <- result{index, err}
	}()
	again := open(t, path)
	defer again.Close()
	set.mu.Lock()
	set.db = again
	close(set.changed)
	set.mu.Unlock()
	if r := <-got; r.err != nil || r.index != 1 {
		t.Errorf("%+v", r)
	}
	if _, err := c.CopyTo(limit(t), "b", &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), `copy of database "b": there is no such database`) {
		t.Error(err)
	}
	set.db, set.changed = d, make(chan struct{})
	close(done)
	if _, err := c.CopyTo(limit(t), "a", &bytes.Buffer{}); !errors.Is(err, closed) {
		t.Errorf("when the node closes: %v", err)
	}
}

// written is a cluster that takes down what is written to it.
type written struct {
	t         *testing.T
	system    []string
	content   []string
	hidden    string
	fail      func(db, sql string) error
	renamed   int64
	replaced  []string
	forgotten []string
}

func texts(u wire.Unit) (all []string) {
	for _, s := range u.Statements {
		all = append(all, s.SQL)
	}
	return all
}

func (w *written) write(ctx context.Context, db string, u wire.Unit) (wire.UnitResult, error) {
	if err := ctx.Err(); err != nil {
		return wire.UnitResult{}, err
	}
	for _, sql := range texts(u) {
		if w.fail != nil {
			if err := w.fail(db, sql); err != nil {
				return wire.UnitResult{}, err
			}
		}
		if db == "" {
			w.system = append(w.system, sql[:6])
			continue
		}
		w.hidden = db
		w.content = append(w.content, sql)
	}
	var res wire.UnitResult
	res.Mark, res.Result.RowsAffected = wire.Mark{Term: 1, Index: 7}, w.renamed
	return res, nil
}

func loader(t *testing.T, w *written) *Loader {
	return &Loader{Scratch: scratch(t), Names: Names{NodeID: "n", Process: 5}, Write: w.write, Admit: func() error { return nil }, Error: asUser,
		Replaced: func(_ context.Context, name string, index uint64) {
			if index == 7 {
				w.replaced = append(w.replaced, name)
			}
		},
		Forget: func(name string) { w.forgotten = append(w.forgotten, name) }}
}

func TestLoadWritesAHiddenDatabaseAndNamesItInOneStep(t *testing.T) {
	w := &written{t: t, renamed: 1}
	if err := loader(t, w).Load(limit(t), "a", bytes.NewReader(plainCopy(t))); err != nil {
		t.Fatal(err)
	}
	if want := []string{"DELETE", "INSERT", "DELETE", "UPDATE"}; !slices.Equal(w.system, want) {
		t.Errorf("the system database got %q, want %q", w.system, want)
	}
	if !IsHidden(w.hidden) || !slices.Equal(w.forgotten, []string{w.hidden}) {
		t.Errorf("written to %q, forgotten %q", w.hidden, w.forgotten)
	}
	if all := strings.Join(w.content, "\n"); !strings.Contains(all, "CREATE TABLE t") || !strings.Contains(all, "CREATE INDEX i") {
		t.Errorf("content is\n%s", all)
	}
	if !slices.Equal(w.replaced, []string{"a"}) {
		t.Errorf("replaced %q", w.replaced)
	}
}

func TestLoadThatFailsDropsWhatItWrote(t *testing.T) {
	broken := errors.New("broken")
	for name, failing := range map[string]string{"the content": "INSERT INTO \"t\"", "the step": "UPDATE databases"} {
		ctx, cancel := context.WithCancel(limit(t))
		failed := false
		w := &written{t: t, renamed: 1}
		w.fail = func(db, sql string) error {
			if !strings.HasPrefix(sql, failing) {
				return nil
			}
			failed = true
			cancel() // what drops it does not end with the caller
			return broken
		}
		err := loader(t, w).Load(ctx, "a", bytes.NewReader(plainCopy(t)))
		if !failed || !errors.Is(err, broken) && !errors.Is(err, context.Canceled) || !errors.Is(err, errUser) {
			t.Errorf("%s: failed %t, %v", name, failed, err)
		}
		if last := w.system[len(w.system)-1]; last != "DELETE" || len(w.replaced) > 0 {
			t.Errorf("%s: the last thing written is %s, replaced %q", name, last, w.replaced)
		}
		cancel()
	}
}

func TestLoadRefuses(t *testing.T) {
	full := errors.New("too many databases")
	w := &written{t: t, renamed: 1}
	l := loader(t, w)
	var unfit *engine.PlainError
	if err := l.Load(limit(t), "a", strings.NewReader("hello")); !errors.As(err, &unfit) || errors.Is(err, errUser) {
		t.Errorf("a text: %v", err)
	}
	l.Admit = func() error { return full }
	if err := l.Load(limit(t), "a", bytes.NewReader(plainCopy(t))); !errors.Is(err, full) || len(w.system) > 0 {
		t.Errorf("one database too many: %v, written %q", err, w.system)
	}
	l.Admit = func() error { return nil }
	w.renamed = 0
	if err := l.Load(limit(t), "a", bytes.NewReader(plainCopy(t))); err == nil || !strings.Contains(err.Error(), "another load of the same database began") {
		t.Errorf("when another load has dropped it: %v", err)
	}
}

func TestHiddenNamesTellWhoLoadsWhat(t *testing.T) {
	n := Names{NodeID: "n", Process: 5}
	a, b := n.Hidden("a"), n.Hidden("a")
	if a == b || !IsHidden(a) || IsHidden("a") {
		t.Error(a, b)
	}
	for name, other := range map[string]string{"database": n.Hidden("b"), "node": Names{NodeID: "m", Process: 5}.Hidden("a"), "process": Names{NodeID: "n", Process: 6}.Hidden("a")} {
		if strings.TrimRight(a, "0123456789abcdef") == strings.TrimRight(other, "0123456789abcdef") {
			t.Errorf("the name does not tell the %s: %s, %s", name, a, other)
		}
	}
	if len(a) > 64 {
		t.Errorf("%d bytes", len(a))
	}
}
