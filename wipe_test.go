package colmena_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mentasystems/colmena"
)

func TestWipeRemovesANodesStateAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	n, err := colmena.New(colmena.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, n.DB(), "CREATE TABLE a(v)")
	if err := colmena.WipeLocalState(dir); err == nil {
		t.Error("a directory in use was wiped")
	}
	wantNumber(t, n, colmena.Strong, 0, "SELECT count(*) FROM a")
	first := n.ID()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(dir, "raft.db.notes")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := colmena.WipeLocalState(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error("a foreign file is gone:", err)
	}
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if has, err := colmena.HasExistingState(dir); has || err != nil {
		t.Error("state is left:", err)
	}
	n, err = colmena.New(colmena.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.ID() == first || len(n.Databases()) != 0 {
		t.Errorf("node %s has databases %v", n.ID(), n.Databases())
	}
}

func TestWipeRefusesForeignDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "generations"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := colmena.WipeLocalState(dir); err == nil {
		t.Error("a directory without node.json was wiped")
	}
	if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := colmena.WipeLocalState(dir); err == nil {
		t.Error("a directory with another node.json was wiped")
	}
	if _, err := os.Stat(filepath.Join(dir, "generations")); err != nil {
		t.Error("something was removed:", err)
	}
	if err := colmena.WipeLocalState(filepath.Join(dir, "none")); err != nil {
		t.Error("a directory that does not exist:", err)
	}
}
