package colmena

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// peerBook knows where members are. The replicated members table says where they
// were; what they said themselves when they last shook hands is newer, and is all
// there is when every address has changed since.
type peerBook struct {
	n        *Node
	changing sync.Mutex // held while members change: one change at a time

	mu      sync.Mutex
	heardOf map[string]wire.Hello
	mute    map[string]time.Time // no nudges until
	nudging map[string]bool      // a nudge is on its way
}

// resolve gives raft and the callers a member's address. The incarnation is the one on
// record: a node that lost its directory must not be taken for the one that voted.
func (p *peerBook) resolve(id string) (addr, incarnation string, err error) {
	m, recorded := p.n.dbs.Member(id)
	p.mu.Lock()
	h, heard := p.heardOf[id]
	p.mu.Unlock()
	switch {
	case heard && (!recorded || h.Incarnation == m.Incarnation):
		return h.Addr, h.Incarnation, nil
	case recorded && m.Addr != "":
		return m.Addr, m.Incarnation, nil
	}
	return "", "", fmt.Errorf("colmena: no address is known of node %q", id)
}

// heard notes what a peer said of itself in an accepted handshake.
func (p *peerBook) heard(h wire.Hello) {
	if h.NodeID == "" || h.Addr == "" || h.NodeID == p.n.id.NodeID {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.heardOf == nil || len(p.heardOf) >= maxPeers {
		p.heardOf = map[string]wire.Hello{}
	}
	p.heardOf[h.NodeID] = h
}

const maxPeers = 1024

func (p *peerBook) forget(id string) {
	p.mu.Lock()
	delete(p.heardOf, id)
	p.mu.Unlock()
	if p.n.client != nil {
		p.n.client.Drop(id)
	}
}

// nudgeable reports whether a follower may be nudged: one that could not be reached, or
// lags, is left to raft for a while.
func (p *peerBook) nudgeable(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nudging[id] || time.Now().Before(p.mute[id]) {
		return false
	}
	if p.nudging == nil {
		p.nudging = map[string]bool{}
	}
	p.nudging[id] = true // one at a time: a follower that hangs must not gather them
	return true
}

const nudgePause = 200 * time.Millisecond

func (p *peerBook) nudged(id string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.nudging, id)
	if p.mute == nil {
		p.mute = map[string]time.Time{}
	}
	if !ok {
		p.mute[id] = time.Now().Add(nudgePause)
	} else {
		delete(p.mute, id)
	}
}

// hello is what this node says of itself in every handshake.
func (n *Node) hello(uint8) wire.Hello {
	h := wire.Hello{ClusterID: n.id.ClusterID(), NodeID: n.id.NodeID, Incarnation: n.id.Incarnation, FormatMin: formatMin, FormatMax: formatMax, Engine: engineFingerprint()}
	if n.net != nil {
		h.Addr = n.net.Advertised()
	}
	return h
}

// checkPeer decides who may talk to this node. A node without a cluster may only ask
// for entrance, which its calls are checked for.
func (n *Node) checkPeer(h wire.Hello) error {
	own := n.id.ClusterID()
	switch {
	case h.FormatMax < formatMin || h.FormatMin > formatMax:
		return fmt.Errorf("node %q reads formats %d to %d, this one %d to %d", h.NodeID, h.FormatMin, h.FormatMax, formatMin, formatMax)
	case h.WantNodeID != "" && h.WantNodeID != n.id.NodeID:
		return fmt.Errorf("this is node %q, not %q", n.id.NodeID, h.WantNodeID)
	case h.WantIncarnation != "" && h.WantIncarnation != n.id.Incarnation:
		return fmt.Errorf("this is another incarnation of node %q: its directory was emptied since", n.id.NodeID)
	case own != "" && h.ClusterID != "" && h.ClusterID != own:
		return fmt.Errorf("this node belongs to cluster %s, the other one to %s", own, h.ClusterID)
	case h.Purpose == wire.PurposeRaft && (own == "" || h.ClusterID == ""):
		return errors.New("consensus needs both nodes to belong to a cluster")
	case h.NodeID == n.id.NodeID && h.Incarnation != n.id.Incarnation:
		return fmt.Errorf("another node calls itself %q too", h.NodeID)
	}
	if m, ok := n.dbs.Member(h.NodeID); ok && h.Purpose == wire.PurposeRaft && m.Incarnation != h.Incarnation {
		return fmt.Errorf("node %q is known with another incarnation: it was replaced", h.NodeID)
	}
	return nil
}
