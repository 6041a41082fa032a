package snapshot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/wire"
)

// failOn lets every operation of a kind fail on paths that contain part.
func failOn(op, part string) (restore func()) {
	return durable.SetHook(func(o, path string) error {
		if o == op && strings.Contains(path, part) {
			return syscall.ENOSPC
		}
		return nil
	})
}

func TestInstallReopensTheOldStateWhenTheSwitchFails(t *testing.T) {
	r := newRig(t, t.TempDir())
	old := r.gens.Current()
	stream := copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))
	id, err := r.receive(2, 100, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	var opened []string
	open := func(dir string) error { opened = append(opened, dir); return nil }

	restore := failOn(durable.OpWrite, pointerName)
	err = r.install(id, nop, open)
	restore()
	if !errors.Is(err, syscall.ENOSPC) || !reflect.DeepEqual(opened, []string{old}) {
		t.Fatalf("%v, opened %v, want %s", err, opened, old)
	}
	untouched(t, r)

	if id, err = r.receive(2, 100, bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if err := r.install(id, nop, open); err != nil || len(opened) != 2 {
		t.Fatalf("the second attempt: %v, opened %v", err, opened)
	}
}

func TestInstallLeavesEnginesClosedAfterAnUnsureSwitch(t *testing.T) {
	r := newRig(t, t.TempDir())
	id, err := r.receive(2, 100, bytes.NewReader(copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))))
	if err != nil {
		t.Fatal(err)
	}
	syncs := 0
	restore := durable.SetHook(func(op, path string) error {
		if op == durable.OpSyncDir && path == r.gens.dir {
			if syncs++; syncs == 2 { // the first belongs to the rename of the stage, the second to the pointer
				return syscall.EIO
			}
		}
		return nil
	})
	opens := 0
	err = r.install(id, nop, func(string) error { opens++; return nil })
	restore()
	if !errors.Is(err, ErrPointerUnsure) || opens != 0 {
		t.Fatalf("%v, opened %d times", err, opens)
	}
	r = newRig(t, r.dir)
	if got := listIDs(t, r.store); !reflect.DeepEqual(got, []string{id}) {
		t.Errorf("after a restart the list is %v", got)
	}
	checkToys(t, r)
}

func TestInstallWithFailingEngines(t *testing.T) {
	r := newRig(t, t.TempDir())
	id, err := r.receive(2, 100, bytes.NewReader(copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))))
	if err != nil {
		t.Fatal(err)
	}
	opens := 0
	err = r.install(id, func() error { return fs.ErrInvalid }, func(string) error { opens++; return nil })
	if !errors.Is(err, fs.ErrInvalid) || opens != 0 {
		t.Errorf("closing fails: %v, opened %d times", err, opens)
	}
	err = r.install(id, nop, func(string) error { return fs.ErrInvalid })
	if !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("opening fails: %v", err)
	}
	if got := listIDs(t, r.store); !reflect.DeepEqual(got, []string{id}) {
		t.Errorf("the switch was made, listed %v", got)
	}
}

func TestSnapshotThatCannotBePublishedLeavesNothing(t *testing.T) {
	for _, op := range []string{durable.OpMkdir, durable.OpWrite, durable.OpSync, durable.OpSyncDir, durable.OpRename} {
		r := newRig(t, t.TempDir())
		restore := failOn(op, r.store.cfg.Dir)
		_, err := r.local(1, 5)
		restore()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", op, err)
		}
		if got := names(t, r.store.cfg.Dir); len(got) != 0 {
			t.Errorf("%s: left %v", op, got)
		}
	}
}

func TestManifestOfAnotherSnapshotIsDamage(t *testing.T) {
	r := newRig(t, t.TempDir())
	id, err := r.local(1, 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.store.path(id), filepath.Join(r.store.cfg.Dir, "1-9-1")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.List(); !errors.Is(err, ErrAllDamaged) {
		t.Errorf("got %v", err)
	}
}
