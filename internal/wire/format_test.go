package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

var updateFlag = flag.Bool("update", false, "write golden files that do not exist; existing ones are never touched")

func hexLines(b []byte) string {
	var s strings.Builder
	for part := range slices.Chunk(b, 32) {
		s.WriteString(hex.EncodeToString(part) + "\n")
	}
	return s.String()
}

func readGolden(name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join("testdata", name+"-v1.golden"))
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
}

func TestGoldenFilesPinVersion1(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			encoded := f.example().Append(nil)
			golden, err := readGolden(f.name)
			if errors.Is(err, os.ErrNotExist) && *updateFlag {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join("testdata", f.name+"-v1.golden")
				file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := file.WriteString(hexLines(encoded)); err != nil {
					t.Fatal(err)
				}
				if err := file.Close(); err != nil {
					t.Fatal(err)
				}
				golden, err = readGolden(f.name)
				if err != nil {
					t.Fatal(err)
				}
			} else if err != nil {
				t.Fatal(err)
			} else if *updateFlag {
				t.Logf("exists and stays as it is")
			}
			if !bytes.Equal(encoded, golden) {
				t.Errorf("the example encodes as\n%swhich is not the golden file:\n%sA changed format needs a new version and a new golden file.",
					hexLines(encoded), hexLines(golden))
			}
			got := f.empty()
			mustDecode(t, got, golden)
			mustEqual(t, got, f.example())
		})
	}
}

func TestRandomMessagesRoundTrip(t *testing.T) {
	g := newGen(t)
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			reused := f.empty()
			for range 500 {
				want := f.random(g)
				prefix := []byte("before")
				b := want.Append(prefix)
				if !bytes.HasPrefix(b, prefix) {
					t.Fatal("Append overwrote what was there")
				}
				b = b[len(prefix):]
				fresh := f.empty()
				mustDecode(t, fresh, b)
				mustEqual(t, fresh, want)
				checkFootprint(t, fresh, len(b))
				mustDecode(t, reused, b)
				mustEqual(t, reused, want)
				if !bytes.Equal(reused.Append(nil), b) {
					t.Fatal("encoding what was decoded gives other bytes")
				}
			}
		})
	}
}

func TestRandomEntriesAreSound(t *testing.T) {
	g := newGen(t)
	for range 200 {
		for _, f := range formats {
			m := f.random(g)
			if c, ok := m.(interface{ Check() error }); ok {
				if err := c.Check(); err != nil {
					t.Fatalf("%s: %v", f.name, err)
				}
			}
		}
	}
}

func TestEveryPrefixIsCorrupt(t *testing.T) {
	for _, f := range formats {
		b := f.example().Append(nil)
		for n := range len(b) {
			if err := f.empty().Decode(b[:n:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: first %d of %d bytes: %v", f.name, n, len(b), err)
			}
		}
	}
}

func TestTrailingBytesAreCorrupt(t *testing.T) {
	for _, f := range formats {
		b := f.example().Append(nil)
		if err := f.empty().Decode(append(b, 0)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", f.name, err)
		}
		if f.summed { // and behind a checksum that fits
			b = appendSum(append(b[:len(b)-crcBytes], 0), 0)
			if err := f.empty().Decode(b); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s with a checksum: %v", f.name, err)
			}
		}
	}
}

func TestUnknownKindOrVersionIsAFormatError(t *testing.T) {
	for _, f := range formats {
		for _, change := range []struct{ kind, version byte }{{1, 0}, {0, 1}, {0, 254}} {
			b := f.example().Append(nil)
			want := FormatError{Kind: b[0] + change.kind, Version: b[1] + change.version, WantKind: b[0], WantVersion: 1}
			b[0], b[1] = want.Kind, want.Version
			var got *FormatError
			if err := f.empty().Decode(b); !errors.As(err, &got) || *got != want || errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v, want %v", f.name, err, &want)
			}
		}
	}
}

