package members

import (
	"fmt"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

func TestBookPrefersWhatANodeSaidItself(t *testing.T) {
	n := newLeader(t)
	wantAddr := func(id, addr, incarnation string) {
		t.Helper()
		a, i, err := n.Book.Resolve(id)
		if a != addr || i != incarnation || (err == nil) != (addr != "") {
			t.Errorf("%s is at %q as %q, %v; want %q as %q", id, a, i, err, addr, incarnation)
		}
	}
	wantAddr("b", "b:1", "ib")
	wantAddr("x", "", "")
	n.Book.Heard(wire.Hello{NodeID: "b", Incarnation: "ib", Addr: "b:2"})
	wantAddr("b", "b:2", "ib")
	// Another directory in its place must not be taken for the one that voted.
	n.Book.Heard(wire.Hello{NodeID: "b", Incarnation: "new", Addr: "b:3"})
	wantAddr("b", "b:1", "ib")
	n.Book.Heard(wire.Hello{NodeID: "x", Incarnation: "ix", Addr: "x:1"})
	wantAddr("x", "x:1", "ix")
	n.Book.forget("x")
	wantAddr("x", "", "")
	n.Book.Heard(wire.Hello{NodeID: "c", Incarnation: "ic"}) // it listens nowhere
	wantAddr("c", "c:1", "ic")
	n.Book.Heard(wire.Hello{NodeID: "a", Incarnation: "ia", Addr: "elsewhere:1"})
	wantAddr("a", "a:1", n.id.Incarnation)
	for i := range 3 * maxPeers {
		n.Book.Heard(wire.Hello{NodeID: fmt.Sprint("n", i), Addr: "n:1"})
	}
	if len(n.Book.heardOf) > maxPeers {
		t.Errorf("the word of %d nodes is kept", len(n.Book.heardOf))
	}
}
