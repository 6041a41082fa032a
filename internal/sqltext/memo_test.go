package sqltext

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestClassesAreRememberedWithinABound(t *testing.T) {
	type class int
	const read class = 1
	var c Memo[class]
	if _, ok := c.Get("SELECT 1"); ok {
		t.Error("an empty memo knows a text")
	}
	c.Put("SELECT 1", read)
	if v, ok := c.Get("SELECT 1"); !ok || v != read {
		t.Errorf("class %v, %v", v, ok)
	}
	long := strings.Repeat("x", maxTextBytes+1)
	c.Put(long, read)
	if _, ok := c.Get(long); ok {
		t.Error("a text that is too long is kept")
	}
	for i := range 20000 {
		c.Put(fmt.Sprintf("SELECT %d", i), read)
		if n := c.bytes.Load(); n > maxMemoBytes+maxTextBytes+memoEntryBytes {
			t.Fatalf("%d bytes are kept", n)
		}
	}
}

func TestMemoIsSharedByGoroutines(t *testing.T) {
	var c Memo[int]
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 10000 { // starts over several times
				text := fmt.Sprintf("SELECT %d, %d", i, g%2)
				c.Put(text, i)
				if v, ok := c.Get(text); ok && v != i {
					t.Errorf("%s: %d", text, v)
				}
			}
		})
	}
	wg.Wait()
}

// TestMemoIsReadWithoutAllocation: every read of a database looks here.
func TestMemoIsReadWithoutAllocation(t *testing.T) {
	var c Memo[int]
	text := "SELECT 1"
	c.Put(text, 1)
	if n := testing.AllocsPerRun(100, func() { c.Get(text) }); n > 1 { // sync.Map takes its key in an interface
		t.Errorf("%v allocations", n)
	}
}
