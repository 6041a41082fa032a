package logstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// cache keeps the newest entries, for the replication to followers that keep up and for applying. raft's own LogCache bounds their
// number only, which is no bound on memory, and turns the errors beneath it into text.
type cache struct {
	maxBytes int64 // negative: unbounded

	mu    sync.RWMutex
	ring  []*raft.Log // the entry of index i is at i modulo its length; no length: no cache. Guarded by mu
	low   uint64      // the ring holds exactly the entries low to high; guarded by mu
	high  uint64      // below low: it holds none; guarded by mu
	bytes int64       // data of what it holds; guarded by mu
}

func newCache(entries int, maxBytes int64) *cache {
	return &cache{ring: make([]*raft.Log, max(entries, 0)), maxBytes: maxBytes, low: 1}
}

// get copies the entry out if it is there.
func (c *cache) get(index uint64, entry *raft.Log) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if index < c.low || index > c.high {
		return false
	}
	*entry = *c.ring[index%uint64(len(c.ring))]
	return true
}

// add takes entries that are stored. Where there is not enough room the oldest go.
func (c *cache) add(entries []*raft.Log) {
	n := uint64(len(c.ring))
	if n == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, entry := range entries {
		if c.high+1 != entry.Index {
			c.dropLocked(c.high)
			c.low, c.high = entry.Index, entry.Index-1
		}
		if c.high+1-c.low == n {
			c.dropLocked(c.low)
		}
		c.ring[entry.Index%n] = entry
		c.high = entry.Index
		c.bytes += size(entry)
		for c.maxBytes >= 0 && c.bytes > c.maxBytes {
			c.dropLocked(c.low)
		}
	}
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(c.high)
}

// clearUpTo forgets the entries up to and including index.
func (c *cache) clearUpTo(index uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(min(index, c.high))
}

// dropLocked forgets the entries from low to index, which is at most high.
func (c *cache) dropLocked(index uint64) {
	for ; c.low <= index; c.low++ {
		slot := c.low % uint64(len(c.ring))
		c.bytes -= size(c.ring[slot])
		c.ring[slot] = nil
	}
}

func size(entry *raft.Log) int64 { return int64(len(entry.Data) + len(entry.Extensions)) }
