package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// outpost is a group whose leader has one epoch on its way, which the test lets arrive or
// has lost.
type outpost struct {
	*group
	first chan error // of the write in that epoch
	data  []byte
	done  func(error)
}

var endlessElsewhere = strings.Replace(endlessInsert, "INTO t", "INTO e", 1)

var outpostID = wire.RequestID{Origin: 8, Seq: 1}

// newOutpost has a row of t(a UNIQUE) on its way.
func newOutpost(t *testing.T, replicas int) *outpost {
	o := &outpost{group: newGroup(t, replicas), first: make(chan error, 1)}
	o.must("CREATE TABLE t(a UNIQUE ON CONFLICT ABORT); CREATE TABLE r(a UNIQUE ON CONFLICT ROLLBACK); INSERT INTO r VALUES(1); CREATE TABLE e(a)")
	u := unit("INSERT INTO t VALUES(0)")
	u.ID, u.Lowest = outpostID, 1
	o.proposes(u)
	return o
}

// proposes has a write on its way that the test lets arrive.
func (o *outpost) proposes(u wire.Unit) {
	out := make(chan struct{})
	o.mu.Lock()
	o.intercept = func(data []byte, done func(error)) bool {
		o.intercept, o.data, o.done = nil, data, done
		close(out)
		return true
	}
	o.mu.Unlock()
	go func() {
		_, err := o.execUnit(u)
		o.first <- err
	}()
	select {
	case <-out:
	case err := <-o.first:
		o.t.Fatalf("it was not proposed: %v", err)
	}
}

// arrive commits the epoch, and finds the write in it answered.
func (o *outpost) arrive() {
	o.t.Helper()
	o.mu.Lock()
	o.commitLocked(o.data)
	o.mu.Unlock()
	o.done(nil)
	if err := o.answered(); err != nil {
		o.t.Errorf("the epoch that was on its way: %v", err)
	}
}

func (o *outpost) answered() error {
	o.t.Helper()
	select {
	case err := <-o.first:
		return err
	case <-time.After(5 * time.Second):
		o.t.Fatal("the epoch that was on its way was not answered")
		return nil
	}
}

// waitsFor expects that nothing is told before the epoch arrives.
func waitsFor[T any](o *outpost, told <-chan T) T {
	o.t.Helper()
	select {
	case v := <-told:
		o.t.Errorf("told before what it rests on is decided: %v", v)
		return v
	case <-time.After(30 * time.Millisecond):
	}
	o.arrive()
	return soon(o.t, told)
}

func soon[T any](t *testing.T, told <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-told:
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was told")
	}
	return v
}

func (x *tx) commits(id wire.RequestID) <-chan StepResult {
	told := make(chan StepResult, 1)
	go func() { told <- x.s.Commit(context.Background(), id, 1) }()
	return told
}

func TestSessionsWorkWhileAnEpochIsOnItsWay(t *testing.T) {
	o := newOutpost(t, 3)
	x := o.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	if n := x.number("SELECT sum(a + 10) FROM t"); n != 21 {
		t.Errorf("the first sees %d", n)
	}
	first := x.commits(wire.RequestID{Origin: 5, Seq: 1})
	y := o.beginTx()
	if n := y.must("INSERT INTO t VALUES(2)").State.LastInsertID; n != 3 {
		t.Errorf("the second is row %d", n)
	}
	if n := y.number("SELECT count(*) FROM t"); n != 3 {
		t.Errorf("the second sees %d rows", n)
	}
	if got := fmt.Sprint(o.query(0, "SELECT a FROM t")); got != "[]" {
		t.Errorf("others see %s of what is not committed", got)
	}
	if r := waitsFor(o, first); r.Err != nil {
		t.Errorf("the first: %v", r.Err)
	}
	if n := y.number("SELECT count(*) FROM t"); n != 3 {
		t.Errorf("repeated, the second sees %d rows", n)
	}
	y.mustCommit()
	if got := fmt.Sprint(o.query(0, "SELECT rowid, a FROM t")); got != "[[1 0] [2 1] [3 2]]" {
		t.Errorf("got %s", got)
	}
	if n := o.dbs[0].Stats().Ahead; n != 1 {
		t.Errorf("%d units ran ahead", n)
	}
}

