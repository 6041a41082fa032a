// Package rowstream has another node run a query and reads its rows as they come: one stream per query, a header and then chunks of rows, as fast
// as the reader takes them. Closing the rows ends the query over there. The other end sends what a source of rows holds.
package rowstream

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// Stream is what a query travels on: an rpc.Stream.
type Stream interface {
	Send(b []byte) error
	Recv() ([]byte, error) // io.EOF at the end; an error of the handler is a *wire.Error
	Close() error
}

// Broken makes the caller's error of a result that ended before its last row. node is the one that ran the query.
type Broken func(node string, err error) error

// Rows reads a stream of rows. One goroutine at a time may use it.
type Rows struct {
	st      Stream
	from    string
	ctx     context.Context
	cancel  context.CancelFunc
	broken  Broken
	columns []wire.Column
	chunk   wire.RowsChunk
	data    []byte
	left    int // rows of data
	row     []wire.Value
	err     error // what Next goes on returning
}

// Ask sends a query to a node and waits until its rows begin. open opens a stream that ends with its context. The error is rpc.ErrNotDelivered,
// rpc.ErrInterrupted, or a *wire.Error of the other side.
func Ask(ctx context.Context, open func(context.Context) (Stream, error), node string, req *wire.QueryRequest, broken Broken) (rows *Rows, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	st, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = st.Close()
		}
	}()
	if err := st.Send(req.Append(nil)); err != nil {
		return nil, fmt.Errorf("%w: %w", rpc.ErrInterrupted, err)
	}
	b, err := st.Recv()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: there is no answer", rpc.ErrInterrupted)
	}
	if err != nil {
		return nil, err
	}
	var head wire.RowsHeader
	if err := head.Decode(b); err != nil {
		return nil, err
	}
	if head.Err != nil {
		return nil, head.Err
	}
	return &Rows{st: st, from: node, ctx: ctx, cancel: cancel, broken: broken, columns: head.Columns, row: make([]wire.Value, len(head.Columns))}, nil
}

// Columns are the result's.
func (r *Rows) Columns() []wire.Column { return r.columns }

// Value is one of the present row, a view until the next Next.
func (r *Rows) Value(i int) wire.Value { return r.row[i] }

// Next goes to the next row and returns false at the end. After an error it goes on returning that. When the caller's context has ended, the
// error is the context's.
func (r *Rows) Next() (bool, error) {
	for r.left == 0 {
		if r.err != nil || r.chunk.Last && r.chunk.Err == nil {
			return false, r.err
		}
		if err := r.receive(); err != nil {
			r.err = r.ended(err)
		}
	}
	r.left--
	for i := range r.row {
		v, rest, err := wire.ReadValue(r.data)
		if err != nil {
			r.left, r.err = 0, r.ended(err)
			return false, r.err
		}
		r.row[i], r.data = v, rest
	}
	return true, nil
}

// receive takes the next chunk. The error that a chunk carries comes after its rows.
func (r *Rows) receive() error {
	if r.chunk.Err != nil {
		return r.chunk.Err
	}
	b, err := r.st.Recv()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	r.chunk = wire.RowsChunk{}
	if err := r.chunk.Decode(b); err != nil {
		return err
	}
	r.data, r.left = r.chunk.Data, r.chunk.N
	return nil
}

func (r *Rows) ended(err error) error {
	if ctx := r.ctx.Err(); ctx != nil {
		return ctx
	}
	return r.broken(r.from, err)
}

// Close ends the query, if it still runs.
func (r *Rows) Close() error {
	r.cancel()
	return r.st.Close()
}
