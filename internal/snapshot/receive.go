package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

// decoder takes a copy stream in pieces of any length. It knows at every moment how many bytes it needs next, which is never
// more than a frame or a manifest, and gathers them before it looks at them. What it finds goes to target.
type decoder struct {
	target target
	need   int
	step   func(b []byte) error // takes exactly need bytes; sets need and step; nil when the stream is complete
	buf    []byte
	err    error

	total    int64 // stated size of the whole stream
	seen     int64
	manifest *Manifest
	index    int
	size     int64 // of the current file
	offset   int64
	sum      hash.Hash
	sums     uint32
	out      io.WriteCloser
}

// target receives the content of a stream.
type target interface {
	// begin is told the manifest and the total size before any file.
	begin(m *Manifest, total int64) error
	// create opens the file of a database; Close on it must report late write errors and make the content durable.
	create(d Database, size int64) (io.WriteCloser, error)
}

func newDecoder(t target) *decoder {
	d := &decoder{target: t, sum: sha256.New()}
	d.need, d.step = copyHead, d.head
	return d
}

// Write consumes p. After an error it only returns that error.
func (d *decoder) Write(p []byte) (int, error) {
	written := 0
	for d.err == nil && len(p) > 0 {
		if d.step == nil {
			d.err = fmt.Errorf("%w: bytes after the end of the copy", ErrDamaged)
			break
		}
		// The buffer grows with what arrives, not with what is claimed.
		n := min(d.need-len(d.buf), len(p))
		d.buf = append(d.buf, p[:n]...)
		p, written, d.seen = p[n:], written+n, d.seen+int64(n)
		if len(d.buf) == d.need {
			d.err = d.step(d.buf)
			d.buf = d.buf[:0]
		}
	}
	return written, d.err
}

// finish says whether the stream was whole.
func (d *decoder) finish() error {
	if d.err != nil {
		return d.err
	}
	if d.step != nil {
		return fmt.Errorf("%w: the copy ends after %d bytes", ErrDamaged, d.seen)
	}
	return nil
}

// close gives up the file being written, if any.
func (d *decoder) close() {
	if d.out != nil {
		d.out.Close()
		d.out = nil
	}
}

func (d *decoder) head(b []byte) error {
	if b[0] != kindCopy || string(b[2:8]) != copyMagic {
		return fmt.Errorf("%w: not a copy stream", ErrDamaged)
	}
	if crc32.Checksum(b[:20], castagnoli) != binary.LittleEndian.Uint32(b[20:]) {
		return fmt.Errorf("%w: the copy's head has a wrong checksum", ErrDamaged)
	}
	if b[1] == 0 || b[1] > copyVersion {
		return fmt.Errorf("%w: copy stream version %d, at most %d is known", ErrVersion, b[1], copyVersion)
	}
	total, size := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:])
	if total > MaxFileBytes*2 || size > MaxManifestBytes || uint64(size)+copyHead+copyTrailer > total {
		return fmt.Errorf("%w: the copy claims %d bytes and a manifest of %d", ErrDamaged, total, size)
	}
	d.total = int64(total)
	d.need, d.step = int(size), d.takeManifest
	return nil
}

func (d *decoder) takeManifest(b []byte) error {
	m, err := DecodeManifest(b)
	if err != nil {
		return err
	}
	d.manifest = m
	if err := d.target.begin(m, d.total); err != nil {
		return err
	}
	d.nextFile()
	return nil
}

// nextFile expects the next file's head, or the trailer after the last.
func (d *decoder) nextFile() {
	if d.index == len(d.manifest.Databases) {
		d.need, d.step = copyTrailer, d.trailer
		return
	}
	d.need, d.step = fileHead, d.file
}

func (d *decoder) file(b []byte) error {
	index, size := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[4:])
	if crc32.Checksum(b[:12], castagnoli) != binary.LittleEndian.Uint32(b[12:]) {
		return fmt.Errorf("%w: the head of file %d has a wrong checksum", ErrDamaged, d.index)
	}
	if int64(index) != int64(d.index) || size > MaxFileBytes || int64(size) > d.total-d.seen {
		return fmt.Errorf("%w: file %d of %d bytes does not belong at this place", ErrDamaged, index, size)
	}
	out, err := d.target.create(d.manifest.Databases[d.index], int64(size))
	if err != nil {
		return err
	}
	d.out, d.size, d.offset = out, int64(size), 0
	d.sum.Reset()
	d.nextFrame()
	return nil
}

// nextFrame expects the head of the next frame, or the file's sum after the last.
func (d *decoder) nextFrame() {
	if d.offset == d.size {
		d.need, d.step = sha256.Size, d.fileSum
		return
	}
	d.need, d.step = frameHead+int(min(d.size-d.offset, FrameBytes)), d.frame
}

func (d *decoder) frame(b []byte) error {
	length, sum, data := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), b[frameHead:]
	if uint64(length) != uint64(len(data)) {
		return fmt.Errorf("%w: a frame of %d bytes at offset %d of file %d, %d belong there", ErrDamaged, length, d.offset, d.index, len(data))
	}
	if frameSum(d.index, d.offset, data) != sum {
		return fmt.Errorf("%w: a frame has a wrong checksum at offset %d of file %d", ErrDamaged, d.offset, d.index)
	}
	d.sum.Write(data)
	if _, err := d.out.Write(data); err != nil {
		return err
	}
	d.offset += int64(len(data))
	d.nextFrame()
	return nil
}

func (d *decoder) fileSum(b []byte) error {
	if !bytes.Equal(d.sum.Sum(nil), b) {
		return fmt.Errorf("%w: the SHA-256 of file %d does not match", ErrDamaged, d.index)
	}
	d.sums = crc32.Update(d.sums, castagnoli, b)
	out := d.out
	d.out = nil
	if err := out.Close(); err != nil {
		return err
	}
	d.index++
	d.nextFile()
	return nil
}

func (d *decoder) trailer(b []byte) error {
	if [4]byte(b[:4]) != trailerTag || binary.LittleEndian.Uint32(b[4:]) != d.sums || d.seen != d.total {
		return fmt.Errorf("%w: the copy's trailer does not match", ErrDamaged)
	}
	d.step = nil
	return nil
}
