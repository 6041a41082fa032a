package catalogue

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A database is made by the first write to it, if that is let, and once.
func TestDatabaseIsMadeByItsFirstWrite(t *testing.T) {
	n := newNode(t)
	refused := errors.New("refused")
	wanted := func(context.Context, string) (bool, error) { return true, nil }
	d, err := n.set.Make(t.Context(), "a", wanted)
	if err != nil || d.Name() != "a" || n.set.Get("a") != d {
		t.Fatalf("%v, %v", d, err)
	}
	again, err := n.set.Make(t.Context(), "a", func(context.Context, string) (bool, error) { return false, refused })
	if again != d || err != nil {
		t.Errorf("%v, %v: it is there, and nobody is asked", again, err)
	}
	if _, err := n.set.Make(t.Context(), "b", func(context.Context, string) (bool, error) { return true, refused }); err != refused || n.set.Get("b") != nil {
		t.Error(err)
	}
	if n.set.Full() {
		t.Error("one database is all there may be")
	}
	if _, err := n.set.System().Exec(t.Context(), DropUnit("a")); err != nil {
		t.Fatal(err)
	}
	late := time.After(10 * time.Second)
	for {
		watch := n.set.Watch()
		if n.set.Get("a") == nil {
			break
		}
		select {
		case <-watch:
		case <-late:
			t.Fatal("it is still there")
		}
	}
}

// One that is to be made by somebody else is waited for, until the context or the node ends.
func TestDatabaseThatIsNotToBeMadeIsWaitedFor(t *testing.T) {
	n := newNode(t)
	unwanted := func(context.Context, string) (bool, error) { return false, nil }
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.set.Make(ctx, "a", unwanted); err != context.DeadlineExceeded {
		t.Error(err)
	}
	asked := make(chan struct{}, 100)
	made := make(chan error, 1)
	go func() {
		_, err := n.set.Make(t.Context(), "a", func(context.Context, string) (bool, error) { asked <- struct{}{}; return false, nil })
		made <- err
	}()
	<-asked
	n.exec(SystemName, "INSERT INTO databases(name) VALUES(?)", "a")
	if err := <-made; err != nil {
		t.Error(err)
	}
	done := make(chan struct{})
	n.set.cfg.Done, n.set.cfg.Closed = done, errors.New("closed")
	close(done)
	if _, err := n.set.Make(t.Context(), "b", unwanted); err != n.set.cfg.Closed {
		t.Error(err)
	}
}

// Each process of a node gets a number of its own.
func TestOriginsDiffer(t *testing.T) {
	n := newNode(t)
	seen := map[int64]bool{}
	for range 3 {
		res, err := n.set.System().Exec(t.Context(), OriginUnit("a"))
		if err != nil || seen[res.Result.LastInsertID] || res.Result.LastInsertID == 0 {
			t.Errorf("%d, %v", res.Result.LastInsertID, err)
		}
		seen[res.Result.LastInsertID] = true
	}
}
