package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// memTarget keeps what it receives.
type memTarget struct {
	m     *Manifest
	files []*bytes.Buffer
	open  int
}

func (t *memTarget) begin(m *Manifest, _ int64) error { t.m = m; return nil }

func (t *memTarget) create(Database, int64) (io.WriteCloser, error) {
	t.files = append(t.files, new(bytes.Buffer))
	t.open++
	return memFile{t.files[len(t.files)-1], t}, nil
}

type memFile struct {
	*bytes.Buffer
	t *memTarget
}

func (f memFile) Close() error { f.t.open--; return nil }

func decodeAll(b []byte, piece int) (*memTarget, error) {
	target := &memTarget{}
	d := newDecoder(target)
	defer d.close()
	for p := range slices.Chunk(b, piece) {
		if _, err := d.Write(p); err != nil {
			return target, err
		}
	}
	return target, d.finish()
}

func TestCopyStreamRoundTripInPiecesOfAnySize(t *testing.T) {
	files := leaderFiles(wire.Mark{Term: 2, Index: 100})
	stream := copyStream(t, files)
	for _, piece := range []int{1021, 32 << 10, FrameBytes, len(stream)} {
		got, err := decodeAll(stream, piece)
		if err != nil {
			t.Fatalf("pieces of %d: %v", piece, err)
		}
		for i, f := range files {
			want := f.main
			if f.wal != nil {
				want = f.wal
			}
			if got.m.Databases[i] != f.db || !bytes.Equal(got.files[i].Bytes(), want) {
				t.Fatalf("pieces of %d: file %d differs", piece, i)
			}
		}
	}
	small := copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))
	golden(t, "copy-v1.hex", small)
	if _, err := decodeAll(small, 1); err != nil {
		t.Fatalf("byte by byte: %v", err)
	}
	if _, err := decodeAll(copyStream(t, nil), 7); err != nil {
		t.Fatalf("no database: %v", err)
	}
}

func TestCopyStreamFindsEveryChange(t *testing.T) {
	b := copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if _, err := decodeAll(c, len(c)); err == nil {
				t.Fatalf("bit %d of byte %d flipped: not found", bit, i)
			}
		}
		if _, err := decodeAll(b[:i], len(b)); err == nil {
			t.Fatalf("cut to %d bytes: not found", i)
		}
	}
	if _, err := decodeAll(append(bytes.Clone(b), 0), len(b)); err == nil {
		t.Error("a byte too many: not found")
	}
}

func TestCopyStreamFindsChangesInLargeFiles(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	b := copyStream(t, leaderFiles(wire.Mark{Term: 2, Index: 100}))
	for range 20 {
		i := rng.IntN(len(b))
		b[i] ^= 0x40
		if _, err := decodeAll(b, 1<<20); err == nil {
			t.Fatalf("byte %d changed: not found", i)
		}
		b[i] ^= 0x40
	}
}

func TestCopyStreamFindsFramesThatChangedPlaces(t *testing.T) {
	mark := wire.Mark{Term: 1, Index: 1}
	payload := append(bytes.Repeat([]byte{1}, FrameBytes), bytes.Repeat([]byte{2}, FrameBytes)...)
	b := copyStream(t, []toyFile{{Database{"a", 1, mark, "a"}, payload, nil}})
	at := bytes.Index(b, bytes.Repeat([]byte{1}, 64)) - frameHead
	const frame = frameHead + FrameBytes
	first := bytes.Clone(b[at : at+frame])
	copy(b[at:], b[at+frame:at+2*frame])
	copy(b[at+frame:], first)
	if _, err := decodeAll(b, len(b)); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v", err)
	}
}

func TestCopyStreamRefusesAnotherSizeThanItStates(t *testing.T) {
	b := copyStream(t, smallFiles(wire.Mark{Term: 2, Index: 100}))
	for _, d := range []int64{-1, 1, 1 << 20} {
		manifest := int(binary.LittleEndian.Uint32(b[16:]))
		lying := append(appendCopyHead(nil, int64(len(b))+d, manifest), b[copyHead:]...)
		if _, err := decodeAll(lying, len(b)); !errors.Is(err, ErrDamaged) {
			t.Errorf("off by %d: %v", d, err)
		}
	}
}

// TestCopyStreamClaimsCostNothing feeds heads that claim enormous sizes with right checksums.
func TestCopyStreamClaimsCostNothing(t *testing.T) {
	m := &Manifest{Databases: []Database{{Name: "a", File: "a"}}}
	enc := m.Encode()
	heads := map[string][]byte{
		"total":         appendCopyHead(nil, 1<<62, len(enc)),
		"manifest":      appendCopyHead(nil, 1<<40, 1<<31-1),
		"manifest full": appendCopyHead(nil, 1<<40, MaxManifestBytes),
		"file":          appendFileHead(append(appendCopyHead(nil, 1<<40, len(enc)), enc...), 0, 1<<39),
		"file beyond":   appendFileHead(append(appendCopyHead(nil, 1<<20, len(enc)), enc...), 0, 1<<39),
		"file negative": appendFileHead(append(appendCopyHead(nil, 1<<40, len(enc)), enc...), 0, -1),
		"file index":    appendFileHead(append(appendCopyHead(nil, 1<<40, len(enc)), enc...), 1, 1),
	}
	// A manifest that claims as many databases as its count can say.
	claim := binary.AppendUvarint([]byte{kindManifest, 1, 0, 0, 0, 0, 0}, 1<<60)
	binary.LittleEndian.PutUint32(claim[2:], uint32(len(claim)-manifestHead))
	claim = binary.LittleEndian.AppendUint32(claim, crc32.Checksum(claim, castagnoli))
	heads["databases"] = append(appendCopyHead(nil, 1<<20, len(claim)), claim...)
	for name, b := range heads {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decodeAll(b, len(b))
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: admitted", name)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

func BenchmarkCopyStream(b *testing.B) {
	path := filepath.Join(b.TempDir(), "f")
	const size = 32 << 20
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	m := (&Manifest{Databases: []Database{{Name: "a", File: "a"}}}).Encode()
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		r, total := newStreamReader(m, []*os.File{f}, []int64{size})
		if n, err := io.Copy(io.Discard, r); err != nil || n != total {
			b.Fatal(n, err)
		}
	}
}

func FuzzCopyStream(f *testing.F) {
	f.Add(copyStream(f, smallFiles(wire.Mark{Term: 2, Index: 100})), 1)
	f.Add(copyStream(f, nil), 3)
	f.Add(appendCopyHead(nil, 1<<40, 10), 24)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		target, err := decodeAll(b, 1+int(uint(piece)%4096))
		if target.open != 0 && err == nil {
			t.Fatal("a file was left open")
		}
	})
}
