package outbox

import (
	"encoding/binary"

	"github.com/mentasystems/colmena/internal/wire"
)

// A request frame is the tag of its first unit, then a wire.WriteRequest. One without units withdraws the unit of that tag. A response frame is a
// count, so many tags, then a wire.WriteResponse with as many results.

// maxFrameUnits bounds the units of one frame, and maxFrameBytes roughly its size unless it is one unit.
const (
	maxFrameUnits = 4096
	maxFrameBytes = 4 << 20
)

func appendRequest(b []byte, first uint64, req *wire.WriteRequest) []byte {
	return req.Append(binary.AppendUvarint(b, first))
}

// readRequest reads a request frame, which req aliases.
func readRequest(b []byte, req *wire.WriteRequest) (first uint64, err error) {
	first, k := binary.Uvarint(b)
	if k <= 0 {
		return 0, wire.ErrCorrupt
	}
	return first, req.Decode(b[k:])
}

func appendResponse(b []byte, tags []uint64, results []wire.UnitResult) []byte {
	b = binary.AppendUvarint(b, uint64(len(tags)))
	for _, t := range tags {
		b = binary.AppendUvarint(b, t)
	}
	resp := wire.WriteResponse{Results: results}
	return resp.Append(b)
}

// readResponse reads a response frame, as many tags as results.
func readResponse(b []byte) (tags []uint64, results []wire.UnitResult, err error) {
	count, k := binary.Uvarint(b)
	if k <= 0 || count > maxFrameUnits {
		return nil, nil, wire.ErrCorrupt
	}
	b = b[k:]
	tags = make([]uint64, count)
	for i := range tags {
		if tags[i], k = binary.Uvarint(b); k <= 0 {
			return nil, nil, wire.ErrCorrupt
		}
		b = b[k:]
	}
	var resp wire.WriteResponse
	if err := resp.Decode(b); err != nil {
		return nil, nil, err
	}
	if len(resp.Results) != len(tags) {
		return nil, nil, wire.ErrCorrupt
	}
	return tags, resp.Results, nil
}