// A few units that wait between two sessions run ahead too.
func TestUnitsBetweenSessionsRunAhead(t *testing.T) {
	o := newOutpost(t, 2)
	x, y := o.beginTx(), o.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	waiting := make(chan StepResult, 1)
	go func() { waiting <- y.run("SELECT count(*) FROM t") }()
	units := make(chan error, 2)
	for _, sql := range []string{"INSERT INTO t VALUES(5) RETURNING a", "INSERT INTO t VALUES(1)"} {
		n := len(o.dbs[0].waitingUnits())
		go func() {
			_, err := o.execUnit(wire.Unit{Statements: []wire.Statement{{SQL: sql}}, WantRows: true})
			units <- err
		}()
		o.eventually("the unit to wait", func(d *DB) bool { return len(d.units) > n })
	}
	x.commits(wire.RequestID{})
	if r := soon(t, waiting); r.Err != nil || r.Rows == nil {
		t.Fatalf("the second session: %+v", r)
	}
	if n := y.number("SELECT count(*) FROM t"); n != 3 {
		t.Errorf("it sees %d rows", n)
	}
	first, second := waitsFor(o, units), soon(t, units)
	if (first == nil) == (second == nil) || !isCode(errors.Join(first, second), sqlite.Constraint) {
		t.Errorf("the units: %v, %v", first, second)
	}
	y.must("INSERT INTO t VALUES(6)")
	y.mustCommit()
}

func (d *DB) waitingUnits() []*Unit {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.units
}

// What stood on an epoch that is lost, or that comes too late, never was.
func TestHazard01WhatStandsOnALostEpochIsLost(t *testing.T) {
	for _, how := range []string{"not proposed", "unknown", "too late", "overtaken", "stepped down", "closed"} {
		for _, working := range []bool{false, true} {
			t.Run(fmt.Sprint(how, ", a session at work ", working), func(t *testing.T) { whatStandsIsLost(t, how, working) })
		}
	}
}

func whatStandsIsLost(t *testing.T, how string, working bool) {
	o := newOutpost(t, 2)
	x, y := o.beginTx(), o.beginTx()
	x.must("INSERT INTO t(rowid, a) VALUES(11, 1)") // it would be the same without what it stands on
	first := x.commits(wire.RequestID{Origin: 5, Seq: 1})
	if working {
		y.must("INSERT INTO t(rowid, a) VALUES(12, 2)")
	} else {
		o.eventually("the commit to be taken", func(*DB) bool { return x.s.over != nil })
	}
	var want error
	switch how {
	case "not proposed":
		o.done(errNotProposed)
		want = ErrNotLeading
	case "unknown":
		o.done(errLost)
		want = ErrUnknown
	case "too late":
		o.mu.Lock()
		o.term++
		o.commitLocked(foreignEntry(o.dbs[0].Mark(), wire.RequestID{}))
		o.commitLocked(o.data)
		o.mu.Unlock()
		want = ErrNotLeading
	case "overtaken":
		o.mu.Lock()
		o.commitLocked(o.data)
		o.commitLocked(foreignEntry(wire.Mark{Term: o.term, Index: o.index}, wire.RequestID{}))
		o.mu.Unlock()
	case "stepped down":
		o.dbs[0].StepDown()
	case "closed":
		if err := o.dbs[0].Close(); err != nil {
			t.Error(err)
		}
		want = ErrUnknown
	}
	var over *AbortedError
	if r := soon(t, first); !errors.As(r.Err, &over) {
		t.Errorf("the commit that stood on it: %v", r.Err)
	}
	if r := y.run("SELECT 1"); working && (!errors.As(r.Err, &over) && !errors.Is(r.Err, ErrClosed) || !r.Over) {
		t.Errorf("the session that stood on it: %+v", r)
	}
	y.s.Abort()
	switch how {
	case "stepped down":
		o.arrive() // it was proposed before
	case "closed":
		o.start(0)
		fallthrough
	default:
		if err := o.answered(); !errors.Is(err, want) {
			t.Errorf("the epoch: %v", err)
		}
	}
	o.term++
	o.dbs[0].Lead(o.term)
	o.must("INSERT INTO t VALUES(3)")
	if err := o.dbs[1].Drain(t.Context()); err != nil {
		t.Error(err)
	}
	for i := range 2 {
		if got := fmt.Sprint(o.query(i, "SELECT a FROM t WHERE a BETWEEN 1 AND 3")); got != "[[3]]" {
			t.Errorf("replica %d: of what was lost there is %s", i, got)
		}
	}
}

