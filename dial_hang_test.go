package colmena_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// silence swallows what connections carry while it is on, as a network does that has lost
// its route, or a peer that hangs: nothing fails, and no answer comes.
type silence struct {
	on        atomic.Bool
	swallowed atomic.Int64 // writes
}

func (s *silence) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &silenced{conn, s}, nil
}

type silenced struct {
	net.Conn
	by *silence
}

func (c *silenced) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.by.on.Load() {
			return n, err
		}
	}
}

func (c *silenced) Write(b []byte) (int, error) {
	if c.by.on.Load() {
		c.by.swallowed.Add(1)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// TestCloseDoesNotWaitForPeersThatHang holds that a leader closes in its own time while
// what it asked others is never answered.
func TestCloseDoesNotWaitForPeersThatHang(t *testing.T) {
	var s silence
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.Dial = s.dial })
	leader := c.Leader()
	s.on.Store(true)
	defer s.on.Store(false)
	c.Until("heartbeats without an answer", func() bool { return s.swallowed.Load() >= 4 })
	prompt(t, "closing the leader", 5*time.Second, func() { c.Stop(leader) })
}
