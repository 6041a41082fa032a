package snapshot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

// A copy goes live in a directory of its own, with nothing beside its files: a log that
// got there would be read into them.
func TestHazard17StrayLogInAStageIsRefused(t *testing.T) {
	r := newRig(t, t.TempDir())
	if err := writeToy(r.file(), 1, wire.Mark{Term: 1, Index: 50}, "local"); err != nil {
		t.Fatal(err)
	}
	stray := toyBytes(1, wire.Mark{Term: 1, Index: 49}, "old rows")
	if err := os.WriteFile(r.file()+"-wal", stray, 0o600); err != nil { // of the live file, as a crash leaves it
		t.Fatal(err)
	}
	old := r.gens.Current()
	id, err := r.receive(2, 100, bytes.NewReader(copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))))
	if err != nil {
		t.Fatal(err)
	}
	e, err := r.store.load(id)
	if err != nil {
		t.Fatal(err)
	}
	planted := filepath.Join(r.gens.dir, e.doc.Stage, "main.db-wal")
	if err := os.WriteFile(planted, stray, 0o600); err != nil {
		t.Fatal(err)
	}
	closed := false
	if err := r.install(id, func() error { closed = true; return nil }, nopOpen); err == nil || closed || r.gens.Current() != old {
		t.Fatalf("installed with an old log beside the file: %v, engines closed: %v", err, closed)
	}
	if err := os.Remove(planted); err != nil {
		t.Fatal(err)
	}
	if err := r.install(id, nop, nopOpen); err != nil {
		t.Fatal(err)
	}
	if got := names(t, r.gens.Current()); r.gens.Current() == old || len(got) != 2 {
		t.Errorf("%s holds %v", r.gens.Current(), got)
	}
}
