package snapshot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/mentasystems/colmena/internal/durable"
)

const (
	pointerName    = "CURRENT"
	pointerKind    = "generation"
	pointerVersion = 1
	genPrefix      = "g-"
	stagePrefix    = "stage-" // being filled
	readyPrefix    = "ready-" // complete, verified and synced; a manifest is or was about to name it
)

// ErrPointerUnsure: the switch to another generation failed so late that it may or may not survive a power cut. Both generations are kept; the node
// must stop and start again, which finds out.
var ErrPointerUnsure = errors.New("colmena: it is not known whether the switch to a new generation of the database files is on disk: stop this node, look after the disk, start it again")

// pointer is the content of CURRENT.
type pointer struct {
	Generation string `json:"generation"`
	// Stage is the base name of the stage the generation was made of; empty for the first generation.
	Stage string `json:"stage"`
}

// Generations manages the directories of database files. Its methods may be called from several goroutines.
type Generations struct {
	dir string

	mu      sync.Mutex // guards what follows; held over disk work, so no reader of data may wait for it
	current pointer
	unsure  bool // see ErrPointerUnsure
}

// OpenGenerations opens the directory, creating it with a first empty generation when it is new. It removes unfinished stages and the generations that
// CURRENT does not name. If CURRENT is damaged or missing, or names a directory that is not there, it returns an error and removes nothing. The
// caller holds the data directory's lock.
func OpenGenerations(dir string) (*Generations, error) {
	if err := durable.MkdirAllSync(dir, 0o700); err != nil {
		return nil, fmt.Errorf("colmena: generations directory: %w", err)
	}
	g := &Generations{dir: dir}
	err := durable.LoadDoc(filepath.Join(dir, pointerName), pointerKind, pointerVersion, &g.current)
	if errors.Is(err, fs.ErrNotExist) {
		return g, g.create()
	}
	if err != nil {
		return nil, fmt.Errorf("colmena: cannot tell which database files are live, nothing was changed: "+
			"restore the file from a backup, or remove the data directory so that this node gets a fresh copy from its peers: %w", err)
	}
	if _, ok := generationNumber(g.current.Generation); !ok {
		return nil, fmt.Errorf("colmena: %s names %q, which is no generation: nothing was changed", filepath.Join(dir, pointerName), g.current.Generation)
	}
	if info, err := os.Stat(g.Current()); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("colmena: %s names the directory %s, which is missing: nothing was changed: "+
			"restore it, or remove the data directory so that this node gets a fresh copy from its peers", filepath.Join(dir, pointerName), g.current.Generation)
	}
	if err := durable.RemoveTemps(dir); err != nil {
		return nil, err
	}
	return g, g.sweep(func(name string) bool { return strings.HasPrefix(name, stagePrefix) || isGeneration(name) })
}

// create makes the first generation. A start that crashed in here is finished; anything else without a pointer is refused.
func (g *Generations) create() error {
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return err
	}
	first := generationName(1)
	for _, e := range entries {
		name := e.Name()
		if !isGeneration(name) && !strings.HasPrefix(name, readyPrefix) {
			continue
		}
		inside, err := os.ReadDir(filepath.Join(g.dir, name))
		if err != nil {
			return err
		}
		if name != first || len(inside) > 0 {
			return fmt.Errorf("colmena: %s is missing, but there is %s: it is not known which database files are live, nothing was changed: restore %s",
				filepath.Join(g.dir, pointerName), name, pointerName)
		}
	}
	if err := durable.RemoveTemps(g.dir); err != nil {
		return err
	}
	if err := durable.MkdirAllSync(filepath.Join(g.dir, first), 0o700); err != nil {
		return err
	}
	g.current = pointer{Generation: first}
	durable.CrashPoint("generations.create")
	return durable.SaveDoc(filepath.Join(g.dir, pointerName), pointerKind, pointerVersion, g.current)
}

// Current is the path of the live generation's directory.
func (g *Generations) Current() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return filepath.Join(g.dir, g.current.Generation)
}

// Stage makes a new empty directory to build a generation in. It goes away at the next OpenGenerations unless it is committed.
func (g *Generations) Stage() (string, error) {
	var b [8]byte
	rand.Read(b[:])
	dir := filepath.Join(g.dir, fmt.Sprintf("%s%x", stagePrefix, b))
	if err := durable.Fault(durable.OpMkdir, dir); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, nil
}

