package rowstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/wire"
)

// pipe is a stream in memory that holds what was sent and gives what is to be received.
type pipe struct {
	sent     [][]byte
	incoming [][]byte
	end      error // after incoming
	sendErr  error
	closed   int
}

func (p *pipe) Send(b []byte) error {
	p.sent = append(p.sent, bytes.Clone(b))
	return p.sendErr
}

func (p *pipe) Recv() ([]byte, error) {
	if len(p.incoming) == 0 {
		return nil, p.end
	}
	b := p.incoming[0]
	p.incoming = p.incoming[1:]
	return b, nil
}

func (p *pipe) Close() error { p.closed++; return nil }

// table is a source of numbered rows that ends with an error.
type table struct {
	rows, at int
	pad      string
	err      error
}

func (s *table) Columns() []wire.Column {
	return []wire.Column{{Name: "n", DeclType: "INTEGER"}, {Name: "pad"}}
}

func (s *table) Next() (bool, error) {
	if s.at == s.rows {
		return false, s.err
	}
	s.at++
	return true, nil
}

func (s *table) Value(i int) wire.Value {
	if i == 0 {
		return wire.Int(int64(s.at))
	}
	return wire.Text(s.pad)
}

func toWire(err error) *wire.Error {
	if err == nil {
		return nil
	}
	return &wire.Error{Code: wire.ErrSQL, Msg: err.Error()}
}

func asBroken(node string, err error) error { return fmt.Errorf("broken by %s: %w", node, err) }

// sent is what a source sends.
func sent(t *testing.T, s *table) [][]byte {
	t.Helper()
	var p pipe
	if err := Send(&p, s, toWire); err != nil {
		t.Fatal(err)
	}
	return p.sent
}

// ask has the pipe answer.
func ask(ctx context.Context, p *pipe) (*Rows, error) {
	req := &wire.QueryRequest{DB: "db", Level: 2, Statement: wire.Statement{SQL: "SELECT 1", Args: wire.NewArgs(0).Args()}}
	return Ask(ctx, func(context.Context) (Stream, error) { return p, nil }, "other", req, asBroken)
}

func count(r *Rows) (n int, err error) {
	for {
		ok, err := r.Next()
		if !ok || err != nil {
			return n, err
		}
		n++
		if v := r.Value(0).Int64(); v != int64(n) {
			return n, fmt.Errorf("row %d says %d", n, v)
		}
	}
}

