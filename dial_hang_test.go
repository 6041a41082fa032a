package colmena_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// dam holds what nodes say to one another while it is shut, as TCP does when a route is
// lost: nothing fails, nothing arrives, and when it is opened everything does.
type dam struct {
	mu     sync.Mutex
	opened chan struct{} // nil while it is open
	apart  string        // while it is shut, what passes between the others still passes
	held   []func()      // writes, in their order
}

// dialOf returns how node self opens connections.
func (d *dam) dialOf(self string, addrs func(addr string) string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &dammed{Conn: conn, by: d, self: self, peer: addrs(addr), closed: make(chan struct{})}, nil
	}
}

// shut parts one node from the others.
func (d *dam) shut(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened, d.apart = make(chan struct{}), node
}

func (d *dam) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, write := range d.held {
		write()
	}
	if d.opened != nil {
		close(d.opened)
	}
	d.opened, d.held = nil, nil
}

func (d *dam) holds() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.held)
}

type dammed struct {
	net.Conn
	by         *dam
	self, peer string
	closed     chan struct{}
	once       sync.Once
}

// stoppedLocked is what the connection waits for, nil if nothing stops it.
func (c *dammed) stoppedLocked() chan struct{} {
	if c.self == c.by.apart || c.peer == c.by.apart {
		return c.by.opened
	}
	return nil
}

func (c *dammed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.by.mu.Lock()
	stopped := c.stoppedLocked()
	c.by.mu.Unlock()
	if n > 0 && stopped != nil {
		select {
		case <-stopped:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	return n, err
}

func (c *dammed) Write(b []byte) (int, error) {
	c.by.mu.Lock()
	defer c.by.mu.Unlock()
	if c.stoppedLocked() == nil {
		return c.Conn.Write(b)
	}
	said := append([]byte(nil), b...)
	c.by.held = append(c.by.held, func() { _, _ = c.Conn.Write(said) }) // it may be closed by then
	return len(b), nil
}

func (c *dammed) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// newDammedCluster starts three nodes between which a dam can be shut.
func newDammedCluster(t *testing.T) (*testcluster.Cluster, *dam) {
	d := &dam{}
	var names sync.Map
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) {
		names.Store(cfg.Bind, cfg.NodeID)
		cfg.Dial = d.dialOf(cfg.NodeID, func(addr string) string {
			name, _ := names.Load(addr)
			return name.(string)
		})
	})
	t.Cleanup(d.open)
	return c, d
}

// TestCloseDoesNotWaitForPeersThatHang holds that a leader closes in its own time while
// what it asked others is never answered.
func TestCloseDoesNotWaitForPeersThatHang(t *testing.T) {
	c, d := newDammedCluster(t)
	leader := c.Leader()
	d.shut(c.Node(leader).ID())
	c.Until("heartbeats without an answer", func() bool { return d.holds() >= 4 })
	prompt(t, "closing the leader", 5*time.Second, func() { c.Stop(leader) })
}

// TestDeposedLeaderEndsWhatItReplicated holds that a leader which was cut off, and hears of
// its successor when it is connected again, ends all that it had begun as a leader: it
// closes, and follows.
func TestDeposedLeaderEndsWhatItReplicated(t *testing.T) {
	c, d := newDammedCluster(t)
	exec(t, c.Node(c.Leader()), "CREATE TABLE t(a)")
	deposed := c.Leader()
	d.shut(c.Node(deposed).ID())
	began := make(chan error, 1)
	go func() { // so that there is something to replicate
		_, err := c.Node(deposed).DB().ExecContext(limit(t), "INSERT INTO t VALUES(1)")
		began <- err
	}()
	c.Until("another leader", func() bool {
		for i, n := range c.Running() {
			if i != deposed && n.IsLeader() {
				return true
			}
		}
		return false
	})
	c.Until("the old one has stepped down", func() bool { return !c.Node(deposed).IsLeader() })
	d.open()
	if err := <-began; err != nil {
		t.Errorf("the write that was under way: %v", err)
	}
	wantNumber(t, c.Node(deposed), colmena.Strong, 1, "SELECT count(*) FROM t")
	prompt(t, "closing the deposed leader", 5*time.Second, func() { c.Stop(deposed) })
}

