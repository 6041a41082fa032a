package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// childEnv names the file that the re-executed test binary is to sweep.
const childEnv = "LOGSTORE_SWEEP_CHILD"

// sample is the content of the file that is damaged.
func sample() []*raft.Log {
	list := entries(11, 60, 120)
	list[7] = entryAt(18, 9000) // overflow pages
	return list
}

var sampleValues = map[string]uint64{"CurrentTerm": 9, "LastVoteTerm": 8}

func writeSample(t testing.TB) string {
	t.Helper()
	path := storePath(t)
	s := mustOpen(t, Config{Path: path, StoreID: "node-1", NoSync: true})
	must(t, s.StoreLogs(entries(1, 10, 120)))
	for _, e := range sample() {
		must(t, s.StoreLogs([]*raft.Log{e}))
	}
	for key, v := range sampleValues {
		must(t, s.SetUint64([]byte(key), v))
	}
	must(t, s.DeleteRange(1, 10))
	must(t, s.Close())
	return path
}

// examine opens a possibly damaged file. It returns nil if everything is as it was or the damage was found, and an error if it was
// believed.
func examine(path string) error {
	s, err := Open(Config{Path: path, StoreID: "node-1", NoSync: true})
	if err != nil {
		if isDamaged(err) || errors.Is(err, ErrForeign) {
			return nil
		}
		return fmt.Errorf("Open failed with %T: %w", err, err)
	}
	defer s.Close()
	first, err := s.FirstIndex()
	last, err2 := s.LastIndex()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if first != 11 || last != 60 {
		return fmt.Errorf("the log is %d to %d", first, last)
	}
	for _, want := range sample() {
		var got raft.Log
		err := s.GetLog(want.Index, &got)
		if isDamaged(err) {
			continue
		}
		if err == nil {
			err = same(&got, want)
		}
		if err != nil {
			return err
		}
	}
	for key, want := range sampleValues {
		if got, err := s.GetUint64([]byte(key)); err != nil || got != want {
			return fmt.Errorf("%s is %d, %w", key, got, err)
		}
	}
	return nil
}