func TestRowsArriveInChunks(t *testing.T) {
	for _, rows := range []int{0, 1, 10_000} {
		p := &pipe{incoming: sent(t, &table{rows: rows, pad: "some more bytes"})}
		if rows > 1000 && len(p.incoming) < 3 {
			t.Errorf("%d rows in %d frames", rows, len(p.incoming))
		}
		for _, frame := range p.incoming {
			if len(frame) > chunkBytes+256 {
				t.Errorf("a frame of %d bytes", len(frame))
			}
		}
		r, err := ask(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if c := r.Columns(); len(c) != 2 || c[0].Name != "n" || c[0].DeclType != "INTEGER" {
			t.Errorf("columns are %v", c)
		}
		if n, err := count(r); n != rows || err != nil {
			t.Errorf("%d rows, %v; %d were sent", n, err, rows)
		}
		if ok, err := r.Next(); ok || err != nil {
			t.Errorf("after the end: %v, %v", ok, err)
		}
		if err := r.Close(); err != nil || p.closed != 1 {
			t.Errorf("closed %d times, %v", p.closed, err)
		}
		req, err := Receive(&pipe{incoming: p.sent})
		if err != nil || req.DB != "db" || req.Level != 2 || req.Statement.SQL != "SELECT 1" {
			t.Errorf("the query arrives as %+v, %v", req, err)
		}
	}
}

// The rows before an error are not lost, and the error stays.
func TestErrorComesAfterItsRows(t *testing.T) {
	p := &pipe{incoming: sent(t, &table{rows: 3, err: errors.New("no more")})}
	r, err := ask(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	n, err := count(r)
	var w *wire.Error
	if n != 3 || !errors.As(err, &w) || w.Msg != "no more" || err.Error() != asBroken("other", w).Error() {
		t.Errorf("%d rows, %v", n, err)
	}
	if ok, again := r.Next(); ok || again != err {
		t.Errorf("asked again: %v, %v", ok, again)
	}
}

// A stream that ends without its last chunk is no end of the result.
func TestCutStreamIsNoEnd(t *testing.T) {
	whole := sent(t, &table{rows: 20_000, pad: "x"})
	for _, end := range []error{io.EOF, rpc.ErrInterrupted} {
		p := &pipe{incoming: whole[:2], end: end}
		r, err := ask(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		want := end
		if end == io.EOF {
			want = io.ErrUnexpectedEOF
		}
		if n, err := count(r); n == 0 || n == 20_000 || !errors.Is(err, want) {
			t.Errorf("%d rows, %v", n, err)
		}
	}
}

func TestDamagedChunkIsAnError(t *testing.T) {
	head, chunk := wire.RowsHeader{Columns: make([]wire.Column, 2)}, wire.RowsChunk{N: 2, Data: wire.AppendValue(nil, wire.Int(1)), Last: true}
	p := &pipe{incoming: [][]byte{head.Append(nil), chunk.Append(nil)}}
	r, err := ask(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := count(r); n != 0 || err == nil {
		t.Errorf("%d rows, %v", n, err)
	}
	if n, err := count(r); n != 0 || err == nil {
		t.Errorf("asked again: %d rows, %v", n, err)
	}
}

// When the caller's context has ended, that is the error, whatever the stream says.
func TestEndOfTheContextIsTheError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := &pipe{incoming: sent(t, &table{rows: 3})[:1], end: rpc.ErrInterrupted}
	r, err := ask(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := r.Next(); err != context.Canceled {
		t.Error(err)
	}
}

// What fails before the first row leaves no stream open, and tells whether it is worth
// asking again.
func TestAskFails(t *testing.T) {
	refused := &pipe{}
	if err := Refuse(refused, &wire.Error{Code: wire.ErrBusy, Msg: "later"}); err != nil {
		t.Fatal(err)
	}
	closed := &wire.Error{Code: wire.ErrClosed}
	for name, c := range map[string]struct {
		p    *pipe
		want func(error) bool
	}{
		"not sent":  {&pipe{sendErr: errors.New("gone")}, func(err error) bool { return errors.Is(err, rpc.ErrInterrupted) }},
		"no answer": {&pipe{end: io.EOF}, func(err error) bool { return errors.Is(err, rpc.ErrInterrupted) }},
		"failed":    {&pipe{end: closed}, func(err error) bool { return errors.Is(err, closed) }},
		"refused":   {&pipe{incoming: refused.sent}, func(err error) bool { w, ok := err.(*wire.Error); return ok && w.Code == wire.ErrBusy }},
		"nonsense":  {&pipe{incoming: [][]byte{{1, 2, 3}}}, func(err error) bool { return err != nil }},
	} {
		if r, err := ask(t.Context(), c.p); r != nil || !c.want(err) || c.p.closed != 1 {
			t.Errorf("%s: %v, %v, closed %d times", name, r, err, c.p.closed)
		}
	}
	var held context.Context
	_, err := Ask(t.Context(), func(ctx context.Context) (Stream, error) { held = ctx; return nil, rpc.ErrNotDelivered }, "other", new(wire.QueryRequest), asBroken)
	if !errors.Is(err, rpc.ErrNotDelivered) || held.Err() == nil {
		t.Errorf("%v; the context goes on: %v", err, held.Err() == nil)
	}
}

// A sender whose reader has gone stops at once.
func TestSendStopsWhenNobodyReads(t *testing.T) {
	s := &table{rows: 1 << 30}
	gone := errors.New("gone")
	if err := Send(&pipe{sendErr: gone}, s, toWire); err != gone || s.at != 0 {
		t.Errorf("%v after %d rows", err, s.at)
	}
	if _, err := Receive(&pipe{end: gone}); err != gone {
		t.Error(err)
	}
	if _, err := Receive(&pipe{incoming: [][]byte{nil}}); err == nil {
		t.Error("nothing is no query")
	}
}
