package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// slowReplay is a log, and a replica of it that waits in the function slow() until
// it is let go on, once for each entry.
type slowReplay struct {
	t       *testing.T
	log     []logged
	path    string
	db      *DB
	entered chan struct{}
	release chan struct{}
	stop    chan struct{}
}

func newSlowReplay(t *testing.T, entries, maxQueue int) *slowReplay {
	t.Helper()
	s := &slowReplay{t: t, path: filepath.Join(t.TempDir(), "replica"), entered: make(chan struct{}), release: make(chan struct{}), stop: make(chan struct{})}
	library := func(slow func()) *Library {
		return NewLibrary([]Function{{sqlite.Function{Name: "slow", Args: 0, Func: func([]any) (any, error) { slow(); return int64(1), nil }}, "1"}}, nil,
			func(Kind, string, string) []string { return nil })
	}
	leader := filepath.Join(t.TempDir(), "leader")
	if err := errors.Join(Create(leader, "db", 7), Create(s.path, "db", 7)); err != nil {
		t.Fatal(err)
	}
	var d *DB
	d, err := Open(Config{Path: leader, Name: "db", Incarnation: 7, Proposer: 1, Library: library(func() {}), Propose: func(data []byte, done func(error)) {
		s.log = append(s.log, logged{wire.Mark{Term: 1, Index: uint64(len(s.log) + 1)}, slices.Clone(data)})
		d.Deliver(s.log[len(s.log)-1].mark, data)
		done(nil)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.Lead(1)
	for i := range entries {
		sql := "INSERT INTO t VALUES(slow())"
		if i == 0 {
			sql = "CREATE TABLE t(v)"
		}
		if _, err := d.Exec(t.Context(), wire.Unit{Statements: []wire.Statement{{SQL: sql}}}); err != nil {
			t.Fatal(err)
		}
	}
	s.db = s.open(Config{MaxLogQueue: maxQueue, Stop: s.stop, Library: library(func() { s.entered <- struct{}{}; <-s.release })})
	return s
}

func (s *slowReplay) open(cfg Config) *DB {
	s.t.Helper()
	cfg.Path, cfg.Name, cfg.Incarnation, cfg.Proposer = s.path, "db", 7, 2
	cfg.Halt = func(err error) { s.t.Errorf("halted: %v", err) }
	d, err := Open(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *slowReplay) deliver(d *DB) {
	for _, l := range s.log {
		d.Deliver(l.mark, l.data)
	}
}

// atMark fails the test unless the file holds whole entries up to index, and replays the
// rest of them when it is opened again.
func (s *slowReplay) atMark(index uint64) {
	s.t.Helper()
	m, _, err := ReadMark(s.path)
	if err != nil || m.Index != index {
		s.t.Fatalf("the file is at %v, want entry %d; %v", m, index, err)
	}
	d := s.open(Config{Library: NewLibrary([]Function{{sqlite.Function{Name: "slow", Args: 0, Func: func([]any) (any, error) { return int64(1), nil }}, "1"}}, nil,
		func(Kind, string, string) []string { return nil })})
	defer d.Close()
	s.deliver(d)
	if err := d.Drain(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if got := d.Mark().Index; got != uint64(len(s.log)) {
		s.t.Errorf("opened again it comes to entry %d of %d", got, len(s.log))
	}
}

func (s *slowReplay) in(what string, f func() error) {
	s.t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			s.t.Errorf("%s: %v", what, err)
		}
	case <-time.After(20 * time.Second):
		s.t.Fatalf("%s: still waiting", what)
	}
}

func TestCloseEndsALongReplayBetweenEntries(t *testing.T) {
	s := newSlowReplay(t, 20, 0)
	s.deliver(s.db)
	for range 3 {
		<-s.entered
		s.release <- struct{}{}
	}
	<-s.entered // in entry 5
	drained := make(chan error, 1)
	go func() { drained <- s.db.Drain(context.Background()) }()
	settled := make(chan error, 1)
	go func() { settled <- s.db.Settle(context.Background()) }()
	s.db.Stop()
	s.db.Stop()
	if s.db.Deliver(wire.Mark{Term: 1, Index: 99}, s.log[0].data) {
		t.Error("a database that ends takes an entry in")
	}
	if err := s.db.Settle(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("a database that ends is settled: %v", err)
	}
	s.release <- struct{}{}
	s.in("close", s.db.Close)
	s.in("close again", s.db.Close)
	for what, ch := range map[string]chan error{"drain": drained, "settle": settled} {
		if err := <-ch; !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.atMark(5)
}

// A delivery that waits for room ends with the node, and the database takes none of what
// comes after it.
func TestDeliveryThatWaitsForRoomEndsWithTheNode(t *testing.T) {
	s := newSlowReplay(t, 10, 1)
	delivered := make(chan struct{})
	go func() { s.deliver(s.db); close(delivered) }()
	<-s.entered // in entry 2; entry 3 waits in the queue, or entry 4 for room
	close(s.stop)
	s.in("delivery", func() error { <-delivered; return nil })
	s.release <- struct{}{}
	s.in("close", s.db.Close)
	s.atMark(2)
}

// An entry that a replica has stopped at was not dealt with: a leader that could not
// commit must not say that it stands where it stood before.
func TestStoppedReplicaIsNotSettled(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(v)")
	g.dbs[0].failCommit.Store(true)
	g.must("INSERT INTO t VALUES(1)") // committed by the cluster
	if err := g.dbs[0].Settle(t.Context()); !errors.Is(err, ErrHalted) {
		t.Errorf("settled: %v", err)
	}
}
