package rowstream

import "github.com/mentasystems/colmena/internal/wire"

// chunkBytes is about how much of a result is sent, and held in memory, at a time.
const chunkBytes = 64 << 10

// Source is a result that is read row by row.
type Source interface {
	Columns() []wire.Column
	Next() (bool, error)    // false at the end
	Value(i int) wire.Value // a view, until the next Next
}

// Receive takes the query that came on a stream.
func Receive(st Stream) (*wire.QueryRequest, error) {
	b, err := st.Recv()
	if err != nil {
		return nil, err
	}
	req := new(wire.QueryRequest)
	return req, req.Decode(b)
}

// Refuse answers a query that failed before its first row.
func Refuse(st Stream, e *wire.Error) error {
	head := wire.RowsHeader{Err: e}
	return st.Send(head.Append(nil))
}

// Send answers a query with rows. An error of the source travels, as toWire has it, behind the rows before it.
func Send(st Stream, rows Source, toWire func(error) *wire.Error) error {
	head := wire.RowsHeader{Columns: rows.Columns()}
	if err := st.Send(head.Append(nil)); err != nil {
		return err
	}
	var data, frame []byte
	for {
		chunk := wire.RowsChunk{}
		data = data[:0]
		for len(data) < chunkBytes {
			ok, err := rows.Next()
			if err != nil || !ok {
				chunk.Last, chunk.Err = true, toWire(err)
				break
			}
			for i := range head.Columns {
				data = wire.AppendValue(data, rows.Value(i))
			}
			chunk.N++
		}
		chunk.Data = data
		frame = chunk.Append(frame[:0])
		if err := st.Send(frame); err != nil || chunk.Last {
			return err
		}
	}
}
