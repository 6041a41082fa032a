package identity

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/durable"
)

func load(t *testing.T, dir, nodeID string) *Identity {
	t.Helper()
	id, err := Load(dir, nodeID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAnEmptyDirectoryIsGivenAnIdentityForGood(t *testing.T) {
	dir := t.TempDir()
	if has, err := Exists(dir); has || err != nil {
		t.Errorf("%v, %v", has, err)
	}
	first := load(t, dir, "a")
	if first.NodeID != "a" || len(first.Incarnation) != 32 || len(first.StoreID) != 32 || first.Incarnation == first.StoreID || first.ClusterID() != "" || first.Formed() || first.Forming() {
		t.Errorf("%+v", &first.doc)
	}
	if has, err := Exists(dir); !has || err != nil {
		t.Errorf("%v, %v", has, err)
	}
	for _, nodeID := range []string{"", "a"} {
		if again := load(t, dir, nodeID); again.doc != first.doc || again.StoreID != first.StoreID {
			t.Errorf("read again: %+v, was %+v", &again.doc, &first.doc)
		}
	}
	if _, err := Load(dir, "b"); err == nil || !strings.Contains(err.Error(), `belongs to node "a"`) {
		t.Errorf("another node's directory: %v", err)
	}
	if id := load(t, t.TempDir(), ""); !strings.HasPrefix(id.NodeID, "node-") || len(id.NodeID) != 21 {
		t.Errorf("a node without a name is called %q", id.NodeID)
	}
}

func TestWhatChangesIsOnDiskFirst(t *testing.T) {
	dir := t.TempDir()
	id := load(t, dir, "a")
	if err := id.Join("cluster"); err != nil {
		t.Fatal(err)
	}
	if err := id.Enter(); err != nil {
		t.Fatal(err)
	}
	if again := load(t, dir, "a"); again.ClusterID() != "cluster" || again.Forming() || !again.Formed() {
		t.Errorf("%+v", &again.doc)
	}
	id = load(t, t.TempDir(), "b")
	restore := durable.SetHook(func(op, path string) error {
		if filepath.Dir(path) == filepath.Dir(id.path) {
			return errors.New("no disk")
		}
		return nil
	})
	defer restore()
	if err := id.Form(); err == nil || id.ClusterID() != "" || id.Forming() {
		t.Errorf("what could not be written counts: %v, %+v", err, &id.doc)
	}
	if err := id.Enter(); err == nil || id.Formed() {
		t.Errorf("what could not be written counts: %v", err)
	}
	restore()
	if err := id.Form(); err != nil || len(id.ClusterID()) != 32 || !id.Forming() || id.Formed() {
		t.Errorf("%v, %+v", err, &id.doc)
	}
}

func TestForeignAndDamagedDirectoriesAreRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("lock", "")
	write("app.db", "x")
	if _, err := Load(dir, "a"); err == nil || !strings.Contains(err.Error(), "app.db") {
		t.Errorf("foreign content: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "app.db")); err != nil {
		t.Fatal(err)
	}
	write("node.json", "{")
	if _, err := Load(dir, "a"); !errors.Is(err, durable.ErrDamaged) || !strings.Contains(err.Error(), "node.json") {
		t.Errorf("a damaged node.json: %v", err)
	}
}

// golden is version 1 of node.json, which later versions must go on reading.
const golden = "colmena-doc colmena-node 1 99 4d6fc45d\n" +
	`{"NodeID":"node-1","ClusterID":"c1","Incarnation":"i1","StoreID":"s1","Forming":true,"Formed":true}`

func TestGoldenFilePinsVersion1(t *testing.T) {
	want := document{NodeID: "node-1", ClusterID: "c1", Incarnation: "i1", StoreID: "s1", Forming: true, Formed: true}
	if b, err := durable.EncodeDoc(documentKind, documentVersion, &want); err != nil || string(b) != golden {
		t.Errorf("%v\n%s", err, b)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte(golden), 0o600); err != nil {
		t.Fatal(err)
	}
	if id := load(t, dir, ""); id.doc != want {
		t.Errorf("%+v", &id.doc)
	}
}
