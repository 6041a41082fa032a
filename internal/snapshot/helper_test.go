package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/durable"
	"github.com/mentasystems/colmena/internal/wire"
)

// A toy database is a file of incarnation, term, index, payload and a checksum. Its "-wal" is a newer whole file that folding puts in its place.

func toyBytes(incarnation uint64, mark wire.Mark, payload string) []byte {
	b := binary.LittleEndian.AppendUint64(nil, incarnation)
	b = binary.LittleEndian.AppendUint64(b, mark.Term)
	b = binary.LittleEndian.AppendUint64(b, mark.Index)
	b = append(b, payload...)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func parseToy(b []byte) (incarnation uint64, mark wire.Mark, payload string, err error) {
	if len(b) < 28 || crc32.ChecksumIEEE(b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return 0, wire.Mark{}, "", errors.New("toy database is malformed")
	}
	mark = wire.Mark{Term: binary.LittleEndian.Uint64(b[8:]), Index: binary.LittleEndian.Uint64(b[16:])}
	return binary.LittleEndian.Uint64(b), mark, string(b[24 : len(b)-4]), nil
}

func readToy(path string) (incarnation uint64, mark wire.Mark, payload string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, wire.Mark{}, "", err
	}
	return parseToy(b)
}

func writeToy(path string, incarnation uint64, mark wire.Mark, payload string) error {
	return durable.WriteFile(path, toyBytes(incarnation, mark, payload), 0o600)
}

func verifyToy(path string) (wire.Mark, uint64, error) {
	incarnation, mark, _, err := readToy(path)
	return mark, incarnation, err
}

func foldToy(path string) error {
	err := os.Rename(path+"-wal", path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// toyCopier pins files that are given as bytes: main file and WAL.
type toyCopier struct {
	files    []toyFile
	pins     int
	released int
}

type toyFile struct {
	db        Database
	main, wal []byte
}

func (c *toyCopier) Pin(context.Context) (Pinned, error) {
	c.pins++
	return c, nil
}

func (c *toyCopier) Release() { c.released++ }

func (c *toyCopier) Files() []PinnedFile {
	var files []PinnedFile
	part := func(suffix string, b []byte) Part {
		return Part{Suffix: suffix, Size: int64(len(b)), Copy: func(_ context.Context, dst *os.File) error {
			_, err := dst.Write(b)
			return err
		}}
	}
	for _, f := range c.files {
		p := PinnedFile{Database: f.db, Parts: []Part{part("", f.main)}}
		if f.wal != nil {
			p.Parts = append(p.Parts, part("-wal", f.wal))
		}
		files = append(files, p)
	}
	return files
}

// leaderFiles are three databases: one with a WAL, one of more than two frames, one of exactly a frame.
func leaderFiles(mark wire.Mark) []toyFile {
	db := func(name string, inc uint64) Database {
		return Database{Name: name, Incarnation: inc, Mark: mark, File: name + ".db"}
	}
	exact := make([]byte, FrameBytes-28)
	return []toyFile{
		{db("main", 1), toyBytes(1, wire.Mark{Term: 1, Index: 2}, "old"), toyBytes(1, mark, "leader")},
		{db("big", 7), toyBytes(7, mark, string(bytes.Repeat([]byte("0123456789abcdef"), 150_000))), nil},
		{db("exact", 8), toyBytes(8, mark, string(exact)), nil},
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// rig is a data directory with its generations and store.
type rig struct {
	dir    string
	gens   *Generations
	store  *Store
	copier *toyCopier
}

func tryRig(dir string, change func(*Config)) (*rig, error) {
	r := &rig{dir: dir, copier: &toyCopier{}}
	var err error
	if r.gens, err = OpenGenerations(filepath.Join(dir, "generations")); err != nil {
		return nil, err
	}
	cfg := Config{
		Dir: filepath.Join(dir, "snapshots"), ScratchDir: filepath.Join(dir, "scratch"), Generations: r.gens,
		Copier: func() Copier { return r.copier }, Fold: foldToy, Verify: verifyToy, Logger: quiet(),
	}
	if change != nil {
		change(&cfg)
	}
	r.store, err = New(cfg)
	return r, err
}

func newRig(t *testing.T, dir string) *rig {
	t.Helper()
	r, err := tryRig(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Recover(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) file() string { return filepath.Join(r.gens.Current(), "main.db") }

// local takes a local snapshot of the main database at index.
func (r *rig) local(term, index uint64) (id string, err error) {
	m := Manifest{ClusterID: "cluster", Databases: []Database{{Name: "main", Incarnation: 1, Mark: wire.Mark{Term: term, Index: index}, File: "main.db"}}}
	k, err := r.store.Create(1, index, term, testConfiguration, 3, nil)
	if err != nil {
		return "", err
	}
	if _, err := k.Write(m.Encode()); err != nil {
		return "", errors.Join(err, k.Cancel())
	}
	return k.ID(), k.Close()
}

var testConfiguration = raft.Configuration{Servers: []raft.Server{
	{Suffrage: raft.Voter, ID: "a", Address: "a"}, {Suffrage: raft.Nonvoter, ID: "b", Address: "b"},
}}

// receive feeds a copy stream as raft does and returns the ID of the staged snapshot.
func (r *rig) receive(term, index uint64, stream io.Reader) (id string, err error) {
	k, err := r.store.Create(1, index, term, testConfiguration, 3, nil)
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(k, stream); err != nil {
		return "", errors.Join(err, k.Cancel())
	}
	return k.ID(), k.Close()
}

// install does what FSM.Restore does.
func (r *rig) install(id string, closeEngines func() error, openEngines func(string) error) error {
	_, rc, err := r.store.Open(id)
	if err != nil {
		return err
	}
	defer rc.Close()
	got, err := ParseStaged(rc)
	if err != nil {
		return err
	}
	if got != id {
		return fmt.Errorf("restore was given %s, want %s", got, id)
	}
	return r.store.Install(id, closeEngines, openEngines)
}

func nop() error           { return nil }
func nopOpen(string) error { return nil }

// copyStream is a whole copy stream of the given files.
func copyStream(t testing.TB, files []toyFile) []byte {
	t.Helper()
	m := &Manifest{ClusterID: "cluster"}
	var handles []*os.File
	var sizes []int64
	for _, f := range files {
		b := f.main
		if f.wal != nil {
			b = f.wal
		}
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		m.Databases, handles, sizes = append(m.Databases, f.db), append(handles, h), append(sizes, int64(len(b)))
	}
	r, size := newStreamReader(m.Encode(), handles, sizes)
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != size {
		t.Fatalf("the stream has %d bytes, %d were announced", len(b), size)
	}
	return b
}

func smallFiles(mark wire.Mark) []toyFile {
	return []toyFile{
		{Database{"main", 1, mark, "main.db"}, toyBytes(1, mark, "leader"), nil},
		{Database{"_system", 2, mark, "system.db"}, toyBytes(2, mark, "catalogue"), nil},
	}
}

// fastDir is a temporary directory in memory where the system has one: tests that make thousands of syncs but cut no power need no disk.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "colmena-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