// Errors, a rollback and a commit that changed nothing are told when what they rest on is.
func TestHazard09AheadIsToldWhatIsDecided(t *testing.T) {
	for _, end := range []string{"error", "rollback", "commit"} {
		t.Run(end, func(t *testing.T) {
			o := newOutpost(t, 2)
			x := o.beginTx()
			if n := x.number("SELECT count(*) FROM t"); n != 1 {
				t.Errorf("it sees %d rows", n)
			}
			told := make(chan StepResult, 1)
			go func() {
				switch end {
				case "error":
					told <- x.run("INSERT INTO t VALUES(0)")
				case "rollback":
					told <- x.s.Rollback(t.Context())
				default:
					told <- x.commit()
				}
			}()
			r := waitsFor(o, told)
			if isCode(r.Err, sqlite.Constraint) != (end == "error") || end != "error" && r.Err != nil {
				t.Errorf("got %+v", r)
			}
			x.s.Abort()
		})
	}
}

// A statement that ends SQLite's transaction takes the proposed epoch along, which the log
// may want committed all the same.
func TestHazard05WhatEndsTheTransactionAheadLeavesTheProposedEpoch(t *testing.T) {
	o := newOutpost(t, 3)
	x, y := o.beginTx(), o.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	first := x.commits(wire.RequestID{Origin: 5, Seq: 1})
	y.must("INSERT INTO t VALUES(2)")
	told := make(chan StepResult, 1)
	go func() { told <- y.run("INSERT INTO r VALUES(1)") }()
	if r := waitsFor(o, told); !isCode(r.Err, sqlite.Constraint) || !r.Over {
		t.Errorf("got %+v", r)
	}
	if r := soon(t, first); r.Err != nil {
		t.Errorf("the one that had finished: %v", r.Err)
	}
	if got := fmt.Sprint(o.query(0, "SELECT a FROM t")); got != "[[0] [1]]" {
		t.Errorf("got %s", got)
	}
}

// A write that is stopped on its way ends SQLite's transaction too.
func TestHazard05StoppedStatementAheadLeavesTheSessionOpen(t *testing.T) {
	o := newOutpost(t, 2)
	x := o.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if r := x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: endlessElsewhere}}); !errors.Is(r.Err, ErrCanceled) || r.Over {
		t.Errorf("got %+v", r)
	}
	o.arrive()
	x.must("INSERT INTO t VALUES(2)")
	x.mustCommit()
	if got := fmt.Sprint(o.query(0, "SELECT a FROM t")); got != "[[0] [1] [2]]" {
		t.Errorf("got %s", got)
	}
}

// An epoch that arrives does not wait for a statement that runs above it.
func TestHazard10EpochDoesNotWaitForAStatementAhead(t *testing.T) {
	o := newOutpost(t, 2)
	x := o.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	told := make(chan StepResult, 1)
	go func() { told <- x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: endlessElsewhere}}) }()
	o.eventually("the statement to be taken", func(*DB) bool { return x.s.lastSQL == endlessElsewhere && len(x.s.asked) == 0 })
	began := time.Now()
	o.arrive()
	if took := time.Since(began); took > 200*time.Millisecond {
		t.Errorf("it waited %v", took)
	}
	if r := soon(t, told); !errors.Is(r.Err, ErrCanceled) || r.Over {
		t.Errorf("got %+v", r)
	}
	x.mustCommit()
}

