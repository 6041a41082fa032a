package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/wire"
)

const crashDirEnv = "COLMENA_SNAPSHOT_CRASH_DIR"

// script is a node's life in short: it starts, takes local snapshots, receives and installs a copy at 100, and goes on. It picks up wherever an earlier
// run was killed, and calls done after each step with the index that must not be lost any more.
func script(dir string, stream []byte, done func(index uint64)) error {
	r, err := tryRig(dir, nil)
	if err != nil {
		return err
	}
	if err := r.store.Recover(); err != nil {
		return err
	}
	err = r.store.CheckFiles(func(db Database) (wire.Mark, uint64, error) {
		return verifyToy(filepath.Join(r.gens.Current(), db.File))
	})
	if err != nil {
		return err
	}
	metas, err := r.store.List()
	if err != nil {
		return err
	}
	var newest uint64
	if len(metas) > 0 {
		newest = metas[0].Index
	}
	for _, index := range []uint64{10, 20, 30, 100, 110} {
		if index <= newest {
			continue
		}
		if index == 100 {
			id, err := r.receive(2, 100, bytes.NewReader(stream))
			if err != nil {
				return err
			}
			if err := r.install(id, nop, nopOpen); err != nil {
				return err
			}
			done(index)
			continue
		}
		payload := "local"
		if index > 100 {
			payload = "leader"
		}
		if err := writeToy(r.file(), 1, wire.Mark{Term: 2, Index: index}, payload); err != nil {
			return err
		}
		if _, err := r.local(2, index); err != nil {
			return err
		}
		done(index)
	}
	return nil
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		stream, err := os.ReadFile(filepath.Join(dir, "stream"))
		if err == nil {
			err = script(filepath.Join(dir, "data"), stream, func(index uint64) { fmt.Println("done", index) })
		}
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestHazard16KilledAtEveryStep kills the process at each crash point, and at each write and rename, and holds that the next start is unattended, has lost nothing
// that was done, and leaves no litter.
func TestHazard16KilledAtEveryStep(t *testing.T) {
	t.Parallel()
	stream := copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))
	points := []string{
		"generations.create", "snapshot.persist.before", "snapshot.publish.before-rename", "snapshot.publish.after-rename", "snapshot.reap",
		"install.staged", "install.manifest", "install.commit.before", "generations.commit.renamed", "install.commit.after", "install.reference",
		"durable.write", "durable.rename.before", "durable.rename.after",
	}
	var wg sync.WaitGroup
	next := make(chan string)
	for range 2 {
		wg.Go(func() {
			for point := range next {
				for n := 1; ; n++ {
					fired, err := killAt(fastDir(t), stream, point+":"+strconv.Itoa(n))
					if err != nil {
						t.Errorf("%s:%d: %v", point, n, err)
						break
					}
					if !fired {
						if n == 1 {
							t.Errorf("%s was never passed", point)
						}
						break
					}
					if testing.Short() {
						break
					}
				}
			}
		})
	}
	for _, point := range points {
		next <- point
	}
	close(next)
	wg.Wait()
}

// killAt runs the script in a process that dies at the crash point, and then again to its end.
func killAt(dir string, stream []byte, point string) (fired bool, err error) {
	if err := os.WriteFile(filepath.Join(dir, "stream"), stream, 0o600); err != nil {
		return false, err
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, durable.CrashPointEnv+"="+point)
	out, runErr := cmd.CombinedOutput()
	var exit *exec.ExitError
	if runErr != nil && (!errors.As(runErr, &exit) || exit.ExitCode() == 3) {
		return false, fmt.Errorf("the child: %w: %s", runErr, out)
	}
	fired = runErr != nil
	var acked uint64
	for line := range strings.Lines(string(out)) {
		if _, err := fmt.Sscanf(line, "done %d", &acked); err != nil {
			return fired, fmt.Errorf("the child said %q", line)
		}
	}
	data := filepath.Join(dir, "data")
	if err := soundAfterCrash(data, acked); err != nil {
		return fired, err
	}
	if err := script(data, stream, func(uint64) {}); err != nil {
		return fired, fmt.Errorf("going on: %w", err)
	}
	return fired, soundAfterCrash(data, 110)
}

// soundAfterCrash starts the store as a node does and checks what it finds.
func soundAfterCrash(data string, acked uint64) error {
	r, err := tryRig(data, nil)
	if err != nil {
		return err
	}
	if err := r.store.Recover(); err != nil {
		return err
	}
	metas, err := r.store.List()
	if err != nil {
		return err
	}
	var newest uint64
	if len(metas) > 0 {
		newest = metas[0].Index
	}
	if newest < acked || len(metas) > DefaultRetain+1 {
		return fmt.Errorf("%d snapshots, the newest at %d; %d was done", len(metas), newest, acked)
	}
	err = r.store.CheckFiles(func(db Database) (wire.Mark, uint64, error) {
		return verifyToy(filepath.Join(r.gens.Current(), db.File))
	})
	if err != nil {
		return err
	}
	if newest > 0 {
		_, mark, payload, err := readToy(r.file())
		if err != nil || mark.Index < newest || (payload == "leader") != (newest >= 100) {
			return fmt.Errorf("snapshot at %d, the file is at %v and says %q: %w", newest, mark, payload, err)
		}
	}
	return noLitter(r)
}

func noLitter(r *rig) error {
	for dir, want := range map[string]func(string) bool{
		r.gens.dir:             func(n string) bool { return n == pointerName || n == filepath.Base(r.gens.Current()) },
		r.store.cfg.ScratchDir: func(string) bool { return false },
		r.store.cfg.Dir:        func(n string) bool { _, ok := parseID(n); return ok },
	} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !want(e.Name()) {
				return fmt.Errorf("litter: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	return nil
}
