package wire

import "encoding/binary"

// MarkRequest asks the leader how far it has applied a database.
type MarkRequest struct {
	DB      string
	Term    uint64
	Confirm bool // the leader has its term confirmed by a majority first
}

// MarkResponse answers a MarkRequest.
type MarkResponse struct {
	Mark                Mark
	DBIncarnation, Term uint64
	Err                 *Error
}

// TermRequest asks a member whether its term is still Term.
type TermRequest struct{ Term uint64 }

// TermResponse answers a TermRequest.
type TermResponse struct {
	Term uint64
	OK   bool
}

// QueryRequest asks the leader to run a query and stream its rows: a RowsHeader, then RowsChunks.
type QueryRequest struct {
	DB        string
	Level     uint8 // consistency level
	Statement Statement
	Pre       PreState
	HasPre    bool  // without it Pre is not sent
	Timeout   int64 // milliseconds left, 0 none
}

// RowsHeader is the first frame of a row stream. It does not alias the frame.
type RowsHeader struct {
	Columns []Column
	Err     *Error // the query failed, no chunk follows
}

// RowsChunk is a following frame. Data holds N rows of as many values as the header has columns, to be read with ReadValue,
// and aliases the frame. Decode does not walk over the values: their reader does, and finds what is wrong with them.
type RowsChunk struct {
	N    int // never more than len(Data)
	Data []byte
	Last bool
	Err  *Error // the query failed after the rows of this chunk
}

const (
	flagOne = 1 << 0
	flagTwo = 1 << 1
)

// Append appends the encoded request to b.
func (r *MarkRequest) Append(b []byte) []byte {
	b = append(b, MsgMarkRequest, version, flagIf(r.Confirm, flagOne))
	b = appendString(b, r.DB)
	return binary.AppendUvarint(b, r.Term)
}

// Decode decodes a request. Nothing aliases b.
func (r *MarkRequest) Decode(b []byte) error {
	c, err := open(b, MsgMarkRequest, MaxFrameBytes)
	if err != nil {
		return err
	}
	r.Confirm = c.flags(flagOne) != 0
	r.DB = c.sameOrCopy(r.DB, "database name bytes", MaxNameBytes)
	r.Term = c.uvarint()
	return c.end()
}

// Append appends the encoded response to b.
func (r *MarkResponse) Append(b []byte) []byte {
	b = append(b, MsgMarkResponse, version, flagIf(r.Err != nil, flagOne))
	b = binary.AppendUvarint(b, r.Mark.Term)
	b = binary.AppendUvarint(b, r.Mark.Index)
	b = binary.AppendUvarint(b, r.DBIncarnation)
	b = binary.AppendUvarint(b, r.Term)
	if r.Err != nil {
		b = appendError(b, r.Err)
	}
	return b
}

// Decode decodes a response. Nothing aliases b.
func (r *MarkResponse) Decode(b []byte) error {
	c, err := open(b, MsgMarkResponse, MaxFrameBytes)
	if err != nil {
		return err
	}
	failed := c.flags(flagOne) != 0
	r.Mark = Mark{Term: c.uvarint(), Index: c.uvarint()}
	r.DBIncarnation = c.uvarint()
	r.Term = c.uvarint()
	r.Err = c.optionalError(failed)
	return c.end()
}

func (c *cursor) optionalError(present bool) *Error {
	if !present {
		return nil
	}
	return c.readError()
}

// Append appends the encoded request to b.
func (r *TermRequest) Append(b []byte) []byte {
	return binary.AppendUvarint(append(b, MsgTermRequest, version), r.Term)
}

// Decode decodes a request.
func (r *TermRequest) Decode(b []byte) error {
	c, err := open(b, MsgTermRequest, MaxFrameBytes)
	if err != nil {
		return err
	}
	r.Term = c.uvarint()
	return c.end()
}

// Append appends the encoded response to b.
func (r *TermResponse) Append(b []byte) []byte {
	b = append(b, MsgTermResponse, version, flagIf(r.OK, flagOne))
	return binary.AppendUvarint(b, r.Term)
}

// Decode decodes a response.
func (r *TermResponse) Decode(b []byte) error {
	c, err := open(b, MsgTermResponse, MaxFrameBytes)
	if err != nil {
		return err
	}
	r.OK = c.flags(flagOne) != 0
	r.Term = c.uvarint()
	return c.end()
}

// Append appends the encoded request to b.
func (r *QueryRequest) Append(b []byte) []byte {
	b = append(b, MsgQueryRequest, version, flagIf(r.HasPre, flagOne)|flagIf(r.Timeout != 0, flagTwo), r.Level)
	b = appendString(b, r.DB)
	if r.HasPre {
		b = appendPre(b, r.Pre)
	}
	if r.Timeout != 0 {
		b = binary.AppendVarint(b, r.Timeout)
	}
	b = appendString(b, r.Statement.SQL)
	return appendBytes(b, r.Statement.Args)
}

// Decode decodes a request. The statement aliases b; DB does not.
func (r *QueryRequest) Decode(b []byte) error {
	c, err := open(b, MsgQueryRequest, MaxFrameBytes)
	if err != nil {
		return err
	}
	flags := c.flags(flagOne | flagTwo)
	r.Level = c.byte()
	r.DB = c.sameOrCopy(r.DB, "database name bytes", MaxNameBytes)
	r.Pre, r.Timeout = PreState{}, 0
	if r.HasPre = flags&flagOne != 0; r.HasPre {
		r.Pre = c.readPre()
	}
	if flags&flagTwo != 0 {
		r.Timeout = c.varint()
	}
	r.Statement.SQL = c.text("statement bytes", MaxStatementBytes)
	r.Statement.Args = c.readArgs(r.Statement.SQL)
	return c.end()
}

// Append appends the encoded header to b.
func (r *RowsHeader) Append(b []byte) []byte {
	b = append(b, MsgRowsHeader, version, flagIf(r.Err != nil, flagOne))
	b = appendColumns(b, r.Columns)
	if r.Err != nil {
		b = appendError(b, r.Err)
	}
	return b
}

// Decode decodes a header. Nothing aliases b.
func (r *RowsHeader) Decode(b []byte) error {
	c, err := open(b, MsgRowsHeader, MaxFrameBytes)
	if err != nil {
		return err
	}
	failed := c.flags(flagOne) != 0
	r.Columns = c.readColumns()
	r.Err = c.optionalError(failed)
	return c.end()
}

// Append appends the encoded chunk to b.
func (r *RowsChunk) Append(b []byte) []byte {
	b = append(b, MsgRowsChunk, version, flagIf(r.Last, flagOne)|flagIf(r.Err != nil, flagTwo))
	b = binary.AppendUvarint(b, uint64(r.N))
	b = appendBytes(b, r.Data)
	if r.Err != nil {
		b = appendError(b, r.Err)
	}
	return b
}

// Decode decodes a chunk. Data aliases b.
func (r *RowsChunk) Decode(b []byte) error {
	c, err := open(b, MsgRowsChunk, MaxFrameBytes)
	if err != nil {
		return err
	}
	flags := c.flags(flagOne | flagTwo)
	n := c.uvarint()
	r.Data = c.bytes("row bytes", MaxFrameBytes)
	if n > uint64(len(r.Data)) {
		c.fail("more rows than bytes")
		n = 0
	}
	r.N, r.Last = int(n), flags&flagOne != 0
	r.Err = c.optionalError(flags&flagTwo != 0)
	return c.end()
}