// A request that is on its way is not carried out again above itself.
func TestHazard15RequestOnItsWayIsNotRunAhead(t *testing.T) {
	o := newOutpost(t, 2)
	x, y, z := o.beginTx(), o.beginTx(), o.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	if r := x.s.Commit(t.Context(), outpostID, 1); !errors.Is(r.Err, ErrExpired) || r.Over {
		t.Errorf("a commit under its ID: %+v", r)
	}
	again := make(chan error, 1)
	go func() {
		u := unit("INSERT INTO t VALUES(0)")
		u.ID, u.Lowest = outpostID, 1
		res, err := o.execUnit(u)
		if err == nil && !res.Duplicate {
			err = errors.New("it was run again")
		}
		again <- err
	}()
	o.eventually("the request to wait", func(d *DB) bool { return len(d.units) == 1 })
	go y.run("INSERT INTO t VALUES(2)")
	o.eventually("a session to wait", func(d *DB) bool { return len(d.returning) == 1 })
	x.s.Abort() // the request has its turn
	if err := waitsFor(o, again); err != nil {
		t.Error(err)
	}
	y.s.Abort()
	z.must("INSERT INTO t VALUES(3)")
	z.mustCommit()
}

// Work that takes long to repeat is not done ahead.
func TestCostlySessionWaitsForTheEpoch(t *testing.T) {
	g := newGroup(t, 2)
	g.must("CREATE TABLE t(a)")
	o := &outpost{group: g, first: make(chan error, 1)}
	x := o.beginTx()
	held, hold, out := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() { _ = o.dbs[0].Do(context.Background(), func() { close(held); <-hold }) }()
	<-held
	o.mu.Lock()
	o.intercept = func(data []byte, done func(error)) bool {
		o.intercept, o.data, o.done = nil, data, done
		close(out)
		return true
	}
	o.mu.Unlock()
	go func() {
		_, err := o.exec("INSERT INTO t VALUES(0)")
		o.first <- err
	}()
	o.eventually("the unit to wait", func(d *DB) bool { return len(d.units) == 1 })
	told := make(chan StepResult, 1)
	go func() {
		told <- x.run("INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5000) SELECT x FROM c")
	}()
	o.eventually("the session to wait", func(d *DB) bool { return len(d.returning) == 1 })
	close(hold)
	<-out // the statement was stopped, because the unit had finished
	if r := waitsFor(o, told); r.Err != nil {
		t.Error(r.Err)
	}
	x.mustCommit()
}

// What ran ahead under a request ID that the proposed epoch has the memory of requests drop
// is not proposed: the other replicas judge it by the memory after that epoch.
func TestHazard15AheadIsLookedUpAnew(t *testing.T) {
	for _, how := range []string{"given up", "origin forgotten"} {
		for _, session := range []bool{true, false} {
			t.Run(fmt.Sprint(how, ", session ", session), func(t *testing.T) { aheadIsLookedUpAnew(t, how, session) })
		}
	}
}

