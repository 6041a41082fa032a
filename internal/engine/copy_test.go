package engine

import (
	"os"
	"testing"
)

func copyPinned(t *testing.T, p *Pin, path string) {
	t.Helper()
	defer p.Release()
	for _, part := range []string{"", "-wal"} {
		f, err := os.Create(path + part)
		if err != nil {
			t.Fatal(err)
		}
		cp := p.CopyMain
		if part != "" {
			cp = p.CopyWAL
		}
		if err := cp(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Fold(path); err != nil {
		t.Fatal(err)
	}
	m, inc, err := Verify(path)
	if err != nil {
		t.Fatal(err)
	}
	if m.Index < p.Mark.Index || inc != 7 {
		t.Errorf("the copy states %v of %d, pinned was %v", m, inc, p.Mark)
	}
}
