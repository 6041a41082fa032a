package wire

import "fmt"

// Limits. Every decoder enforces them, and the Check methods tell a sender beforehand.
const (
	// MaxStatementBytes bounds the SQL text of a statement and its encoded arguments together.
	MaxStatementBytes = 16 << 20
	// MaxArgs bounds the arguments of one statement; it is SQLite's own default bound for parameters.
	MaxArgs = 32766
	// MaxUnitStatements bounds the statements of one unit: as many as an entry takes, so that a long transaction is bounded by
	// its bytes.
	MaxUnitStatements = MaxStatements
	// MaxUnits bounds the units of an entry or a request, the results of a response and the results stored in one blob.
	MaxUnits = 65536
	// MaxStatements bounds the statements of all units of one entry or request together, so that an entry of tiny statements
	// cannot take up many times its own size in memory.
	MaxStatements = 1 << 20
	// MaxEntryBytes bounds an encoded entry, checksum included.
	MaxEntryBytes = 64 << 20
	// MaxFrameBytes bounds every other message.
	MaxFrameBytes = 64 << 20
	// MaxHelloBytes bounds a Hello; five identifiers and an address fit.
	MaxHelloBytes = 4 << 10
	// MaxNameBytes bounds the name of a database.
	MaxNameBytes = 64
	// MaxIDBytes bounds the identifiers of clusters, nodes and incarnations.
	MaxIDBytes = 256
	// MaxAddrBytes bounds a network address.
	MaxAddrBytes = 512
	// MaxNeedsBytes bounds the list of functions and collations that a unit needs.
	MaxNeedsBytes = 128 << 10
	// MaxColumns bounds the columns of a row; it is the most that SQLite can be built for.
	MaxColumns = 32767
)

// Upper bounds of what the formats add to texts and arguments; see Size.
const (
	headerOverhead    = 128
	unitOverhead      = 80
	statementOverhead = 52
)

func checkLimit(what string, got, limit int) error {
	if got > limit {
		return &LimitError{What: what, Got: uint64(got), Max: uint64(limit)}
	}
	return nil
}

// Check reports what would make a decoder refuse the statement.
func (s *Statement) Check() error { return checkStatement(s.SQL, s.Args) }

func checkStatement(sql string, args Args) error {
	if err := checkLimit("statement bytes (SQL and arguments)", len(sql)+len(args), MaxStatementBytes); err != nil {
		return err
	}
	return args.Check()
}

// Size is an upper bound of the bytes that the unit takes in a request, or later in an entry.
func (u *Unit) Size() int {
	n := unitOverhead
	for i := range u.Statements {
		n += statementOverhead + len(u.Statements[i].SQL) + len(u.Statements[i].Args)
	}
	return n
}

// Check reports what would make a decoder refuse the unit, in a request of its own or in an entry of its own.
func (u *Unit) Check() error {
	if err := checkLimit("statements in a unit", len(u.Statements), MaxUnitStatements); err != nil {
		return err
	}
	for i := range u.Statements {
		if err := u.Statements[i].Check(); err != nil {
			return err
		}
	}
	return checkLimit("unit bytes", u.Size(), MaxEntryBytes-headerOverhead)
}

// Size is an upper bound of the bytes that the statement takes in an entry.
func (s *EntryStatement) Size() int { return statementOverhead + len(s.SQL) + len(s.Args) }

// Size is an upper bound of the bytes that the unit takes in an entry.
func (u *EntryUnit) Size() int {
	n := unitOverhead + len(u.Needs)
	for i := range u.Statements {
		n += statementOverhead + len(u.Statements[i].SQL) + len(u.Statements[i].Args)
	}
	return n
}

// Check reports what would make a decoder refuse the unit in an entry of its own.
func (u *EntryUnit) Check() error {
	if err := checkLimit("statements in a unit", len(u.Statements), MaxUnitStatements); err != nil {
		return err
	}
	for i := range u.Statements {
		if err := checkStatement(u.Statements[i].SQL, u.Statements[i].Args); err != nil {
			return err
		}
	}
	return checkLimit("unit bytes", u.Size(), MaxEntryBytes-headerOverhead)
}

// Check reports what would make a decoder refuse the request.
func (r *WriteRequest) Check() error {
	if err := checkLimit("database name bytes", len(r.DB), MaxNameBytes); err != nil {
		return err
	}
	if err := checkLimit("units in a request", len(r.Units), MaxUnits); err != nil {
		return err
	}
	size, statements := headerOverhead, 0
	for i := range r.Units {
		if err := r.Units[i].Check(); err != nil {
			return err
		}
		size += r.Units[i].Size()
		statements += len(r.Units[i].Statements)
	}
	if err := checkLimit("statements in a request", statements, MaxStatements); err != nil {
		return err
	}
	return checkLimit("request bytes", size, MaxFrameBytes)
}

// Check reports what would make a decoder refuse the request.
func (r *QueryRequest) Check() error {
	if err := checkLimit("database name bytes", len(r.DB), MaxNameBytes); err != nil {
		return err
	}
	return r.Statement.Check()
}

// Check reports what would make a decoder refuse the request.
func (r *MarkRequest) Check() error {
	return checkLimit("database name bytes", len(r.DB), MaxNameBytes)
}

// Check reports what would make a decoder refuse the greeting.
func (h *Hello) Check() error {
	for _, s := range []string{h.ClusterID, h.NodeID, h.Incarnation, h.WantNodeID, h.WantIncarnation} {
		if err := checkLimit("identifier bytes", len(s), MaxIDBytes); err != nil {
			return err
		}
	}
	return checkLimit("address bytes", len(h.Addr), MaxAddrBytes)
}

// Check reports what would make a decoder refuse the header.
func (r *RowsHeader) Check() error {
	if err := checkLimit("columns", len(r.Columns), MaxColumns); err != nil {
		return err
	}
	return checkLimit("header bytes", headerOverhead+columnsSize(r.Columns)+r.Err.size(), MaxFrameBytes)
}

// Check reports what would make a decoder refuse the chunk. It does not walk over the values.
func (r *RowsChunk) Check() error {
	if r.N < 0 || r.N > len(r.Data) {
		return fmt.Errorf("wire: %d bytes are not %d rows", len(r.Data), r.N)
	}
	return checkLimit("chunk bytes", headerOverhead+len(r.Data)+r.Err.size(), MaxFrameBytes)
}
