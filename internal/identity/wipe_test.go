package identity

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mentasystems/colmena/internal/durable"
)

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWipeTakesANodesStateAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	load(t, dir, "a")
	for _, name := range append([]string{"raft.db.notes", "own"}, stateNames...) {
		if err := os.MkdirAll(filepath.Join(dir, name, "inner"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := durable.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := names(t, dir)
	if err := Wipe(dir); err == nil || !slices.Equal(names(t, dir), before) {
		t.Errorf("a directory in use: %v, %v", err, names(t, dir))
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := Wipe(dir); err != nil {
		t.Fatal(err)
	}
	if have := names(t, dir); !slices.Equal(have, []string{"lock", "own", "raft.db.notes"}) {
		t.Errorf("left are %v", have)
	}
}

func TestWipeRefusesWhatIsNoNodes(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "generations"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Wipe(dir); err == nil {
		t.Error("a directory without node.json was wiped")
	}
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Wipe(dir); err == nil {
		t.Error("a directory with another node.json was wiped")
	}
	if !slices.Contains(names(t, dir), "generations") {
		t.Error("something was removed")
	}
	if err := Wipe(filepath.Join(dir, "none")); err != nil {
		t.Error("a directory that does not exist:", err)
	}
}
