package wire

import (
	"encoding/binary"
	"fmt"
)

// Args is an encoded list of arguments: a uvarint count, then the values, each optionally named. Nil or empty means no arguments.
type Args []byte

// ArgsBuilder encodes arguments and reuses its buffer. The zero value is ready.
type ArgsBuilder struct {
	buf []byte
	n   int
}

// NewArgs returns a builder with room for about n small arguments.
func NewArgs(n int) *ArgsBuilder {
	return &ArgsBuilder{buf: make([]byte, 0, 16*max(0, min(n, MaxArgs)))}
}

// Reset forgets the arguments and keeps the buffer.
func (b *ArgsBuilder) Reset() { b.buf, b.n = b.buf[:0], 0 }

// Add appends a positional argument. It copies the value.
func (b *ArgsBuilder) Add(v Value) { b.AddNamed("", v) }

// AddNamed appends a named argument; an empty name makes it positional. It copies name and value.
func (b *ArgsBuilder) AddNamed(name string, v Value) {
	b.buf = appendValue(b.buf, name, v)
	b.n++
}

// Args returns the arguments so far in a slice of their own, nil if there are none. The builder goes on unharmed.
func (b *ArgsBuilder) Args() Args {
	if b.n == 0 {
		return nil
	}
	return b.Append(make([]byte, 0, binary.MaxVarintLen32+len(b.buf)))
}

// Append appends the arguments so far to dst, nothing if there are none, for callers that keep many lists in one buffer.
func (b *ArgsBuilder) Append(dst []byte) []byte {
	if b.n == 0 {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(b.n))
	return append(dst, b.buf...)
}

var (
	errArgs      = fmt.Errorf("%w: not a list of arguments", ErrCorrupt)
	errArgsCount = fmt.Errorf("%w: more arguments than bytes", ErrCorrupt)
)

// Len is the number of arguments.
func (a Args) Len() (int, error) {
	n, _, err := a.head()
	return n, err
}

// head returns the count and the offset of the first value.
func (a Args) head() (n, off int, err error) {
	if len(a) == 0 {
		return 0, 0, nil
	}
	v, size := binary.Uvarint(a)
	switch {
	case size <= 0:
		return 0, 0, errArgs
	case v > MaxArgs:
		return 0, 0, fmt.Errorf("%w: %w", ErrCorrupt, &LimitError{What: "arguments of a statement", Got: v, Max: MaxArgs})
	case v > uint64(len(a)-size):
		return 0, 0, errArgsCount
	}
	return int(v), size, nil
}

// Check walks over all arguments. The decoders have done so for arguments that came from a message.
func (a Args) Check() error {
	n, off, err := a.head()
	if err != nil {
		return err
	}
	if skipValues(a, off, n, true) != len(a) {
		return errArgs
	}
	return nil
}

// ValueReader reads arguments one after the other without allocating.
type ValueReader struct {
	b    []byte
	off  int
	left int
}

// Reader returns a reader at the first argument.
func (a Args) Reader() (ValueReader, error) {
	n, off, err := a.head()
	return ValueReader{b: a, off: off, left: n}, err
}

// Next returns the next argument, its name empty if it is positional; ok is false after the last. Name and value alias the
// arguments' bytes.
func (r *ValueReader) Next() (name string, v Value, ok bool, err error) {
	if r.left == 0 {
		if r.off != len(r.b) {
			return "", Value{}, false, errArgs
		}
		return "", Value{}, false, nil
	}
	at, v, next := readValue(r.b, r.off)
	if next < 0 {
		return "", Value{}, false, errArgs
	}
	r.off, r.left = next, r.left-1
	return aliasString(r.b[at.off : at.off+at.n]), v, true, nil
}

// Left is the number of arguments not yet read.
func (r *ValueReader) Left() int { return r.left }
