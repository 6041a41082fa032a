package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unsafe"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const crcBytes = 4

// cursor reads one message. Its error is sticky: after the first failure nothing is left, every read returns zero, and only
// loops need to look at err. It hands out slices of b, never copies.
type cursor struct {
	b   []byte
	off int
	err error
}

// open checks kind, version and size, and returns a cursor at the first byte after them.
func open(b []byte, kind byte, maxBytes int) (cursor, error) {
	if len(b) < 2 {
		return cursor{}, fmt.Errorf("%w: %d bytes are no message", ErrCorrupt, len(b))
	}
	if b[0] != kind || b[1] != version {
		return cursor{}, &FormatError{Kind: b[0], Version: b[1], WantKind: kind, WantVersion: version}
	}
	if len(b) > maxBytes {
		return cursor{}, fmt.Errorf("%w: %w", ErrCorrupt,
			&LimitError{What: "message bytes", Got: uint64(len(b)), Max: uint64(maxBytes)})
	}
	return cursor{b: b, off: 2}, nil
}

// openSummed is open for a message that ends in its CRC-32C, which it checks and takes off.
func openSummed(b []byte, kind byte, maxBytes int) (cursor, error) {
	c, err := open(b, kind, maxBytes)
	if err != nil {
		return c, err
	}
	body := len(b) - crcBytes
	if body < c.off {
		return c, fmt.Errorf("%w: no room for a checksum", ErrCorrupt)
	}
	if crc32.Checksum(b[:body], castagnoli) != binary.LittleEndian.Uint32(b[body:]) {
		return c, fmt.Errorf("%w: checksum mismatch", ErrCorrupt)
	}
	c.b = b[:body:body]
	return c, nil
}

// appendSum closes a message that began at b[start].
func appendSum(b []byte, start int) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func (c *cursor) left() int { return len(c.b) - c.off }

func (c *cursor) fail(why string) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s (at byte %d)", ErrCorrupt, why, c.off)
	}
	c.b, c.off = nil, 0
}

func (c *cursor) failLimit(what string, got uint64, limit int) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %w", ErrCorrupt, &LimitError{What: what, Got: got, Max: uint64(limit)})
	}
	c.b, c.off = nil, 0
}

// end reports the first failure; bytes that nobody read are one.
func (c *cursor) end() error {
	if c.err == nil && c.left() != 0 {
		c.fail("bytes after the end")
	}
	return c.err
}

func (c *cursor) byte() byte {
	if c.off >= len(c.b) {
		c.fail("ends early")
		return 0
	}
	v := c.b[c.off]
	c.off++
	return v
}

// flags reads a flag byte, of which known are the bits that this version writes.
func (c *cursor) flags(known byte) byte {
	f := c.byte()
	if f&^known != 0 {
		c.fail("unknown flags")
		return 0
	}
	return f
}

func (c *cursor) uvarint() uint64 {
	if c.off < len(c.b) && c.b[c.off] < 0x80 {
		v := c.b[c.off]
		c.off++
		return uint64(v)
	}
	return c.longUvarint()
}

func (c *cursor) longUvarint() uint64 {
	v, n := binary.Uvarint(c.b[c.off:])
	if n <= 0 {
		c.fail("bad integer")
		return 0
	}
	c.off += n
	return v
}

func (c *cursor) varint() int64 { return unzigzag(c.uvarint()) }

func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

func zigzag(v int64) uint64 { return uint64(v)<<1 ^ uint64(v>>63) }

func (c *cursor) varint32() int32 {
	v := c.varint()
	if v != int64(int32(v)) {
		c.fail("integer out of range")
		return 0
	}
	return int32(v)
}

func (c *cursor) uint16() uint16 {
	v := c.uvarint()
	if v > 0xffff {
		c.fail("integer out of range")
		return 0
	}
	return uint16(v)
}

func (c *cursor) fixed32() uint32 {
	if c.left() < 4 {
		c.fail("ends early")
		return 0
	}
	v := binary.LittleEndian.Uint32(c.b[c.off:])
	c.off += 4
	return v
}

func (c *cursor) fixed64() uint64 {
	if c.left() < 8 {
		c.fail("ends early")
		return 0
	}
	v := binary.LittleEndian.Uint64(c.b[c.off:])
	c.off += 8
	return v
}

// bounded holds a number of elements against its limit and against the bytes left, each element taking at least minBytes.
func (c *cursor) bounded(n uint64, what string, limit, minBytes int) int {
	if n > uint64(limit) {
		c.failLimit(what, n, limit)
		return 0
	}
	if n > uint64(c.left()/minBytes) {
		c.fail("more elements than bytes")
		return 0
	}
	return int(n)
}

func (c *cursor) count(what string, limit, minBytes int) int {
	return c.bounded(c.uvarint(), what, limit, minBytes)
}

// bytes reads a length and that many bytes, which alias the input and cannot be appended to in place.
func (c *cursor) bytes(what string, limit int) []byte {
	n := c.bounded(c.uvarint(), what, limit, 1)
	if c.err != nil {
		return nil
	}
	v := c.b[c.off : c.off+n : c.off+n]
	c.off += n
	return v
}

// text is bytes as a string that aliases the input.
func (c *cursor) text(what string, limit int) string { return aliasString(c.bytes(what, limit)) }

// sameOrCopy reads a string that does not alias the input. When it equals old, which is usual where a message is decoded into
// the same value again and again, old is kept and nothing is allocated.
func (c *cursor) sameOrCopy(old, what string, limit int) string {
	b := c.bytes(what, limit)
	if string(b) == old {
		return old
	}
	return string(b)
}

func aliasString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func flagIf(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}

// resize returns s with length n, reusing its array where that is large enough. The elements are not cleared.
func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
