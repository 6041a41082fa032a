package colmena

import (
	"bytes"
	"testing"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/plainfile"
	"github.com/mentasystems/colmena/internal/wire"
)

// What a crash leaves of a load is removed by the next one of the same database,
// whoever began it, and by the same node's next one of any.
func TestLoadRemovesWhatACrashLeft(t *testing.T) {
	n, err := New(Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.DB().Exec("CREATE TABLE a(v); INSERT INTO a VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := n.CopyTo(t.Context(), "", &file); err != nil {
		t.Fatal(err)
	}
	other := plainfile.Names{NodeID: "another node"}
	earlier := plainfile.Names{NodeID: n.id.NodeID, Process: uint32(n.proposer) + 1}
	left := []string{
		other.Hidden("default"),     // another node's, of this database
		earlier.Hidden("x"),         // an earlier process of this node's
		other.Hidden("y"),           // another node's, perhaps under way
		n.hiddenNames().Hidden("z"), // this process's, under way
	}
	for _, name := range left {
		args := wire.NewArgs(1)
		args.Add(wire.Text(name))
		u := wire.Unit{Statements: []wire.Statement{{SQL: "INSERT INTO databases(name) VALUES(?1)", Args: args.Args()}}}
		if _, err := n.write(t.Context(), catalogue.SystemName, u); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Load(t.Context(), "", &file); err != nil {
		t.Fatal(err)
	}
	for i, name := range left {
		if got, want := n.dbs.Get(name) != nil, i >= 2; got != want {
			t.Errorf("leftover %d: there is %t, want %t", i, got, want)
		}
	}
	if got := n.Databases(); len(got) != 1 || got[0] != "default" {
		t.Errorf("databases are %v", got)
	}
}
