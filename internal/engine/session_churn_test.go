package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// TestSessionsOfFickleClients has clients begin, work, give up, vanish and come back, under
// limits that end some of it, while leadership comes and goes and
// proposals get lost. Every request is answered, what
// was told to be committed is there once and what was told not to be is not there, and when
// all clients have gone nothing is left. CHURN_SEED repeats a run.
func TestSessionsOfFickleClients(t *testing.T) {
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("CHURN_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("CHURN_SEED=%d", seed)
	g := newGroup(t, 2, func(c *Config) {
		c.MaxWait, c.MaxSessionIdle, c.MaxSessionTime, c.MaxSessions = 15*time.Millisecond, 40*time.Millisecond, 100*time.Millisecond, 12
		c.Confirm = func(_ uint64, done func(bool)) { go done(true) }
	})
	g.must("CREATE TABLE t(a INTEGER PRIMARY KEY, n)")
	lose := rand.New(rand.NewPCG(seed, 98))
	g.mu.Lock()
	g.intercept = func(data []byte, done func(error)) bool {
		switch lose.IntN(30) {
		case 0:
			done(errNotProposed)
		case 1:
			done(errLost)
		case 2: // told to be lost, and it comes back
			done(errLost)
			g.commitLocked(data)
		default:
			return false
		}
		return true
	}
	g.mu.Unlock()
	ch := &churn{g: g, ok: map[int64]bool{}, no: map[int64]bool{}}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	var wg sync.WaitGroup
	for i := range 16 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for n := int64(0); ctx.Err() == nil; n++ {
				ch.client(ctx, r, int64(i)<<32|n)
			}
		})
	}
	wg.Go(func() {
		r := rand.New(rand.NewPCG(seed, 99))
		for ctx.Err() == nil {
			pause(ctx, r, 100)
			g.dbs[0].StepDown()
			g.mu.Lock()
			g.term++
			g.dbs[0].Lead(g.term)
			g.mu.Unlock()
		}
	})
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("a request was not answered")
	}
	d := g.dbs[0]
	g.eventually("sessions are left", func(d *DB) bool {
		return len(d.sessions)+len(d.returning)+len(d.shelf) == 0 && d.holding == nil
	})
	if err := d.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id := range ch.ok {
		if got := g.query(0, "SELECT n FROM t WHERE a=?", wire.Int(id)); fmt.Sprint(got) != "[[2]]" {
			t.Errorf("%d was told to be committed: %v", id, got)
		}
	}
	for id := range ch.no {
		if got := g.query(0, "SELECT n FROM t WHERE a=?", wire.Int(id)); len(got) != 0 {
			t.Errorf("%d was told not to be: %v", id, got)
		}
	}
	t.Logf("%d committed, %d not", len(ch.ok), len(ch.no))
	if len(ch.ok) == 0 || len(ch.no) == 0 {
		t.Error("nothing was tried")
	}
}

// churn is what clients were told.
type churn struct {
	g  *group
	mu sync.Mutex
	ok map[int64]bool
	no map[int64]bool
}

func (c *churn) told(id int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.ok[id] = true
	case !errors.Is(err, ErrUnknown):
		c.no[id] = true
	}
}

// pause waits at random, most often not at all.
func pause(ctx context.Context, r *rand.Rand, most int) {
	if ms := r.IntN(2 * most); ms < most {
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// fickle is a context that often ends soon.
func fickle(r *rand.Rand) (context.Context, context.CancelFunc) {
	if r.IntN(2) == 0 {
		return context.WithTimeout(context.Background(), time.Duration(r.IntN(10))*time.Millisecond)
	}
	return context.WithCancel(context.Background())
}

// client does one write, or one transaction of two statements, its own way.
func (c *churn) client(ctx context.Context, r *rand.Rand, id int64) {
	short, cancel := fickle(r)
	defer cancel()
	if r.IntN(3) == 0 {
		u := unit("INSERT INTO t VALUES(?, 2)", wire.Int(id))
		u.ForeignKeys = r.IntN(4) == 0
		_, err := c.g.dbs[0].Exec(short, u)
		c.told(id, err)
		return
	}
	s, err := c.g.dbs[0].Begin(short, SessionOptions{Modes: Modes{ForeignKeys: r.IntN(4) == 0}})
	if err != nil {
		return
	}
	defer s.Abort()
	for _, sql := range []string{"INSERT INTO t VALUES(?, 1)", "UPDATE t SET n = 2 WHERE a = ?"} {
		for {
			pause(ctx, r, 4)
			short, cancel := fickle(r)
			res := s.Run(short, Statement{Statement: wire.Statement{SQL: sql, Args: makeArgs(wire.Int(id))}})
			cancel()
			if res.Over || r.IntN(20) == 0 {
				c.told(id, ErrCanceled)
				return
			}
			if res.Err == nil {
				break
			}
		}
	}
	pause(ctx, r, 4)
	if r.IntN(8) == 0 {
		_ = s.Rollback(short)
		c.told(id, ErrCanceled)
		return
	}
	short, cancel = fickle(r)
	defer cancel()
	c.told(id, s.Commit(short, wire.RequestID{}, 0).Err)
}