func TestEveryFlippedBitIsNoticedBySummedFormats(t *testing.T) {
	for _, f := range formats {
		if !f.summed {
			continue
		}
		b := f.example().Append(nil)
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if err := f.empty().Decode(b); !errors.Is(err, ErrCorrupt) && !isFormatError(err) {
				t.Errorf("%s: bit %d: %v", f.name, i, err)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	}
}

// Flips bits and mends the checksum: decoders must survive what a checksum does not catch.
func TestDamagedMessagesNeverPanic(t *testing.T) {
	g := newGen(t)
	for _, f := range formats {
		for range 300 {
			b := f.random(g).Append(nil)
			if f.summed {
				b = b[:len(b)-crcBytes]
			}
			for range 1 + g.r.IntN(3) {
				b[2+g.r.IntN(len(b)-2)] = byte(g.r.Uint32())
			}
			checkDecode(t, f, b)
		}
	}
}

func TestAnUnknownFlagIsCorrupt(t *testing.T) {
	for _, name := range []string{"mark-request", "mark-response", "term-response", "query-request", "rows-header", "rows-chunk"} {
		b := formatNamed(name).example().Append(nil)
		b[2] |= 0x80
		if err := formatNamed(name).empty().Decode(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A message of a few bytes that announces as much as the limits allow must not make a decoder allocate for it.
func TestAnnouncedNumbersAllocateNothing(t *testing.T) {
	huge := []byte{0xff, 0xff, 0x03} // 65535
	hostile := map[string][]byte{
		"write-request":  slices.Concat([]byte{MsgWriteRequest, 1, 0}, huge, huge, make([]byte, 64)),
		"write-response": slices.Concat([]byte{MsgWriteResponse, 1, 0}, huge, make([]byte, 64)),
		"stored-results": slices.Concat([]byte{MsgStoredResults, 1}, huge, make([]byte, 64)),
		"rows-header":    slices.Concat([]byte{MsgRowsHeader, 1, 0}, []byte{0xff, 0xff, 0x01}, make([]byte, 64)),
		"rows-chunk":     slices.Concat([]byte{MsgRowsChunk, 1, 0}, huge, []byte{0xff, 0xff, 0xff, 0x1f}, make([]byte, 64)),
		"query-request":  slices.Concat([]byte{MsgQueryRequest, 1, 0, 0, 0}, []byte{0xff, 0xff, 0xff, 0x07}, make([]byte, 64)),
		"hello":          slices.Concat([]byte{MsgHello, 1, 1}, []byte{0xff, 0x01}, make([]byte, 64)),
	}
	entry := (&entryMessage{}).Append(nil)
	entry = entry[:len(entry)-crcBytes]
	copy(entry[len(entry)-8:], []byte{0xff, 0xff, 0, 0, 0xff, 0xff, 0xf, 0})
	hostile["entry"] = append(entry, make([]byte, 64)...)
	for name, b := range hostile {
		f := formatNamed(name)
		if f.summed {
			b = appendSum(b, 0)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := f.empty().Decode(b)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<10 {
			t.Errorf("%s: %d bytes allocated for a message of %d", name, n, len(b))
		}
	}
}

func TestRequestsEncodeConcurrently(t *testing.T) {
	g := newGen(t)
	var wg sync.WaitGroup
	for range 4 {
		m := g.writeRequest()
		want := m.Append(nil)
		wg.Go(func() {
			for range 200 {
				if !bytes.Equal(m.Append(nil), want) {
					t.Error("another encoding beside others")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestErrorCodesAreNumberedForGood(t *testing.T) {
	order := []ErrorCode{ErrSQL, ErrNonDeterministic, ErrNotLeader, ErrExpired, ErrTooLarge, ErrRefused, ErrOutcomeUnknown, ErrClosed,
		ErrDiskFull, ErrHalted, ErrTimeout, ErrCanceled, ErrBusy, ErrInternal, ErrNoDatabase, ErrNoHandler, ErrPanic, ErrApp, ErrFormat, ErrFunctionNotReady,
		ErrUnknownMember, ErrLastVoter, ErrNoQuorum, ErrNoSuccessor, ErrTxAborted, ErrNotFound}
	for i, c := range order {
		if int(c) != i+1 || strings.HasPrefix(c.String(), "error code") {
			t.Errorf("code %d is %q, want number %d and a name", c, c, i+1)
		}
	}
	if len(errorCodeNames) != len(order)+1 {
		t.Errorf("%d names for %d codes", len(errorCodeNames)-1, len(order))
	}
	if got := ErrorCode(200).String(); got != "error code 200" {
		t.Error(got)
	}
	if kinds := []Kind{KindNull, KindInt, KindFloat, KindText, KindBlob}; !reflect.DeepEqual(kinds, []Kind{0, 1, 2, 3, 4}) {
		t.Error(kinds)
	}
}

func TestErrorTextsNameWhatHappened(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{exampleError(), "colmena: UNIQUE constraint failed: kv.k: unit 3"},
		{&Error{Code: ErrBusy}, "colmena: busy"},
		{&LimitError{What: "statement bytes", Got: 5, Max: 4}, "colmena: statement bytes: 5, the limit is 4"},
	} {
		if c.err.Error() != c.want {
			t.Errorf("%q, want %q", c.err, c.want)
		}
	}
}

func TestMarks(t *testing.T) {
	if m := (Mark{3, 9}); m.String() != "3/9" || m.IsZero() || !(Mark{}).IsZero() {
		t.Error(m)
	}
	if !(Mark{9, 1}).Less(Mark{1, 2}) || (Mark{1, 2}).Less(Mark{2, 2}) {
		t.Error("marks are ordered by index alone")
	}
}
