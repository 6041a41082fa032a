package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// A stream carries frames: a 4-byte length, a type byte, a body of that length.
// The caller's first frame is open; data frames follow in both directions; end
// says that a side sends no more; the server's last frame is end (the handler
// returned nil) or failure (a wire.Error). Types are append-only.
const (
	frameOpen    = 1 // method and the caller's remaining time
	frameData    = 2
	frameEnd     = 3
	frameFailure = 4

	headBytes = 5
	// stepBytes is what a frame may claim without having sent it, and the most
	// that is handed to the connection at once.
	stepBytes = 64 << 10
	// MethodBytesMax bounds a method's name.
	MethodBytesMax = 256
)

var errFrame = errors.New("rpc: malformed frame")

// putHead writes a frame's head.
func putHead(b []byte, typ byte, n int) {
	binary.BigEndian.PutUint32(b, uint32(n))
	b[4] = typ
}

// appendHead appends a frame's head.
func appendHead(b []byte, typ byte, n int) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(n)), typ)
}

// readHead reads a frame's head and holds its length to max.
func readHead(r io.Reader, max int) (typ byte, n int, err error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	claimed := binary.BigEndian.Uint32(head[:])
	if uint64(claimed) > uint64(max) {
		return 0, 0, fmt.Errorf("%w: %d bytes claimed, at most %d", errFrame, claimed, max)
	}
	return head[4], int(claimed), nil
}

// readBody reads a body of n bytes into buf if it fits, else into memory that
// grows with what arrives, not with what was claimed.
func readBody(r io.Reader, n int, buf []byte) ([]byte, error) {
	b := buf
	if cap(b) >= n {
		b = b[:n]
	} else {
		b = make([]byte, min(n, stepBytes))
	}
	for got := 0; ; {
		if _, err := io.ReadFull(r, b[got:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if got = len(b); got == n {
			return b, nil
		}
		grown := make([]byte, min(n, 2*got))
		copy(grown, b)
		b = grown
	}
}

// readFrame reads a whole frame.
func readFrame(r io.Reader, max int, buf []byte) (typ byte, body []byte, err error) {
	typ, n, err := readHead(r, max)
	if err != nil {
		return 0, nil, err
	}
	body, err = readBody(r, n, buf)
	return typ, body, err
}

// appendOpen appends a whole open frame. timeout 0 means none.
func appendOpen(b []byte, method string, timeout time.Duration) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0)
	if timeout > 0 {
		timeout = max(timeout, time.Microsecond)
	}
	b = binary.AppendUvarint(b, uint64(timeout/time.Microsecond))
	b = append(b, method...)
	putHead(b[start:], frameOpen, len(b)-start-headBytes)
	return b
}

func decodeOpen(body []byte) (method string, timeout time.Duration, err error) {
	us, n := binary.Uvarint(body)
	if n <= 0 || len(body)-n > MethodBytesMax {
		return "", 0, fmt.Errorf("%w: open", errFrame)
	}
	us = min(us, math.MaxInt64/uint64(time.Microsecond))
	return string(body[n:]), time.Duration(us) * time.Microsecond, nil
}

// appendFailure appends a whole failure frame.
func appendFailure(b []byte, e *wire.Error) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, byte(e.Code))
	for _, v := range []int32{e.Primary, e.Extended, e.Offset} {
		b = binary.AppendVarint(b, int64(v))
	}
	for _, s := range []string{e.Msg, e.SQL, e.Detail} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	putHead(b[start:], frameFailure, len(b)-start-headBytes)
	return b
}

func decodeFailure(body []byte) (*wire.Error, error) {
	if len(body) == 0 {
		return nil, fmt.Errorf("%w: failure", errFrame)
	}
	e := &wire.Error{Code: wire.ErrorCode(body[0])}
	b := body[1:]
	for _, to := range []*int32{&e.Primary, &e.Extended, &e.Offset} {
		v, n := binary.Varint(b)
		if n <= 0 || v < math.MinInt32 || v > math.MaxInt32 {
			return nil, fmt.Errorf("%w: failure", errFrame)
		}
		*to, b = int32(v), b[n:]
	}
	for _, to := range []*string{&e.Msg, &e.SQL, &e.Detail} {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > uint64(len(b)-n) {
			return nil, fmt.Errorf("%w: failure", errFrame)
		}
		*to, b = string(b[n:n+int(v)]), b[n+int(v):]
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: failure", errFrame)
	}
	return e, nil
}