func aheadIsLookedUpAnew(t *testing.T, how string, session bool) {
	numbered := func(origin, seq, lowest uint64, a int64) wire.Unit {
		u := unit("INSERT INTO t VALUES(?)", wire.Int(a))
		u.ID, u.Lowest = wire.RequestID{Origin: origin, Seq: seq}, lowest
		return u
	}
	o := &outpost{group: newGroup(t, 3), first: make(chan error, 1)}
	o.must("CREATE TABLE t(a)")
	late := numbered(5, 7, 1, 7)
	if how == "given up" {
		o.proposes(numbered(5, 10, 10, 0))
	} else {
		for i := range uint64(64) {
			if _, err := o.execUnit(numbered(i+1, 1, 1, 0)); err != nil {
				t.Fatal(err)
			}
		}
		late = numbered(1, 2, 1, 7)
		o.proposes(numbered(100, 1, 1, 0))
	}
	told := make(chan error, 1)
	x := o.beginTx()
	if session {
		x.must("INSERT INTO t VALUES(7)")
		go func() { told <- x.s.Commit(context.Background(), late.ID, 1).Err }()
		o.eventually("the commit to be taken", func(*DB) bool { return x.s.over != nil })
	} else {
		y := o.beginTx()
		x.must("SELECT 1")
		go func() {
			_, err := o.execUnit(late)
			told <- err
		}()
		o.eventually("the unit to wait", func(d *DB) bool { return len(d.units) == 1 })
		go y.run("INSERT INTO t VALUES(8)")
		o.eventually("a session to wait", func(d *DB) bool { return len(d.returning) == 1 })
		x.s.Abort()
		o.eventually("the unit to run", func(d *DB) bool { return d.holding == y.s && len(d.units) == 0 })
		defer y.s.Abort()
	}
	o.arrive()
	var over *AbortedError
	if err := soon(t, told); !errors.Is(err, ErrExpired) && !errors.As(err, &over) {
		t.Errorf("told %v", err)
	}
	for i, d := range o.dbs {
		if err := d.Drain(t.Context()); err != nil {
			t.Errorf("replica %d: %v", i, err)
		}
		if got := o.query(i, "SELECT count(*) FROM t WHERE a = 7"); got[0][0] != "0" {
			t.Errorf("replica %d holds the late one", i)
		}
	}
}

// A write that cannot run where sessions work ahead has its turn among them.
func TestWritesHaveTheirTurnWhileSessionsWorkAhead(t *testing.T) {
	g := newGroup(t, 1)
	g.must("CREATE TABLE t(a)")
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool {
		time.AfterFunc(2*time.Millisecond, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.commitLocked(data)
			done(nil)
		})
		return true
	}
	g.mu.Unlock()
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				x := g.beginTx()
				time.Sleep(150 * time.Microsecond)
				x.must("INSERT INTO t VALUES(1)")
				x.mustCommit()
			}
		})
	}
	modes := unit("INSERT INTO t VALUES(2)")
	modes.RecursiveTriggers = true
	slow := unit("INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 4000) SELECT x FROM c")
	for i := range 10 {
		for _, u := range []wire.Unit{modes, slow} {
			began := time.Now()
			if _, err := g.execUnit(u); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Fatalf("write %d waited for %v", i, took)
			}
		}
	}
	close(quit)
	wg.Wait()
	if n := g.dbs[0].Stats().Ahead; n == 0 {
		t.Error("nothing has run ahead")
	}
}

// Nothing stands on an epoch that would take long to run again.
func TestHazard10CostlyEpochIsNotStoodOn(t *testing.T) {
	for _, ahead := range []string{endlessElsewhere, "INSERT INTO r VALUES(1)"} {
		o := newOutpost(t, 2)
		o.arrive()
		rows := 300000
		if testing.Short() {
			rows /= 10
		}
		u := unit(fmt.Sprint("INSERT INTO e WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ", rows, ") SELECT x FROM c"))
		began := time.Now()
		o.proposes(u)
		took := time.Since(began)
		x := o.beginTx()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		go x.s.Run(ctx, Statement{Statement: wire.Statement{SQL: ahead}})
		o.eventually("the statement to be there", func(*DB) bool { return x.s.lastSQL != "" })
		time.Sleep(10 * time.Millisecond)
		began = time.Now()
		o.arrive()
		// A short one is answered late by a disk that is busy with something else, too.
		if again := time.Since(began); again > max(took/2, 50*time.Millisecond) {
			t.Errorf("it was answered after %v; it ran for %v", again, took)
		}
		cancel()
		x.s.Abort()
	}
}