// Commit makes a stage the live generation: its files and the directory are synced, it gets the next generation's name, and CURRENT is switched
// atomically. On success Current returns the new one. The old one is kept until Collect. After an error the old generation is live
// and whole, except for ErrPointerUnsure. The engines of the old generation must be closed, or they would go on in a generation that is not live.
func (g *Generations) Commit(stage string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.unsure {
		return ErrPointerUnsure
	}
	base, err := g.stageName(stage)
	if err != nil {
		return err
	}
	if err := syncTree(stage); err != nil {
		return err
	}
	next, err := g.nextLocked()
	if err != nil {
		return err
	}
	durable.CrashPoint("install.commit.before")
	if err := durable.Rename(stage, filepath.Join(g.dir, next)); err != nil {
		return err
	}
	durable.CrashPoint("generations.commit.renamed")
	want := pointer{Generation: next, Stage: base}
	path := filepath.Join(g.dir, pointerName)
	if err := durable.SaveDoc(path, pointerKind, pointerVersion, want); err != nil {
		return g.settleLocked(path, want, err)
	}
	g.current = want
	durable.CrashPoint("install.commit.after")
	return nil
}

// settleLocked finds out what a failed write of the pointer left behind.
func (g *Generations) settleLocked(path string, want pointer, cause error) error {
	var found pointer
	err := durable.LoadDoc(path, pointerKind, pointerVersion, &found)
	if err == nil && found == g.current {
		// The old pointer stands: the directory that was to be the new generation is swept at the next start, or right now.
		return errors.Join(cause, durable.RemoveAllSync(filepath.Join(g.dir, want.Generation)))
	}
	g.unsure = true
	if err == nil && found == want {
		g.current = want
	}
	return fmt.Errorf("%w: %w", ErrPointerUnsure, errors.Join(cause, err))
}

// Collect removes the generations that are not live. The engines that used them must be closed.
func (g *Generations) Collect() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.unsure {
		return ErrPointerUnsure
	}
	return g.sweep(isGeneration)
}

// seal syncs a filled stage and renames it so that it survives a restart. It returns the new path.
func (g *Generations) seal(stage string) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	base, err := g.stageName(stage)
	if err != nil {
		return "", err
	}
	if err := syncTree(stage); err != nil {
		return "", err
	}
	ready := filepath.Join(g.dir, readyPrefix+strings.TrimPrefix(base, stagePrefix))
	return ready, durable.Rename(stage, ready)
}

// discard removes a stage. What is no stage, or not there, is left alone.
func (g *Generations) discard(stage string) error {
	if _, err := g.stageName(stage); err != nil {
		return err
	}
	return durable.RemoveAllSync(stage)
}

// sweepReady removes the sealed stages for which keep is false.
func (g *Generations) sweepReady(keep func(base string) bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sweep(func(name string) bool { return strings.HasPrefix(name, readyPrefix) && !keep(name) })
}

// committedFrom is the base name of the stage the live generation was made of.
func (g *Generations) committedFrom() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current.Stage
}

// sweep removes the directories whose names remove selects, the live generation never.
func (g *Generations) sweep(remove func(name string) bool) error {
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() && e.Name() != g.current.Generation && remove(e.Name()) {
			errs = append(errs, durable.RemoveAllSync(filepath.Join(g.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// nextLocked is the first free name above every generation there is.
func (g *Generations) nextLocked() (string, error) {
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return "", err
	}
	highest, _ := generationNumber(g.current.Generation)
	for _, e := range entries {
		if n, ok := generationNumber(e.Name()); ok {
			highest = max(highest, n)
		}
	}
	return generationName(highest + 1), nil
}

// stageName checks that path is one of this directory's stages and returns its base name.
func (g *Generations) stageName(path string) (string, error) {
	base := filepath.Base(path)
	if filepath.Dir(path) != filepath.Clean(g.dir) || !strings.HasPrefix(base, stagePrefix) && !strings.HasPrefix(base, readyPrefix) {
		return "", fmt.Errorf("snapshot: %s is not a stage of %s", path, g.dir)
	}
	return base, nil
}

// syncTree makes the files of a flat directory and the directory itself durable.
func syncTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("snapshot: %s is not a plain file: a stage holds database files only", filepath.Join(dir, e.Name()))
		}
		if err := durable.SyncFile(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}

func generationName(n uint64) string { return fmt.Sprintf("%s%08d", genPrefix, n) }

// generationNumber is the inverse of generationName; other spellings are no generations.
func generationNumber(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, genPrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	return n, err == nil && n > 0 && generationName(n) == name
}

func isGeneration(name string) bool {
	_, ok := generationNumber(name)
	return ok
}
