package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// childEnv tells the re-executed test binary what to do: "lock:<dir>", "write:<path>", "pass".
const childEnv = "DURABLE_TEST_CHILD"

func TestMain(m *testing.M) {
	what, arg, _ := strings.Cut(os.Getenv(childEnv), ":")
	switch what {
	case "lock":
		if _, err := LockDir(arg); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		io.ReadAll(os.Stdin) // until the parent lets go
		os.Exit(0)
	case "write":
		if err := WriteFile(arg, bytes.Repeat([]byte("new"), 10_000), 0o600); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "pass":
		for range 5 {
			CrashPoint("test.other")
			CrashPoint("test.point")
			fmt.Println("passed")
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func child(t *testing.T, what, crashPoint string) (string, error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what, CrashPointEnv+"="+crashPoint)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestWriteFileReplacesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, data := range []string{"one", "", strings.Repeat("x", 1<<20)} {
		must(t, WriteFile(path, []byte(data), 0o640))
		got, err := ReadFileMax(path, 1<<20)
		must(t, err)
		if string(got) != data {
			t.Fatalf("read %d bytes, wrote %d", len(got), len(data))
		}
	}
	if runtime.GOOS != "windows" {
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm()&0o027 != 0 && info.Mode().Perm() != 0o640 {
			t.Fatalf("mode %v", info.Mode())
		}
	}
}

func TestWriteFileFailsWholeAtEveryStep(t *testing.T) {
	for _, op := range []string{OpCreate, OpWrite, OpSync, OpRename, OpSyncDir} {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		must(t, WriteFile(path, []byte("old"), 0o600))
		restore := SetHook(func(got, _ string) error {
			if got == op {
				return syscall.EIO
			}
			return nil
		})
		err := WriteFile(path, []byte("new"), 0o600)
		restore()
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s: %v", op, err)
		}
		want := "old"
		if op == OpSyncDir {
			want = "new" // renamed, but not known to last
		}
		if got, _ := os.ReadFile(path); string(got) != want {
			t.Fatalf("%s: the file holds %q", op, got)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Fatalf("%s: the directory holds %v", op, entries)
		}
	}
}

func TestAKilledWriteLeavesOldOrNew(t *testing.T) {
	for point, want := range map[string]int{"durable.write": 3, "durable.rename.before": 3, "durable.rename.after": 30_000, "": 30_000} {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		must(t, os.WriteFile(path, []byte("old"), 0o600))
		if _, err := child(t, "write:"+path, point); (err == nil) != (point == "") {
			t.Fatalf("%s: %v", point, err)
		}
		got, err := os.ReadFile(path)
		must(t, err)
		if len(got) != want {
			t.Fatalf("%s: %d bytes", point, len(got))
		}
		must(t, RemoveTemps(dir))
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Fatalf("%s: the directory holds %v", point, entries)
		}
	}
}

func TestCrashPointFiresAtItsCount(t *testing.T) {
	for point, want := range map[string]int{"test.point": 0, "test.point:3": 2, "test.poin": 5, "": 5, "test.point:x": 0} {
		out, err := child(t, "pass", point)
		if n := strings.Count(out, "passed"); n != want || (err == nil) != (want == 5) {
			t.Errorf("%q: passed %d times, then %v", point, n, err)
		}
	}
}

func TestReadFileMaxIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, make([]byte, 101), 0o600))
	if _, err := ReadFileMax(path, 100); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("%v", err)
	}
	if _, err := ReadFileMax(path+"x", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%v", err)
	}
	if _, err := ReadFileMax(filepath.Dir(path), 1<<20); err == nil {
		t.Fatal("a directory was read")
	}
	if runtime.GOOS == "linux" { // endless, and states a size of 0
		if _, err := ReadFileMax("/dev/zero", 100_000); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("%v", err)
		}
	}
}

func TestDirectoriesAreMadeAndSyncedFromTheTop(t *testing.T) {
	root := t.TempDir()
	var mu sync.Mutex
	var synced []string
	restore := SetHook(func(op, path string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == OpSyncDir {
			rel, _ := filepath.Rel(root, path)
			synced = append(synced, filepath.ToSlash(rel))
		}
		return nil
	})
	must(t, MkdirAllSync(filepath.Join(root, "a", "b", "c"), 0o700))
	restore()
	if got := strings.Join(synced, " "); got != ".. . a a/b" {
		t.Fatalf("synced %q", got)
	}
	// A sync that failed once is made up for by the next call.
	restore = SetHook(func(op, _ string) error {
		if op == OpSyncDir {
			return syscall.EIO
		}
		return nil
	})
	first := MkdirAllSync(filepath.Join(root, "x"), 0o700)
	second := MkdirAllSync(filepath.Join(root, "x"), 0o700)
	restore()
	if !errors.Is(first, syscall.EIO) || !errors.Is(second, syscall.EIO) {
		t.Fatalf("%v, %v", first, second)
	}
	must(t, MkdirAllSync(filepath.Join(root, "x"), 0o700))
	must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))
	if MkdirAllSync(filepath.Join(root, "file"), 0o700) == nil || MkdirAllSync(filepath.Join(root, "file", "b"), 0o700) == nil {
		t.Fatal("a file passed for a directory")
	}
	must(t, RemoveAllSync(filepath.Join(root, "a")))
	must(t, RemoveAllSync(filepath.Join(root, "a")))
	must(t, RemoveAllSync(filepath.Join(root, "none", "deeper")))
	if _, err := os.Stat(filepath.Join(root, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the tree is still there")
	}
}

