package members

import (
	"fmt"
	"sync"

	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/wire"
)

// Book knows where members are. The replicated members table says where they were; what they said themselves when they last shook hands is
// newer, and is all there is when every address has changed since.
type Book struct {
	self   string
	member func(id string) (membership.Record, bool)

	mu      sync.Mutex // guards what follows
	heardOf map[string]wire.Hello
}

// maxPeers bounds of how many nodes their own word is kept.
const maxPeers = 1024

// Resolve gives raft and the callers a member's address. The incarnation is the one on record: a node that lost its directory must not be taken
// for the one that voted.
func (b *Book) Resolve(id string) (addr, incarnation string, err error) {
	m, recorded := b.member(id)
	b.mu.Lock()
	h, heard := b.heardOf[id]
	b.mu.Unlock()
	switch {
	case heard && (!recorded || h.Incarnation == m.Incarnation):
		return h.Addr, h.Incarnation, nil
	case recorded && m.Addr != "":
		return m.Addr, m.Incarnation, nil
	}
	return "", "", fmt.Errorf("colmena: no address is known of node %q", id)
}

// Heard notes what a peer said of itself in an accepted handshake.
func (b *Book) Heard(h wire.Hello) {
	if h.NodeID == "" || h.Addr == "" || h.NodeID == b.self {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.heardOf == nil || len(b.heardOf) >= maxPeers {
		b.heardOf = map[string]wire.Hello{}
	}
	b.heardOf[h.NodeID] = h
}

func (b *Book) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.heardOf, id)
}
