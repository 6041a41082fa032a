// Package ownwrites remembers how far a node's own acknowledged writes go, per database:
// what it reads without asking anybody must not be older (H24).
package ownwrites

import (
	"sync"
	"sync/atomic"
)

// DefaultMax bounds the databases that are remembered one by one.
const DefaultMax = 4096

// Marks is that memory. Its methods are safe for concurrent use.
type Marks struct {
	max  int
	held func(db string, index uint64) bool

	mu sync.RWMutex // guards what follows; an index may be raised while it is read-locked
	m  map[string]*atomic.Uint64
	// floor is the newest mark of those that had to be forgotten although this node did
	// not hold them yet. It stands for all of them: it makes reads wait too long, and
	// never too short.
	floor uint64
}

// New returns a memory for at most max databases, 0 for DefaultMax. held reports whether
// this node holds a database's writes up to index, so that the mark can be forgotten.
func New(max int, held func(db string, index uint64) bool) *Marks {
	if max == 0 {
		max = DefaultMax
	}
	return &Marks{max: max, held: held, m: map[string]*atomic.Uint64{}}
}

// Note says that a write was acknowledged with the entry at index.
func (k *Marks) Note(db string, index uint64) {
	for !k.raise(db, index) {
		k.add(db)
	}
}

func (k *Marks) raise(db string, index uint64) (known bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	at := k.m[db]
	for at != nil {
		if have := at.Load(); have >= index || at.CompareAndSwap(have, index) {
			return true
		}
	}
	return false
}

func (k *Marks) add(db string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.m[db] != nil {
		return
	}
	if len(k.m) >= k.max {
		k.makeRoomLocked()
	}
	k.m[db] = new(atomic.Uint64)
}

// makeRoomLocked forgets what this node holds, and all the rest if that is too little.
func (k *Marks) makeRoomLocked() {
	for db, at := range k.m {
		if k.held(db, at.Load()) {
			delete(k.m, db)
		}
	}
	if len(k.m) <= k.max/2 {
		return
	}
	for _, at := range k.m {
		k.floor = max(k.floor, at.Load())
	}
	clear(k.m)
}

// Get returns the entry that a read of a database must wait for, 0 for none.
func (k *Marks) Get(db string) uint64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if at := k.m[db]; at != nil {
		return max(at.Load(), k.floor)
	}
	return k.floor
}

// Forget says that a database is read no more.
func (k *Marks) Forget(db string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.m, db)
}
