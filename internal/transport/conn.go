package transport

import (
	"iter"
	"net"
	"slices"
	"sync"

	"github.com/mentasystems/colmena/internal/wire"
)

// peerConn is an authenticated connection. Close closes the TCP connection
// itself, never waiting for a TLS farewell a stalled peer would not read.
type peerConn struct {
	net.Conn // TLS or the raw connection
	raw      net.Conn
	t        *Transport
	peer     wire.Hello
	purpose  uint8
	isIn     bool
	once     sync.Once
	err      error
}

// Close implements net.Conn. Idempotent.
func (c *peerConn) Close() error {
	c.once.Do(func() {
		c.t.untrack(c)
		c.err = c.raw.Close()
	})
	return c.err
}

// track enters an authenticated connection into the books, unless the node is
// closed, full, or cut off from the peer. From here on CloseConns, Mute,
// Partition and Close find it.
func (t *Transport) track(c *peerConn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return ErrClosed
	case t.isBlocked(c.peer.NodeID, c.purpose):
		return ErrBlocked
	case c.isIn && t.inbound >= t.cfg.MaxConns:
		return errFull
	}
	t.conns[c] = struct{}{}
	if c.isIn {
		t.inbound++
	}
	return nil
}

func (t *Transport) untrack(c *peerConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.conns[c]; ok {
		delete(t.conns, c)
		if c.isIn {
			t.inbound--
		}
	}
}

// isBlocked says whether Mute or Partition cuts this traffic off.
func (t *Transport) isBlocked(nodeID string, purpose uint8) bool {
	if purpose == wire.PurposeRaft && t.muted.Load() {
		return true
	}
	f := t.block.Load()
	return f != nil && (*f)(nodeID)
}

// Mute drops all raft traffic in and out while on, and closes the raft
// connections there are. RPC goes on.
func (t *Transport) Mute(on bool) {
	t.muted.Store(on)
	if on {
		t.closeWhere(func(c *peerConn) bool { return c.purpose == wire.PurposeRaft })
	}
}

// Partition cuts raft and RPC traffic, in both directions, with every node f
// returns true for, and closes the connections with them; nil heals. f is called
// from many goroutines, with a lock held, and must not call back.
func (t *Transport) Partition(f func(nodeID string) bool) {
	if f == nil {
		t.block.Store(nil)
		return
	}
	t.block.Store(&f)
	t.closeWhere(func(c *peerConn) bool { return f(c.peer.NodeID) })
}

// CloseConns closes every connection with the node, both directions.
func (t *Transport) CloseConns(nodeID string) {
	t.closeWhere(func(c *peerConn) bool { return c.peer.NodeID == nodeID })
}

// closeWhere closes the matching connections. A connection in its handshake
// while the condition changed is caught by track, which looks under the lock.
func (t *Transport) closeWhere(match func(*peerConn) bool) {
	t.mu.Lock()
	victims := t.connsLocked(match)
	t.mu.Unlock()
	closeAll(victims)
}

func (t *Transport) connsLocked(match func(*peerConn) bool) []*peerConn {
	var out []*peerConn
	for c := range t.conns {
		if match(c) {
			out = append(out, c)
		}
	}
	return out
}

func closeAll(conns []*peerConn) {
	for _, c := range conns {
		c.Close()
	}
}

// pendingConn is an inbound connection that has not authenticated yet.
type pendingConn struct {
	conn net.Conn
	host string
}

// pendingSet holds the pending connections, oldest first.
type pendingSet struct{ list []*pendingConn }

// add enters p. If limit are there already it takes out and returns the oldest of
// the host that holds most places: a flood from few addresses displaces itself.
func (s *pendingSet) add(p *pendingConn, limit int) (evicted *pendingConn) {
	if len(s.list) >= limit {
		count := make(map[string]int, len(s.list))
		var busiest string
		for _, q := range s.list {
			count[q.host]++
			if count[q.host] > count[busiest] {
				busiest = q.host
			}
		}
		i := slices.IndexFunc(s.list, func(q *pendingConn) bool { return q.host == busiest })
		evicted = s.list[i]
		s.list = slices.Delete(s.list, i, i+1)
	}
	s.list = append(s.list, p)
	return evicted
}

// remove takes p out; false if it had been evicted.
func (s *pendingSet) remove(p *pendingConn) bool {
	i := slices.Index(s.list, p)
	if i < 0 {
		return false
	}
	s.list = slices.Delete(s.list, i, i+1)
	return true
}

func (s *pendingSet) all() iter.Seq[*pendingConn] { return slices.Values(s.list) }

func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}
