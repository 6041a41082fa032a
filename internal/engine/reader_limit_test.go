package engine

import (
	"errors"
	"testing"
	"time"
)

// Who waits for a reader while those who have one wait for another is told so.
func TestReadersAreBounded(t *testing.T) {
	g := newGroup(t, 1, func(c *Config) { c.MaxReaders, c.ReaderWait = 2, 20*time.Millisecond })
	var open []*Reader
	for range 2 {
		r, err := g.dbs[0].Reader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, r)
	}
	var big *TooLargeError
	if _, err := g.dbs[0].Reader(t.Context()); !errors.As(err, &big) || big.Most != 2 {
		t.Errorf("a third reader: %v", err)
	}
	for _, r := range open {
		r.Release()
	}
	r, err := g.dbs[0].Reader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.Release()
}
