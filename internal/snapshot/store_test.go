package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

func listIDs(t *testing.T, s *Store) []string {
	t.Helper()
	metas, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range metas {
		ids = append(ids, m.ID)
	}
	return ids
}

func TestLocalSnapshotsAreListedNewestFirstAndReaped(t *testing.T) {
	r := newRig(t, t.TempDir())
	if got := listIDs(t, r.store); got != nil {
		t.Fatalf("a new store lists %v", got)
	}
	var ids []string
	for _, at := range [][2]uint64{{1, 5}, {2, 9}, {2, 100}, {10, 101}} {
		id, err := r.local(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	want := []string{ids[3], ids[2]}
	if got := listIDs(t, r.store); !reflect.DeepEqual(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	metas, err := newRig(t, r.dir).store.List() // after a restart
	if err != nil {
		t.Fatal(err)
	}
	m := metas[0]
	if m.ID != ids[3] || m.Index != 101 || m.Term != 10 || m.Version != 1 || m.ConfigurationIndex != 3 || !reflect.DeepEqual(m.Configuration, testConfiguration) {
		t.Errorf("meta %+v", m)
	}
	if got := names(t, r.store.cfg.Dir); len(got) != 2 {
		t.Errorf("the directory holds %v", got)
	}
}

func TestSinkPublishesNothingThatIsNotWhole(t *testing.T) {
	r := newRig(t, t.TempDir())
	for name, b := range map[string][]byte{"nothing": nil, "half": (&Manifest{ClusterID: "c"}).Encode()[:9], "staged": encodeStaged("1-1-1"), "garbage": []byte("xyz")} {
		k, err := r.store.Create(1, 5, 1, testConfiguration, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, werr := k.Write(b)
		first := k.Close()
		if first == nil {
			t.Errorf("%s: published (%v)", name, werr)
		}
		if again := k.Close(); !errors.Is(again, first) {
			t.Errorf("%s: the second Close says %v", name, again)
		}
		if err := k.Cancel(); err != nil {
			t.Errorf("%s: Cancel after Close: %v", name, err)
		}
	}
	if _, err := r.store.Create(0, 5, 1, testConfiguration, 1, nil); err == nil {
		t.Error("raft snapshot version 0 is taken")
	}
	if got := names(t, r.store.cfg.Dir); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

func TestDamagedManifestsAreSkippedAndKept(t *testing.T) {
	var log bytes.Buffer
	dir := fastDir(t)
	r, err := tryRig(dir, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	if err != nil {
		t.Fatal(err)
	}
	older, err := r.local(1, 5)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := r.local(1, 9)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.store.path(newer), manifestName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		c := bytes.Clone(whole)
		c[i] ^= 1 << (i % 8)
		if err := os.WriteFile(path, c, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := listIDs(t, r.store); !reflect.DeepEqual(got, []string{older}) {
			t.Fatalf("byte %d flipped: listed %v", i, got)
		}
	}
	if !strings.Contains(log.String(), newer) {
		t.Error("no warning names the damaged snapshot")
	}
	if _, _, err := r.store.Open(newer); err == nil {
		t.Error("a damaged snapshot can be opened")
	}
	if err := r.store.CheckLog(1, 8); err == nil {
		t.Error("a log that ends before the damaged newer snapshot is accepted")
	}
	if err := r.store.CheckLog(6, 9); err != nil {
		t.Errorf("a log that holds everything is refused: %v", err)
	}
	if err := r.store.CheckLog(7, 9); err == nil {
		t.Error("a log with a gap is accepted")
	}
	if err := os.Remove(filepath.Join(r.store.path(older), manifestName)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.List(); !errors.Is(err, ErrAllDamaged) {
		t.Errorf("all damaged: %v", err)
	}
	if err := r.store.CheckFiles(nil); !errors.Is(err, ErrAllDamaged) {
		t.Errorf("all damaged: %v", err)
	}
	if got := names(t, r.store.cfg.Dir); len(got) != 2 {
		t.Errorf("left %v", got)
	}
}

func TestHazard19StreamHasTheExactSizeAndHoldsNoPin(t *testing.T) {
	r := newRig(t, t.TempDir())
	mark := wire.Mark{Term: 2, Index: 100}
	r.copier.files = leaderFiles(mark)
	id, err := r.local(1, 5)
	if err != nil {
		t.Fatal(err)
	}
	meta, rc, err := r.store.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	if r.copier.pins != 1 || r.copier.released == 0 {
		t.Errorf("pinned %d times, released %d times before the stream is read", r.copier.pins, r.copier.released)
	}
	meta2, rc2, err := r.store.Open(id) // for another follower
	if err != nil {
		t.Fatal(err)
	}
	if r.store.Sending() != 2 {
		t.Errorf("%d copies are out, want 2", r.store.Sending())
	}
	b, err := io.ReadAll(rc)
	if err != nil || int64(len(b)) != meta.Size || meta.Size != meta2.Size || meta.Index != 5 {
		t.Fatalf("%d bytes, announced %d and %d: %v", len(b), meta.Size, meta2.Size, err)
	}
	if err := errors.Join(rc.Close(), rc.Close(), rc2.Close()); err != nil {
		t.Fatal(err)
	}
	if r.store.Sending() != 0 || len(names(t, r.store.cfg.ScratchDir)) != 0 {
		t.Errorf("%d copies are out, the scratch directory holds %v", r.store.Sending(), names(t, r.store.cfg.ScratchDir))
	}
	got, err := decodeAll(b, len(b))
	if err != nil {
		t.Fatal(err)
	}
	if got.m.Databases[0].Mark != mark || got.m.ClusterID != "cluster" {
		t.Errorf("the stream's manifest is %+v", got.m)
	}
}

func TestOpenRefusesAndCleansUp(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir)
	id, err := r.local(1, 5)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, want error) {
		t.Helper()
		_, rc, err := r.store.Open(id)
		if err == nil {
			t.Fatalf("%s: opened, %v", what, rc.Close())
		}
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
		if r.store.Sending() != 0 || len(names(t, r.store.cfg.ScratchDir)) != 0 || r.copier.released < r.copier.pins {
			t.Errorf("%s: not cleaned up", what)
		}
	}
	mark := wire.Mark{Term: 2, Index: 100}
	r.copier.files = []toyFile{{Database{"main", 1, mark, "../x"}, []byte("x"), nil}}
	refused("a file name that leads elsewhere", nil)
	r.copier.files = leaderFiles(mark)
	r.store.cfg.Fold = func(string) error { return fs.ErrInvalid }
	refused("folding fails", fs.ErrInvalid)
	r.store.cfg.Fold = func(string) error { return nil }
	refused("folding leaves a WAL", nil)
	r.store.cfg.Fold = foldToy
	r.store.free = func(string) (int64, bool) { return 3 << 20, true }
	refused("no space", ErrNoSpace)
	r.store.free = freeSpace
	for k := 1; ; k++ {
		restore, fired := failAt(k)
		_, rc, err := r.store.Open(id)
		restore()
		if !*fired {
			if err != nil || k < 4 {
				t.Fatal(k, err)
			}
			rc.Close()
			break
		}
		if err == nil || r.store.Sending() != 0 || len(names(t, r.store.cfg.ScratchDir)) != 0 {
			t.Fatalf("operation %d: %v, %v", k, err, names(t, r.store.cfg.ScratchDir))
		}
	}
	r.store.cfg.Copier = func() Copier { return nil }
	refused("no node yet", nil)
	for _, id := range []string{"", ".", "..", "../snapshots", "1-2", "01-2-3", "1-5-1"} {
		if _, _, err := r.store.Open(id); err == nil {
			t.Errorf("opened %q", id)
		}
	}
	// What a crash left in the scratch directory goes at the next start.
	if err := os.MkdirAll(filepath.Join(r.store.cfg.ScratchDir, "copy-123", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	r = newRig(t, dir)
	if got := names(t, r.store.cfg.ScratchDir); len(got) != 0 {
		t.Errorf("scratch directory holds %v", got)
	}
	r.store.Close()
	refused("closed", ErrClosed)
}

func TestReceivedCopyBecomesTheState(t *testing.T) {
	leader, follower := newRig(t, t.TempDir()), newRig(t, t.TempDir())
	mark := wire.Mark{Term: 2, Index: 120}
	leader.copier.files = leaderFiles(mark)
	lid, err := leader.local(2, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeToy(follower.file(), 1, wire.Mark{Term: 1, Index: 7}, "follower"); err != nil {
		t.Fatal(err)
	}
	if _, err := follower.local(1, 5); err != nil {
		t.Fatal(err)
	}
	old := follower.gens.Current()
	_, rc, err := leader.store.Open(lid)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	id, err := follower.receive(2, 100, rc)
	if err != nil {
		t.Fatal(err)
	}
	if got := listIDs(t, follower.store); len(got) != 1 || got[0] == id {
		t.Fatalf("before it is installed the list is %v", got)
	}
	var order []string
	err = follower.install(id, func() error { order = append(order, "close "+filepath.Base(follower.gens.Current())); return nil },
		func(dir string) error { order = append(order, "open "+filepath.Base(dir)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"close g-00000001", "open g-00000002"}; !reflect.DeepEqual(order, want) {
		t.Errorf("engines: %v, want %v", order, want)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the former generation is still there: %v", err)
	}
	if got := listIDs(t, follower.store); len(got) != 2 || got[0] != id {
		t.Errorf("listed %v", got)
	}
	for _, f := range leader.copier.files {
		inc, m, _, err := readToy(filepath.Join(follower.gens.Current(), f.db.File))
		if err != nil || m != mark || inc != f.db.Incarnation {
			t.Errorf("%s: incarnation %d mark %v, %v", f.db.Name, inc, m, err)
		}
	}
	if err := follower.install(id, nop, nopOpen); err == nil {
		t.Error("installed twice")
	}
	checkToys(t, follower)
	checkToys(t, newRig(t, follower.dir))
}

func checkToys(t *testing.T, r *rig) {
	t.Helper()
	err := r.store.CheckFiles(func(db Database) (wire.Mark, uint64, error) {
		return verifyToy(filepath.Join(r.gens.Current(), db.File))
	})
	if err != nil {
		t.Error(err)
	}
}

func TestHazard19ReceivedCopyIsRefusedWhole(t *testing.T) {
	mark := wire.Mark{Term: 2, Index: 100}
	good := copyStream(t, smallFiles(mark))
	unsound := smallFiles(mark)
	unsound[1].main = []byte("this is no database, it was damaged at its origin")
	behind := smallFiles(mark)
	behind[0].main = toyBytes(1, wire.Mark{Term: 2, Index: 99}, "x")
	foreign := smallFiles(mark)
	foreign[0].main = toyBytes(9, mark, "x")
	tests := map[string]struct {
		stream []byte
		change func(*rig)
		want   error
	}{
		"cut":                  {good[:len(good)-1], nil, ErrDamaged},
		"nothing but the head": {good[:copyHead], nil, ErrDamaged},
		"a byte too many":      {append(bytes.Clone(good), 0), nil, ErrDamaged},
		"an unsound file":      {copyStream(t, unsound), nil, nil},
		"another mark":         {copyStream(t, behind), nil, ErrDamaged},
		"another incarnation":  {copyStream(t, foreign), nil, ErrDamaged},
		"no space":             {good, func(r *rig) { r.store.free = func(string) (int64, bool) { return 1000, true } }, ErrNoSpace},
		"refused by the node":  {good, func(r *rig) { r.store.cfg.Accept = func(*Manifest) error { return fs.ErrPermission } }, fs.ErrPermission},
		"no way to verify":     {good, func(r *rig) { r.store.cfg.Verify = nil }, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, t.TempDir())
			if tt.change != nil {
				tt.change(r)
			}
			_, err := r.receive(2, 100, bytes.NewReader(tt.stream))
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			untouched(t, r)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		r := newRig(t, t.TempDir())
		k, err := r.store.Create(1, 100, 2, testConfiguration, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Write(good[:len(good)/2]); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(k.Cancel(), k.Cancel()); err != nil {
			t.Fatal(err)
		}
		if k.Close() == nil {
			t.Error("Close after Cancel says nothing")
		}
		untouched(t, r)
	})
}

// untouched holds that nothing is left of a refused copy.
func untouched(t *testing.T, r *rig) {
	t.Helper()
	if got := names(t, r.gens.dir); !reflect.DeepEqual(got, []string{"CURRENT", "g-00000001"}) {
		t.Errorf("generations: %v", got)
	}
	if got := names(t, r.store.cfg.Dir); len(got) != 0 {
		t.Errorf("snapshots: %v", got)
	}
}

func TestNewerStagedSnapshotReplacesTheEarlier(t *testing.T) {
	r := newRig(t, t.TempDir())
	for _, at := range []uint64{100, 200} {
		if _, err := r.receive(2, at, bytes.NewReader(copyStream(t, smallFiles(wire.Mark{Term: 2, Index: at})))); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, r.store.cfg.Dir); len(got) != 1 || !strings.HasPrefix(got[0], "2-200-") {
		t.Errorf("snapshots: %v", got)
	}
	if got := names(t, r.gens.dir); len(got) != 3 {
		t.Errorf("generations: %v", got)
	}
}

func TestHazard16StartWithAStagedSnapshotNeedsRecover(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir)
	stream := copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))
	id, err := r.receive(2, 100, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	r, err = tryRig(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.List(); !errors.Is(err, ErrNotRecovered) {
		t.Errorf("List: %v", err)
	}
	if err := r.store.CheckFiles(nil); !errors.Is(err, ErrNotRecovered) {
		t.Errorf("CheckFiles: %v", err)
	}
	if _, err := r.receive(2, 200, bytes.NewReader(stream)); !errors.Is(err, ErrNotRecovered) {
		t.Errorf("receive: %v", err)
	}
	if err := r.store.Recover(); err != nil {
		t.Fatal(err)
	}
	if got := listIDs(t, r.store); !reflect.DeepEqual(got, []string{id}) {
		t.Errorf("listed %v", got)
	}
	checkToys(t, r)
}

func TestHazard16RecoverGivesUpAnIncompleteStage(t *testing.T) {
	for _, what := range []string{"gone", "file gone", "file damaged", "file too many", "older than a local snapshot"} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			r := newRig(t, dir)
			if err := writeToy(r.file(), 1, wire.Mark{Term: 2, Index: 300}, "local"); err != nil {
				t.Fatal(err)
			}
			localIndex := uint64(50)
			if what == "older than a local snapshot" {
				localIndex = 300
			}
			local, err := r.local(2, localIndex)
			if err != nil {
				t.Fatal(err)
			}
			id, err := r.receive(2, 100, bytes.NewReader(copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))))
			if err != nil {
				t.Fatal(err)
			}
			e, err := r.store.load(id)
			if err != nil {
				t.Fatal(err)
			}
			stage := filepath.Join(r.gens.dir, e.doc.Stage)
			switch what {
			case "gone":
				err = os.RemoveAll(stage)
			case "file gone":
				err = os.Remove(filepath.Join(stage, "system.db"))
			case "file damaged":
				err = os.Truncate(filepath.Join(stage, "system.db"), 40)
			case "file too many":
				err = os.WriteFile(filepath.Join(stage, "other.db"), nil, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			r = newRig(t, dir)
			if got := listIDs(t, r.store); !reflect.DeepEqual(got, []string{local}) {
				t.Errorf("listed %v, want %v", got, local)
			}
			if got := names(t, r.gens.dir); !reflect.DeepEqual(got, []string{"CURRENT", "g-00000001"}) {
				t.Errorf("generations: %v", got)
			}
			checkToys(t, r)
		})
	}
}

func TestHazard16FilesBehindTheirMarkAreRefused(t *testing.T) {
	r := newRig(t, t.TempDir())
	if err := r.store.CheckFiles(nil); err != nil {
		t.Errorf("no snapshot: %v", err)
	}
	if _, err := r.local(3, 100); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		mark  wire.Mark
		inc   uint64
		err   error
		stale bool
		ok    bool
	}{
		{"equal", wire.Mark{Term: 3, Index: 100}, 1, nil, false, true},
		{"later", wire.Mark{Term: 3, Index: 101}, 1, nil, false, true},
		{"later, newer term", wire.Mark{Term: 9, Index: 101}, 1, nil, false, true},
		{"dropped", wire.Mark{}, 0, fmt.Errorf("x: %w", ErrDropped), false, true},
		{"behind", wire.Mark{Term: 3, Index: 99}, 1, nil, true, false},
		{"behind with a newer term", wire.Mark{Term: 4, Index: 99}, 1, nil, true, false},
		{"same index, another term", wire.Mark{Term: 2, Index: 100}, 1, nil, true, false},
		{"later index of an older history", wire.Mark{Term: 2, Index: 200}, 1, nil, true, false},
		{"another incarnation", wire.Mark{Term: 3, Index: 100}, 2, nil, true, false},
		{"missing", wire.Mark{}, 0, fs.ErrNotExist, true, false},
		{"unreadable", wire.Mark{}, 0, fs.ErrPermission, false, false},
	}
	for _, tt := range tests {
		err := r.store.CheckFiles(func(Database) (wire.Mark, uint64, error) { return tt.mark, tt.inc, tt.err })
		var stale *StaleFilesError
		if (err == nil) != tt.ok || errors.As(err, &stale) != tt.stale {
			t.Errorf("%s: %v", tt.name, err)
		}
		if stale != nil && (stale.Database != "main" || stale.Needs != wire.Mark{Term: 3, Index: 100} || stale.Has != tt.mark) {
			t.Errorf("%s: %+v", tt.name, stale)
		}
	}
}

// TestHazard16InstallFailsWholly fails each file operation of receiving and installing in turn: the node stays as it was, and trying again succeeds.
func TestHazard16InstallFailsWholly(t *testing.T) {
	stream := copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))
	step := 1
	if testing.Short() {
		step = 5
	}
	for k := 1; ; k += step {
		dir := fastDir(t)
		r := newRig(t, dir)
		if err := writeToy(r.file(), 1, wire.Mark{Term: 1, Index: 50}, "local"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.local(1, 50); err != nil {
			t.Fatal(err)
		}
		var opened string
		attempt := func() error {
			id, err := r.receive(2, 100, bytes.NewReader(stream))
			if err != nil {
				return err
			}
			return r.install(id, nop, func(dir string) error { opened = dir; return nil })
		}
		restore, fired := failAt(k)
		err := attempt()
		restore()
		if !*fired {
			if err != nil || k < 20 {
				t.Fatalf("only %d operations were made: %v", k-1, err)
			}
			t.Logf("about %d operations", k-1)
			return
		}
		_, mark, payload, rerr := readToy(r.file())
		if rerr != nil || payload != "local" && payload != "leader" || opened != "" && opened != r.gens.Current() {
			t.Fatalf("operation %d (%v): file at %v says %q, %v; engines in %s", k, err, mark, payload, rerr, opened)
		}
		if err == nil && payload != "leader" {
			t.Fatalf("operation %d: success, and the file says %q", k, payload)
		}
		unsure := errors.Is(err, ErrPointerUnsure)
		if !unsure { // a running node tries again
			if err := attempt(); err != nil {
				t.Fatalf("operation %d: the second attempt: %v", k, err)
			}
		}
		r = newRig(t, dir) // and a restarted one is sound in any case
		checkToys(t, r)
		if metas, err := r.store.List(); err != nil || metas[0].Index != 100 {
			t.Fatalf("operation %d: after a restart %+v, %v", k, metas, err)
		}
		if _, _, payload, err := readToy(r.file()); err != nil || payload != "leader" {
			t.Fatalf("operation %d: after a restart the file says %q, %v", k, payload, err)
		}
	}
}
