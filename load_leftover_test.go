package colmena

import (
	"bytes"
	"testing"
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
	other := digest("another node", 12) + "."
	left := []string{
		n.hiddenTarget("default") + other + "00000000.00000000",     // another node's, of this database
		n.hiddenTarget("x") + n.hiddenOwner() + "00000000.00000000", // an earlier process of this node's
		n.hiddenTarget("y") + other + "00000000.00000000",           // another node's, perhaps under way
		n.hiddenName("z"), // this process's, under way
	}
	for _, name := range left {
		if _, err := n.writeSystem(t.Context(), systemStatement("INSERT INTO databases(name) VALUES(?1)", name)); err != nil {
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