func TestADirectoryIsLockedOnce(t *testing.T) {
	dir := t.TempDir()
	l, err := LockDir(dir)
	must(t, err)
	var locked *LockedError
	if _, err := LockDir(dir); !errors.Is(err, ErrLocked) || !errors.As(err, &locked) || locked.PID != os.Getpid() || !strings.Contains(err.Error(), dir) {
		t.Fatalf("the second lock in one process: %v", err)
	}
	out, err := child(t, "lock:"+dir, "")
	if err == nil || !strings.Contains(out, "another process (pid "+strconv.Itoa(os.Getpid())+")") {
		t.Fatalf("the lock of another process: %q, %v", out, err)
	}
	must(t, l.Unlock())
	must(t, l.Unlock())
	must(t, (*DirLock)(nil).Unlock())
	if out, err := child(t, "lock:"+dir, ""); err != nil {
		t.Fatalf("after Unlock: %q, %v", out, err)
	}
	l, err = LockDir(dir)
	must(t, err)
	must(t, l.Unlock())
	if _, err := LockDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a missing directory: %v", err)
	}
}

func TestTheLockEndsWithItsProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=lock:"+dir)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line := make([]byte, 7)
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "locked\n" {
		t.Fatalf("the child said %q, %v", line, err)
	}
	var locked *LockedError
	if _, err := LockDir(dir); !errors.As(err, &locked) || locked.PID != cmd.Process.Pid {
		t.Fatalf("a directory in use: %v", err)
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	l, err := LockDir(dir)
	must(t, err)
	must(t, l.Unlock())
}

