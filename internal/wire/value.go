package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"
)

// Kind is the storage class of a Value. Append-only.
type Kind uint8

const (
	KindNull  Kind = 0
	KindInt   Kind = 1
	KindFloat Kind = 2
	KindText  Kind = 3
	KindBlob  Kind = 4
)

// Value is one SQLite value. B aliases the buffer it was decoded from, or what it was made of.
type Value struct {
	Kind Kind
	N    uint64 // KindInt: the int64; KindFloat: math.Float64bits
	B    []byte // KindText and KindBlob
}

// Null is SQLite's NULL.
func Null() Value { return Value{} }

// Int makes an integer.
func Int(v int64) Value { return Value{Kind: KindInt, N: uint64(v)} }

// Float makes a float. All 64 bits travel, those of a NaN too.
func Float(v float64) Value { return Value{Kind: KindFloat, N: math.Float64bits(v)} }

// Text makes a text. B aliases the string's bytes and must not be written to.
func Text(s string) Value {
	return Value{Kind: KindText, B: unsafe.Slice(unsafe.StringData(s), len(s))}
}

// Blob makes a blob, which aliases b. A nil b is a blob of no bytes, not a NULL.
func Blob(b []byte) Value { return Value{Kind: KindBlob, B: b} }

// Int64 is the integer of a KindInt.
func (v Value) Int64() int64 { return int64(v.N) }

// Float64 is the float of a KindFloat.
func (v Value) Float64() float64 { return math.Float64frombits(v.N) }

// String is a copy of the bytes of a KindText or KindBlob. It does not render numbers.
func (v Value) String() string { return string(v.B) }

// A value is a tag byte and a payload. The tag holds the kind (3 bits), whether a name follows (1 bit, arguments only), and 4
// bits of the payload: the zig-zag integer or the length itself if it is below inlineMore, else inlineMore and a uvarint follows.
const (
	tagKind    = 0x07
	tagNamed   = 0x08
	tagShift   = 4
	inlineMore = 15
)

// AppendValue appends v's encoding. It panics on a kind that does not exist, because no decoder would take it.
func AppendValue(b []byte, v Value) []byte { return appendValue(b, "", v) }

func appendValue(b []byte, name string, v Value) []byte {
	var n uint64 // the number that may go into the tag
	switch v.Kind {
	case KindNull, KindFloat:
	case KindInt:
		n = zigzag(int64(v.N))
	case KindText, KindBlob:
		n = uint64(len(v.B))
	default:
		panic(fmt.Sprintf("wire: a value of kind %d does not exist", v.Kind))
	}
	tag := byte(v.Kind) | byte(min(n, inlineMore))<<tagShift
	if name == "" {
		b = append(b, tag)
	} else {
		b = append(b, tag|tagNamed)
		b = appendString(b, name)
	}
	if n >= inlineMore {
		b = binary.AppendUvarint(b, n)
	}
	switch v.Kind {
	case KindFloat:
		b = binary.LittleEndian.AppendUint64(b, v.N)
	case KindText, KindBlob:
		b = append(b, v.B...)
	}
	return b
}

// ReadValue reads the first value of b and returns what follows it. The value aliases b and allocates nothing. B of a text or
// blob is never nil.
func ReadValue(b []byte) (v Value, rest []byte, err error) {
	name, v, n := readValue(b, 0)
	if n < 0 || name.n != 0 {
		return Value{}, nil, errValue
	}
	return v, b[n:], nil
}

var errValue = fmt.Errorf("%w: not a value", ErrCorrupt)

// span is a part of a buffer.
type span struct{ off, n int }

// readValue reads the value at b[off:] and returns the offset after it, negative if there is none.
func readValue(b []byte, off int) (name span, v Value, next int) {
	if off >= len(b) {
		return name, v, -1
	}
	tag := b[off]
	off++
	if tag&tagNamed != 0 {
		n, at := readLength(b, off)
		if at < 0 || n == 0 {
			return name, v, -1
		}
		name = span{at, n}
		off = at + n
	}
	kind, inline := Kind(tag&tagKind), uint64(tag>>tagShift)
	switch kind {
	case KindNull:
		if inline != 0 {
			return name, v, -1
		}
		return name, v, off
	case KindInt:
		if inline == inlineMore {
			n, size := binary.Uvarint(b[off:])
			if size <= 0 {
				return name, v, -1
			}
			inline, off = n, off+size
		}
		return name, Value{Kind: KindInt, N: uint64(unzigzag(inline))}, off
	case KindFloat:
		if inline != 0 || len(b)-off < 8 {
			return name, v, -1
		}
		return name, Value{Kind: KindFloat, N: binary.LittleEndian.Uint64(b[off:])}, off + 8
	case KindText, KindBlob:
		n := int(inline)
		if inline == inlineMore {
			if n, off = readLength(b, off); off < 0 {
				return name, v, -1
			}
		}
		if n > len(b)-off {
			return name, v, -1
		}
		return name, Value{Kind: kind, B: b[off : off+n : off+n]}, off + n
	}
	return name, v, -1
}

// readLength reads a length at b[off:] that the bytes after it can satisfy, and returns where those begin, negative if it cannot.
func readLength(b []byte, off int) (n, at int) {
	v, size := binary.Uvarint(b[off:])
	if size <= 0 || v > uint64(len(b)-off-size) {
		return 0, -1
	}
	return int(v), off + size
}

// skipValues walks over n values from off and returns the offset after them, negative if they are not there.
func skipValues(b []byte, off, n int, named bool) int {
	for range n {
		if off < len(b) && !named && b[off]&tagNamed != 0 {
			return -1
		}
		if _, _, off = readValue(b, off); off < 0 {
			return -1
		}
	}
	return off
}