// childMain sweeps over one file: every byte of what matters flipped, and cut at every length of interest. It prints what it is about to
// do only when something goes wrong, except for the last step, which a crash leaves in the progress file.
func childMain(path string) int {
	whole, err := os.ReadFile(path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	work := path + ".work"
	progress, err := os.Create(path + ".progress")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	bad, tries := 0, 0
	try := func(what string, data []byte) {
		tries++
		progress.WriteAt([]byte(fmt.Sprintf("%-60s\n", what)), 0)
		if err := os.WriteFile(work, data, 0o600); err != nil {
			fmt.Println(err)
			bad++
			return
		}
		if err := examine(work); err != nil {
			fmt.Printf("%s: %v\n", what, err)
			bad++
		}
		os.Remove(work + unsyncedSuffix)
	}
	try("unchanged", whole)
	page := os.Getpagesize()
	stride := 97
	for at := 0; at < len(whole); at++ {
		// The start of every page densely, the rest thinly: most of it is data.
		if at%page >= 48 && at%stride != 0 {
			continue
		}
		data := bytes.Clone(whole)
		data[at] ^= 1 << (at % 8)
		try(fmt.Sprintf("flip at %d", at), data)
	}
	for _, n := range []int{0, 1, 15, 79, 80, page - 1, page, page + 79, 2 * page, 3 * page, 4 * page, len(whole) / 2, len(whole) - page, len(whole) - 1} {
		try(fmt.Sprintf("cut to %d", n), whole[:n])
		try(fmt.Sprintf("zero from %d", n), append(bytes.Clone(whole[:n]), make([]byte, len(whole)-n)...))
		filled := bytes.Clone(whole)
		for i := n; i < len(filled); i++ {
			filled[i] = 0xff
		}
		try(fmt.Sprintf("ones from %d", n), filled)
	}
	for p := range len(whole) / page { // pages swapped, zeroed, repeated
		for name, with := range map[string][]byte{"zeroed": make([]byte, page), "is its neighbour": whole[(p*page+page)%len(whole):][:page]} {
			data := bytes.Clone(whole)
			copy(data[p*page:], with)
			try(fmt.Sprintf("page %d %s", p, name), data)
		}
	}
	fmt.Println(tries, "files tried")
	if bad > 0 {
		return 1
	}
	return 0
}

// A damaged file never takes the process down and is never believed. The sweep runs in a child process, whose death would be the finding.
func TestHazard28DamageIsFoundAndNeverFatal(t *testing.T) {
	path := writeSample(t)
	trim(t, path)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.CombinedOutput()
	if err != nil {
		at, _ := os.ReadFile(path + ".progress")
		if len(out) > 6000 {
			out = out[:6000]
		}
		t.Fatalf("the sweep ended with %v at %q:\n%s", err, strings.TrimSpace(string(at)), out)
	}
	t.Logf("%s", out)
}

// trim cuts the file to the pages in use, which keeps the sweep short.
func trim(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	m, err := readMetas(f, info.Size())
	must(t, err)
	must(t, f.Truncate(int64(m.end)*int64(m.pageBytes)))
}

func TestWhatIsNoLogStoreIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"empty":   nil,
		"short":   []byte("x"),
		"zeros":   make([]byte, 64<<10),
		"garbage": bytes.Repeat([]byte("colmena "), 8<<10),
		"sqlite":  append([]byte("SQLite format 3\x00"), make([]byte, 32<<10)...),
	} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, data, 0o600))
		_, err := Open(Config{Path: path})
		var d *DamagedError
		if !errors.As(err, &d) || d.Path != path || d.Reason == "" {
			t.Errorf("%s: %v", name, err)
		}
		after, rerr := os.ReadFile(path)
		must(t, rerr)
		if !bytes.Equal(after, data) {
			t.Errorf("%s: the refused file was changed", name)
		}
	}
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700))
	if _, err := Open(Config{Path: filepath.Join(dir, "dir")}); err == nil {
		t.Error("a directory was opened")
	}
}

// A file cut under a running store is an error of the call that meets it.
func TestAFileCutWhileOpenIsAnError(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not cut a mapped file")
	}
	path := storePath(t)
	s := mustOpen(t, Config{Path: path, CacheEntries: -1})
	must(t, s.StoreLogs(entries(1, 50, 4000)))
	must(t, os.Truncate(path, int64(os.Getpagesize()*2)))
	var e raft.Log
	if err := s.GetLog(25, &e); !isDamaged(err) {
		t.Fatalf("GetLog returned %v", err)
	}
	if err := s.Verify(t.Context()); !isDamaged(err) {
		t.Fatalf("Verify returned %v", err)
	}
}

func FuzzCheckReader(f *testing.F) {
	path := writeSample(f)
	trim(f, path)
	whole, err := os.ReadFile(path)
	must(f, err)
	f.Add(uint32(0), []byte{})
	f.Add(uint32(os.Getpagesize()*2), []byte{1, 2, 3})
	f.Add(uint32(16+32), []byte{0xff, 0xff})
	f.Add(uint32(os.Getpagesize()*5+10), []byte{0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		data := bytes.Clone(whole)
		if int(at) < len(data) {
			copy(data[at:], patch)
		}
		l, err := checkReader(bytes.NewReader(data), int64(len(data)))
		if (l == nil) == (err == nil) {
			t.Fatalf("layout %v and error %v", l, err)
		}
		checkReader(bytes.NewReader(patch), int64(len(patch)))
	})
}

func FuzzUnseal(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(sealValue([]byte("k"), []byte("v")))
	f.Fuzz(func(t *testing.T, stored []byte) {
		value, err := unsealValue([]byte("k"), stored)
		if err == nil && !bytes.Equal(sealValue([]byte("k"), value), stored) {
			t.Fatalf("%x was accepted", stored)
		}
		unsealEntry(1, &raft.Log{Index: 1, Extensions: stored})
	})
}