func TestLockingUnderStress(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	holders := 0
	for range 8 {
		wg.Go(func() {
			for range 200 {
				l, err := LockDir(dir)
				if errors.Is(err, ErrLocked) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if holders++; holders != 1 {
					t.Errorf("%d holders", holders)
				}
				holders--
				mu.Unlock()
				if err := l.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestCopiesAreFaithful(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 3*copyBuffer+77)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	must(t, os.WriteFile(filepath.Join(dir, "src"), data, 0o600))
	src, err := os.Open(filepath.Join(dir, "src"))
	must(t, err)
	defer src.Close()
	size := int64(len(data))
	copies := map[string]func(dst *os.File, off, n int64) (int64, error){
		"fd":     func(dst *os.File, off, n int64) (int64, error) { return CopyFd(dst, src.Fd(), off, n) },
		"reader": func(dst *os.File, off, n int64) (int64, error) { return CopyReaderAt(dst, src, off, n) },
		"pread":  func(dst *os.File, off, n int64) (int64, error) { return CopyReaderAt(dst, fdReader(src.Fd()), off, n) },
	}
	for name, copyRange := range copies {
		for _, mode := range []int{0, os.O_APPEND} { // copy_file_range refuses O_APPEND: the fallback
			for _, c := range []struct{ off, n, got int64 }{{0, size, size}, {5, 0, 0}, {4096, 70_000, 70_000}, {size - 3, 10, 3}, {size + 5, 1, 0}} {
				dst, err := os.OpenFile(filepath.Join(dir, "dst"), os.O_RDWR|os.O_CREATE|os.O_TRUNC|mode, 0o600)
				must(t, err)
				_, err = dst.WriteString("head")
				must(t, err)
				n, err := copyRange(dst, c.off, c.n)
				if n != c.got || (err == nil) != (c.got == c.n) || (err != nil && !errors.Is(err, io.ErrUnexpectedEOF)) {
					t.Fatalf("%s %d+%d: copied %d, %v", name, c.off, c.n, n, err)
				}
				must(t, dst.Close())
				got, err := os.ReadFile(filepath.Join(dir, "dst"))
				must(t, err)
				if want := "head" + string(data[min(c.off, size):min(c.off+c.got, size)]); string(got) != want {
					t.Fatalf("%s %d+%d: %d bytes that differ", name, c.off, c.n, len(got))
				}
			}
		}
		dst, err := os.Create(filepath.Join(dir, "dst"))
		must(t, err)
		if _, err := copyRange(dst, -1, 5); err == nil {
			t.Fatalf("%s: a negative offset", name)
		}
		restore := SetHook(func(op, _ string) error {
			if op == OpCopy {
				return syscall.ENOSPC
			}
			return nil
		})
		if _, err := copyRange(dst, 0, size); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%s: %v", name, err)
		}
		restore()
		must(t, dst.Close())
	}
	if at, err := src.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		t.Fatalf("the source was moved to %d, %v", at, err)
	}
}

type state struct {
	Name  string         `json:"name"`
	Count int            `json:"count"`
	More  map[string]int `json:"more,omitempty"`
}

func TestDocuments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc")
	var got state
	if err := LoadDoc(path, "kind", 1, &got); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	want := state{Name: "eins\nzwei", Count: 3, More: map[string]int{"a": 1}}
	must(t, SaveDoc(path, "kind", 2, want))
	must(t, LoadDoc(path, "kind", 2, &got))
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got %v", got)
	}
	if err := LoadDoc(path, "kind", 1, &got); !errors.Is(err, ErrVersion) || errors.Is(err, ErrDamaged) {
		t.Fatalf("a newer version: %v", err)
	}
	if err := LoadDoc(path, "other", 2, &got); !errors.Is(err, ErrDamaged) {
		t.Fatalf("another kind: %v", err)
	}
	var fewer struct {
		Name string `json:"name"`
	}
	if err := LoadDoc(path, "kind", 2, &fewer); !errors.Is(err, ErrDamaged) {
		t.Fatalf("fields that are not known: %v", err)
	}
	for kind, version := range map[string]int{"": 1, "with space": 1, "UPPER": 1, "ok": 0, strings.Repeat("x", 65): 1} {
		if SaveDoc(path, kind, version, want) == nil {
			t.Errorf("kind %q, version %d was saved", kind, version)
		}
	}
	if err := SaveDoc(path, "kind", 1, strings.Repeat("x", MaxDocBytes)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
	must(t, os.WriteFile(path, make([]byte, MaxDocBytes+1), 0o600))
	if err := LoadDoc(path, "kind", 1, &got); !errors.Is(err, ErrDamaged) {
		t.Fatalf("an oversized file: %v", err)
	}
}

// The bytes on disk never change for a version.
func TestDocumentFormatIsPinned(t *testing.T) {
	data, err := EncodeDoc("node-state", 1, state{Name: "n", Count: 2})
	must(t, err)
	const golden = "colmena-doc node-state 1 22 8858a6a3\n{\"name\":\"n\",\"count\":2}"
	if string(data) != golden {
		t.Fatalf("got  %q\nwant %q", data, golden)
	}
}

func TestEveryChangeOfADocumentIsFound(t *testing.T) {
	data, err := EncodeDoc("kind", 1, state{Name: "name", Count: 12345})
	must(t, err)
	check := func(what string, changed []byte) {
		var v state
		if _, err := DecodeDoc(changed, "kind", 1, &v); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
		if fmt.Sprint(v) != fmt.Sprint(state{}) {
			t.Errorf("%s: the value was touched", what)
		}
	}
	for i := range data {
		for bit := range 8 {
			changed := bytes.Clone(data)
			changed[i] ^= 1 << bit
			check(fmt.Sprintf("bit %d of byte %d", bit, i), changed)
		}
		check(fmt.Sprintf("cut to %d", i), data[:i])
	}
	check("a byte more", append(bytes.Clone(data), 'x'))
}

func FuzzDecodeDoc(f *testing.F) {
	for _, v := range []any{state{Name: "n"}, 5, nil, []int{1}} {
		data, err := EncodeDoc("kind", 1, v)
		must(f, err)
		f.Add(data)
	}
	f.Add([]byte("colmena-doc kind 1 0 00000000\n"))
	f.Add([]byte("colmena-doc kind 01 2 00000000\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v any
		version, err := DecodeDoc(data, "kind", 1, &v)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if _, _, body, err := splitDoc(data); err != nil || !bytes.HasPrefix(data, []byte(docHead("kind", version, len(body)))) {
			t.Fatalf("%q was accepted", data)
		}
	})
}

func TestTheHookIsRestored(t *testing.T) {
	outer := SetHook(func(string, string) error { return syscall.EIO })
	inner := SetHook(nil)
	must(t, Fault(OpWrite, "x"))
	inner()
	if !errors.Is(Fault(OpWrite, "x"), syscall.EIO) {
		t.Fatal("the outer hook is gone")
	}
	outer()
	must(t, Fault(OpWrite, "x"))
}
