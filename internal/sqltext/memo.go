package sqltext

import (
	"strings"
	"sync"
	"sync/atomic"
)

// Memo remembers what was found out about SQL texts, for all goroutines that look. It is
// bounded by the bytes of the texts and starts over when full. The zero value is ready.
type Memo[V any] struct {
	m     atomic.Pointer[sync.Map] // string to V
	bytes atomic.Int64
}

const (
	maxMemoBytes   = 1 << 20
	maxTextBytes   = 32 << 10 // longer texts are not kept
	memoEntryBytes = 128      // what an entry takes beside its text, about
)

// Get returns what is remembered of a text.
func (c *Memo[V]) Get(text string) (v V, ok bool) {
	m := c.m.Load()
	if m == nil {
		return v, false
	}
	found, ok := m.Load(text)
	if !ok {
		return v, false
	}
	return found.(V), true
}

// Put remembers v of a text, unless something is remembered of it already.
func (c *Memo[V]) Put(text string, v V) {
	if len(text) > maxTextBytes {
		return
	}
	m := c.m.Load()
	if m == nil || c.bytes.Load() > maxMemoBytes {
		fresh := new(sync.Map)
		if c.m.CompareAndSwap(m, fresh) {
			c.bytes.Store(0)
		}
		m = c.m.Load()
	}
	if _, loaded := m.LoadOrStore(strings.Clone(text), v); !loaded {
		c.bytes.Add(int64(len(text) + memoEntryBytes))
	}
}
