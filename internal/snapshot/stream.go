package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
)

// A copy stream carries whole database files, all numbers little-endian:
//
//	head     "C", version, "olmena", total size u64, manifest size u32, CRC-32C of these 20 bytes
//	manifest as Manifest.Encode wrote it
//	then for each database of the manifest, in its order:
//	  file   index u32, size u64, CRC-32C of these 12 bytes
//	  frames length u32, CRC-32C u32 over (index u32, offset u64, data), data; all frames but the last are FrameBytes long
//	  sum    SHA-256 of the file
//	trailer  "end\n", CRC-32C of all the sums
//
// The checksum of a frame covers its place, so frames that changed places are found as well. The size of the stream follows from the manifest and the
// sizes of the files alone, which raft needs to know before the first byte.
const (
	kindCopy    = 'C'
	copyVersion = 1
	copyMagic   = "olmena"

	// FrameBytes is the length of a full frame's data.
	FrameBytes = 1 << 20

	copyHead    = 24
	fileHead    = 16
	frameHead   = 8
	copyTrailer = 8

	// MaxFileBytes bounds one file of a copy: the largest database SQLite can have is below it.
	MaxFileBytes = 1 << 48
)

var trailerTag = [4]byte{'e', 'n', 'd', '\n'}

// copySize is the exact length of a stream.
func copySize(manifest int, sizes []int64) int64 {
	total := int64(copyHead + manifest + copyTrailer)
	for _, n := range sizes {
		total += fileHead + n + frameHead*((n+FrameBytes-1)/FrameBytes) + sha256.Size
	}
	return total
}

func appendCopyHead(b []byte, total int64, manifest int) []byte {
	start := len(b)
	b = append(b, kindCopy, copyVersion)
	b = append(b, copyMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(total))
	b = binary.LittleEndian.AppendUint32(b, uint32(manifest))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func appendFileHead(b []byte, index int, size int64) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(index))
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// frameSum is the checksum of a frame's data at its place.
func frameSum(index int, offset int64, data []byte) uint32 {
	var place [12]byte
	binary.LittleEndian.PutUint32(place[:], uint32(index))
	binary.LittleEndian.PutUint64(place[4:], uint64(offset))
	return crc32.Update(crc32.Checksum(place[:], castagnoli), castagnoli, data)
}

// streamReader yields a copy stream from open files. It holds one frame in memory.
type streamReader struct {
	files []*os.File
	sizes []int64

	file   int   // the file being read
	offset int64 // in it
	sum    hash.Hash
	sums   uint32 // CRC-32C of the sums so far
	out    []byte // what is left of the piece being yielded
	buf    []byte // the piece's memory
	phase  phase
	err    error
}

type phase uint8

const (
	phaseFileHead phase = iota
	phaseFrames
	phaseDone
)

// newStreamReader makes the stream's first piece, head and manifest. The manifest's databases belong to the files one to one.
func newStreamReader(manifest []byte, files []*os.File, sizes []int64) (*streamReader, int64) {
	total := copySize(len(manifest), sizes)
	head := appendCopyHead(make([]byte, 0, copyHead+len(manifest)), total, len(manifest))
	return &streamReader{files: files, sizes: sizes, sum: sha256.New(), out: append(head, manifest...)}, total
}

func (s *streamReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(s.out) == 0 {
		if s.err == nil && s.phase == phaseDone {
			s.err = io.EOF
		}
		if s.err == nil {
			s.err = s.next()
		}
		if s.err != nil {
			return 0, s.err
		}
	}
	n := copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

// next makes the next piece.
func (s *streamReader) next() error {
	if s.buf == nil {
		s.buf = make([]byte, frameHead+FrameBytes)
	}
	if s.phase == phaseFileHead {
		if s.file == len(s.files) {
			s.phase = phaseDone
			s.out = binary.LittleEndian.AppendUint32(append(s.buf[:0], trailerTag[:]...), s.sums)
			return nil
		}
		s.phase, s.offset = phaseFrames, 0
		s.sum.Reset()
		s.out = appendFileHead(s.buf[:0], s.file, s.sizes[s.file])
		return nil
	}
	left := s.sizes[s.file] - s.offset
	if left == 0 {
		s.out = s.sum.Sum(s.buf[:0])
		s.sums = crc32.Update(s.sums, castagnoli, s.out)
		s.phase = phaseFileHead
		s.file++
		return nil
	}
	data := s.buf[frameHead : frameHead+min(left, FrameBytes)]
	if _, err := s.files[s.file].ReadAt(data, s.offset); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("snapshot: reading the local copy: %w", err)
	}
	s.sum.Write(data)
	binary.LittleEndian.PutUint32(s.buf, uint32(len(data)))
	binary.LittleEndian.PutUint32(s.buf[4:], frameSum(s.file, s.offset, data))
	s.out = s.buf[:frameHead+len(data)]
	s.offset += int64(len(data))
	return nil
}
