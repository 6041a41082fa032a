package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mentasystems/colmena/internal/durable"
)

func openGens(t *testing.T, dir string) *Generations {
	t.Helper()
	g, err := OpenGenerations(dir)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGenerationsSwitch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "generations")
	g := openGens(t, dir)
	if want := filepath.Join(dir, "g-00000001"); g.Current() != want {
		t.Fatalf("first generation %s, want %s", g.Current(), want)
	}
	stage, err := g.Stage()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage, "main.db"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Commit(stage); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, dir), []string{"CURRENT", "g-00000001", "g-00000002"}; !slices.Equal(got, want) {
		t.Fatalf("after Commit: %v", got)
	}
	if err := g.Collect(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*Generations{g, openGens(t, dir)} {
		if filepath.Base(g.Current()) != "g-00000002" || !slices.Equal(names(t, g.Current()), []string{"main.db"}) {
			t.Fatalf("current %s holds %v", g.Current(), names(t, g.Current()))
		}
	}
	if err := g.Commit(g.Current()); err == nil {
		t.Error("Commit takes a generation for a stage")
	}
	if err := g.Commit(t.TempDir()); err == nil {
		t.Error("Commit takes a directory from elsewhere")
	}
}

func TestGenerationsOpenRemovesOnlyWhatIsItsOwn(t *testing.T) {
	dir := t.TempDir()
	g := openGens(t, dir)
	for _, name := range []string{"stage-1", "ready-1", "g-00000009", "g-9", "g-x", "mine"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "stage-file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openGens(t, dir)
	if got, want := names(t, dir), []string{"CURRENT", "g-00000001", "g-9", "g-x", "mine", "ready-1", "stage-file"}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	_ = g
}

func TestGenerationsRefuseToGuess(t *testing.T) {
	setup := func(t *testing.T) (dir string) {
		dir = t.TempDir()
		g := openGens(t, dir)
		if err := os.WriteFile(filepath.Join(g.Current(), "main.db"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, "stage-1"), 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	refused := func(t *testing.T, dir string) {
		t.Helper()
		before := names(t, dir)
		if g, err := OpenGenerations(dir); err == nil {
			t.Fatalf("opened with %s", g.Current())
		} else if !strings.HasPrefix(err.Error(), "colmena: ") {
			t.Errorf("unclear error %q", err)
		}
		if got := names(t, dir); !slices.Equal(got, before) {
			t.Errorf("left %v of %v", got, before)
		}
	}
	t.Run("every flip of the pointer", func(t *testing.T) {
		dir := setup(t)
		path := filepath.Join(dir, pointerName)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			c := slices.Clone(b)
			c[i] ^= 1 << (i % 8)
			if err := os.WriteFile(path, c, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, dir)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, dir)
	})
	t.Run("no pointer but files", func(t *testing.T) {
		dir := setup(t)
		if err := os.Remove(filepath.Join(dir, pointerName)); err != nil {
			t.Fatal(err)
		}
		refused(t, dir)
	})
	t.Run("the directory is missing", func(t *testing.T) {
		dir := setup(t)
		if err := os.RemoveAll(filepath.Join(dir, "g-00000001")); err != nil {
			t.Fatal(err)
		}
		refused(t, dir)
	})
	t.Run("the pointer leads elsewhere", func(t *testing.T) {
		dir := setup(t)
		if err := durable.SaveDoc(filepath.Join(dir, pointerName), pointerKind, pointerVersion, pointer{Generation: "../x"}); err != nil {
			t.Fatal(err)
		}
		refused(t, dir)
	})
}

// TestGenerationsCommitFailsWholly fails each file operation of Commit in turn.
func TestGenerationsCommitFailsWholly(t *testing.T) {
	for k := 1; ; k++ {
		dir := t.TempDir()
		g := openGens(t, dir)
		if err := os.WriteFile(filepath.Join(g.Current(), "main.db"), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		stage, err := g.Stage()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(stage, "main.db"), []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		restore, fired := failAt(k)
		err = g.Commit(stage)
		restore()
		if !*fired {
			if k < 6 || err != nil {
				t.Fatalf("only %d operations were made: %v", k-1, err)
			}
			return
		}
		if err == nil {
			t.Fatalf("operation %d failed and Commit did not say so", k)
		}
		want := "old"
		if errors.Is(err, ErrPointerUnsure) {
			want = "new"
			if g.Collect() == nil || g.Commit(stage) == nil {
				t.Fatalf("operation %d: an unsure pointer is built upon", k)
			}
		}
		for _, g := range []*Generations{g, openGens(t, dir)} {
			if b, err := os.ReadFile(filepath.Join(g.Current(), "main.db")); err != nil || string(b) != want {
				t.Fatalf("operation %d: the live file is %q, %v, want %q", k, b, err, want)
			}
		}
	}
}

// failAt lets the k-th file operation from now on fail, and those after it succeed.
func failAt(k int) (restore func(), fired *bool) {
	fired = new(bool)
	n := 0
	return durable.SetHook(func(string, string) error {
		if n++; n == k {
			*fired = true
			return syscall.EIO
		}
		return nil
	}), fired
}
