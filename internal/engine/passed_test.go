package engine

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

// What Applied does not tell of, Passed does, before the replica stops for an entry that
// follows, and never ahead of what is not committed yet.
func TestPassedTellsOfEntriesThatAreNotApplied(t *testing.T) {
	g := newGroup(t, 1)
	for _, q := range []string{"CREATE TABLE t(v)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)", "INSERT INTO t VALUES(3)"} {
		g.must(q)
	}
	path := filepath.Join(g.dir, "other")
	if err := Create(path, "db", 7); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var told []string
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf(format, args...))
	}
	d, err := Open(Config{Path: path, Name: "db", Incarnation: 7, Proposer: 9, Halt: func(error) { note("halt") },
		Applied: func(m wire.Mark, _ *wire.Entry) { note("applied %d", m.Index) }, Passed: func(index uint64) { note("passed %d", index) }})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	held, hold := make(chan struct{}), make(chan struct{})
	batch := func(indexes ...int) {
		t.Helper()
		go func() { _ = d.Do(context.Background(), func() { held <- struct{}{}; <-hold }) }()
		<-held
		for _, i := range indexes {
			if taken := d.Deliver(g.log[i-1].mark, g.log[i-1].data); !taken {
				t.Errorf("entry %d was not taken", i)
			}
		}
		hold <- struct{}{}
		_ = d.Drain(context.Background())
	}
	batch(1, 2, 2)
	batch(1, 4)
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"applied 1", "applied 2", "passed 2", "passed 1", "halt"}; !slices.Equal(told, want) {
		t.Errorf("told is %q, want %q", told, want)
	}
	if d.Deliver(g.log[2].mark, g.log[2].data) {
		t.Error("a replica that has stopped takes an entry")
	}
}
