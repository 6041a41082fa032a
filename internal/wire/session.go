package wire

import "encoding/binary"

// What a SessionRequest asks for. They are never renumbered.
const (
	SessionBegin    uint8 = 1 // DB, the modes, Label and Pre are set
	SessionRun      uint8 = 2 // Statement, Pin and WantRows are set
	SessionCommit   uint8 = 3 // ID and Lowest are set
	SessionRollback uint8 = 4
	SessionCancel   uint8 = 5 // stop the statement that runs; it has no answer of its own
)

// SessionRequest is what the client of an interactive transaction asks of the leader. One stream carries one transaction: its
// requests are answered in order, each with a SessionResponse.
type SessionRequest struct {
	Kind              uint8
	DB                string
	Label             string // who it is, for those who wait for it
	ForeignKeys       bool
	RecursiveTriggers bool
	Pin               bool
	WantRows          bool
	Pre               PreState
	ID                RequestID
	Lowest            uint64
	Timeout           int64 // milliseconds left, 0 none
	Statement         Statement
}

// SessionResponse answers a SessionRequest.
type SessionResponse struct {
	State PreState // what the connection remembers now
	Rows  *Rows
	Mark  Mark // of the entry, after a commit
	Err   *Error
	Over  bool // the transaction has ended
}

const (
	sessionForeignKeys = 1 << iota
	sessionRecursive
	sessionPin
	sessionWantRows
	sessionEnd
)

// Append appends the encoded request to b.
func (r *SessionRequest) Append(b []byte) []byte {
	b = append(b, MsgSessionRequest, version, r.Kind,
		flagIf(r.ForeignKeys, sessionForeignKeys)|flagIf(r.RecursiveTriggers, sessionRecursive)|flagIf(r.Pin, sessionPin)|flagIf(r.WantRows, sessionWantRows))
	b = appendString(b, r.DB)
	b = appendString(b, r.Label)
	b = appendPre(b, r.Pre)
	b = binary.AppendUvarint(b, r.ID.Origin)
	b = binary.AppendUvarint(b, r.ID.Seq)
	b = binary.AppendUvarint(b, r.Lowest)
	b = binary.AppendVarint(b, r.Timeout)
	b = appendString(b, r.Statement.SQL)
	return appendBytes(b, r.Statement.Args)
}

// Decode decodes a request. The statement aliases b; the other texts do not.
func (r *SessionRequest) Decode(b []byte) error {
	c, err := open(b, MsgSessionRequest, MaxFrameBytes)
	if err != nil {
		return err
	}
	r.Kind = c.byte()
	flags := c.flags(sessionEnd - 1)
	r.ForeignKeys, r.RecursiveTriggers = flags&sessionForeignKeys != 0, flags&sessionRecursive != 0
	r.Pin, r.WantRows = flags&sessionPin != 0, flags&sessionWantRows != 0
	r.DB = c.sameOrCopy(r.DB, "database name bytes", MaxNameBytes)
	r.Label = c.sameOrCopy(r.Label, "label bytes", MaxAddrBytes)
	r.Pre = c.readPre()
	r.ID = RequestID{Origin: c.uvarint(), Seq: c.uvarint()}
	r.Lowest = c.uvarint()
	r.Timeout = c.varint()
	r.Statement.SQL = c.text("statement bytes", MaxStatementBytes)
	r.Statement.Args = c.readArgs(r.Statement.SQL)
	return c.end()
}

// Check reports what would make a decoder refuse the request.
func (r *SessionRequest) Check() error {
	if err := checkLimit("database name bytes", len(r.DB), MaxNameBytes); err != nil {
		return err
	}
	if err := checkLimit("label bytes", len(r.Label), MaxAddrBytes); err != nil {
		return err
	}
	return r.Statement.Check()
}

// Append appends the encoded response to b.
func (r *SessionResponse) Append(b []byte) []byte {
	b = append(b, MsgSessionResponse, version, flagIf(r.Rows != nil, 1<<0)|flagIf(r.Err != nil, 1<<1)|flagIf(r.Over, 1<<2))
	b = appendPre(b, r.State)
	b = binary.AppendUvarint(b, r.Mark.Term)
	b = binary.AppendUvarint(b, r.Mark.Index)
	if r.Rows != nil {
		var rows rowsCoder
		b = rows.append(b, r.Rows)
	}
	if r.Err != nil {
		b = appendError(b, r.Err)
	}
	return b
}

// Decode decodes a response. Data of rows aliases b.
func (r *SessionResponse) Decode(b []byte) error {
	c, err := open(b, MsgSessionResponse, MaxFrameBytes)
	if err != nil {
		return err
	}
	flags := c.flags(1<<3 - 1)
	r.Over = flags&(1<<2) != 0
	r.State = c.readPre()
	r.Mark = Mark{Term: c.uvarint(), Index: c.uvarint()}
	r.Rows = nil
	if flags&(1<<0) != 0 {
		var rows rowsCoder
		r.Rows = rows.read(&c)
	}
	r.Err = c.optionalError(flags&(1<<1) != 0)
	return c.end()
}

// Check reports what would make a decoder refuse the response.
func (r *SessionResponse) Check() error {
	if err := r.Rows.Check(); err != nil {
		return err
	}
	if r.Err != nil {
		if err := checkLimit("statement bytes in an error", len(r.Err.SQL), MaxStatementBytes); err != nil {
			return err
		}
	}
	return checkLimit("response bytes", headerOverhead+r.Rows.size()+r.Err.size(), MaxFrameBytes)
}
