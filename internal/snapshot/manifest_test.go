package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/wire"
)

var update = flag.Bool("update", false, "write golden files that do not exist yet")

func goldenManifest() *Manifest {
	return &Manifest{ClusterID: "c-0123", Databases: []Database{
		{Name: "_system", Incarnation: 1, Mark: wire.Mark{Term: 3, Index: 900}, File: "system.db"},
		{Name: "Orders", Incarnation: math.MaxUint64, Mark: wire.Mark{Term: math.MaxUint64, Index: math.MaxUint64}, File: "db-2.sqlite"},
		{Name: "", Incarnation: 0, File: "x"},
	}}
}

// golden holds b to a file that pins the format for ever.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	wantBytes, err := hex.DecodeString(strings.TrimSpace(string(want)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, wantBytes) {
		t.Errorf("%s: the format changed\n got %x\nwant %x", name, b, wantBytes)
	}
}

func TestManifestRoundTripAndFormat(t *testing.T) {
	m := goldenManifest()
	b := m.Encode()
	golden(t, "manifest-v1.hex", b)
	got, err := DecodeManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("got %+v, want %+v", got, m)
	}
	empty, err := DecodeManifest((&Manifest{}).Encode())
	if err != nil || len(empty.Databases) != 0 {
		t.Errorf("empty manifest: %+v, %v", empty, err)
	}
	golden(t, "staged-v1.hex", encodeStaged("4-1000-1700000000000"))
}

func TestManifestFindsEveryChange(t *testing.T) {
	b := goldenManifest().Encode()
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if _, err := DecodeManifest(c); err == nil {
				t.Fatalf("bit %d of byte %d flipped: not found", bit, i)
			}
		}
		if _, err := DecodeManifest(b[:i]); err == nil {
			t.Fatalf("cut to %d bytes: not found", i)
		}
	}
	if _, err := DecodeManifest(append(bytes.Clone(b), 0)); err == nil {
		t.Error("a byte too many: not found")
	}
}

func TestManifestRefusesNewerVersion(t *testing.T) {
	b := goldenManifest().Encode()
	b[1] = 2
	if _, err := DecodeManifest(b); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v", err)
	}
}

func TestManifestRefusesTricks(t *testing.T) {
	for _, file := range []string{"", ".", "..", "../x", "a/b", `a\b`, "/etc/passwd", "A", "a b", ".hidden", "-x", "a\x00", "x-wal", "x-shm", "x.db-journal",
		strings.Repeat("a", maxFileBytes+1)} {
		m := &Manifest{Databases: []Database{{Name: "a", File: file}}}
		if err := m.Check(); err == nil {
			t.Errorf("Check admits the file name %q", file)
		}
		if _, err := DecodeManifest(m.Encode()); err == nil {
			t.Errorf("DecodeManifest admits the file name %q", file)
		}
	}
	for _, m := range []*Manifest{
		{Databases: []Database{{Name: "a", File: "a"}, {Name: "a", File: "b"}}},
		{Databases: []Database{{Name: "a", File: "a"}, {Name: "b", File: "a"}}},
		{Databases: []Database{{Name: strings.Repeat("a", maxNameBytes+1), File: "a"}}},
		{ClusterID: strings.Repeat("a", maxClusterIDBytes+1)},
	} {
		if _, err := DecodeManifest(m.Encode()); err == nil || m.Check() == nil {
			t.Errorf("admitted: %.100v", m)
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add(goldenManifest().Encode())
	f.Add((&Manifest{}).Encode())
	f.Add([]byte{kindManifest, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err != nil { // the same bytes as a body whose length and checksum are right
			sealed := append([]byte{kindManifest, manifestVersion, 0, 0, 0, 0}, b...)
			binary.LittleEndian.PutUint32(sealed[2:], uint32(len(b)))
			m, err = DecodeManifest(binary.LittleEndian.AppendUint32(sealed, crc32.Checksum(sealed, castagnoli)))
		}
		if err != nil {
			return
		}
		again, err := DecodeManifest(m.Encode())
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v is read back as %+v, %v", m, again, err)
		}
	})
}

func FuzzParseStaged(f *testing.F) {
	f.Add(encodeStaged("4-1000-1700000000000"))
	f.Add([]byte{kindStaged, 1, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := ParseStaged(bytes.NewReader(b))
		if err == nil && !bytes.Equal(encodeStaged(id), b) {
			t.Fatalf("%x is read as %q", b, id)
		}
	})
}

func TestParseStagedFindsEveryChange(t *testing.T) {
	b := encodeStaged("4-1000-1700000000000")
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if _, err := ParseStaged(bytes.NewReader(c)); err == nil {
				t.Fatalf("bit %d of byte %d flipped: not found", bit, i)
			}
		}
	}
	if _, err := ParseStaged(bytes.NewReader(copyStream(t, smallFiles(wire.Mark{Index: 1})))); !errors.Is(err, ErrNotStaged) {
		t.Errorf("a copy stream: %v", err)
	}
}