// What a transaction that ran ahead was told by RETURNING holds when it is committed.
func TestRowsToldAheadAreCompared(t *testing.T) {
	ticks := int64(0)
	lib := NewLibrary([]Function{{sqlite.Function{Name: "tick", Func: func([]any) (any, error) { ticks++; return ticks, nil }}, "1"}}, nil,
		func(Kind, string, string) []string { return nil })
	o := &outpost{group: newGroup(t, 1, func(c *Config) { c.Library = lib }), first: make(chan error, 1)}
	o.must("CREATE TABLE t(a)")
	o.proposes(unit("INSERT INTO t VALUES(0)"))
	x := o.beginTx()
	x.must("INSERT INTO t VALUES(1) RETURNING tick()")
	told := x.commits(wire.RequestID{})
	o.eventually("the commit to be taken", func(*DB) bool { return x.s.over != nil })
	o.arrive()
	var over *AbortedError
	if r := soon(t, told); !errors.As(r.Err, &over) {
		t.Errorf("a function that is not deterministic: %+v", r)
	}
}

// What SQLite remembers of an attempt that was cut short is not the session's.
func TestCutStatementLeavesNoStateBehind(t *testing.T) {
	var o *outpost
	calls := 0
	lib := NewLibrary([]Function{{sqlite.Function{Name: "arrives", Func: func([]any) (any, error) {
		if calls++; calls == 1 { // the epoch below comes back while the statement runs
			o.mu.Lock()
			o.commitLocked(o.data)
			o.mu.Unlock()
		}
		return int64(0), nil
	}}, "1"}}, nil, func(Kind, string, string) []string { return nil })
	o = &outpost{group: newGroup(t, 1, func(c *Config) { c.Library = lib }), first: make(chan error, 1)}
	o.must("CREATE TABLE t(a); CREATE TABLE e(a)")
	o.proposes(unit("INSERT INTO t VALUES(0)"))
	x := o.beginTx()
	x.must("INSERT INTO e VALUES(1), (2)")
	r := x.run("INSERT INTO e WITH RECURSIVE c(x) AS (SELECT arrives() UNION ALL SELECT x + 1 FROM c WHERE x < 9999) SELECT x FROM c; INSERT INTO nowhere VALUES(1)")
	if !isCode(r.Err, sqlite.Generic) || r.Over || calls != 2 {
		t.Errorf("it ran %d times: %+v", calls, r)
	}
	if want := (wire.PreState{LastInsertID: 10002, Changes: 10000}); r.State != want {
		t.Errorf("got %+v, want %+v", r.State, want)
	}
	if n := x.number("SELECT last_insert_rowid() + changes()"); n != 20002 {
		t.Errorf("got %d", n)
	}
	x.mustCommit()
	if err := o.answered(); err != nil {
		t.Error(err)
	}
}

// What has finished ahead does not wait until a transaction that has done much is repeated.
func TestHazard10WhatRanAheadDoesNotWaitForACostlySession(t *testing.T) {
	o := newOutpost(t, 1)
	x := o.beginTx()
	x.must("INSERT INTO t VALUES(1)")
	first := x.commits(wire.RequestID{})
	y := o.beginTx()
	began := time.Now()
	y.must("INSERT INTO e SELECT count(*) FROM (WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 300000) SELECT x FROM c)")
	took := time.Since(began)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := make(chan StepResult, 1)
	go func() { told <- y.s.Run(ctx, Statement{Statement: wire.Statement{SQL: endlessElsewhere}}) }()
	o.eventually("the next statement to be taken", func(*DB) bool { return y.s.lastSQL == endlessElsewhere && len(y.s.asked) == 0 })
	y.s.thought.Store(0) // as of a client in this process
	began = time.Now()
	o.arrive()
	if r := soon(t, first); r.Err != nil {
		t.Error(r.Err)
	}
	if waited := time.Since(began); waited > max(took/2, 50*time.Millisecond) {
		t.Errorf("it waited %v for what takes %v", waited, took)
	}
	cancel()
	if r := soon(t, told); !errors.Is(r.Err, ErrCanceled) {
		t.Errorf("got %+v", r)
	}
	y.s.Abort()
}