// TestCommitEndsWithTheContextOfItsBegin holds that a commit of which nobody decides returns
// when the context of its transaction ends, on the leader and through a follower, and does
// not say that it was not applied.
func TestCommitEndsWithTheContextOfItsBegin(t *testing.T) {
	c, d := newDammedCluster(t)
	exec(t, c.Node(c.Leader()), "CREATE TABLE t(a)")
	for _, pick := range []func() int{c.Leader, c.Follower} {
		leader, n := c.Leader(), c.Node(pick())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		tx, err := n.DB().BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
			t.Fatal(err)
		}
		d.shut(c.Node(leader).ID())
		prompt(t, "a commit", 3*time.Second, func() { err = tx.Commit() })
		if n == c.Node(leader) && (!errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, colmena.ErrOutcomeUnknown) || colmena.SafeToRetry(err)) {
			t.Errorf("a commit without a majority: %v", err)
		}
		cancel()
		d.open()
		c.WaitReady()
		rows, e := number(limit(t), c.Node(c.Leader()), colmena.Strong, "SELECT count(*) FROM t")
		if e != nil || rows == 0 && err == nil || rows > 0 && colmena.SafeToRetry(err) {
			t.Errorf("%d rows, %v, of a commit that said: %v", rows, e, err)
		}
		exec(t, c.Node(c.Leader()), "DELETE FROM t")
	}
}

// sink swallows what is dialed to one address, as a machine does that is gone.
type sink struct {
	mu    sync.Mutex
	addr  string                // guarded by mu
	conns map[string][]net.Conn // guarded by mu: by address
}

func (s *sink) dial(ctx context.Context, addr string) (net.Conn, error) {
	s.mu.Lock()
	gone := s.addr == addr
	s.mu.Unlock()
	if gone {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err == nil {
		s.mu.Lock()
		s.conns[addr] = append(s.conns[addr], conn)
		s.mu.Unlock()
	}
	return conn, err
}

// swallow ends the connections to an address as well.
func (s *sink) swallow(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = addr
	for _, conn := range s.conns[addr] {
		_ = conn.Close()
	}
}

// TestBeginEndsWithItsContextWhileADialHangs holds that a transaction's begin returns when
// its context ends, though the leader can only be waited for.
func TestBeginEndsWithItsContextWhileADialHangs(t *testing.T) {
	s := &sink{conns: map[string][]net.Conn{}}
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.Dial = s.dial })
	exec(t, c.Node(c.Leader()), "CREATE TABLE t(a)")
	follower := c.Node(c.Follower())
	exec(t, follower, "INSERT INTO t VALUES(1)")
	s.swallow(c.Config(c.Leader()).Bind)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	prompt(t, "a begin", time.Second, func() {
		tx, err := follower.DB().BeginTx(ctx, nil)
		if err == nil {
			_ = tx.Rollback()
		} else if !errors.Is(err, context.DeadlineExceeded) || !colmena.SafeToRetry(err) {
			t.Errorf("a begin whose context ended: %v", err)
		}
	})
	s.swallow("")
}

// TestTransactionsDoNotWaitForALeaderThatHangs holds that a follower gives up on a leader
// that says nothing as soon as another leads: what has not begun begins there, and what had
// begun has ended.
func TestTransactionsDoNotWaitForALeaderThatHangs(t *testing.T) {
	c, d := newDammedCluster(t)
	exec(t, c.Node(c.Leader()), "CREATE TABLE t(a)")
	follower := c.Node(c.Follower())
	open, err := follower.DB().Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.Exec("INSERT INTO t VALUES(-1)"); err != nil {
		t.Fatal(err)
	}
	d.shut(c.Node(c.Leader()).ID())
	prompt(t, "a transaction while the leader hangs", 5*time.Second, func() {
		tx, err := follower.DB().Begin()
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
			t.Error(err)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
	})
	prompt(t, "a statement of a transaction that has ended", 5*time.Second, func() {
		var aborted *colmena.TxAbortedError
		if _, err := open.Exec("INSERT INTO t VALUES(-1)"); !errors.As(err, &aborted) || aborted.Reason != colmena.TxAbortLeader {
			t.Errorf("a statement of a transaction that was open: %v", err)
		}
	})
	_ = open.Rollback()
	d.open()
	wantNumber(t, follower, colmena.Strong, 1, "SELECT sum(a) FROM t")
}

// TestForwardDoesNotWaitForALeaderThatHangs is the same of a call: whether its handler ran
// is not known.
func TestForwardDoesNotWaitForALeaderThatHangs(t *testing.T) {
	c, d := newDammedCluster(t)
	key := colmena.NewHandlerKey[int, int]("plus")
	for _, n := range c.Running() {
		if err := colmena.RegisterHandler(n, key, func(_ context.Context, i int) (int, error) { return i + 1, nil }); err != nil {
			t.Fatal(err)
		}
	}
	follower := c.Node(c.Follower())
	d.shut(c.Node(c.Leader()).ID())
	prompt(t, "a call while the leader hangs", 5*time.Second, func() {
		if _, err := colmena.Forward(t.Context(), follower, key, 1); !errors.Is(err, colmena.ErrOutcomeUnknown) {
			t.Errorf("a call that was on its way: %v", err)
		}
	})
	if sum, err := colmena.Forward(limit(t), follower, key, 1); sum != 2 || err != nil {
		t.Errorf("the next call: %d, %v", sum, err)
	}
	d.open()
}
